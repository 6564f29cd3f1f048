"""Stage `index`: read a corpus, or its vectors, once, so that search need not read all of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from shortlist.config import NotInJob, at_defaults
from shortlist.data.collections import open_collection
from shortlist.data.manifest import identity, start_job
from shortlist.errors import UserError, not_given
from shortlist.index.building import build_index, check_parameters_are_known
from shortlist.index.kinds import IndexKind, find_kind


@dataclass(frozen=True, kw_only=True)
class Config:
    out: NotInJob[Path]
    """Folder to write; for pgvector and lance it only says where the index is."""
    kind: str = "bm25"
    """bm25: words. Over vectors, exact: narrow (fewer bytes). Approximate, by FAISS: hnsw, ivf-flat, ivf-pq. In a
    database: pgvector (PostgreSQL), lance (LanceDB)."""
    collection: str | None = None
    """Folder, `irds:` or `hf:` name: what BM25 reads; for other kinds, where --check finds queries."""
    vectors: Path | None = None
    """Vectors from `shortlist encode`: what every kind but BM25 reads."""
    language: str = "english"
    """How BM25 cuts text into words: a language, `code` for source code, `whitespace` for text that is cut already."""
    k1: float = 0.9
    """How much a word's second occurrence in a document still counts in BM25 (0: nothing)."""
    b: float = 0.4
    """How much longer documents are held back by BM25 (0: not at all, 1: fully)."""
    dtype: Literal["int8", "bfloat16"] = "int8"
    """Number type that a narrow index scans."""
    set: tuple[str, ...] = ()
    """Parameters to choose instead of the automatic ones, as name=value: for hnsw links, construction, bits; for ivf
    lists, code_bytes; for both effort, refine, sample; for pgvector m, ef_construction; for lance see the guide."""
    exact: bool = False
    """pgvector, lance: no approximate index, every vector is compared."""
    dsn: str | None = None
    """pgvector: the database, postgresql://user@host/name; its password is better left to PGPASSWORD or ~/.pgpass."""
    uri: str | None = None
    """lance: a folder or s3://bucket/path; credentials are taken from the environment."""
    table: str = "vectors"
    """pgvector, lance: the table's name."""
    check: NotInJob[bool] = False
    """Compare the index with exact search: recall, speed, memory, disk."""
    model: NotInJob[str | None] = None
    """The retriever that made the vectors: --check embeds the queries of --collection with it."""
    split: NotInJob[str] = "test"
    """Which queries of the collection --check uses."""
    dry_run: NotInJob[bool] = False
    """Measure on a part of the input and print what the whole would take, instead of doing it."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def run(config: Config) -> None:
    """Build an index, and check it if asked."""
    kind, parameters = find_kind(config.kind), parse_parameters(config.set)
    check_parameters_are_known(config.kind, kind, parameters)
    settings = {name: getattr(config, name) for name in kind.settings} | parameters
    title = kind.title or config.kind
    if config.check and kind.reads == "corpus":
        why = "is exact" if kind.exact else "is not over vectors"
        raise UserError(f"--check compares an approximate index with exact search; {title} {why}.")
    source = _source(config, kind, title)
    if config.dry_run:
        from shortlist.index.forecast import forecast_index

        print(forecast_index(kind, source, settings))
        return
    kept = _to_be_kept(config)
    job = start_job(
        kept,
        stage="index",
        inputs=_inputs(kind, source),
        as_if=kept if kind.reads == "corpus" else at_defaults(kept, ("collection",)),
        folder=True,
        update=("vectors",) if kind.updates else (),
    )
    if not job.done:
        start = time.perf_counter()
        results = build_index(kind, source, job.out, settings)
        job.finish(**results, seconds=round(time.perf_counter() - start, 3))
    if config.check:
        from shortlist.index.check import check_index

        print(check_index(config.out, Path(source), config.model, config.collection, config.split))


def _source(config: Config, kind: IndexKind, title: str) -> str | Path:
    """What the index is made from, which must be there: a collection's name, or the folder of the vectors."""
    if kind.reads == "corpus":
        source, flag, why = config.collection, "--collection", f"{title} reads the documents' words"
    else:
        source, flag, why = config.vectors, "--vectors", f"{title} indexes the output of `shortlist encode`"
    if source is None:
        raise not_given(flag, why)
    return source


def _inputs(kind: IndexKind, source: str | Path) -> dict[str, str]:
    """The identity of what the index is made from."""
    if kind.reads == "corpus":
        return {"collection": open_collection(str(source)).identity("corpus")}
    return {"vectors": identity(source)}


def _to_be_kept(config: Config) -> Config:
    """The Config without what only its user may know."""
    if config.dsn is None:
        return config
    from shortlist.index.databases.postgres import without_password

    return replace(config, dsn=without_password(config.dsn))


def parse_parameters(items: Sequence[str]) -> dict[str, int]:
    """The values of `--set`.

    Raises:
        UserError: not of the form name=value, or not a whole number.
    """
    parameters: dict[str, int] = {}
    for item in items:
        name, _, value = item.partition("=")
        if not value.isdecimal():
            raise UserError(f"--set {item}: expected name=value with a whole number, such as links=48.")
        parameters[name] = int(value)
    return parameters
