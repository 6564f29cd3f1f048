"""Does a language model that reads candidates itself rank them better? Likelihood, one context, and shorter texts.

    python benchmarks/in_context.py --collection ../shared/data/scifact --model shortlist-mini/language-model \
        --reranker shortlist-mini/reranker --queries 300 --depth 20 --out benchmarks/in_context.md

BM25's first candidates of each query are put in order by each of the pipelines below, over the same queries. Each is
compared with BM25 alone by a randomisation test of paired differences, and the cost is what the last step read. A row
with `extract` reads texts of `--words` words.
"""

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measuring import conditions, publish, quiet, table

from shortlist.data.collections import open_collection
from shortlist.errors import UserError
from shortlist.evaluation.measure import per_query
from shortlist.math.significance import randomisation_test
from shortlist.pipeline import Pipeline
from shortlist.progress import say

AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str
    """Collection with judgements."""
    model: str = "shortlist-mini/language-model"
    """Language model: folder or hub name."""
    reranker: str | None = None
    """Reranker of pairs, to read whole and shorter texts (None: none)."""
    prompt: str = "likelihood"
    """Prompt of the likelihood: likelihood, or likelihood-chat for a model with a chat."""
    split: str = "test"
    """Split whose queries are asked."""
    queries: int = 50
    """Most queries to ask."""
    depth: int = 10
    """Candidates of each query to put in order."""
    words: int = 48
    """Words of an extract."""
    measure: str = "nDCG@10"
    """Measure to compare by."""
    out: Path | None = None
    """Markdown file to write too."""


def pipelines(config: Config) -> dict[str, list[dict[str, Any]]]:
    """The steps behind BM25 of each row."""
    depth, model = {"depth": config.depth}, {"model": config.model}
    short = {"compress": "extract", "words": config.words, **depth}
    likelihood = {"rank": "likelihood", "prompt": config.prompt, **model, **depth}
    context = {"rank": "context", **model, **depth}
    rows = {
        "BM25": [],
        "extract + likelihood": [short, likelihood],
        "likelihood": [likelihood],
        "extract + context": [short, context],
        "context": [context],
    }
    if config.reranker:
        pairs = {"rank": "pointwise", "model": config.reranker, **depth}
        rows |= {"pairs": [pairs], "extract + pairs": [short, pairs]}
    return rows


def main(config: Config) -> None:
    quiet()
    under = conditions(None)
    collection = open_collection(config.collection)
    qrels = collection.qrels(config.split)
    asked = (query for query in collection.queries(config.split) if query.query_id in qrels)
    queries = list(islice(asked, config.queries))
    judged = {query.query_id: qrels[query.query_id] for query in queries}
    rows, before = [], dict[str, float]()
    for name, steps in pipelines(config).items():
        listed = {"words": {"find": "bm25", "depth": 100}} | {f"step{n}": step for n, step in enumerate(steps)}
        pipeline = Pipeline.load(pipeline={"collection": config.collection, "steps": listed})
        run, tokens, start = {}, 0, time.perf_counter()
        try:
            for first in range(0, len(queries), AT_ONCE):
                trace = pipeline.trace(queries[first : first + AT_ONCE], 100)
                run |= trace.last.run
                tokens += trace.last.num_tokens
        except UserError as error:  # whole texts may be too long for one context
            rows.append([name, "-", "-", "-", "-", "-", str(error).partition(";")[0]])
            continue
        seconds = time.perf_counter() - start
        values = per_query(run, judged, config.measure)[config.measure]
        before = before or values
        gained = np.array([values[query_id] - before[query_id] for query_id in before])
        chance = randomisation_test(gained) if gained.any() else 1.0
        mean = float(np.mean([*values.values()]))
        per = tokens / len(queries)
        rows.append(
            [name, f"{mean:.4f}", f"{gained.mean():+.4f} (p {chance:.3f})",
             f"{int((gained > 0).sum())} / {int((gained < 0).sum())}", f"{per:,.0f}",
             f"{1000 * mean / per:.3f}" if per else "-", f"{1000 * seconds / len(queries):,.1f} ms"]
        )  # fmt: skip
        say(f"{name}: {mean:.4f}")
    found = f"{len(queries)} queries of {config.collection}, {config.depth} candidates of each, {config.model}."
    heads = ["pipeline", config.measure, "beside BM25", "helped / hurt", "tokens/query", "per 1,000 tokens", "a query"]
    publish("Candidates in a language model's own context", under, [found, table(heads, rows)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
