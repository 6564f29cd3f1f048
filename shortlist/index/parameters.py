"""Parameters of approximate indexes by corpus size, and the memory and disk they need."""

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

from shortlist.data.stores.vectors import DTYPES, VectorReader
from shortlist.errors import UserError, unknown

BLOCK_BYTES = 1 << 27
"""Size of the vectors, as float32, that are in memory at a time while an index is built."""
SAMPLE_BYTES = 1 << 32
"""The largest training sample, as float32, unless a larger one is asked for."""
MOST_LISTS = 1 << 14
LEAST_PER_LIST = 39
"""The fewest training vectors per list for k-means (FAISS warns below it)."""
ROW_BYTES = 64
"""Bytes of a row in a database besides its vector, a guess."""
PQ_CENTROIDS = 256
SCALAR_BITS = {4: "QT_4bit", 6: "QT_6bit", 8: "QT_8bit", 16: "QT_fp16"}
"""FAISS's names for numbers of this many bits."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters for building and searching an index; see `automatic`.

    Parameters that the kind does not have are 0.
    """

    effort: int
    """hnsw: candidates kept while the graph is searched; ivf: lists read. More is slower and finds more."""
    refine: int
    """Candidates that are scored exactly, in multiples of k."""
    sample: int
    """The number of vectors that the compression or the lists are trained on."""
    links: int = 0
    """hnsw: neighbours of a document (twice as many on the lowest level); each link takes 8 bytes."""
    construction: int = 0
    """hnsw: candidates kept while a document is linked."""
    bits: int = 0
    """hnsw: bits per number of a vector, one of SCALAR_BITS."""
    lists: int = 0
    """ivf: the number of clusters of documents."""
    code_bytes: int = 0
    """ivf-pq: bytes per vector; must divide the dimension."""


NAMES: dict[str, tuple[str, ...]] = {
    "hnsw": ("effort", "refine", "sample", "links", "construction", "bits"),
    "ivf-flat": ("effort", "refine", "sample", "lists"),
    "ivf-pq": ("effort", "refine", "sample", "lists", "code_bytes"),
}


class Footprint(NamedTuple):
    """An estimate of the bytes that an index takes."""

    ram: int
    """RAM while the index is searched."""
    disk: int
    """Size of its files, without the store."""
    building: int = 0
    """RAM while it is built; 0 if there is no estimate."""
    parameters: str = ""
    """The parameters of the estimate, in words."""


def automatic(kind: str, num_docs: int, dim: int, **chosen: int | None) -> Parameters:
    """Choose the parameters for a corpus.

    In measurements they found 95% of the 10 and of the 100 best documents.

    Args:
        kind: a name in NAMES.
        num_docs: the number of documents.
        dim: numbers per vector.
        chosen: values to use for some of the Parameters (None: automatic). Parameters that depend on them follow.

    Raises:
        UserError: there is no such kind, it does not have such a parameter, or a value is not possible.
    """
    check_kind(kind)
    given = {name: value for name, value in chosen.items() if value is not None}
    for name, value in given.items():
        if name not in NAMES[kind]:
            raise unknown(f"parameter of an {kind} index", name, NAMES[kind])
        _check_positive(name, value)
    most = min(num_docs, max(SAMPLE_BYTES // (4 * dim), PQ_CENTROIDS))
    lists = given.get("lists") or max(1, min(round(4 * math.sqrt(num_docs)), most // LEAST_PER_LIST, MOST_LISTS))
    code_bytes = given.get("code_bytes", _code_bytes(dim))
    values = {
        "effort": 128 if kind == "hnsw" else min(lists, max(8, math.ceil(4 * math.sqrt(lists)))),
        "refine": {"hnsw": 2, "ivf-flat": 1, "ivf-pq": max(4, dim // code_bytes)}[kind],
        "sample": min(most, 1 << 16 if kind == "hnsw" else max(64 * lists, LEAST_PER_LIST * PQ_CENTROIDS)),
        "links": 32,
        "construction": 200,
        "bits": 8,
        "lists": lists,
        "code_bytes": code_bytes,
    }
    parameters = Parameters(**{name: values[name] for name in NAMES[kind]} | given)
    check_parameters(kind, parameters, num_docs, dim)
    return parameters


def _code_bytes(dim: int) -> int:
    """Choose one byte per 4 numbers, or per 8 in long, more redundant vectors."""
    most = max(1, dim // (4 if dim <= 1024 else 8))
    return next(size for size in range(most, 0, -1) if dim % size == 0)


def check_kind(kind: str) -> None:
    """Raise UserError if there is no such kind."""
    if kind not in NAMES:
        raise unknown("kind of approximate index", kind, NAMES)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} {value}: expected at least 1.")


def check_parameters(kind: str, parameters: Parameters, num_docs: int, dim: int) -> None:
    """Raise UserError if an index over this many documents cannot have these parameters."""
    for name in NAMES[kind]:
        _check_positive(name, getattr(parameters, name))
    if kind == "hnsw":
        if parameters.links < 2:
            raise UserError("links 1: expected at least 2, or the graph falls apart.")
        if parameters.bits not in SCALAR_BITS:
            raise UserError(f"bits {parameters.bits}: expected one of {', '.join(map(str, SCALAR_BITS))}.")
    elif parameters.lists > min(num_docs, parameters.sample):
        raise UserError(
            f"{parameters.lists:,} lists of {num_docs:,} documents, trained on a sample of {parameters.sample:,}: "
            "expected no more lists than either."
        )
    if kind == "ivf-pq" and dim % parameters.code_bytes:
        raise UserError(f"code_bytes {parameters.code_bytes}: does not divide the vectors' dimension, {dim}.")


def memory_and_disk(kind: str, parameters: Parameters, num_docs: int, dim: int, *, dtype: str = "float32") -> Footprint:
    """Estimate the memory and disk of an index of this many documents.

    hnsw needs dim * bits / 8 + 8 * links + about 25 bytes of RAM per document, and ivf-pq code_bytes + 8. ivf-flat
    needs a copy of the store and 8 bytes per document on disk. Both ivf kinds hold 4 * dim bytes per list in RAM.

    Args:
        dtype: the dtype of the store.
    """
    check_kind(kind)
    codebook = 4 * dim * (parameters.lists + (PQ_CENTROIDS if kind == "ivf-pq" else 0)) + 24 * parameters.lists
    training = 4 * dim * parameters.sample + 2 * BLOCK_BYTES
    if kind == "ivf-flat":
        stored = num_docs * (dim * DTYPES[dtype].itemsize + 8)
        return Footprint(codebook, codebook + stored, codebook + training + 16 * num_docs)
    if kind == "hnsw":
        upper = 4 * parameters.links / (parameters.links - 1)  # a level has 1/links of the documents below it
        per_document = math.ceil(dim * parameters.bits / 8) + 8 * parameters.links + upper + 20
    else:
        per_document = parameters.code_bytes + 8
    ram = codebook + round(num_docs * per_document)
    return Footprint(ram, ram, 2 * ram + training)  # lists that grow take up to twice their size


def ann_footprint(vectors: VectorReader, *, kind: str, **chosen: int) -> Footprint:
    """Estimate the memory and disk of an approximate index over a store.

    The estimate names the parameters that would be used.
    """
    parameters = automatic(kind, vectors.num_docs, vectors.dim, **chosen)
    taken = memory_and_disk(kind, parameters, vectors.num_docs, vectors.dim, dtype=vectors.dtype)
    words = ", ".join(f"{name}={value}" for name, value in asdict(parameters).items() if value)
    return taken._replace(parameters=words)


def ann_growth(total: int, part: int, *, kind: str) -> float:
    """Estimate how many times as long indexing a document takes among more documents.

    A larger graph has longer walks, and more lists mean more comparisons.
    """
    return math.log(max(total, 2)) / math.log(max(part, 2)) if kind == "hnsw" else math.sqrt(total / part)


def rows_footprint(vectors: VectorReader, **settings: object) -> Footprint:
    """Estimate the disk for the vectors of a store as rows of a database.

    The database manages its memory by itself, so RAM is 0.
    """
    del settings
    return Footprint(0, vectors.num_docs * (4 * vectors.dim + ROW_BYTES))
