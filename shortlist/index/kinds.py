"""The kinds of index, each a few plain functions: what it is made from, how it is built, opened and foretold.

A kind's functions are in its own module, which is loaded when one of them is first called: FAISS, bm25s and the
databases take long to load, or are not there. No such module imports this one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shortlist.errors import unknown
from shortlist.index.protocols import Opening


def in_proportion(total: int, part: int) -> float:
    """How many times as long a document takes in the whole as in a part, where it takes as long: once."""
    del total, part
    return 1.0


class IndexKind(NamedTuple):
    """What the stage `index`, its check and its dry run, and whoever opens an index need to know of a kind."""

    reads: Literal["corpus", "vectors"]
    """What it is made from: the documents of `--collection`, or `--vectors` from `shortlist encode`."""
    build: Callable[..., Mapping[str, Any]]
    """Writes an index into a folder; returns what its manifest says of it, besides what is said of every kind.

    From a corpus: `build(documents, folder, **settings)`; what it returns has `num_docs`. From vectors:
    `build(reader, folder, advance=..., **settings)`; `advance` is told of documents that are done.
    """
    open: Callable[[Path, Mapping[str, Any], Opening], Any]
    """Opens a folder: `open(folder, built, how)`, where `built` is the Config in its manifest.

    Of a kind that reads vectors `how.vectors` says where they are now.
    """
    settings: tuple[str, ...] = ()
    """Fields of `index.Config` that `build` is given."""
    parameters: tuple[str, ...] = ()
    """Whole numbers that `--set` gives to `build`."""
    needs_model: bool = False
    """Whether what is opened is searched by what a model makes of queries, as a VectorIndex is; else by their text."""
    footprint: Callable[..., Any] | None = None
    """`footprint(reader, **settings)`: a `parameters.Footprint` (None: measured on a part, and multiplied)."""
    growth: Callable[[int, int], float] = in_proportion
    """`growth(total, part)`: how many times as long a document takes to index among `total` as among `part`."""
    exact: bool = False
    """Whether it finds the very documents that are best of all, so that it must hold just those there are."""
    updates: bool = False
    """Whether the same command brings it up to date at the price of the changes; others are built again."""
    outside: bool = False
    """Whether its folder only says where it is: in a database, which nothing may be tried out in."""
    title: str = ""
    """How sentences call it, where that is not its name in the table."""


def late(module: str, function: str, **settings: Any) -> Callable[..., Any]:
    """A function of a module of this room, with some arguments given, that is looked up when it is called."""
    return partial(_call, f"{__package__}.{module}", function, **settings)


def _call(module: str, function: str, /, *arguments: Any, **settings: Any) -> Any:
    return getattr(import_module(module), function)(*arguments, **settings)


def _approximate(kind: str, parameters: str) -> IndexKind:
    return IndexKind(
        reads="vectors",
        build=late("ann", "build_ann", kind=kind),
        open=late("ann", "open_ann"),
        parameters=("effort", "refine", "sample", *parameters.split()),
        needs_model=True,
        footprint=late("parameters", "ann_footprint", kind=kind),
        growth=late("parameters", "ann_growth", kind=kind),
    )


INDEXES: dict[str, IndexKind] = {
    "bm25": IndexKind(
        reads="corpus",
        build=late("bm25", "build_bm25"),
        open=late("bm25", "open_bm25"),
        settings=("language", "k1", "b"),
        exact=True,
        title="BM25",
    ),
    "narrow": IndexKind(
        reads="vectors",
        build=late("narrow", "build_narrow"),
        open=late("narrow", "open_narrow"),
        settings=("dtype",),
        needs_model=True,
        footprint=late("narrow", "narrow_footprint"),
        exact=True,
    ),
    "hnsw": _approximate("hnsw", "links construction bits"),
    "ivf-flat": _approximate("ivf-flat", "lists"),
    "ivf-pq": _approximate("ivf-pq", "lists code_bytes"),
    "pgvector": IndexKind(
        reads="vectors",
        build=late("databases.pgvector", "load_pgvector"),
        open=late("databases.pgvector", "open_pgvector"),
        settings=("dsn", "table", "exact"),
        parameters=("m", "ef_construction"),
        needs_model=True,
        footprint=late("parameters", "rows_footprint"),
        updates=True,
        outside=True,
    ),
    "lance": IndexKind(
        reads="vectors",
        build=late("databases.lance", "load_lance"),
        open=late("databases.lance", "open_lance"),
        settings=("uri", "table", "exact"),
        parameters=("partitions", "sub_vectors"),
        needs_model=True,
        footprint=late("parameters", "rows_footprint"),
        updates=True,
        outside=True,
    ),
}
"""By the name that `--kind` and an index's manifest call them."""


def find_kind(name: str) -> IndexKind:
    """The kind of that name.

    Raises:
        UserError: there is none.
    """
    if name not in INDEXES:
        raise unknown("kind of index", name, INDEXES)
    return INDEXES[name]
