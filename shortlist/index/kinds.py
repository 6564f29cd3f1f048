"""The kinds of index, each described by a few plain functions.

The functions of a kind build it, open it and forecast its cost. They are in a module of their own, which is loaded when
one of them is first called: FAISS, bm25s and the database libraries take long to load, or may not be installed. No such
module imports this one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shortlist.errors import unknown
from shortlist.index.protocols import Opening
from shortlist.late import late


def in_proportion(total: int, part: int) -> float:
    """Return 1: indexing a document takes as long among many as among few."""
    del total, part
    return 1.0


class IndexKind(NamedTuple):
    """Description of a kind of index, for building, checking, forecasting and opening it."""

    reads: Literal["corpus", "vectors"]
    """The input it is built from: the documents of `--collection`, or `--vectors` from `shortlist encode`."""
    build: Callable[..., Mapping[str, Any]]
    """Writes an index into a folder and returns results for its manifest, besides the ones that every kind has; and as
    `digests` the SHA-256 of files that are known from writing them.

    From a corpus: `build(documents, folder, **settings)`, whose results include `num_docs`; with `renew` also `keys`, a
    function that returns the documents' keys (`data.keyed`) once they are read. From vectors:
    `build(reader, folder, advance=..., **settings)`, where `advance` is called with the number of documents done.
    """
    open: Callable[[Path, Mapping[str, Any], Opening], Any]
    """Opens a folder: `open(folder, built, how)`, where `built` is the Config in its manifest.

    For a kind that reads vectors, `how.vectors` is where they are now.
    """
    over: tuple[str, ...] = ("vectors",)
    """The kinds of store that `--vectors` may be: one vector for each document, `tokens` or `terms`."""
    settings: tuple[str, ...] = ()
    """Fields of `index.Config` that are passed to `build`."""
    parameters: tuple[str, ...] = ()
    """Names of whole numbers that `--set` can pass to `build`."""
    searching: tuple[str, ...] = ()
    """The settings `effort` and `refine` of `Opening`, as far as a search has them."""
    needs_model: bool = False
    """Whether the opened index is a VectorIndex, searched by a model's output for the queries instead of their text."""
    footprint: Callable[..., Any] | None = None
    """`footprint(reader, **settings)`: returns a `parameters.Footprint` (None: it is extrapolated from a part)."""
    growth: Callable[[int, int], float] = in_proportion
    """`growth(total, part)`: the time to index a document among `total`, divided by the time among `part`."""
    exact: bool = False
    """Whether it finds exactly the best documents, so that it must hold exactly the documents of the source."""
    updates: bool = False
    """Whether running the same command again applies only the changes; other kinds are built again."""
    renew: Callable[..., Mapping[str, Any] | None] | None = None
    """`renew(corpus, folder, **settings)`: applies only the changes of a corpus (a `KeyedCorpus`) to an index; None
    where that cannot be, so that the index is built again."""
    renewed: tuple[str, ...] = ()
    """Patterns of the files that `renew` writes into the index's folder, besides those that `build` writes."""
    writes: tuple[str, ...] = ()
    """Patterns of the files of a kind whose `build` goes on from what an interrupted one has written; `build` gets the
    index's own folder then. The others write into an empty one, whose files move into the index at the end."""
    outdated: Callable[[Path], str | None] | None = None
    """`outdated(folder)`: says why this package or its libraries can no longer use an index (None: they can)."""
    needs: Mapping[str, str] = {}
    """Optional packages that it takes, and how pip installs each, by the name that it is imported by."""
    outside: bool = False
    """Whether the index is in a database, and its folder only records where. No trial index is built there."""
    scoring: Callable[..., Any] | None = None
    """`scoring(model=..., queries=...)`: opens what documents are scored by, whose `identities` are inputs of the job;
    `build` gets it as `scoring`, and the number of documents as `num_docs`."""
    writing: Callable[..., Any] | None = None
    """`writing(collection=..., writer=..., writer_name=..., writer_prompt=..., max_calls=...)`: opens the language
    model that writes texts, with `identities` as those of `scoring`, or gives None; `build` gets it as `writing`, and
    raises LimitReachedError where it may ask no more."""
    forecast: Callable[..., Mapping[str, str]] | None = None
    """`forecast(documents, **settings)`: foretells the cost in words (None: from building over a part)."""
    finder: str | None = None
    """The method of a step that alone can search it (None: any, by what it is over)."""
    title: str = ""
    """Its name in messages, if that differs from its name in `INDEXES`."""


def _approximate(kind: str, parameters: str) -> IndexKind:
    return IndexKind(
        reads="vectors",
        build=late("index.ann", "build_ann", kind=kind),
        open=late("index.ann", "open_ann"),
        parameters=("effort", "refine", "sample", *parameters.split()),
        searching=("effort", "refine"),
        needs_model=True,
        needs={"faiss": "faiss-cpu"},
        footprint=late("index.parameters", "ann_footprint", kind=kind),
        growth=late("index.parameters", "ann_growth", kind=kind),
    )


INDEXES: dict[str, IndexKind] = {
    "bm25": IndexKind(
        reads="corpus",
        build=late("index.bm25", "build_bm25"),
        open=late("index.bm25", "open_bm25"),
        settings=("language", "k1", "b"),
        exact=True,
        renew=late("index.bm25", "renew_bm25"),
        renewed=("update-*.npz",),
        outdated=late("index.bm25", "outdated"),
        title="BM25",
    ),
    "narrow": IndexKind(
        reads="vectors",
        over=("vectors", "tokens"),
        build=late("index.narrow", "build_narrow"),
        open=late("index.narrow", "open_narrow"),
        settings=("dtype",),
        writes=("shard-*",),
        needs_model=True,
        footprint=late("index.narrow", "narrow_footprint"),
        searching=("refine",),
        exact=True,
    ),
    "late": IndexKind(
        reads="vectors",
        over=("tokens",),
        build=late("index.encodings", "build_encodings"),
        open=late("index.encodings", "open_encodings"),
        parameters=("repetitions", "bits", "width", "effort", "refine"),
        searching=("effort", "refine"),
        writes=("shard-*", "index.json"),
        needs_model=True,
        footprint=late("index.encodings", "encodings_footprint"),
        updates=True,
    ),
    "late-centroids": IndexKind(
        reads="vectors",
        over=("tokens",),
        build=late("index.centroids", "build_centroids"),
        open=late("index.centroids", "open_centroids"),
        parameters=("centroids", "probes", "effort", "refine"),
        searching=("effort", "refine"),
        writes=("assigned-*.npy", "centroids.safetensors", "postings.npy", "starts.npy", "index.json"),
        needs_model=True,
        footprint=late("index.centroids", "centroids_footprint"),
        growth=late("index.parameters", "ann_growth", kind="ivf"),
        updates=True,
    ),
    "sparse": IndexKind(
        reads="vectors",
        over=("terms",),
        build=late("index.sparse", "build_sparse"),
        open=late("index.sparse", "open_segments"),
        writes=("segment-*", "index.json"),
        needs_model=True,
        footprint=late("index.sparse", "sparse_footprint"),
        exact=True,
        updates=True,
    ),
    "seismic": IndexKind(
        reads="vectors",
        over=("terms",),
        build=late("index.seismic", "build_seismic"),
        open=late("index.seismic", "open_seismic"),
        parameters=("postings", "clusters", "energy", "effort", "heap", "refine"),
        searching=("effort", "refine"),
        needs_model=True,
        needs={"seismic": "'shortlist[sparse]'"},
        title="Seismic",
    ),
    "hnsw": _approximate("hnsw", "links construction bits"),
    "ivf-flat": _approximate("ivf-flat", "lists"),
    "ivf-pq": _approximate("ivf-pq", "lists code_bytes"),
    "cur": IndexKind(
        reads="corpus",
        build=late("index.cur", "build_cur"),
        open=late("index.cur", "open_cur_index"),
        scoring=late("index.cur", "open_scoring"),
        forecast=late("index.cur", "forecast_cur"),
        finder="cur",
        writes=("scores-*.npy", "scores.npy", "doc_ids.txt", "index.json"),
    ),
    "tree": IndexKind(
        reads="vectors",
        build=late("index.tree", "build_tree"),
        open=late("index.tree", "open_tree_index"),
        writing=late("index.tree", "open_writing"),
        parameters=("branch", "effort", "seed"),
        searching=("effort",),
        writes=("tree.safetensors", "texts.jsonl", "answers.sqlite*", "index.json"),
        needs_model=True,
        footprint=late("index.tree", "tree_footprint"),
        growth=late("index.tree", "tree_growth"),
    ),
    "pgvector": IndexKind(
        reads="vectors",
        build=late("index.databases.pgvector", "load_pgvector"),
        open=late("index.databases.pgvector", "open_pgvector"),
        settings=("dsn", "table", "exact"),
        needs=dict.fromkeys(("psycopg", "pgvector"), "'shortlist[pgvector]'"),
        parameters=("m", "ef_construction"),
        searching=("effort",),
        needs_model=True,
        footprint=late("index.parameters", "rows_footprint"),
        updates=True,
        outside=True,
    ),
    "lance": IndexKind(
        reads="vectors",
        build=late("index.databases.lance", "load_lance"),
        open=late("index.databases.lance", "open_lance"),
        settings=("uri", "table", "exact"),
        needs={"lancedb": "'shortlist[lance]'"},
        parameters=("partitions", "sub_vectors"),
        searching=("effort", "refine"),
        needs_model=True,
        footprint=late("index.parameters", "rows_footprint"),
        updates=True,
        outside=True,
    ),
}
"""The kinds of index, by their names in `--kind` and in an index's manifest."""


def find_kind(name: str) -> IndexKind:
    """Return the kind of index with this name.

    Raises:
        UserError: there is no such kind.
    """
    if name not in INDEXES:
        raise unknown("kind of index", name, INDEXES)
    return INDEXES[name]
