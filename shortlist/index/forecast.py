"""What building an index would take, by building it over a part: `shortlist index --dry-run`."""

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int

from shortlist.data.collections import open_collection
from shortlist.data.files import folder_bytes
from shortlist.data.vectors import DTYPES, VectorReader, VectorWriter
from shortlist.index import IN_DATABASES, Config, build, given
from shortlist.index.bm25 import BM25Index
from shortlist.index.parameters import Parameters, automatic, memory_and_disk
from shortlist.progress import duration, peak_bytes, size

MEASURED_SECONDS = 60
FIRST_DOCS = 10_000
"""Documents of the first measurement over words; each further one has twice as many."""
ROW_BYTES = 64
"""Of a database's row, besides its vector: a guess."""
PART_DOCS = 20_000
"""Vectors that an index is built over to see how long it takes."""


def forecast(config: Config, parameters: Mapping[str, int]) -> str:
    """Documents, disk, memory and time of building the index that a Config describes, one per line."""
    lines = _over_words(config) if config.kind == "bm25" else _over_vectors(config, parameters)
    return "\n".join(f"{name:10} {words}" for name, words in lines.items())


def _over_words(config: Config) -> dict[str, str]:
    collection = open_collection(given(config.collection, "--collection", "BM25 reads the documents' words"))
    total, count, seconds, disk, found = collection.num_docs(), FIRST_DOCS, 0.0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        while seconds < MEASURED_SECONDS / 4 and found < total:  # the next one takes twice as long
            start = time.perf_counter()
            documents = islice(collection.corpus(), count)
            folder = Path(name) / str(count)
            index = BM25Index.build(documents, analyser=config.language, k1=config.k1, b=config.b, folder=folder)
            seconds, disk, found = time.perf_counter() - start, folder_bytes(folder), len(index)
            count *= 2
    lines = _lines(total, disk * total / found, disk * total / found, seconds * total / found, measured=found)
    return lines | {"building": f"about {size(peak_bytes())} of memory"}


def _over_vectors(config: Config, parameters: Mapping[str, int]) -> dict[str, str]:
    vectors = VectorReader(given(config.vectors, "--vectors", f"{config.kind} indexes them"))
    total, dim = vectors.num_docs, vectors.dim
    if config.kind in IN_DATABASES:
        lines = _lines(total, total * (4 * dim + ROW_BYTES), 0, 0.0, measured=0)
        return lines | {"memory": "the database's own", "time": "not measured: that would write into the database"}
    part = np.linspace(0, total - 1, min(total, PART_DOCS)).astype(np.int64)
    seconds = _seconds(config, vectors, part)
    if config.kind == "narrow":
        scanned = total * dim * DTYPES[config.dtype].itemsize
        return _lines(total, scanned, scanned, seconds * total / len(part), measured=len(part))
    chosen = automatic(config.kind, total, dim, **parameters)
    sizes = memory_and_disk(config.kind, chosen, total, dim, dtype=vectors.dtype)
    times = total / len(part) * _growth(config.kind, total, len(part))
    lines = _lines(total, sizes.disk, sizes.ram, seconds * times, measured=len(part))
    return lines | {"building": f"about {size(sizes.building)} of memory", "parameters": _words(chosen)}


def _seconds(config: Config, vectors: VectorReader, part: Int[np.ndarray, " part"]) -> float:
    """How long an index over a part of the vectors takes to build."""
    with tempfile.TemporaryDirectory() as name:
        sample = Path(name) / "vectors"
        writer = VectorWriter(sample, vectors.dim)
        writer.write_shard(0, [str(position) for position in part], vectors.take(part))
        start = time.perf_counter()
        build(replace(config, vectors=sample, set=()), Path(name) / "index", {})
        return time.perf_counter() - start


def _growth(kind: str, total: int, part: int) -> float:
    """How many times as long a document takes in the whole: longer walks in a graph, more lists to compare with."""
    return math.log(max(total, 2)) / math.log(max(part, 2)) if kind == "hnsw" else math.sqrt(total / part)


def _lines(total: int, disk: int | float, ram: int | float, seconds: float, *, measured: int) -> dict[str, str]:
    return {
        "documents": f"{total:,}",
        "disk": f"about {size(disk)}",
        "memory": f"about {size(ram)} while searching",
        "time": f"about {duration(seconds)}, from building it over {measured:,} documents here",
    }


def _words(chosen: Parameters) -> str:
    return ", ".join(f"{name}={value}" for name, value in asdict(chosen).items() if value)
