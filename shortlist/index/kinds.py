"""The kinds of index over vectors: how each is built from a store, and opened again for searching."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortlist.data.manifest import identity, read_manifest
from shortlist.data.vectors import VectorReader
from shortlist.errors import UserError, unknown
from shortlist.index import IN_DATABASES, Config, given
from shortlist.index.ann import AnnIndex
from shortlist.index.flat import FlatIndex, narrow
from shortlist.index.parameters import automatic
from shortlist.index.protocols import VectorIndex
from shortlist.models.run import pick_device
from shortlist.progress import Advance, progress, say

REFINE = 2
"""Candidates of a narrow scan, in multiples of k."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to search an index over vectors; None leaves it to the kind."""

    vectors: Path | None = None
    """Where the vectors are, if not where they were when the index was built."""
    effort: int | None = None
    """What approximate search spends on a query: hnsw, candidates; ivf, lists."""
    refine: int | None = None
    """Candidates that are scored exactly, in multiples of k."""
    memory_gib: float | None = None
    """Most memory for vectors at a time."""


def build_index(config: Config, folder: Path, parameters: Mapping[str, int]) -> dict[str, Any]:
    """Build an index over vectors; returns what its manifest says of it.

    Raises:
        UserError: a parameter that the kind does not have, or what the kind itself refuses.
    """
    vectors = VectorReader(given(config.vectors, "--vectors", f"{config.kind} indexes them"))
    made = read_manifest(vectors.folder) or {}
    with progress("indexing", vectors.num_docs, "documents") as advance:
        if config.kind in IN_DATABASES:
            _load(config, vectors, parameters, advance)
        elif config.kind == "narrow":
            _refuse_others(config.kind, parameters, ())
            narrow(vectors, folder, config.dtype)
        else:
            chosen = automatic(config.kind, vectors.num_docs, vectors.dim, **parameters)
            AnnIndex.build(vectors, folder, kind=config.kind, parameters=chosen, advance=advance)
    model = made.get("made_from", {}).get("model")
    segments = {"segments": True} if holds_segments(vectors.folder) else {}
    return {"num_docs": vectors.num_docs, "dim": vectors.dim, "model": model, **segments}


def _load(config: Config, vectors: VectorReader, parameters: Mapping[str, Any], advance: Advance) -> VectorIndex:
    if config.kind == "pgvector":
        from shortlist.index.databases.pgvector import PgVectorIndex

        _refuse_others(config.kind, parameters, ("m", "ef_construction"))
        dsn = given(config.dsn, "--dsn", "it says which PostgreSQL database")
        return PgVectorIndex.load(
            vectors, dsn=dsn, table=config.table, approximate=not config.exact, advance=advance, **parameters
        )
    from shortlist.index.databases.lance import LanceIndex

    _refuse_others(config.kind, parameters, ("partitions", "sub_vectors"))
    uri = given(config.uri, "--uri", "it says where the LanceDB tables are")
    return LanceIndex.load(
        vectors, uri=uri, table=config.table, approximate=not config.exact, advance=advance, **parameters
    )


def _refuse_others(kind: str, parameters: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in parameters:
        if name not in known:
            raise unknown(f"parameter of a {kind} index", name, known)


def open_index(folder: Path, how: Opening | None = None) -> VectorIndex:
    """Open a finished index over vectors, saying so where they have changed since.

    Raises:
        UserError: it is not finished, its vectors are not there, or they are not those that it was built from.
    """
    how = how or Opening()
    identity(folder)  # refuses an unfinished one
    manifest = read_manifest(folder) or {}
    config = manifest["config"]
    store = how.vectors or Path(config["vectors"])
    older = store.exists() and identity(store) != manifest["made_from"]["vectors"]
    if older and config["kind"] == "narrow":
        raise UserError(f"{folder}: is older than {store}, whose documents it must hold exactly; build it again.")
    index = _open(folder, config, store, how)
    if older:
        missing = f"{index.missing:,} new documents are not in it; " if isinstance(index, AnnIndex) else ""
        say(f"{folder}: is older than {store}; {missing}`shortlist index` with the same settings brings it up to date.")
    return index


def _open(folder: Path, config: Mapping[str, Any], store: Path, how: Opening) -> VectorIndex:
    kind, approximate = config["kind"], not config["exact"]
    if kind == "pgvector":
        from shortlist.index.databases.pgvector import PgVectorIndex

        effort = {"ef_search": how.effort} if how.effort else {}
        return PgVectorIndex.open(dsn=config["dsn"], table=config["table"], approximate=approximate, **effort)
    if kind == "lance":
        from shortlist.index.databases.lance import LanceIndex

        asked = {"probes": how.effort, "refine": how.refine}
        chosen: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return LanceIndex.open(uri=config["uri"], table=config["table"], approximate=approximate, **chosen)
    if kind == "narrow":
        return exact_index(store, scan=folder, memory_gib=how.memory_gib, refine=how.refine or REFINE)
    return AnnIndex.open(folder, VectorReader(store), effort=how.effort, refine=how.refine)


def exact_index(
    vectors: Path, *, scan: Path | None = None, memory_gib: float | None = None, refine: int = REFINE
) -> FlatIndex:
    """Exact search over the vectors of a folder, on a GPU where there is one; arguments as of FlatIndex."""
    narrow_copy = VectorReader(scan) if scan else None
    return FlatIndex(
        VectorReader(vectors), scan=narrow_copy, memory_gib=memory_gib, device=pick_device(), refine=refine
    )


def made_by(folder: Path) -> str | None:
    """The identity of the model whose vectors a store, or an index over vectors, holds."""
    manifest = read_manifest(folder) or {}
    if manifest.get("stage") == "encode":
        return manifest["made_from"].get("model")
    return manifest.get("results", {}).get("model")


def holds_segments(folder: Path) -> bool:
    """Whether the vectors of a store, or those that an index was built over, are of segments."""
    manifest = read_manifest(folder) or {}
    if manifest.get("stage") == "encode":
        return manifest["config"].get("segments") == "maxp"
    return manifest.get("results", {}).get("segments", False)
