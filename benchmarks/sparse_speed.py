"""How fast search by term weights is beside a loop in NumPy, Seismic and PISA.

    python benchmarks/sparse_speed.py --store work/terms --model work/splade --contract splade \\
        --collection my-data --out benchmarks/sparse_speed.md

Documents are resampled from the real ones of a term store: each is a real document of at least `--terms` terms, of
which so many are kept at random, each weight times exp(N(0, 0.1)); their order is random. Queries are the collection's,
by their 40 heaviest terms. All sides find the 10 best for the same queries, one query after another on one thread, in
turns. `numpy` adds each term's postings to an array of all scores and takes the best by `argpartition`. Recall is
against exact search; the scores of `shortlist seismic` are exact, those of `seismic` are its own. PISA, in an
environment of its own (`--pisa ENV/bin/python`), is exact over whole numbers up to 255, and
is given all queries at once.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measuring import Peer, conditions, publish, table, turns
from scipy.sparse import csr_array

from shortlist.data.collections import open_collection
from shortlist.data.files import folder_bytes
from shortlist.data.stores.terms import TermReader, TermWriter
from shortlist.index.building import build_index
from shortlist.index.kinds import INDEXES
from shortlist.index.protocols import Opening
from shortlist.math.heaviest import heaviest, some_texts
from shortlist.math.terms import TermWeights
from shortlist.models.sparse_retriever import SparseRetriever
from shortlist.progress import say

K = 10
SHARD = 100_000
QUERY_TERMS = 40
Find = Callable[[TermWeights], list[int]]
"""One query -> positions, best first."""


@dataclass(frozen=True, kw_only=True)
class Config:
    store: Path
    """Term store with the real documents."""
    model: str
    """Sparse model that made it."""
    collection: str
    """Collection with queries."""
    contract: str | None = None
    """The model's input contract, for a folder without one."""
    sizes: tuple[int, ...] = (100_000, 1_000_000)
    """Numbers of documents, a table each."""
    terms: int = 120
    """Terms of a document."""
    queries: int = 100
    """Most queries."""
    rounds: int = 5
    """Times every side runs."""
    seed: int = 0
    seismic: tuple[str, ...] = ()
    """Settings of Seismic to measure, as EFFORT-HEAP, such as 10-90 20-80; without any it is not built."""
    pisa: str | None = None
    """Python of an environment that has pyterrier-pisa, which is measured too."""
    out: Path | None = None
    """Markdown file to write too."""


def resampled(store: TermReader, num_docs: int, terms: int, seed: int) -> TermWeights:
    """Make documents of so many terms from the real ones."""
    random = np.random.default_rng(seed)
    sources = np.sort(random.choice(np.flatnonzero(store.counts >= terms), num_docs))
    real, first = store.take(np.unique(sources)), 0
    numbers, weights = np.empty((num_docs, terms), np.int32), np.empty((num_docs, terms), np.float32)
    for (known, heavy), copies in zip(real, np.unique(sources, return_counts=True)[1].tolist(), strict=True):
        keys = random.random((copies, len(known)), dtype=np.float32)
        kept = np.sort(np.argpartition(keys, terms - 1, axis=1)[:, :terms], axis=1)
        here, first = slice(first, first + copies), first + copies
        numbers[here], weights[here] = known[kept], heavy[kept]
    order = random.permutation(num_docs)
    numbers, weights = numbers[order], weights[order]
    weights *= np.exp(random.standard_normal(weights.shape, dtype=np.float32) * np.float32(0.1))
    return TermWeights(numbers.ravel(), weights.ravel(), np.full(num_docs, terms))


def write(folder: Path, documents: TermWeights, vocabulary: list[str]) -> TermReader:
    """Write a term store."""
    writer = TermWriter(folder, vocabulary)
    for number, first in enumerate(range(0, len(documents), SHARD)):
        some = some_texts(documents, first, first + SHARD)
        writer.write_shard(number, [str(first + place) for place in range(len(some))], some)
    return TermReader(folder)


def loop(documents: TermWeights, num_terms: int) -> Find:
    """The loop in NumPy over postings in memory."""
    ends = np.concatenate([[0], np.cumsum(documents.counts)])
    matrix: Any = csr_array((documents.weights, documents.terms, ends), shape=(len(documents), num_terms)).tocsc()
    starts, rows, weights = matrix.indptr.astype(np.int64), matrix.indices, matrix.data

    def find(query: TermWeights) -> list[int]:
        scores = np.zeros(len(documents), dtype=np.float32)
        for term, weight in zip(query.terms.tolist(), query.weights, strict=True):
            here = slice(starts[term], starts[term + 1])
            scores[rows[here]] += weights[here] * weight
        best = np.argpartition(scores, -K)[-K:]
        return best[np.argsort(-scores[best], kind="stable")].tolist()

    return find


def of_index(index: Any) -> Find:
    """Search with an index of ours."""
    return lambda query: index.search_terms(query, K)[1][0].tolist()


def of_seismic(index: Any, effort: int, heap: int) -> Find:
    """Search with Seismic alone."""

    def find(query: TermWeights) -> list[int]:
        found = index.search(
            query_id="",
            query_components=query.terms.astype("U100"),
            query_values=query.weights,
            k=K,
            query_cut=effort,
            heap_factor=heap / 100,
        )
        return [int(row) for _, _, row in found]

    return find


def recall(found: list[list[int]], exact: list[list[int]]) -> float:
    """The share of the 10 best that are found."""
    return statistics.mean(len({*some} & {*best}) / K for some, best in zip(found, exact, strict=True))


def open_pisa(python: str, folder: Path, documents: TermWeights, queries: TermWeights) -> Peer:
    """Start PISA in its own environment, with the documents and queries."""
    arrays = {"terms": documents.terms, "weights": documents.weights, "counts": documents.counts}
    arrays |= {"query_terms": queries.terms.reshape(len(queries), -1)}
    arrays |= {"query_weights": queries.weights.reshape(len(queries), -1)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return Peer(python, "sparse_peer.py", folder)


def measure(config: Config, store: TermReader, queries: TermWeights, num_docs: int, work: Path) -> str:
    """Build and time all sides over so many documents."""
    documents = resampled(store, num_docs, config.terms, config.seed)
    terms = write(work / "terms", documents, store.vocabulary)
    sides: dict[str, Find] = {"numpy": loop(documents, store.num_terms)}
    built: dict[str, tuple[float, int]] = {}

    def opened(kind: str, **how: Any) -> Any:
        start = time.process_time()
        if kind not in built:
            build_index(INDEXES[kind], terms.folder, work / kind, {})
            built[kind] = time.process_time() - start, folder_bytes(work / kind)
        return INDEXES[kind].open(work / kind, {}, Opening(vectors=terms.folder, **how))

    sides["shortlist sparse"] = of_index(opened("sparse"))
    for setting in config.seismic:
        effort, heap = map(int, setting.split("-"))
        ours = opened("seismic", effort=effort)
        ours.parameters["heap"] = heap
        sides[f"shortlist seismic {setting}"] = of_index(ours)
        sides[f"seismic {setting}"] = of_seismic(ours.engine, effort, heap)
    asked = [some_texts(queries, number, number + 1) for number in range(len(queries))]
    exact = [sides["shortlist sparse"](query) for query in asked]
    recalls = {name: recall([find(query) for query in asked], exact) for name, find in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    with ExitStack() as stack:
        together: dict[str, Callable[[], Any]] = {}
        if config.pisa:
            pisa = stack.enter_context(open_pisa(config.pisa, work, documents, queries))
            told = pisa.ask("build")
            built["PISA"] = told["cpu"], told["bytes"]
            together = {f"PISA {name}": partial(pisa.ask, f"search {name}") for name in told["settings"]}
        for order in turns(list(sides), config.rounds):
            for name in order:  # all queries of a side together, as a server has them: caches hold what it needs
                for query in asked:
                    start = time.perf_counter()
                    sides[name](query)
                    times[name].append(time.perf_counter() - start)
            for name, ask in together.items():
                answer = ask()
                times.setdefault(name, []).append(answer["seconds"] / len(asked))
                recalls[name] = recall(answer["found"], exact)
    medians = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
    rows = [
        [name, f"{median:.2f}", f"{medians['numpy'] / median:.2f}", f"{recalls[name]:.4f}"]
        for name, median in medians.items()
    ]
    costs = "; ".join(
        f"{kind}: {seconds:.1f} CPU s, {size / 2**20:,.0f} MiB" for kind, (seconds, size) in built.items()
    )
    heading = f"## {num_docs:,} documents of {config.terms} terms\n\n"
    return f"{heading}{table(['', 'median ms', 'x numpy', 'recall@10'], rows)}\n\nBuilt in: {costs}."


def main(config: Config) -> None:
    under = conditions(None)
    store = TermReader(config.store)
    model = SparseRetriever.load(config.model, contract=config.contract)
    found: Any = heaviest(model.encode_queries(open_collection(config.collection).queries("test")), QUERY_TERMS)
    whole = np.flatnonzero(found.counts >= QUERY_TERMS)[: config.queries]
    parts = [some_texts(found, number, number + 1) for number in whole.tolist()]
    queries = TermWeights(
        np.concatenate([part.terms for part in parts]),
        np.concatenate([part.weights for part in parts]),
        found.counts[whole],
    )
    sections = []
    for size in config.sizes:
        say(f"{size:,} documents")
        with tempfile.TemporaryDirectory() as work:
            sections.append(measure(config, store, queries, size, Path(work)))
    words = f"{under}\n- {len(queries)} queries of {QUERY_TERMS} terms, seed {config.seed}, k {K}"
    publish("Speed of search by term weights", words, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
