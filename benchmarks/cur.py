"""Search by a reranker alone, beside reranking what another search finds: recall of its best documents by pairs read.

    shortlist functions --sources standard-library --out work/test
    shortlist functions --sources installed --apart-from work/test --max-pairs 6000 --out work/train
    python benchmarks/cur.py --test work/test --train work/train --work work/cur --out benchmarks/cur.md

The documents are few enough to read them all for every query, so that the reranker's best are known. Its scores for
anchor queries (of other functions) and test queries are two indexes of the kind `cur`: an interrupted run goes on.
Searches ask this table in place of the model; one is repeated with the model to see that it gives the same hits.
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

from shortlist import Pipeline, encode, index
from shortlist.data.collections import open_collection
from shortlist.data.figures import COLORS, write_svg
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.manifest import read_manifest
from shortlist.data.stores.vectors import VectorReader
from shortlist.index.bm25 import BM25Index
from shortlist.math.cur import AskScores, ItemsRead, Prior, read_in_rounds, spread_items
from shortlist.models.retriever import Retriever
from shortlist.progress import duration
from shortlist.settings.encode import Config as EncodeConfig

DEPTHS = (1, 10, 100)
SHOWN = (25, 50, 100, 150, 200, 300, 400, 500)
TARGETS = (0.8, 0.9, 0.95)
Reads = Callable[[int, int], np.ndarray]
"""Returns the positions that a method reads for a query, given the query's number and the budget of pairs."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the study."""

    test: Path
    """Collection of functions with the documents and the test queries."""
    train: Path
    """Another one, whose queries are the anchors."""
    model: str = "shortlist-mini"
    """The reranker."""
    retriever: str = "shortlist-mini"
    work: Path
    """Folder for everything that is made."""
    words: int = 16
    """Words of a document that are kept, so that reading them all is quick."""
    docs: int = 1000
    queries: int = 100
    anchor_queries: int = 100
    step: int = 10
    """Budgets are tried in steps of so many pairs."""
    out: Path | None = None
    """Markdown file to write too; the curves are written beside it as SVG."""


def prepare(config: Config) -> None:
    """Write the test queries, the anchor queries, and documents among which the relevant ones are."""
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
    train = open_collection(config.train)
    anchors = random.Random(1).sample(train.queries(train.splits()[0]), config.anchor_queries)
    write_queries(config.work / "anchors.jsonl", anchors)


def scored(config: Config, name: str, queries: Path) -> np.ndarray:
    """Score queries for all documents, or go on with it."""
    collection, out = str(config.work / "collection"), config.work / name
    index.run(index.Config(kind="cur", collection=collection, queries=queries, model=config.model, out=out))
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


def by_scores(anchor_scores: np.ndarray, truth: np.ndarray, share: float, most: int, rounds: int) -> Reads:
    """Read anchor documents, this share of the budget but at most so many, then in rounds."""
    chosen = {}

    def reads(query: int, budget: int) -> np.ndarray:
        count = max(1, min(most, round(share * budget)))
        if count not in chosen:
            chosen[count] = spread_items(anchor_scores, count)
        plan = read_in_rounds(anchor_scores, anchors=chosen[count], budget=budget, rounds=rounds)
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
        run = BM25Index.build(collection.corpus(), analyser="code", folder=Path(folder)).search(queries, len(doc_ids))
    words = np.array([filled([place[hit.doc_id] for hit in run[query.query_id]], len(doc_ids)) for query in queries])
    vectors, model = config.work / "vectors", config.retriever
    encode.run(EncodeConfig(model=model, collection=str(config.work / "collection"), out=vectors))
    store = VectorReader(vectors)
    assert [*store.doc_ids] == [*doc_ids]
    items = store.take(np.arange(store.num_docs)).T
    own = Retriever.load(model).encode_queries(queries)
    return {"BM25": words, "dense": np.argsort(-(own @ items), axis=1, kind="stable")}, items, own


def filled(found: Sequence[int], count: int) -> list[int]:
    """Let the documents without a word of the query follow, in corpus order."""
    return [*found, *(place for place in range(count) if place not in {*found})]


def repeated(config: Config, truth: np.ndarray, best_reads: Reads, budget: int, anchors: int) -> str:
    """Search with the model, and compare with the search of the table."""
    folder = config.work / "collection"
    step = {"find": "cur", "index": str(config.work / "anchors"), "model": config.model}
    step |= {"anchors": anchors, "budget": budget, "rounds": 5}
    pipeline = Pipeline.load(str(folder), pipeline={"steps": {"cur": step}})
    queries = open_collection(folder).queries("test")[:10]
    doc_ids = [document.doc_id for document in open_collection(folder).corpus()]
    start = time.perf_counter()
    trace = pipeline.trace(queries, budget)
    seconds = (time.perf_counter() - start) / len(queries)
    same = [
        {hit.doc_id for hit in trace.last.run[query.query_id]} == {doc_ids[i] for i in best_reads(number, budget)}
        for number, query in enumerate(queries)
    ]
    start = time.perf_counter()
    for number in range(len(queries)):
        best_reads(number, budget)
    alone = (time.perf_counter() - start) / len(queries)
    return (
        f"- With the model, `find: cur` with {anchors} anchors, 5 rounds and a budget of {budget} read the same "
        f"documents as with the table for {sum(same)} of {len(same)} queries, taking {1000 * seconds:,.0f} ms a query, "
        f"of them choosing what to read took {1000 * alone:,.0f} ms."
    )


def least(values: Sequence[float], budgets: Sequence[int], target: float) -> int | None:
    """Find the least budget that reaches a recall."""
    return next((budget for budget, value in zip(budgets, values, strict=True) if value >= target), None)


def draw(figure: Any, curves: dict[str, dict[int, list[float]]], budgets: Sequence[int]) -> None:
    """Draw recall by pairs read, a panel for each depth."""
    for number, (k, axes) in enumerate(zip(DEPTHS, figure.subplots(1, len(DEPTHS), sharey=True), strict=True)):
        for color, (name, found) in zip((*COLORS, "#000000", "#999999"), curves.items(), strict=False):
            style = "--" if name.startswith("rerank") else "-"
            axes.plot(budgets, found[k], style, color=color, linewidth=1.2, label=name if not number else None)
        axes.set(title=f"recall@{k}", xlabel="pairs read for a query")
        axes.grid(color="#dddddd", linewidth=0.5)
    figure.legend(loc="outside upper center", frameon=False, ncols=3)


def run(config: Config) -> None:
    """Score, search in all ways, and publish the curves."""
    under = conditions(None)
    quiet()
    if not (config.work / "anchors.jsonl").exists():
        prepare(config)
    folder = config.work / "collection"
    anchor_scores = scored(config, "anchors", config.work / "anchors.jsonl")
    truth = scored(config, "truth", folder / "queries.jsonl")
    doc_ids = [document.doc_id for document in open_collection(folder).corpus()]
    orders, items, own = rankings(config, doc_ids)
    best = np.argsort(-truth, axis=1, kind="stable")
    most = config.anchor_queries // 2
    cur = partial(by_scores, anchor_scores, truth)
    ways: dict[str, tuple[Reads, int]] = {
        f"rerank {name}": (partial(ranked, order), 0) for name, order in orders.items()
    }
    ways["cur, 1 round (ANNCUR)"] = (cur(0.5, most, 1), anchor_scores.size)
    ways["cur, 5 rounds (ADACUR)"] = (cur(0.25, most, 5), anchor_scores.size)
    ways["cur, 10 rounds"] = (cur(0.1, most, 10), anchor_scores.size)
    for share in (0.0, 0.5):
        ways[f"vectors, 5 rounds, prior {share:g} (AXN)"] = (by_vectors(items, own, truth, share, 5), 0)
    budgets = list(range(config.step, config.docs + 1, config.step))
    curves = {name: recalls(reads, best, budgets) for name, (reads, _) in ways.items()}
    sections = []
    for k in DEPTHS:
        rows = [
            [name, f"{pairs:,}", *(f"{curves[name][k][budgets.index(b)]:.3f}" for b in SHOWN)]
            for name, (_, pairs) in ways.items()
        ]
        sections.append(f"## Recall@{k} of the reranker's best of all documents, by pairs read for a query\n\n")
        sections[-1] += table(["", "anchor pairs, once", *map(str, SHOWN)], rows)
    needed = {name: [least(found[100], budgets, target) for target in TARGETS] for name, found in curves.items()}
    words = needed["rerank BM25"]
    rows = [
        [name, f"{ways[name][1]:,}"]
        + [
            "-" if count is None else f"{count:,} ({(base or config.docs) / count:.1f} x fewer)"
            for count, base in zip(counts, words, strict=True)
        ]
        for name, counts in needed.items()
    ]
    sections.append(
        "## Pairs read for a query until recall@100 is reached\n\nIn brackets: as a part of those of `rerank BM25`.\n\n"
        + table(["", "anchor pairs, once", *(f"{target:g}" for target in TARGETS)], rows)
    )
    seconds = (read_manifest(config.work / "anchors") or {})["results"]["seconds"]
    said = [
        f"- {config.docs:,} functions of {config.words} words, {config.queries} test queries, {config.anchor_queries} "
        f"anchor queries of other functions: {anchor_scores.size:,} anchor pairs, read in {duration(seconds)} beside "
        "other work.",
        repeated(config, truth, cur(0.25, most, 5), 200, 50),
    ]
    spectrum = np.linalg.svd(anchor_scores.astype(np.float64), compute_uv=False)
    energy = np.cumsum(spectrum**2) / (spectrum**2).sum()
    ranks = ", ".join(f"{int((energy < part).sum()) + 1} for {part:.1%}" for part in (0.9, 0.99, 0.999))
    said.append(f"- Singular values of the anchor scores that hold a share of their squares: {ranks}.")
    sections.insert(0, "\n".join(said))
    if config.out:
        write_svg(config.out.with_suffix(".svg"), partial(draw, curves=curves, budgets=budgets), width=960, height=420)
        sections.append(f"![Recall by pairs read]({config.out.with_suffix('.svg').name})")
    publish("Search by a reranker alone", under, sections, config.out)


if __name__ == "__main__":
    run(tyro.cli(Config))
