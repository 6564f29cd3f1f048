"""What pseudo-relevance feedback does to search, and what it costs.

    python benchmarks/feedback.py --model SPLADE --dense MINILM --work work/feedback --out benchmarks/feedback.md
    python benchmarks/feedback.py --late LATE --docs 0 --work work/feedback

Rows of a model that is not named are left out. Quality: SciFact and NFCorpus, each method beside the search whose
queries it revises, with the queries that it helped and hurt, and the time of the second search. Differences are tested
over queries (paired two-sided t-test, Holm-corrected over the rows of a collection). No setting was chosen on these
queries. `distill` learns from the fusion of BM25 and dense search, which stands for a reranker here. Speed: random unit
vectors, all queries together; each method beside one plain search and two, in one process, in turns. What is encoded is
not encoded again.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from measuring import ROOT, conditions, publish, quiet, rounds_of, table

from shortlist import Pipeline, encode, index
from shortlist.data.collections import open_collection
from shortlist.data.memory import MemoryCollection
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.evaluation.measure import per_query
from shortlist.index.dense import DenseSearch
from shortlist.index.flat import FlatIndex
from shortlist.math.diversity import unit_rows
from shortlist.math.significance import holm, paired_t_test
from shortlist.pipeline.feedback import FEEDBACKS, SearchedAgain
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.spec import parse_description
from shortlist.pipeline.steps import STEPS, Step
from shortlist.records import Document, Hit, Qrels, Query
from shortlist.settings.encode import Config as EncodeConfig

MEASURES = ("nDCG@10", "R@100")
K, AT_ONCE = 100, 64
ROWS: dict[str, dict[str, Any]] = {
    "BM25": {},
    "BM25, rm3": {"feedback": "rm3", "of": "words"},
    "BM25, bo1": {"feedback": "bo1", "of": "words"},
    "sparse": {},
    "sparse, rm3": {"feedback": "rm3", "of": "sparse"},
    "sparse, bo1": {"feedback": "bo1", "of": "sparse"},
    "dense": {},
    "dense, average": {"feedback": "average", "of": "dense"},
    "dense, rocchio": {"feedback": "rocchio", "of": "dense"},
    "dense, distill from both": {"feedback": "distill", "of": "both", "search": "dense"},
    "BM25 and dense (both)": {},
    "late": {},
    "late, tokens": {"feedback": "tokens", "of": "late"},
}
"""Rows of the table, with the step that searches again."""
PLAIN = {"BM25": "words", "sparse": "sparse", "dense": "dense", "BM25 and dense (both)": "both", "late": "late"}
REWRITES = {
    "BM25, query2doc": {"rewrite": "query2doc", "search": "words"},
    "dense, query2doc": {"rewrite": "query2doc", "search": "dense"},
    "dense, hyde": {"rewrite": "hyde", "search": "dense"},
}
"""Rows with a language model."""
FAST = {"average": {}, "rocchio": {}, "distill": {}}


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str | None = None
    """Trained masked language model, read with the contract `splade`."""
    dense: str | None = None
    """Retriever with one vector for a text."""
    late: str | None = None
    """Late-interaction model."""
    work: Path
    """Folder for everything that is made."""
    writer: str | None = None
    """Language model that writes passages for hyde and query2doc (None: these are left out)."""
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with the collections in BEIR's layout."""
    collections: tuple[str, ...] = ("scifact", "nfcorpus")
    """Collections to search."""
    docs: int = 1_000_000
    """Random vectors of the speed comparison (0: none)."""
    queries: int = 100
    """Queries of the speed comparison."""
    dim: int = 384
    """Numbers of a random vector."""
    depth: int = 1000
    """Documents that every search of the speed comparison finds."""
    rounds: int = 5
    """Times every side runs."""
    out: Path | None = None
    """Markdown file to write too."""


class Searched(NamedTuple):
    """The values of queries by measure, and the time of the last step, ms a query."""

    values: dict[str, np.ndarray]
    milliseconds: float


def made(config: Config, name: str) -> dict[str, Any]:
    """Index and encode a collection, and describe its first stages."""
    folder, collection = config.work / name, str(config.data / name)
    index.run(index.Config(collection=collection, out=folder / "words"))
    stages: dict[str, Any] = {"words": {"find": "bm25", "index": str(folder / "words"), "depth": K}}
    models = {"dense": config.dense, "sparse": config.model, "late": config.late}
    for kind, model in models.items():
        if model is not None:
            how: dict[str, Any] = {"model": model} | ({"contract": "splade"} if kind == "sparse" else {})
            encode.run(EncodeConfig(collection=collection, out=folder / kind, **how))
            stages[kind] = {"find": kind, "vectors": str(folder / kind), "depth": K, **how}
    return stages | ({"both": {"fuse": "zscore", "of": ["words", "dense"], "depth": K}} if config.dense else {})


def needed(row: str, step: Mapping[str, Any]) -> list[str]:
    """Return the first stages of a row."""
    return [name for name in (PLAIN.get(row), step.get("of"), step.get("search")) if name]


def opened(config: Config, name: str, stages: Mapping[str, Any], row: str, step: Mapping[str, Any]) -> Pipeline:
    """Open the pipeline of a row, with the steps that lead to its last one alone."""
    names = needed(row, step)
    names += stages["both"]["of"] if "both" in names else []
    steps = {name: one for name, one in stages.items() if name in names} | ({"again": dict(step)} if step else {})
    description = {"collection": str(config.data / name), "steps": steps}
    return Pipeline.open(parse_description(description, where=row), OPENER)


OPENER = Opener()


def searched(pipeline: Pipeline, queries: list[Query], qrels: Qrels) -> Searched:
    """Search all queries, some at a time, after one to warm up."""
    pipeline.trace(queries[:1], K)
    run: dict[str, list[Hit]] = {}
    spent = 0.0
    for first in range(0, len(queries), AT_ONCE):
        trace = pipeline.trace(queries[first : first + AT_ONCE], K)
        run |= {name: list(hits[:K]) for name, hits in trace.last.run.items()}
        spent += trace.milliseconds[pipeline.steps[-1].name]
    values = per_query(run, qrels, MEASURES)
    order = sorted(qrels)
    found = {measure: np.array([values[measure].get(name, 0.0) for name in order]) for measure in MEASURES}
    return Searched(found, spent / len(queries))


def quality(config: Config, name: str) -> str:
    """Search a collection by all rows, and return its table."""
    stages, collection = made(config, name), open_collection(config.data / name)
    qrels = collection.qrels("test")
    queries = [query for query in collection.queries("test") if query.query_id in qrels]
    qrels = {query.query_id: qrels[query.query_id] for query in queries}
    rewrites = {row: step | {"model": config.writer} for row, step in REWRITES.items()} if config.writer else {}
    found = {
        row: searched(opened(config, name, stages, row, step), queries, qrels)
        for row, step in (ROWS | rewrites).items()
        if all(stage in stages for stage in needed(row, step))
    }
    beside = {row: plain for row in found if row not in PLAIN and (plain := row.split(",")[0])}
    changes = {
        row: {measure: found[row].values[measure] - found[plain].values[measure] for measure in MEASURES}
        for row, plain in beside.items()
    }
    p_values = {
        measure: dict(zip(beside, holm([paired_t_test(changes[row][measure]) or 1.0 for row in beside]), strict=True))
        for measure in MEASURES
    }
    rows = []
    for row, (values, milliseconds) in found.items():
        cells = [row]
        for measure in MEASURES:
            mean = f"{values[measure].mean():.4f}"
            if row in beside:
                mean += f" ({changes[row][measure].mean():+.4f}, p {p_values[measure][row]:.2g})"
            cells.append(mean)
        change = changes[row][MEASURES[0]] if row in beside else np.zeros(0)
        hurt = [str((change > 0).sum()), str((change < 0).sum()), str((change < -0.2).sum())]
        rows.append([*cells, *(hurt if row in beside else ["", "", ""]), f"{milliseconds:.1f}"])
    columns = ["", *MEASURES, "helped", "hurt", "hurt by more than .2", "ms a query, the last step"]
    return f"## {name}\n\n{len(queries)} queries.\n\n{table(columns, rows)}"


class RandomQueries:
    """Knows the vectors of its queries, so that no model has to run."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def encode_queries(self, queries: Any) -> np.ndarray:
        """Look up the vectors of queries."""
        return self._vectors[[int(query.query_id) for query in queries]]


def stored(config: Config) -> Path:
    """Write random unit vectors, once."""
    folder = config.work / f"random-{config.docs}-{config.dim}"
    writer, rng, size = VectorWriter(folder, config.dim), np.random.default_rng(0), 100_000
    for number, first in enumerate(range(0, config.docs, size)):
        if not (folder / f"shard-{number:05d}.json").exists():
            count = min(size, config.docs - first)
            rows = unit_rows(rng.standard_normal((count, config.dim), dtype=np.float32))
            writer.write_shard(number, [f"d{place}" for place in range(first, first + count)], rows)
    return folder


def speed(config: Config) -> str:
    """Time every method beside plain searches, and return the table."""
    rng = np.random.default_rng(1)
    vectors = unit_rows(rng.standard_normal((config.queries, config.dim), dtype=np.float32))
    dense = DenseSearch(RandomQueries(vectors), FlatIndex(VectorReader(stored(config))))
    queries = [Query(str(place), "") for place in range(config.queries)]
    nothing = MemoryCollection([Document("d0", "")])
    first = Step("dense", STEPS["find"], dense, depth=config.depth)

    def again(method: str) -> Pipeline:
        last = Step("again", STEPS["feedback"], FEEDBACKS[method](OPENER), ("dense",), config.depth)
        return Pipeline(nothing, [first, last._replace(searched=SearchedAgain("dense", dense, own_scores=True))])

    def twice() -> None:
        for _ in range(2):
            Pipeline(nothing, [first]).trace(queries, config.depth)

    sides: dict[str, Callable[[], object]] = {
        "one plain search": partial(Pipeline(nothing, [first]).trace, queries, config.depth),
        "two plain searches": twice,
    }
    sides |= {method: partial(again(method).trace, queries, config.depth) for method in FAST}
    seconds = {name: statistics.median(own) for name, own in rounds_of(sides, config.rounds).items()}
    two = seconds["two plain searches"]
    rows = [[name, f"{each:.2f}", f"{each / two:.3f}"] for name, each in seconds.items()]
    about = f"{config.queries} queries together, {config.docs:,} random vectors of {config.dim}, {config.depth} found."
    return f"## Speed\n\n{about}\n\n{table(['', 'median s', 'of two plain searches'], rows)}"


def run(config: Config) -> None:
    """Measure and publish."""
    quiet()
    under = conditions(None, packages=("numpy", "torch"))
    sections = [quality(config, name) for name in config.collections]
    sections += [speed(config)] if config.docs else []
    publish("Pseudo-relevance feedback", under, sections, config.out)


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
