"""Stage `index`: read a corpus, or its vectors, once, so that search need not read all of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from shortlist.config import NotInJob, at_defaults
from shortlist.data.collections import open_collection
from shortlist.data.manifest import identity, start_job
from shortlist.errors import UserError, unknown
from shortlist.progress import track

Kind = Literal["bm25", "narrow", "hnsw", "ivf-flat", "ivf-pq", "pgvector", "lance"]
IN_DATABASES = ("pgvector", "lance")
"""Kinds that hold the vectors themselves, and are brought up to date by loading what has changed."""


@dataclass(frozen=True, kw_only=True)
class Config:
    out: NotInJob[Path]
    """Folder to write; for pgvector and lance it only says where the index is."""
    kind: Kind = "bm25"
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
    parameters = parse_parameters(config)
    if config.kind == "bm25" and config.check:
        raise UserError("--check compares an approximate index with exact search; BM25 is exact.")
    if config.dry_run:
        from shortlist.index.forecast import forecast

        print(forecast(config, parameters))
        return
    kept = _to_be_kept(config)
    job = start_job(
        kept,
        stage="index",
        inputs=_inputs(config),
        as_if=kept if config.kind == "bm25" else at_defaults(kept, ("collection",)),
        folder=True,
        update=("vectors",) if config.kind in IN_DATABASES else (),
    )
    if not job.done:
        start = time.perf_counter()
        results = build(config, job.out, parameters)
        job.finish(**results, seconds=round(time.perf_counter() - start, 3))
    if config.check:
        from shortlist.index.check import check

        print(check(config))


def _inputs(config: Config) -> dict[str, str]:
    """What the index is made from, which must be there."""
    if config.kind == "bm25":
        collection = given(config.collection, "--collection", "BM25 reads the documents' words")
        return {"collection": open_collection(collection).identity("corpus")}
    vectors = given(config.vectors, "--vectors", f"{config.kind} indexes the output of `shortlist encode`")
    return {"vectors": identity(vectors)}


def _to_be_kept(config: Config) -> Config:
    """The Config without what only its user may know."""
    if config.dsn is None:
        return config
    from shortlist.index.databases.postgres import without_password

    return replace(config, dsn=without_password(config.dsn))


def parse_parameters(config: Config) -> dict[str, int]:
    """The values of `--set`.

    Raises:
        UserError: not of the form name=value, or not a whole number.
    """
    parameters: dict[str, int] = {}
    for item in config.set:
        name, _, value = item.partition("=")
        if not value.isdecimal():
            raise UserError(f"--set {item}: expected name=value with a whole number, such as links=48.")
        parameters[name] = int(value)
    return parameters


def build(config: Config, folder: Path, parameters: Mapping[str, int]) -> dict[str, Any]:
    """Write the index that a Config describes; returns what the manifest says of it."""
    if config.kind == "bm25":
        return _build_bm25(config, folder, parameters)
    from shortlist.index.kinds import build_index

    return build_index(config, folder, parameters)


def _build_bm25(config: Config, folder: Path, parameters: Mapping[str, int]) -> dict[str, Any]:
    # Its libraries load slowly, and dense search needs none of them.
    from shortlist.index.bm25 import BM25Index

    for name in parameters:
        raise unknown("parameter of a bm25 index", name, ())
    collection = open_collection(given(config.collection, "--collection", "BM25 reads the documents' words"))
    documents = track(collection.corpus(), "indexing", collection.num_docs(), "documents")
    index = BM25Index.build(documents, analyser=config.language, k1=config.k1, b=config.b, folder=folder)
    return {"num_docs": len(index)}


T = TypeVar("T")


def given(value: T | None, flag: str, why: str) -> T:
    """A setting that this kind of index needs; `why` goes into the error where it is not there."""
    if value is None:
        raise UserError(f"{flag} is missing: {why}.")
    return value
