"""Search by a reranker alone, beside reranking what another search finds: recall of its best documents by pairs read.

    shortlist functions --sources standard-library --out work/test
    python benchmarks/cur.py --test work/test --work work/cur --out benchmarks/cur.md

The documents are few enough to read them all for every query, so that the reranker's best are known: an index of the
kind `cur` of all queries, which goes on where it was interrupted. Each half of the queries is searched with the other
half as anchors. Searches ask this table in place of the model; some are repeated with the model.
"""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measuring import conditions, publish, quiet, table

from shortlist import encode, index
from shortlist.data.collections import open_collection
from shortlist.data.figures import COLORS, write_svg
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.stores.vectors import VectorReader
from shortlist.index.bm25 import BM25Index
from shortlist.index.cur import CurSearch, SearchSpace
from shortlist.math.cur import AskScores, ItemsRead, Prior, read_in_rounds, spread_items
from shortlist.models.retriever import Retriever
from shortlist.rerankers.reranker import Reranker
from shortlist.settings.encode import Config as EncodeConfig

DEPTHS = (1, 10, 100)
SHOWN = (25, 50, 100, 150, 200, 300, 400, 500)
TARGETS = (0.5, 0.8, 0.9, 0.95)
REPEATED = 5
"""Queries that are searched with the model too."""
Reads = Callable[[int, int], np.ndarray]
"""Returns the positions that a method reads for a query, given the query's number and the budget of pairs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    test: Path
    """Collection of functions with the documents and the queries."""
    model: str = "shortlist-mini"
    """The reranker."""
    retriever: str = "shortlist-mini"
    work: Path
    """Folder for everything that is made."""
    words: int = 16
    """Words of a document that are kept, so that reading them all is quick."""
    docs: int = 1000
    queries: int = 100
    step: int = 25
    """Budgets are tried in steps of so many pairs."""
    out: Path | None = None
    """Markdown file to write too; the curves are written beside it as SVG."""


def prepare(config: Config) -> None:
    """Write the queries, and documents among which the relevant ones are."""
    test, folder = open_collection(config.test), config.work / "collection"
    queries = random.Random(0).sample(test.queries("test"), config.queries)
    qrels = {query.query_id: test.qrels("test")[query.query_id] for query in queries}
    corpus, wanted = list(test.corpus()), {doc_id for judged in qrels.values() for doc_id in judged}
    others = [document.doc_id for document in corpus if document.doc_id not in wanted]
    wanted |= {*random.Random(0).sample(others, config.docs - len(wanted))}
    first = [document._replace(text=" ".join(document.text.split()[: config.words])) for document in corpus]
    write_corpus(folder / "corpus.jsonl", [document for document in first if document.doc_id in wanted])
    write_queries(folder / "queries.jsonl", queries)
    write_qrels(folder / "qrels" / "test.tsv", qrels)


def scored(config: Config) -> np.ndarray:
    """Score all queries for all documents, or go on with it."""
    collection, out = config.work / "collection", config.work / "truth"
    how: dict[str, Any] = {"queries": collection / "queries.jsonl", "model": config.model, "out": out}
    index.run(index.Config(kind="cur", collection=str(collection), **how))
    return np.load(out / "scores.npy")


def read_by(plan: AskScores, scores: np.ndarray) -> ItemsRead:
    """Answer a search from a query's known scores."""
    answer: Any = None
    while True:
        try:
            answer = scores[plan.send(answer)]
        except StopIteration as done:
            return done.value


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the queries into two halves, as they come."""
    numbers = np.arange(count)
    return numbers[: count // 2], numbers[count // 2 :]


def anchors_of(query: int, truth: np.ndarray) -> np.ndarray:
    """Return the scores of the half without this query."""
    first, second = halves(len(truth))
    return truth[second if query in first else first]


def ranked(order: np.ndarray, query: int, budget: int) -> np.ndarray:
    """Read the first documents of a ranking."""
    return order[query, :budget]


def by_scores(truth: np.ndarray, share: float, rounds: int) -> Reads:
    """Read anchor documents, this share of the budget but no more than there are anchor queries, then in rounds."""
    chosen = {}

    def reads(query: int, budget: int) -> np.ndarray:
        scores = anchors_of(query, truth)
        count = max(1, min(len(scores), round(share * budget)))
        if (key := (query < len(truth) // 2, count)) not in chosen:
            chosen[key] = spread_items(scores, count)
        plan = read_in_rounds(scores, anchors=chosen[key], budget=budget, rounds=rounds)
        return read_by(plan, truth[query]).positions

    return reads


def by_vectors(items: np.ndarray, own: np.ndarray, truth: np.ndarray, share: float, rounds: int) -> Reads:
    """Read in rounds by vectors of the documents."""

    def reads(query: int, budget: int) -> np.ndarray:
        prior = Prior(own[query], share)
        plan = read_in_rounds(items, anchors=np.empty(0, np.int64), budget=budget, rounds=rounds, prior=prior)
        return read_by(plan, truth[query]).positions

    return reads


def recalls(reads: Reads, best: np.ndarray, budgets: Sequence[int]) -> dict[int, list[float]]:
    """Compute the share of each query's true k best that are read, by k, for each budget."""
    found: dict[int, list[float]] = {k: [] for k in DEPTHS}
    for budget in budgets:
        seen = [set(reads(query, budget).tolist()) for query in range(len(best))]
        for k in DEPTHS:
            found[k].append(float(np.mean([len(seen[q] & {*best[q, :k].tolist()}) / k for q in range(len(best))])))
    return found


def rankings(config: Config, doc_ids: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Rank all documents by BM25 and by a retriever; return its vectors of documents and queries too."""
    collection = open_collection(config.work / "collection")
    queries, place = collection.queries("test"), {doc_id: number for number, doc_id in enumerate(doc_ids)}
    with tempfile.TemporaryDirectory() as folder:
        built = BM25Index.build(collection.corpus(), analyser="code", folder=Path(folder))
        run = built.search(queries, len(doc_ids))
    words = np.array([filled([place[hit.doc_id] for hit in run[query.query_id]], len(doc_ids)) for query in queries])
    vectors = config.work / "vectors"
    encode.run(EncodeConfig(model=config.retriever, collection=str(config.work / "collection"), out=vectors))
    store = VectorReader(vectors)
    assert [*store.doc_ids] == [*doc_ids]
    items = store.take(np.arange(store.num_docs)).T
    own = Retriever.load(config.retriever).encode_queries(queries)
    return {"BM25": words, "dense": np.argsort(-(own @ items), axis=1, kind="stable")}, items, own


def filled(found: Sequence[int], count: int) -> list[int]:
    """Let the documents without a word of the query follow, in corpus order."""
    return [*found, *(place for place in range(count) if place not in {*found})]


def repeated(config: Config, truth: np.ndarray, *, budget: int, anchors: int, rounds: int) -> str:
    """Search with the model, and compare with the search of the table."""
    collection = open_collection(config.work / "collection")
    queries, scores = collection.queries("test")[:REPEATED], anchors_of(0, truth)
    documents = {document.doc_id: document for document in collection.corpus()}
    space = SearchSpace(scores, [*documents], spread_items(scores, anchors))
    stage = CurSearch(Reranker.load(config.model), space, budget=budget, rounds=rounds)
    start = time.process_time()
    run, _ = stage.search_by_reading(queries, budget, lambda doc_ids: {one: documents[one] for one in doc_ids})
    whole = time.process_time() - start
    start, same = time.process_time(), 0
    for number, query in enumerate(queries):
        plan = read_in_rounds(scores, anchors=space.anchors, budget=budget, rounds=rounds)
        read = {[*documents][place] for place in read_by(plan, truth[number]).positions.tolist()}
        same += read == {hit.doc_id for hit in run[query.query_id]}
    alone = time.process_time() - start
    return (
        f"- With the model in place of the table, {anchors} anchors, {rounds} rounds and a budget of {budget} read the "
        f"same documents for {same} of {REPEATED} queries. A query took {1000 * whole / REPEATED:,.0f} ms of processor "
        f"time, of which choosing what to read is {1000 * alone / REPEATED:,.0f} ms."
    )


def least(values: Sequence[float], budgets: Sequence[int], target: float) -> int | None:
    """Find the least budget that reaches a recall."""
    return next((budget for budget, value in zip(budgets, values, strict=True) if value >= target), None)


def draw(figure: Any, curves: dict[str, dict[int, list[float]]], budgets: Sequence[int]) -> None:
    """Draw recall by pairs read, a panel for each depth."""
    for number, (k, axes) in enumerate(zip(DEPTHS, figure.subplots(1, len(DEPTHS), sharey=True), strict=True)):
        for color, (name, found) in zip((*COLORS, "#000000", "#999999"), curves.items(), strict=False):
            style = "--" if name.startswith("rerank") else "-"
            axes.plot(budgets, found[k], style, color=color, linewidth=1.2, label=None if number else name)
        axes.set(title=f"recall@{k}", xlabel="pairs read for a query")
        axes.grid(color="#dddddd", linewidth=0.5)
    figure.legend(loc="outside upper center", frameon=False, ncols=3)


def run(config: Config) -> None:
    """Score, search in all ways, and publish the curves."""
    under = conditions(None)
    quiet()
    if not (config.work / "collection" / "qrels" / "test.tsv").exists():
        prepare(config)
    truth = scored(config)
    doc_ids = [document.doc_id for document in open_collection(config.work / "collection").corpus()]
    orders, items, own = rankings(config, doc_ids)
    best, anchor_pairs = np.argsort(-truth, axis=1, kind="stable"), anchors_of(0, truth).size
    ways: dict[str, tuple[Reads, int]] = {
        f"rerank {name}": (partial(ranked, order), 0) for name, order in orders.items()
    }
    ways["cur, 1 round (ANNCUR)"] = (by_scores(truth, 0.5, 1), anchor_pairs)
    ways["cur, 5 rounds (ADACUR)"] = (by_scores(truth, 0.2, 5), anchor_pairs)
    ways["cur, 10 rounds"] = (by_scores(truth, 0.1, 10), anchor_pairs)
    for share in (0.0, 0.5):
        ways[f"vectors, 5 rounds, prior {share:g} (AXN)"] = (by_vectors(items, own, truth, share, 5), 0)
    budgets = list(range(config.step, config.docs + 1, config.step))
    curves = {name: recalls(reads, best, budgets) for name, (reads, _) in ways.items()}
    spectrum = np.linalg.svd(truth.astype(np.float64) - truth.mean(), compute_uv=False)
    energy = np.cumsum(spectrum**2) / (spectrum**2).sum()
    ranks = ", ".join(f"{int((energy < part).sum()) + 1} for {part:.0%}" for part in (0.5, 0.9, 0.99))
    said = [
        f"- {config.docs:,} functions, of which {config.words} words are kept, and {config.queries} queries; each half "
        f"is searched with the other half as anchors, whose pairs are read once. Reranker {config.model}, dense "
        f"retriever {config.retriever}. The scores' singular values: {ranks} of their squares, mean left out.",
        repeated(config, truth, budget=200, anchors=40, rounds=5),
    ]
    sections = ["\n".join(said)]
    for k in DEPTHS:
        rows = [
            [name, f"{pairs:,}", *(f"{curves[name][k][budgets.index(b)]:.3f}" for b in SHOWN)]
            for name, (_, pairs) in ways.items()
        ]
        title = f"## Recall@{k} of the reranker's best of all documents, by pairs read for a query"
        sections.append(f"{title}\n\n{table(['', 'anchor pairs, once', *map(str, SHOWN)], rows)}")
    needed = {name: [least(found[100], budgets, target) for target in TARGETS] for name, found in curves.items()}
    rows = [
        [name, f"{ways[name][1]:,}"]
        + [
            "-" if count is None or base is None else f"{count:,} ({count / base:.2f})"
            for count, base in zip(counts, needed["rerank BM25"], strict=True)
        ]
        for name, counts in needed.items()
    ]
    sections.append(
        "## Pairs read for a query until recall@100 is reached\n\nIn brackets: as a part of those of `rerank BM25`.\n\n"
        + table(["", "anchor pairs, once", *(f"{target:g}" for target in TARGETS)], rows)
    )
    if config.out:
        write_svg(config.out.with_suffix(".svg"), partial(draw, curves=curves, budgets=budgets), width=960, height=420)
        sections.append(f"![Recall by pairs read]({config.out.with_suffix('.svg').name})")
    publish("Search by a reranker alone", under, sections, config.out)


if __name__ == "__main__":
    run(tyro.cli(Config))
