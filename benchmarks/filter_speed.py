"""How fast exact search among the documents that a filter allows is beside FAISS's with a selector of ids.

    python benchmarks/filter_speed.py --out benchmarks/filter_speed.md

Made-up random unit vectors, and random documents that are allowed. Both sides find the k best of them for the same
queries in one process, with the same threads, in turns; FAISS holds the vectors in memory and counts with the best of
its selectors. shortlist reads its store from a temporary folder: `first` is the first search of a filter, which finds
where its documents are and copies their vectors; `again` is every later one.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
import tyro
from measuring import PACKAGES, conditions, publish, table, turns
from search_speed import SHARD, unit_vectors, write_store

from shortlist.data.allowed import Allowed
from shortlist.data.stores.vectors import VectorReader
from shortlist.index.flat import FlatIndex
from shortlist.progress import say

PAUSE = 0.02
"""Seconds before every search, in which the threads of the one before it stop waiting for more work."""

Find = Callable[[np.ndarray], np.ndarray]
"""Queries [queries, dim] -> positions [queries, k], best first."""


@dataclass(frozen=True, kw_only=True)
class Config:
    size: tuple[int, int] = (1_000_000, 384)
    """Vectors and their dimension."""
    shares: tuple[float, ...] = (0.001, 0.01, 0.1, 0.5, 0.9)
    """Shares of documents that are allowed."""
    queries: tuple[int, ...] = (1, 100)
    """Searched together."""
    k: int = 100
    """Documents per query."""
    rounds: int = 7
    """Times every side runs after its warm-up."""
    out: Path | None = None
    """Markdown file to write too."""


def faiss_side(index: "faiss.IndexFlatIP", selector: "faiss.IDSelector", k: int, queries: np.ndarray) -> np.ndarray:
    """Search among the selected ids."""
    return index.search(queries, k, params=faiss.SearchParameters(sel=selector))[1]


def again(index: FlatIndex, allowed: Allowed, k: int, queries: np.ndarray) -> np.ndarray:
    """Search with a filter that was searched with before."""
    return index.search_vectors(queries, k, allowed=allowed)[1]


def first(index: FlatIndex, doc_ids: list[str], k: int, queries: np.ndarray) -> np.ndarray:
    """Search with a filter for the first time."""
    return index.search_vectors(queries, k, allowed=Allowed(doc_ids))[1]


def compare(sides: dict[str, Find], share: float, queries: np.ndarray, config: Config) -> list[list[str]]:
    """Rows of the table for one number of queries."""
    found = {name: find(queries) for name, find in sides.items()}
    agree = [np.mean(positions == found["FAISS bitmap"]) for positions in found.values()]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in turns(list(sides), config.rounds):
        for name in turn:
            time.sleep(PAUSE)
            start = time.perf_counter()
            sides[name](queries)
            seconds[name].append(time.perf_counter() - start)
    say(f"{share:.1%}, {len(queries)} queries")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min(median for name, median in medians.items() if name.startswith("FAISS"))
    return [
        [
            f"{share:.1%}",
            str(len(queries)),
            name,
            f"{1000 * medians[name]:.2f}",
            f"{1000 * min(times):.2f}-{1000 * max(times):.2f}",
            f"{best / medians[name]:.1f}",
            f"{same:.4f}",
        ]
        for (name, times), same in zip(seconds.items(), agree, strict=True)
    ]


def speed(config: Config) -> str:
    """The table."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        write_store(Path(name), *config.size)
        vectors = VectorReader(Path(name))
        theirs, ours = faiss.IndexFlatIP(vectors.dim), FlatIndex(vectors)
        for block in vectors.blocks(SHARD):
            theirs.add(block.vectors.numpy())
        queries = next(unit_vectors(*config.size, clustered=False, seed=2))[: max(config.queries)].copy()
        for share in config.shares:
            places = np.flatnonzero(np.random.default_rng(0).random(config.size[0]) < share)
            mask = np.zeros(config.size[0], dtype=bool)
            mask[places] = True
            bits, doc_ids = np.packbits(mask, bitorder="little"), vectors.doc_ids.take(places)
            sides: dict[str, Find] = {
                "FAISS bitmap": partial(faiss_side, theirs, faiss.IDSelectorBitmap(bits), config.k),
                "FAISS batch": partial(faiss_side, theirs, faiss.IDSelectorBatch(places), config.k),
                "shortlist, again": partial(again, ours, Allowed(doc_ids), config.k),
                "shortlist, first": partial(first, ours, doc_ids, config.k),
            }
            rows += [row for count in config.queries for row in compare(sides, share, queries[:count], config)]
    columns = ["allowed", "queries", "", "median ms", "fastest-slowest", "x the best FAISS", "same as FAISS"]
    return f"## {config.size[0]:,} vectors of {config.size[1]}, k={config.k}\n\n{table(columns, rows)}"


def main(config: Config) -> None:
    under = conditions(None, packages=(*PACKAGES[:1], "numpy", "faiss-cpu"))
    faiss.omp_set_num_threads(torch.get_num_threads())
    publish("Exact search among documents that a filter allows", under, [speed(config)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
