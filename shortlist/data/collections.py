"""Collections by name: BEIR or MS MARCO folders, `irds:ID` and `hf:ID`.

ir_datasets reads `irds:` names, Hugging Face datasets reads `hf:` names. A collection streams its corpus, gives
documents by id, and holds queries and judgements by split.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from shortlist.data.beir import parts_of
from shortlist.data.checks import check_split, judged_queries, no_qrels, split_of
from shortlist.data.contents import digest
from shortlist.data.files import sha256
from shortlist.data.formats import read_corpus, read_qrels, read_queries, write_corpus
from shortlist.data.hub import HubCollection, IrdsCollection
from shortlist.data.layouts import find_files, the_one
from shortlist.data.lines import OnBad, count_lines, ignore
from shortlist.data.stored import store_queries, store_relevant
from shortlist.data.texts import Change, CorpusTexts
from shortlist.errors import UserError
from shortlist.records import Document, Qrels, Query


@runtime_checkable
class Collection(Protocol):
    """The interface of all collections.

    Splits are names such as `train`, `dev` and `test`.
    """

    name: str

    def corpus(self, on_bad: OnBad | None = None, *, allow_empty: bool = True) -> Iterator[Document]:
        """Stream the documents in corpus order.

        Args:
            on_bad: called with a message for each record that cannot be used (malformed, or with an id that occurred
                before); the record is left out. Without it the first such record is a UserError.
            allow_empty: False where a document with neither title nor text cannot be used.

        Raises:
            UserError: a record that cannot be used, without `on_bad`; no document at all.
        """
        ...

    def num_docs(self) -> int:
        """Count the records in the corpus without parsing them.

        Records that cannot be used are counted too.
        """
        ...

    def documents(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        """Return the documents with these ids.

        Raises:
            UserError: the corpus lacks one of the ids.
        """
        ...

    def missing(self, doc_ids: Iterable[str]) -> list[str]:
        """Return the ids that the corpus lacks, in the order asked."""
        ...

    def splits(self) -> list[str]:
        """List the splits that `queries` and `qrels` accept."""
        ...

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        """Return the queries of a split that have judgements, in file order.

        A split without judgements gives all of its queries.

        Args:
            on_bad: called with a message for each query that is judged but has no text, or cannot be read; it is left
                out. Without it the first such query is a UserError.
        """
        ...

    def qrels(self, split: str) -> Qrels:
        """Return the judgements of a split; a split without any is a UserError."""
        ...

    def identity(self, *parts: str) -> str:
        """Hash the contents of these parts: `corpus`, `queries`, `qrels/SPLIT`."""
        ...


def open_collection(name: str | Path) -> Collection:
    """Open a collection by the name it has on the command line.

    Raises:
        UserError: no such folder or id, a folder that holds no collection, a name of several collections (see
            `parts_of`), or the extra `hub` is not installed.
    """
    if not isinstance(name, str | Path):
        raise UserError(
            f"a collection is named by a folder, `irds:` or `hf:` name; found a {type(name).__name__}. Texts in memory "
            "are searched by Pipeline.from_texts."
        )
    name = str(name)
    if len(parts := parts_of(name)) > 1:
        raise UserError(
            f"{name}: is {len(parts)} collections, and its score is the mean of theirs; name one: {', '.join(parts)}."
        )
    kind, _, rest = name.partition(":")
    if kind == "irds":
        return IrdsCollection(rest)
    if kind == "hf":
        return HubCollection(rest)
    return FolderCollection(Path(name))


def check_collection(name: str) -> None:
    """Refuse a folder that holds no collection; names of the hub and of ir_datasets pass.

    Raises:
        UserError: as for `open_collection`.
    """
    if not name.startswith(("irds:", "hf:")):
        open_collection(name)


def copy_corpus(collection: Collection, path: Path) -> None:
    """Write the documents, or link to the file that has them."""
    file = Path(collection.name) / "corpus.jsonl"
    if not file.is_file():
        write_corpus(path, collection.corpus())
        return
    try:
        os.link(file, path)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, path)


@final
class FolderCollection:
    """A folder in BEIR or MS MARCO layout; any file may be gzipped.

    BEIR: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv. MS MARCO: collection.tsv or msmarco-docs.tsv, queries.SPLIT.tsv,
    qrels.SPLIT.tsv (.txt), and the names in `shortlist.data.layouts.MSMARCO`.
    """

    def __init__(self, folder: Path):
        self.name = str(folder)
        self._corpus, self._queries, self._qrels = find_files(folder)
        self._texts = CorpusTexts(self.name, self._corpus)

    def __repr__(self) -> str:
        return f"<collection {self.name}: {self.num_docs():,} documents; splits {', '.join(self.splits())}>"

    def corpus(self, on_bad: OnBad | None = None, *, allow_empty: bool = True) -> Iterator[Document]:
        return read_corpus(self._corpus, on_bad, allow_empty=allow_empty)

    @property
    def corpus_file(self) -> Path:
        """The file with the documents."""
        return self._corpus

    def num_docs(self) -> int:
        return count_lines(self._corpus)

    def documents(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        return self._texts.documents(doc_ids)

    def missing(self, doc_ids: Iterable[str]) -> list[str]:
        return self._texts.missing(doc_ids)

    def change(self) -> Change | None:
        """Return what has happened to the corpus since its documents were first asked for."""
        return self._texts.change()

    def splits(self) -> list[str]:
        return sorted(self._queries.keys() | self._qrels.keys())

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        path = self._queries_file(split)
        if split not in self._qrels:
            return read_queries(path, on_bad)
        queries = read_queries(path, None if on_bad is None else ignore)  # those that are judged are reported below
        return judged_queries(self.name, queries, self.qrels(split), on_bad)

    def stored_queries(self, split: str, on_bad: OnBad | None = None) -> Mapping[str, Query]:
        """Return all queries of a split's file by id; a plain file stays on disk."""
        path = self._queries_file(split)
        if path.suffix == ".gz":
            return {query.query_id: query for query in read_queries(path, on_bad)}
        return store_queries(path, on_bad)

    def stored_relevant(self, split: str, least: int) -> Mapping[str, frozenset[str]]:
        """Return each query's documents judged `least` or higher; a plain file stays on disk."""
        path = self._qrels_file(split)
        if path.suffix == ".gz":
            judged = read_qrels(path).items()
            return {query_id: frozenset(d for d, grade in row.items() if grade >= least) for query_id, row in judged}
        return store_relevant(path, least)

    def qrels(self, split: str) -> Qrels:
        check_split(self.name, split, self.splits())
        return read_qrels(self._qrels_file(split))

    def _queries_file(self, split: str) -> Path:
        check_split(self.name, split, self.splits())
        if split not in self._queries:
            raise UserError(f"{self.name}: split {split!r} has judgements but no queries; add queries.{split}.tsv.")
        return the_one(self._queries[split], f"the queries of split {split!r}")

    def _qrels_file(self, split: str) -> Path:
        if split not in self._qrels:
            raise no_qrels(self.name, split)
        return the_one(self._qrels[split], f"the judgements of split {split!r}")

    def identity(self, *parts: str) -> str:
        files = [path for part in parts for path in self._files(part)]
        return digest(files[0]) if len(files) == 1 else sha256(*files)  # the same; one that is remembered

    def _files(self, part: str) -> list[Path]:
        if part == "corpus":
            return [self._corpus]
        if part == "queries":
            return sorted({path for paths in self._queries.values() for path in paths})
        return [self._qrels_file(split_of(part))]
