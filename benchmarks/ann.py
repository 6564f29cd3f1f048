"""What each kind of approximate index finds and costs, beside exact search over the same store, in one process.

    shortlist encode --model all-MiniLM-L6-v2 --collection COLLECTION --out vectors
    python benchmarks/ann.py --vectors vectors --model all-MiniLM-L6-v2 --collection COLLECTION --out benchmarks/ann.md

Automatic parameters, all cores; queries as vectors, their embedding not counted. Leave the machine alone meanwhile.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from measuring import conditions, publish, quiet, table, turns

from shortlist.data.collections import open_collection
from shortlist.data.stores.vectors import VectorReader
from shortlist.index.ann import AnnIndex
from shortlist.index.flat import FlatIndex
from shortlist.index.parameters import NAMES, automatic, memory_and_disk
from shortlist.models.retriever import Retriever
from shortlist.progress import say

DEPTHS = (10, 100, 1000)
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Config:
    vectors: Path
    """Store from `shortlist encode`."""
    model: str
    """The retriever that made it."""
    collection: str
    """Where the queries are."""
    split: str = "test"
    """Which of them."""
    contract: str | None = None
    """Input contract, for a model folder that does not say its own."""
    kind: tuple[str, ...] = tuple(NAMES)
    """Kinds to measure."""
    rounds: int = 5
    """Times every search runs, after one run to warm up."""
    single: int = 50
    """Queries that are also searched one by one."""
    out: Path | None = None
    """Markdown file to write too."""


def recall(found: np.ndarray, best: np.ndarray) -> float:
    """The part of the best documents that were found."""
    return float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), best.tolist(), strict=True)]))


def milliseconds(search: Search, queries: np.ndarray, k: int, single: int) -> tuple[float, float]:
    """Per query: of all in one batch, and of the first ones alone."""
    start = time.perf_counter()
    search(queries, k)
    middle = time.perf_counter()
    for query in queries[:single]:
        search(query[None], k)
    return 1000 * (middle - start) / len(queries), 1000 * (time.perf_counter() - middle) / len(queries[:single])


def searches(config: Config, vectors: VectorReader, folder: Path) -> tuple[dict[str, Search], list[list[str]]]:
    """Exact search and each kind, and what each kind took to build."""
    found: dict[str, Search] = {"exact": FlatIndex(vectors).search_vectors}
    rows: list[list[str]] = []
    for kind in config.kind:
        parameters = automatic(kind, vectors.num_docs, vectors.dim)
        start = time.perf_counter()
        AnnIndex.build(vectors, folder / kind, kind=kind, parameters=parameters)
        seconds = time.perf_counter() - start
        index = AnnIndex.open(folder / kind, vectors)
        found[kind] = index.search_vectors
        foretold = memory_and_disk(kind, parameters, vectors.num_docs, vectors.dim, dtype=vectors.dtype)
        sizes = [f"{size / 2**20:,.1f}" for size in (index.ram_bytes, foretold.ram, index.disk_bytes, foretold.disk)]
        chosen = ", ".join(f"{name} {value:,}" for name, value in asdict(parameters).items() if value)
        rows.append([kind, f"{seconds:.1f}", *sizes, chosen])
        say(f"{kind}: built in {seconds:.1f} s")
    return found, rows


def compare(sides: dict[str, Search], queries: np.ndarray, k: int, config: Config) -> list[list[str]]:
    """A row for each side: recall, milliseconds per query of a batch and of one query, and exact search's over them."""
    best = sides["exact"](queries, k)[1]
    recalls = {name: recall(search(queries, k)[1], best) for name, search in sides.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in turns(list(sides), config.rounds):
        for name in turn:
            times[name].append(milliseconds(sides[name], queries, k, config.single))
    medians = {
        name: [statistics.median(column) for column in zip(*taken, strict=True)] for name, taken in times.items()
    }
    return [
        [str(k), name, f"{recalls[name]:.3f}"]
        + [f"{own:.2f} ({exact / own:.1f}x)" for own, exact in zip(medians[name], medians["exact"], strict=True)]
        for name in sides
    ]


def main(config: Config) -> None:
    quiet()
    under = conditions(None, packages=("torch", "faiss-cpu"))
    vectors, retriever = VectorReader(config.vectors), Retriever.load(config.model, contract=config.contract)
    queries = retriever.encode_queries(open_collection(config.collection).queries(config.split))
    with tempfile.TemporaryDirectory() as name:
        sides, built = searches(config, vectors, Path(name))
        rows = [row for k in DEPTHS for row in compare(sides, queries, k, config)]
    heads = ["", "built in s", "RAM MiB", "foretold", "disk MiB", "foretold", "parameters"]
    sections = [
        f"## {vectors.num_docs:,} documents x {vectors.dim}, {vectors.dtype}; {len(queries)} queries",
        table(["k", "", "recall", "ms/query in a batch (x exact)", "ms/query alone (x exact)"], rows),
        table(heads, built),
    ]
    publish("Approximate search", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
