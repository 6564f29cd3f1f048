"""Every step that changes how a pipeline searches, beside the plain pipeline: quality, queries hurt, and what it reads.

    python benchmarks/steps.py --collection ../shared/data/scifact --retriever MINILM --reranker work/reranker \\
        --anchors work/anchors.jsonl --work work/steps --out benchmarks/steps.md

Each table begins with a plain pipeline, and each row of it is one that has a step more or another instead, over the
same queries. Rows are compared by a randomisation test of paired differences. `read` are the documents that a reranker
or a tree's walker has read for a query, `calls` a language model's answers, `tokens` what the models of these have read
and written, milliseconds those of all steps.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measuring import conditions, publish, quiet, table

from shortlist import encode, index
from shortlist.data.collections import open_collection
from shortlist.errors import UserError
from shortlist.evaluation.measure import per_query
from shortlist.math.significance import randomisation_test
from shortlist.pipeline import Pipeline
from shortlist.progress import say

AT_ONCE = 16
MEASURES = ("nDCG@10", "R@100")
Steps = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str
    """Collection with judgements."""
    split: str = "test"
    """Split whose queries are asked."""
    queries: int = 100
    """Most queries to ask, drawn at random."""
    retriever: str
    """Retriever of the vectors: folder or hub name."""
    reranker: str
    """Reranker of pairs."""
    late: str | None = None
    """Late model (None: no table of it)."""
    writer: str = "shortlist-mini/language-model"
    """Language model that writes, reads lists and gives likelihoods."""
    trained_writer: str | None = None
    """Language model that was trained to shorten texts (None: no row of it)."""
    anchors: Path | None = None
    """Queries whose pairs with all documents are read once for `find: cur` (None: only by vectors)."""
    language: str = "english"
    """How the index splits texts into words, as for `shortlist index`."""
    depth: int = 100
    """Candidates that pairs are read of, and the budget of a search by the reranker alone."""
    iterations: int = 5
    """Rounds of a language model's walk of a tree."""
    walked: int = 20
    """Queries for which it walks."""
    few: int = 10
    """Candidates that a language model shortens or puts in order."""
    words: int = 48
    """Words of a shorter text."""
    work: Path
    """Folder for indexes and vectors; what is there is not made again."""
    out: Path | None = None
    """Markdown file to write too."""


def first_stages(config: Config) -> Steps:
    """Make what the first stages search, and describe them."""
    collection, work = config.collection, config.work
    index.run(index.Config(collection=collection, out=work / "bm25", language=config.language))
    encode.run(encode.Config(collection=collection, model=config.retriever, out=work / "vectors"))
    index.run(index.Config(kind="tree", vectors=work / "vectors", out=work / "tree"))
    how: dict[str, Any] = {"kind": "tree", "writer": config.writer, "vectors": work / "vectors"}
    index.run(index.Config(collection=collection, out=work / "described", **how))
    deep, vectors = {"depth": 1000}, {"vectors": str(work / "vectors")}
    stages = {
        "words": {"find": "bm25", "index": str(work / "bm25"), **deep},
        "dense": {"find": "dense", "model": config.retriever, **vectors, **deep},
        "branches": {"find": "tree", "index": str(work / "tree"), "walker": "vectors", "model": config.retriever},
        "read": {"find": "tree", "index": str(work / "tree"), "walker": "pointwise", "model": config.reranker}
        | {"budget": config.depth},
        "described": {"find": "tree", "index": str(work / "described"), "walker": "listwise", "model": config.writer}
        | {"iterations": config.iterations},
        "axn": {"find": "cur", **vectors, "retriever": config.retriever, "model": config.reranker}
        | {"budget": config.depth},
    }
    if config.anchors:
        how = {"kind": "cur", "queries": config.anchors, "model": config.reranker}
        index.run(index.Config(collection=collection, out=work / "cur", **how))
        stages["cur"] = stages["axn"] | {"index": str(work / "cur")}
    if config.late:
        encode.run(encode.Config(collection=collection, model=config.late, out=work / "tokens"))
        stages["late"] = {"find": "late", "model": config.late, "vectors": str(work / "tokens"), **deep}
    return stages


def tables(config: Config, stages: Steps) -> Iterator[tuple[str, dict[str, Steps]]]:
    """The rows of each table; the first of them is the plain pipeline."""

    def behind(name: str, *steps: dict[str, Any]) -> Steps:
        return {name: stages[name]} | {f"step{number}": step for number, step in enumerate(steps)}

    writer = {"model": config.writer}
    pairs = {"rank": "pointwise", "model": config.reranker}
    hyde, query2doc = ({"rewrite": how, **writer} for how in ("hyde", "query2doc"))
    again = [{"feedback": how} for how in ("rm3", "bo1")]
    yield (
        "Words",
        {
            "BM25": behind("words"),
            **{f"feedback: {step['feedback']}": behind("words", step) for step in again},
            "rewrite: query2doc": behind("words", query2doc | {"search": "words"}),
        },
    )
    again = [{"feedback": how} for how in ("average", "rocchio")]
    fused = {"words": stages["words"], "dense": stages["dense"], "both": {"fuse": "zscore"}}
    yield (
        "Vectors",
        {
            "vectors": behind("dense"),
            **{f"feedback: {step['feedback']}": behind("dense", step) for step in again},
            "feedback: distill, from words and vectors": fused | {"again": {"feedback": "distill", "search": "dense"}},
            "rewrite: hyde": behind("dense", hyde | {"search": "dense"}),
            "rewrite: query2doc": behind("dense", query2doc | {"search": "dense"}),
            "find: tree, by vectors": {"tree": stages["branches"]},
            "words and vectors, fused": fused,
        },
    )
    if config.late:
        yield (
            "Late interaction",
            {
                "late": behind("late"),
                "feedback: tokens": behind("late", {"feedback": "tokens"}),
            },
        )
    deep = pairs | {"depth": config.depth}
    alone = {"find: cur, by vectors": {"cur": stages["axn"]}, "find: tree, by the reranker": {"tree": stages["read"]}}
    if config.anchors:
        alone |= {"find: cur": {"cur": stages["cur"]}}
    moved = {"dense": stages["dense"], "step0": deep, "again": {"feedback": "distill", "search": "dense"}}
    yield (
        f"A reranker of pairs, {config.depth} deep",
        {
            "BM25, pairs": behind("words", deep),
            "the same with drop .6": behind("words", deep | {"drop": 0.6}),
            "vectors, pairs": behind("dense", deep),
            "vectors, pairs, feedback: distill": moved,
            **alone,
        },
    )
    few = {"depth": config.few}
    short = [{"compress": how, "words": config.words} for how in ("extract", "summary")]
    facts = {"compress": "facts", "model": config.retriever, "keep": 3}
    ways = {
        "extract": short[0],
        "summary": short[1] | writer,
        "facts": facts,
        "facts, with a draft": facts | {"writer": config.writer},
    }
    if config.trained_writer:
        ways["summary, trained"] = short[1] | {"model": config.trained_writer}
    yield (
        f"Shorter texts, {config.few} deep",
        {
            "BM25, pairs": behind("words", pairs | few),
            "BM25 alone": behind("words"),
            **{f"compress: {name}": behind("words", step | few, pairs | few) for name, step in ways.items()},
        },
    )
    likelihood = {"rank": "likelihood", "prompt": "likelihood-chat", **writer}
    yield (
        f"A language model reads, {config.few} deep",
        {
            "BM25": behind("words"),
            "rank: likelihood": behind("words", likelihood | few),
            "compress: extract, rank: likelihood": behind("words", short[0] | few, likelihood | few),
            "rank: context": behind("words", {"rank": "context", **writer} | few),
            "compress: extract, rank: context": behind("words", short[0] | few, {"rank": "context", **writer} | few),
        },
    )
    yield (
        f"A described tree, {config.walked} queries",
        {"vectors": behind("dense"), "find: tree, by a language model": {"tree": stages["described"]}},
    )


class Row:
    """What a pipeline found and read."""

    def __init__(self, config: Config, steps: Steps, queries: list[Any], judged: Any) -> None:
        pipeline = Pipeline.load(pipeline={"collection": config.collection, "steps": steps})
        run, self.tokens, self.read, start = {}, 0, 0, time.perf_counter()
        for first in range(0, len(queries), AT_ONCE):
            trace = pipeline.trace(queries[first : first + AT_ONCE], 1000)
            run |= trace.last.run
            stages = {step.name: step.stage for step in pipeline.steps}
            read = (found.num_tokens for name, found in trace.found.items() if not hasattr(stages[name], "costs"))
            self.tokens += sum(read)
            self.read += sum(sum(found.num_read.values()) for found in trace.found.values())
        asked = [step.stage.costs() for step in pipeline.steps if hasattr(step.stage, "costs")]
        self.calls = sum(one.get("calls", 0) for one in asked)
        self.tokens += sum(one.get("prompt_tokens", 0) + one.get("answer_tokens", 0) for one in asked)
        self.seconds = time.perf_counter() - start
        self.values = per_query(run, judged, MEASURES, complete=True)

    def cells(self, plain: "Row | None") -> list[str]:
        """The row of a table, beside the plain one."""
        shown, hurt = [], "-"
        for measure in MEASURES:
            values = self.values[measure]
            shown.append(f"{np.mean([*values.values()]):.4f}")
            if plain is not None:
                before = plain.values[measure]
                gained = np.array([values[query_id] - before[query_id] for query_id in before])
                chance = randomisation_test(gained) if gained.any() else 1.0
                shown[-1] += f" ({gained.mean():+.4f}, p {chance:.2g})"
                if measure == MEASURES[0]:
                    hurt = f"{(gained > 0).sum()} / {(gained < 0).sum()}"
        count = len(self.values[MEASURES[0]])
        return [*shown, hurt, f"{self.read / count:,.0f}", f"{self.calls / count:,.1f}", f"{self.tokens / count:,.0f}",
                f"{1000 * self.seconds / count:,.1f}"]  # fmt: skip


def main(config: Config) -> None:
    """Search by all pipelines and publish."""
    quiet()
    under = conditions(None)
    collection = open_collection(config.collection)
    qrels = collection.qrels(config.split)
    queries = [query for query in collection.queries(config.split) if query.query_id in qrels]
    queries = random.Random(0).sample(queries, min(config.queries, len(queries)))
    judged = {query.query_id: qrels[query.query_id] for query in queries}
    stages = first_stages(config)
    models = f"retriever {config.retriever}, reranker {config.reranker}, language model {config.writer}"
    sections = [f"{len(queries)} queries of {config.collection}; {models}."]
    columns = ["pipeline", *MEASURES, f"{MEASURES[0]} helped / hurt", "read", "calls", "tokens", "ms a query"]
    for title, pipelines in tables(config, stages):
        rows, plain = [], None
        for name, steps in pipelines.items():
            try:
                few = queries[: config.walked] if "described tree" in title else queries
                row = Row(config, steps, few, {query.query_id: judged[query.query_id] for query in few})
            except UserError as error:  # whole texts may be too long for one context
                rows.append([name, str(error).partition(";")[0], *["-"] * (len(columns) - 2)])
                continue
            rows.append([name, *row.cells(plain)])
            plain = plain or row
            say(f"{title}: {name}: {rows[-1][1]}")
        sections.append(f"## {title}\n\n" + table(columns, rows))
    publish("Steps beside the plain pipeline", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
