"""Names of a collection's files: BEIR's layout, MS MARCO's, TREC's names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from shortlist.data.checks import ALL
from shortlist.data.manifest import described
from shortlist.errors import UserError


class Files(NamedTuple):
    """The files of a collection."""

    corpus: Path
    queries: dict[str, list[Path]]
    """Files by split; a split with more than one cannot be read."""
    qrels: dict[str, list[Path]]
    """Files by split, likewise."""


Names = Mapping[str, str]
"""Pattern of a file's name -> name of its split, in which `{}` stands for the pattern's group."""

OURS: tuple[Names, Names] = (
    {r"queries\.(.+)\.tsv": "{}", r"topics\.(.+)\.(?:tsv|txt)": "{}"},
    {r"qrels\.(.+)\.(?:tsv|txt)": "{}"},
)
"""Names of query and judgement files beside any corpus; the split is part of the name."""

MSMARCO: dict[str, tuple[Names, Names]] = {
    r"collection\.tsv": (
        {r"msmarco-test20(19|20)-queries\.tsv": "dl{}"},
        {r"20(19|20)qrels-pass\.txt": "dl{}"},
    ),
    r"msmarco-docs\.tsv": (
        {r"msmarco-doc(.+)-queries\.tsv": "{}", r"msmarco-test20(19|20)-queries\.tsv": "dl{}"},
        {r"msmarco-doc(.+)-qrels\.tsv": "{}", r"20(19|20)qrels-docs\.txt": "dl{}"},
    ),
    r"msmarco_v2_passage\.jsonl": (
        {r"passv2_(.+)_queries\.tsv": "{}", r"20(2\d)_queries\.tsv": "dl{}"},
        {r"passv2_(.+)_qrels\.tsv": "{}", r"20(21)\.qrels\.pass\.final\.txt": "dl{}"}
        | {r"20(22|23)\.qrels\.pass\.withDupes\.txt": "dl{}"},
    ),
    r"msmarco_v2_doc\.jsonl": (
        {r"docv2_(.+)_queries\.tsv": "{}", r"20(2\d)_queries\.tsv": "dl{}"},
        {r"docv2_(.+)_qrels\.tsv": "{}", r"20(21)\.qrels\.docs\.final\.txt": "dl{}"}
        | {r"20(22)\.qrels\.docs\.inferred\.txt": "dl{}", r"20(23)\.qrels\.docs\.withDupes\.txt": "dl{}"},
    ),
}
"""Name of a corpus -> names that MS MARCO and TREC's deep learning tracks give to its queries and judgements."""


def find_files(folder: Path) -> Files:
    """Find the files of a collection folder; any may be gzipped.

    Raises:
        UserError: no such folder, or one that holds no corpus.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such collection; expected a folder in BEIR or MS MARCO layout, irds:ID or hf:ID."
        )
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if corpus := _first(files, r"corpus\.jsonl"):
        qrels = _by_split(sorted(folder.glob("qrels/*")), {r"(.+)\.(?:tsv|txt)": "{}"})
        queries = _first(files, r"queries\.jsonl") or folder / "queries.jsonl"
        return Files(corpus, {split: [queries] for split in qrels or [ALL]}, qrels)
    for pattern, (queries, qrels) in MSMARCO.items():
        if corpus := _first(files, pattern):
            return Files(corpus, _by_split(files, {**OURS[0], **queries}), _by_split(files, {**OURS[1], **qrels}))
    raise _no_corpus(folder, files)


def _no_corpus(folder: Path, files: list[Path]) -> UserError:
    for kind in ("passage", "doc"):
        if any(folder.glob(f"msmarco_*{kind}_*.gz")) or any(folder.glob(f"msmarco_v2_{kind}/*.gz")):
            joined = f"msmarco_v2_{kind}.jsonl"
            return UserError(
                f"{folder}: holds MS MARCO v2 in many files; join them (`zcat *.gz > {joined}`), put queries and "
                f"judgements beside {joined}, and name that folder, or use irds:msmarco-{_IRDS[kind]}-v2."
            )
    if said := described(folder, wanted="convert"):
        return UserError(f"{folder}: is {said}; expected a collection: a folder with its corpus.")
    found = ", ".join(path.name for path in files[:5]) or "no files"
    return UserError(f"{folder}: holds no corpus.jsonl (BEIR), collection.tsv or msmarco-docs.tsv (found: {found}).")


_IRDS = {"passage": "passage", "doc": "document"}


def _first(files: list[Path], pattern: str) -> Path | None:
    found = [path for path in files if re.fullmatch(pattern, path.name.removesuffix(".gz"))]
    return the_one(found, "the collection") if found else None


def _by_split(files: list[Path], names: Names) -> dict[str, list[Path]]:
    """Return the files whose names match one of the patterns, by split."""
    found: dict[str, list[Path]] = {}
    for path in files:
        for pattern, name in names.items():
            if match := re.fullmatch(pattern, path.name.removesuffix(".gz")):
                found.setdefault(name.format(match[1]), []).append(path)
    return found


def the_one(paths: list[Path], of: str) -> Path:
    """Return the only one of some files.

    Raises:
        UserError: there are several, of which any could be meant.
    """
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise UserError(f"{paths[0].parent}: has {len(paths)} files for {of}, {names}; keep one of them there.")
    return paths[0]
