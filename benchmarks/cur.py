"""Search by a reranker alone, beside reranking what another search finds: recall of its best documents by pairs read.

    python benchmarks/cur.py --test ../shared/data/scifact --model work/reranker --retriever MINILM \
        --work work/cur --out benchmarks/cur.md

The documents are few enough to read them all for every query, so that the reranker's best are known: an index of the
kind `cur` of all queries, which goes on where it was interrupted. Anchors are queries of another split. Searches ask
this table in place of the model; some are repeated with the model.
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
from shortlist.index.cur import CurIndex, CurSearch, NearDocuments, space_by_ridge
from shortlist.math.cur import Prior, promise_by_inverse, spread_items
from shortlist.math.reading import AskScores, ItemsRead, Promise, read_in_rounds
from shortlist.math.ridge import Expectation
from shortlist.models.retriever import Retriever
from shortlist.rerankers.reranker import Reranker
from shortlist.settings.encode import Config as EncodeConfig

DEPTHS = (1, 10, 100)
SHOWN = (50, 100, 150, 200, 300, 400, 500)
ENOUGH = 0.995
"""Recall from which larger budgets are not tried."""
TARGETS = (0.5, 0.8, 0.9, 0.95)
ROUNDS = 5
NONE = np.empty(0, dtype=np.int64)
REPEATED = 5
"""Queries that are searched with the model too."""
Reads = Callable[[int, int], np.ndarray]
"""Returns the positions that a method reads for a query, given the query's number and the budget of pairs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    test: Path
    """Collection with the documents and the queries."""
    split: str = "test"
    """Split of the queries that are searched."""
    anchor_split: str = "train"
    """Split of the anchor queries."""
    model: str = "shortlist-mini"
    """The reranker."""
    retriever: str = "shortlist-mini"
    work: Path
    """Folder for everything that is made."""
    words: int = 24
    """Words of a document's text that are kept, so that reading them all is quick."""
    docs: int = 1000
    queries: int = 100
    anchors: int = 300
    """Anchor queries."""
    language: str = "english"
    """How BM25 splits texts into words."""
    step: int = 50
    """Budgets are tried in steps of so many pairs."""
    out: Path | None = None
    """Markdown file to write too; the curves are written beside it as SVG."""


def prepare(config: Config) -> None:
    """Write the queries, anchors behind them, and documents among which the relevant ones are."""
    test, folder = open_collection(config.test), config.work / "collection"
    queries = random.Random(0).sample(test.queries(config.split), config.queries)
    anchors = random.Random(0).sample(test.queries(config.anchor_split), config.anchors)
    qrels = {query.query_id: test.qrels(config.split)[query.query_id] for query in queries}
    corpus, wanted = list(test.corpus()), {doc_id for judged in qrels.values() for doc_id in judged}
    others = [document.doc_id for document in corpus if document.doc_id not in wanted]
    wanted |= {*random.Random(0).sample(others, config.docs - len(wanted))}
    first = [document._replace(text=" ".join(document.text.split()[: config.words])) for document in corpus]
    write_corpus(folder / "corpus.jsonl", [document for document in first if document.doc_id in wanted])
    write_queries(folder / "queries.jsonl", queries)
    write_queries(config.work / "all-queries.jsonl", [*queries, *anchors])
    write_qrels(folder / "qrels" / "test.tsv", qrels)


def scored(config: Config) -> np.ndarray:
    """Score all queries for all documents, or go on with it."""
    collection, out = config.work / "collection", config.work / "truth"
    how: dict[str, Any] = {"queries": config.work / "all-queries.jsonl", "model": config.model, "out": out}
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


def ranked(order: np.ndarray, query: int, budget: int) -> np.ndarray:
    """Read the first documents of a ranking."""
    return order[query, :budget]


def by_inverse(anchors: np.ndarray, truth: np.ndarray, share: float, rounds: int) -> Reads:
    """Read anchor documents, this share of the budget but no more than there are anchor queries, then in rounds."""
    chosen, promise = {}, promise_by_inverse(anchors)

    def reads(query: int, budget: int) -> np.ndarray:
        count = max(1, min(len(anchors), round(share * budget)))
        if count not in chosen:
            chosen[count] = spread_items(anchors, count)
        plan = read_in_rounds(promise, anchors.shape[1], first=chosen[count], budget=budget, rounds=rounds)
        return read_by(plan, truth[query]).positions

    return reads


def by_promises(promises: Sequence[Promise], truth: np.ndarray, rounds: int) -> Reads:
    """Read in rounds what each query's promise says."""

    def reads(query: int, budget: int) -> np.ndarray:
        plan = read_in_rounds(promises[query], truth.shape[1], first=NONE, budget=budget, rounds=rounds)
        return read_by(plan, truth[query]).positions

    return reads


def recalls(reads: Reads, best: np.ndarray, budgets: Sequence[int]) -> dict[int, list[float]]:
    """Compute the share of each query's true k best that are read, by k, for each budget."""
    found: dict[int, list[float]] = {k: [] for k in DEPTHS}
    for budget in budgets:
        if found[1] and min(found[k][-1] for k in DEPTHS) >= ENOUGH:
            for values in found.values():
                values.append(values[-1])
            continue
        seen = [set(reads(query, budget).tolist()) for query in range(len(best))]
        for k in DEPTHS:
            found[k].append(float(np.mean([len(seen[q] & {*best[q, :k].tolist()}) / k for q in range(len(best))])))
    return found


def rankings(config: Config, doc_ids: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Rank all documents by BM25 and by a retriever; return its vectors of documents and queries too."""
    collection = open_collection(config.work / "collection")
    queries, place = collection.queries("test"), {doc_id: number for number, doc_id in enumerate(doc_ids)}
    with tempfile.TemporaryDirectory() as folder:
        built = BM25Index.build(collection.corpus(), analyser=config.language, folder=Path(folder))
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


def repeated(config: Config, truth: np.ndarray, anchors: np.ndarray, near: NearDocuments, *, budget: int) -> str:
    """Search with the model, and compare with the search of the table."""
    collection = open_collection(config.work / "collection")
    queries = collection.queries("test")[:REPEATED]
    documents = {document.doc_id: document for document in collection.corpus()}
    space = space_by_ridge(CurIndex(anchors, near.doc_ids), near)
    stage = CurSearch(Reranker.load(config.model), space, budget=budget, rounds=ROUNDS)
    start = time.process_time()
    run, _ = stage.search_by_reading(
        queries, budget, lambda doc_ids, query_id=None: {one: documents[one] for one in doc_ids}
    )
    whole = time.process_time() - start
    promises = space.promises(queries)
    start, same = time.process_time(), 0
    for number, query in enumerate(queries):
        read = by_promises(promises, truth, ROUNDS)(number, budget).tolist()
        same += {near.doc_ids[place] for place in read} == {hit.doc_id for hit in run[query.query_id]}
    alone = time.process_time() - start
    return (
        f"- With the model in place of the table, the ridge regression over both with {ROUNDS} rounds and a budget of "
        f"{budget} reads the same documents for {same} of {REPEATED} queries. A query took "
        f"{1000 * whole / REPEATED:,.0f} ms of processor time, of which choosing what to read is "
        f"{1000 * alone / REPEATED:,.0f} ms."
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
    every = scored(config)
    truth, anchors = every[: config.queries], every[config.queries :]
    doc_ids = [document.doc_id for document in open_collection(config.work / "collection").corpus()]
    orders, items, own = rankings(config, doc_ids)
    near = NearDocuments(doc_ids, items, Retriever.load(config.retriever).encode_queries)
    best = np.argsort(-truth, axis=1, kind="stable")
    ways: dict[str, tuple[Reads, int]] = {
        f"rerank {name}": (partial(ranked, order), 0) for name, order in orders.items()
    }
    ways["inverse, 1 round (ANNCUR)"] = (by_inverse(anchors, truth, 0.5, 1), anchors.size)
    ways[f"inverse, {ROUNDS} rounds (ADACUR)"] = (by_inverse(anchors, truth, 0.2, ROUNDS), anchors.size)
    nearest = [promise_by_inverse(items, Prior(one, 0.5)) for one in own]
    ways[f"inverse of vectors, {ROUNDS} rounds (AXN)"] = (by_promises(nearest, truth, ROUNDS), 0)
    products = own @ items
    for name, some, vectors in (
        ("vectors", None, items),
        ("scores", anchors, None),
        ("scores of 50, and vectors", anchors[:50], items),
        ("scores and vectors", anchors, items),
    ):
        expectation = Expectation(some, vectors)
        promises = [expectation.promise(None if vectors is None else one) for one in products]
        ways[f"ridge, {name}"] = (by_promises(promises, truth, ROUNDS), 0 if some is None else some.size)
    budgets = list(range(config.step, config.docs + 1, config.step))
    curves = {name: recalls(reads, best, budgets) for name, (reads, _) in ways.items()}
    spectrum = np.linalg.svd(truth.astype(np.float64) - truth.mean(), compute_uv=False)
    energy = np.cumsum(spectrum**2) / (spectrum**2).sum()
    ranks = ", ".join(f"{int((energy < part).sum()) + 1} for {part:.0%}" for part in (0.5, 0.9, 0.99))
    said = [
        f"- {config.docs:,} documents of {config.test.name}, of whose texts {config.words} words are kept; "
        f"{config.queries} queries of its split {config.split}, and {config.anchors} of {config.anchor_split} as "
        f"anchors. Reranker {Path(config.model).name}, dense retriever {Path(config.retriever).name}. The scores' "
        f"singular values: {ranks} of their squares, mean left out.",
        repeated(config, truth, anchors, near, budget=200),
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
