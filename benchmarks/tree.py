"""A tree beside exact search: recall by documents read, time of a query, and calls of a walk, as documents grow.

    shortlist encode --model MODEL --collection COLLECTION --out work/vectors
    OMP_NUM_THREADS=1 python benchmarks/tree.py --vectors work/vectors --model MODEL --collection COLLECTION \
        --out benchmarks/tree.md

Nested random vectors lie in clusters of clusters, as texts have subjects and subjects of those; flat ones lie round
random centres, 50 to each, so that above these there is nothing for a tree to find. A search by vectors answers one
query at a time, as exact search does, the two in turn. The walk is led by an oracle, which grades each slate by exact
inner products and a shift of its own, as a language model might; its calls are slates.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import tyro
from measuring import conditions, publish, quiet, rounds_of, table

from shortlist.data.collections import open_collection
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.index.flat import FlatIndex
from shortlist.index.protocols import Opening
from shortlist.index.tree import TreeIndex, build_tree, open_tree_index
from shortlist.math.permutation import Question, run_plans
from shortlist.math.tree import walk_in_slates
from shortlist.models.retriever import Retriever

K = 10
BEAMS = (4, 16, 64, 256)
PER_CENTRE = 50
FAN, DECAY, FINEST = 16, 0.8, 0.5
"""Clusters in a cluster, how much farther apart the wider ones are, and how far documents are from their cluster."""
SHIFT = 0.1


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Numbers of random vectors."""
    dim: int = 256
    queries: int = 100
    walks: int = 20
    """Queries that an oracle walks for."""
    rounds: int = 5
    vectors: Path | None = None
    """A store from `shortlist encode`, to measure too."""
    model: str | None = None
    """The retriever that made it."""
    collection: str | None = None
    """Where its queries are, in the split test."""
    out: Path | None = None
    """Markdown file to write too."""


def flat_vectors(count: int, config: Config, rng: np.random.Generator) -> np.ndarray:
    """Draw vectors round random centres."""
    centres = rng.standard_normal((max(2, count // PER_CENTRE), config.dim)).astype(np.float32)
    rows = centres[rng.integers(len(centres), size=count + config.queries)]
    return rows + rng.standard_normal(rows.shape).astype(np.float32)


def nested_vectors(count: int, config: Config, rng: np.random.Generator) -> np.ndarray:
    """Draw vectors in clusters of clusters, each nearer to its own than these are to one another."""
    numbers, rows = rng.integers(count, size=count + config.queries), np.zeros(config.dim, dtype=np.float32)
    scale, size = 1.0, count
    while size > FAN:
        size = -(-size // FAN)
        numbers //= FAN
        rows = rows + scale * rng.standard_normal((size, config.dim)).astype(np.float32)[numbers]
        scale /= DECAY
    return rows + FINEST * rng.standard_normal((len(numbers), config.dim)).astype(np.float32)


DRAWS = {"nested": nested_vectors, "flat": flat_vectors}


def random_store(folder: Path, sort: str, count: int, config: Config) -> np.ndarray:
    """Write random unit vectors; returns queries of the same kind."""
    rows = DRAWS[sort](count, config, np.random.default_rng(count))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    VectorWriter(folder, config.dim).write_shard(0, [f"d{number}" for number in range(count)], rows[:count])
    return rows[count:]


def stores(config: Config, folder: Path) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Yield the name, folder and queries of each store."""
    for sort in DRAWS:
        for count in config.sizes:
            store = folder / f"{sort}-{count}"
            yield f"{sort} {count:,}", store, random_store(store, sort, count, config)
    if config.vectors and config.model and config.collection:
        queries = open_collection(config.collection).queries("test")[: config.queries]
        vectors = Retriever.load(config.model).encode_queries(queries)
        yield f"{Path(config.collection).name} {VectorReader(config.vectors).num_docs:,}", config.vectors, vectors


def by_vectors(name: str, tree: TreeIndex, flat: FlatIndex, queries: np.ndarray, rounds: int) -> list[list[str]]:
    """Measure recall, documents read and time for several beams."""
    best = [{hit.doc_id for hit in row} for row in flat.find(queries, K)]

    def alone(beam: int | None) -> None:
        for number in range(len(queries)):
            one = queries[number : number + 1]
            _ = flat.find(one, K) if beam is None else tree.find_among(one, K, beam=beam, allowed=None)

    sides = {"exact": lambda: alone(None)} | {f"{beam}": lambda beam=beam: alone(beam) for beam in BEAMS}
    milliseconds = {side: 1000 * median(seconds) / len(queries) for side, seconds in rounds_of(sides, rounds).items()}
    rows = []
    for beam in BEAMS:
        hits, read = tree.find_among(queries, K, beam=beam, allowed=None)
        recall = np.mean([len({hit.doc_id for hit in row} & own) / K for row, own in zip(hits, best, strict=True)])
        ratio = milliseconds[str(beam)] / milliseconds["exact"]
        times = [f"{milliseconds[str(beam)]:.2f}", f"{milliseconds['exact']:.2f}", f"{ratio:.2f}"]
        rows.append([name, str(beam), f"{recall:.3f}", f"{np.mean(read):,.0f}", *times])
    return rows


def by_oracle(name: str, tree: TreeIndex, queries: np.ndarray) -> list[str]:
    """Measure how many slates a walk shows before it sees the best document, and what it finds in 20 iterations."""
    shape = tree.tree
    rows = tree.vectors.take(np.arange(tree.vectors.num_docs))
    needed, recalls, read = [], [], []
    for number, query in enumerate(queries):
        exact, rng, shown = rows @ query, np.random.default_rng(number), list[Question]()
        best = np.argsort(-exact, kind="stable")[:K]
        first = int(np.flatnonzero(shape.leaves == best[0])[0]) + shape.num_inner

        def answer(
            asked: list[tuple[int, Question]],
            exact: np.ndarray = exact,
            query: np.ndarray = query,
            rng: np.random.Generator = rng,
            shown: list[Question] = shown,
        ) -> list[list[float]]:
            grades = []
            for _, nodes in asked:
                shift = rng.uniform(-SHIFT, SHIFT)
                of_nodes = [
                    exact[shape.leaves[n - shape.num_inner]] if n >= shape.num_inner else tree.centres[n] @ query
                    for n in nodes
                ]
                grades.append([float(score) + shift for score in of_nodes])
                shown.append(nodes)
            return grades

        [(_, walked)] = run_plans([walk_in_slates(shape, beam=2, iterations=20)], answer)
        needed.append(next((place + 1 for place, nodes in enumerate(shown) if first in nodes), None))
        recalls.append(len({*walked.positions[:K].tolist()} & {*best.tolist()}) / K)
        read.append(walked.num_read)
    found = [count for count in needed if count is not None]
    seen = f"{len(found) / len(needed):.0%}"
    calls = f"{np.mean(found):.1f}" if found else "-"
    return [name, str(int(shape.depths[-1])), calls, seen, f"{np.mean(recalls):.3f}", f"{np.mean(read):,.0f}"]


def main(config: Config) -> None:
    """Measure, and write the tables."""
    quiet()
    under = conditions(None)
    built, searched, walked = list[list[str]](), list[list[str]](), list[list[str]]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, store, queries in stores(config, folder):
            start = time.perf_counter()
            results = build_tree(VectorReader(store), folder / f"tree-{name}", advance=lambda amount=1, note="": None)
            seconds = time.perf_counter() - start
            tree = open_tree_index(folder / f"tree-{name}", {}, Opening(vectors=store))
            built.append([name, f"{seconds:.1f}", f"{results['num_nodes']:,}", str(results["depth"])])
            searched += by_vectors(name, tree, FlatIndex(VectorReader(store)), queries, config.rounds)
            walked.append(by_oracle(name, tree, queries[: config.walks]))
    sections = [
        "Building:\n\n" + table(["vectors", "seconds", "nodes", "depth"], built),
        "Search by vectors, one query at a time:\n\n"
        + table(["vectors", "beam", f"recall@{K}", "documents read", "ms", "exact ms", "ratio"], searched),
        f"Walks of 20 iterations with a beam of 2, graded with shifts of up to {SHIFT}:\n\n"
        + table(["vectors", "depth", "calls to the best document", "found it", f"recall@{K}", "texts shown"], walked),
    ]
    publish("A tree beside exact search", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
