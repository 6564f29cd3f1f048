"""How fast exact search is beside FAISS's exact index, and how much memory it takes where the store is too large.

    python benchmarks/search_speed.py --out benchmarks/search_speed.md

Made-up unit vectors: random ones, and clustered ones as texts are (2,000 topics, one after another, with half of their
variance). All sides find the k best for the same queries in one process, with the same threads, in turns. FAISS holds
the vectors in memory; shortlist reads its store from a temporary folder, all of it in the system's cache. For each
number of queries FAISS counts with the best of several settings; its defaults multiply few queries one by one and work
in small blocks. What is exact is computed in double precision.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
import tyro
from measuring import PACKAGES, conditions, in_a_process, peak_gib, publish, table, turns

from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.index.flat import FlatIndex
from shortlist.index.narrow import narrow
from shortlist.math.scoring import recall_at
from shortlist.progress import say

SHARD = 20_000
TOPICS = 2_000
PAUSE = 0.05
"""Seconds before every search, in which the threads of the one before it stop waiting for more work."""
THRESHOLD, BLOCK = "distance_compute_blas_threshold", "distance_compute_blas_database_bs"
SETTINGS = {"FAISS": {}, "FAISS blas": {THRESHOLD: 1}, "FAISS blas, large blocks": {THRESHOLD: 1, BLOCK: 8192}}
DEFAULTS = {name: getattr(faiss.cvar, name) for name in (THRESHOLD, BLOCK)}

Find = Callable[[np.ndarray], np.ndarray]
"""Queries [queries, dim] -> positions [queries, k], best first."""


@dataclass(frozen=True, kw_only=True)
class Config:
    sizes: tuple[tuple[int, int], ...] = ((1_000_000, 384), (200_000, 4096))
    """Vectors and their dimension, two tables each."""
    queries: tuple[int, ...] = (1, 10, 100)
    """Searched together."""
    k: int = 1000
    """Documents per query."""
    rounds: int = 9
    """Times every side runs after its warm-up."""
    bound_size: tuple[int, int] = (500_000, 1024)
    """Vectors and dimension of the store whose search may hold a quarter of it; 0 vectors leave this out."""
    out: Path | None = None
    """Markdown file to write too."""


def unit_vectors(num_docs: int, dim: int, *, clustered: bool, seed: int) -> Iterator[np.ndarray]:
    """The same made-up vectors every time, a shard at a time."""
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randn(TOPICS, dim, generator=torch.Generator().manual_seed(0))
    for start in range(0, num_docs, SHARD):
        rows = torch.randn(min(SHARD, num_docs - start), dim, generator=generator)
        if clustered:
            rows += topics[torch.arange(start, start + len(rows)) * TOPICS // num_docs]
        yield torch.nn.functional.normalize(rows, dim=1).numpy()


def write_store(folder: Path, num_docs: int, dim: int, *, clustered: bool = False) -> None:
    """Write the vectors as `shortlist encode` does."""
    writer = VectorWriter(folder, dim)
    for number, rows in enumerate(unit_vectors(num_docs, dim, clustered=clustered, seed=1)):
        writer.write_shard(number, [f"doc-{number * SHARD + row}" for row in range(len(rows))], rows)


def exact(vectors: VectorReader, queries: np.ndarray, k: int) -> torch.Tensor:
    """Positions of each query's k best, by the definition in double precision."""
    wide = torch.from_numpy(queries).double()
    best, positions = torch.empty(len(queries), 0).double(), torch.empty(len(queries), 0, dtype=torch.int64)
    for block in vectors.blocks(SHARD):
        best = torch.cat([best, wide @ block.vectors.double().T], dim=1)
        positions = torch.cat([positions, block.positions.expand(len(queries), -1)], dim=1)
        best, order = best.topk(min(k, best.shape[1]))
        positions = positions.gather(1, order)
    return positions


def faiss_side(index: "faiss.IndexFlatIP", settings: dict[str, int], k: int, queries: np.ndarray) -> np.ndarray:
    """Search with these settings and the defaults of all others."""
    for name, value in (DEFAULTS | settings).items():
        setattr(faiss.cvar, name, value)
    return index.search(queries, k)[1]


def our_side(index: FlatIndex, k: int, queries: np.ndarray) -> np.ndarray:
    return index.search_vectors(queries, k)[1]


def open_sides(folder: Path, vectors: VectorReader, k: int) -> dict[str, Find]:
    """Every way to search these vectors."""
    index = faiss.IndexFlatIP(vectors.dim)
    for block in vectors.blocks(SHARD):
        index.add(block.vectors.numpy())
    sides: dict[str, Find] = {name: partial(faiss_side, index, given, k) for name, given in SETTINGS.items()}
    sides["shortlist"] = partial(our_side, FlatIndex(vectors), k)
    for dtype in ("int8", "bfloat16"):
        narrow(vectors, folder / dtype, dtype)
        sides[f"shortlist {dtype}"] = partial(our_side, FlatIndex(vectors, scan=VectorReader(folder / dtype)), k)
    return sides


def compare(sides: dict[str, Find], queries: np.ndarray, expected: torch.Tensor, config: Config) -> list[list[str]]:
    """Rows of the table for one number of queries."""
    recalls = {name: recall_at(torch.from_numpy(find(queries)), expected, config.k) for name, find in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, turn in enumerate(turns(list(sides), config.rounds)):
        for name in turn:
            time.sleep(PAUSE)
            start = time.perf_counter()
            sides[name](queries)
            seconds[name].append(time.perf_counter() - start)
        say(f"{len(queries)} queries, round {number + 1}/{config.rounds}")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    tuned = min(medians[name] for name in SETTINGS)
    return [
        [
            f"{len(queries)}",
            name,
            f"{1000 * medians[name]:.1f}",
            f"{1000 * min(times):.1f}-{1000 * max(times):.1f}",
            f"{tuned / medians[name]:.2f}",
            f"{recalls[name]:.4f}",
        ]
        for name, times in seconds.items()
    ]


def speed(num_docs: int, dim: int, clustered: bool, config: Config) -> str:
    """One table: all sides over one store."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_store(folder / "vectors", num_docs, dim, clustered=clustered)
        vectors = VectorReader(folder / "vectors")
        queries = next(unit_vectors(num_docs, dim, clustered=clustered, seed=2))  # of the first topics
        queries = np.ascontiguousarray(queries[:: len(queries) // max(config.queries)])
        expected = exact(vectors, queries[: max(config.queries)], config.k)
        sides = open_sides(folder, vectors, config.k)
        rows = [row for count in config.queries for row in compare(sides, queries[:count], expected[:count], config)]
    columns = ["queries", "", "median ms", "fastest-slowest", "x the best FAISS", f"recall@{config.k}"]
    kind = "clustered" if clustered else "random"
    return f"## {num_docs:,} {kind} vectors of {dim}, k={config.k}\n\n{table(columns, rows)}"


def search_within(folder: Path, memory_gib: float, num_queries: int, k: int) -> tuple[float, float, float]:
    """Seconds of a search, and GiB that this process held at most before and after it."""
    vectors = VectorReader(folder)
    queries = next(unit_vectors(num_queries, vectors.dim, clustered=False, seed=3))
    index = FlatIndex(vectors, memory_gib=memory_gib)
    before, start = peak_gib(), time.perf_counter()
    index.search_vectors(queries, k)
    return time.perf_counter() - start, before, peak_gib()


def bound(config: Config) -> str:
    """Memory of searching a store that may be held, and one four times as large as what may be."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        write_store(Path(name), *config.bound_size)
        gib = VectorReader(Path(name)).num_bytes / 2**30
        for allowed in (2 * gib, gib / 4):
            for count in (1, 100):
                seconds, before, peak = in_a_process(search_within, Path(name), allowed, count, config.k)
                numbers = (gib, allowed, before, peak, peak - allowed, seconds)
                rows.append([str(count), *(f"{number:.2f}" for number in numbers)])
    columns = ["queries", "store GiB", "allowed GiB", "peak before GiB", "peak GiB", "above what is allowed", "s"]
    return f"## Memory of a process that searches once\n\n{table(columns, rows)}"


def main(config: Config) -> None:
    under = conditions(None, packages=(*PACKAGES[:1], "numpy", "faiss-cpu"))
    faiss.omp_set_num_threads(torch.get_num_threads())
    sections = [speed(*size, clustered, config) for size in config.sizes for clustered in (False, True)]
    if config.bound_size[0]:
        sections.append(bound(config))
    publish("Exact search, vectors to the k best", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
