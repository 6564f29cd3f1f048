"""What a feedback encoder adds to a retriever, trained without and with LoL.

    python benchmarks/feedback_encoder.py --model MINILM --work work/encoders --out benchmarks/feedback_encoder.md

The retriever searches the training queries, whose first documents the encoders learn to read, and then the test
queries. All rows search the same vectors. Differences to the plain search are tested over queries (paired two-sided
t-test, Holm-corrected). The encoder that is not trained is the retriever, which is given the same tokens.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measuring import ROOT, conditions, publish, quiet, table

from shortlist import Pipeline, encode, search, train
from shortlist.data.collections import open_collection
from shortlist.evaluation.measure import per_query
from shortlist.math.significance import holm, paired_t_test
from shortlist.models.folder import open_folder
from shortlist.models.retriever import Retriever
from shortlist.pipeline.feedback import ByEncoder, Feedback
from shortlist.pipeline.spec import parse_description
from shortlist.settings.encode import Config as EncodeConfig
from shortlist.text.contract import InputContract

MEASURES = ("nDCG@10", "R@100")
K = 100


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Retriever with one vector for a text."""
    work: Path
    """Folder for everything that is made."""
    vectors: Path | None = None
    """Vectors of the documents (None: they are encoded)."""
    collection: str = str(ROOT.parent / "shared" / "data" / "scifact")
    """Collection with training and test queries."""
    docs: int = 3
    """Feedback documents of a query."""
    query_length: int = 128
    """Most tokens of a query with its documents."""
    max_length: int | None = None
    """Most tokens of a document in training (None: as its vectors were made)."""
    negatives: int = 1
    """Negatives of a query, from BM25."""
    steps: int = 50
    """Steps of each training."""
    batch_size: int = 16
    """Queries of a step."""
    learning_rate: float = 2e-5
    """Highest learning rate."""
    out: Path | None = None
    """Markdown file to write too."""


def trained(config: Config, run: Path, name: str, **change: Any) -> Path:
    """Train an encoder, once."""
    out = config.work / name
    settings: dict[str, Any] = {"batch_size": config.batch_size, "learning_rate": config.learning_rate}
    settings |= {"feedback_docs": config.docs, "query_length": config.query_length, "max_length": config.max_length}
    settings |= {"negatives_from": "bm25", "negatives": config.negatives}
    settings |= {"temperature": 0.05, "warmup_steps": config.steps // 10, "steps": config.steps, "processes": 1}
    base: dict[str, Any] = {"kind": "retriever", "backbone": config.model, "collection": config.collection}
    train.run(train.Config(**base, out=out, feedback=run, **settings | change))
    return out


def untrained(config: Config) -> Feedback:
    """Let the retriever itself read queries with documents."""
    folder = open_folder(config.model)
    known = folder.contract("document").with_lengths(query=config.query_length)
    contract = InputContract(known.form.with_feedback(config.docs, separator=True), known.reading)
    load = partial(Retriever.load, folder, contract=contract)
    return Feedback("encoder", config.docs, ByEncoder(config.model, load, None))


def compared(config: Config, vectors: Path, rows: dict[str, dict[str, Any] | None]) -> str:
    """Search the test queries by all rows, and return their table."""
    collection = open_collection(config.collection)
    qrels = collection.qrels("test")
    queries = [query for query in collection.queries("test") if query.query_id in qrels]
    order, values = sorted(query.query_id for query in queries), dict[str, dict[str, np.ndarray]]()
    dense = {"find": "dense", "model": config.model, "vectors": str(vectors), "depth": K}
    for row, step in rows.items():
        steps = {"dense": dense, **({"again": {"of": "dense", "depth": K, **step}} if step else {})}
        pipeline = Pipeline.open(parse_description({"collection": config.collection, "steps": steps}, where=row))
        if row == "encoder, not trained":
            pipeline.steps[-1] = pipeline.steps[-1]._replace(stage=untrained(config))
        found = per_query(dict(pipeline.trace(queries, K).last.run), qrels, MEASURES)
        values[row] = {m: np.array([found[m].get(name, 0.0) for name in order]) for m in MEASURES}
    plain, others = values["plain"], [row for row in rows if row != "plain"]
    changes = {row: {m: values[row][m] - plain[m] for m in MEASURES} for row in others}
    chances = {
        m: dict(zip(others, holm([paired_t_test(changes[row][m]) or 1.0 for row in others]), strict=True))
        for m in MEASURES
    }
    lines = [["plain", *(f"{plain[m].mean():.4f}" for m in MEASURES), "", ""]]
    for row in others:
        cells = [
            f"{values[row][m].mean():.4f} ({changes[row][m].mean():+.4f}, p {chances[m][row]:.2g})" for m in MEASURES
        ]
        change = changes[row][MEASURES[0]]
        lines.append([row, *cells, str((change > 0).sum()), str((change < 0).sum())])
    return f"{len(order)} test queries.\n\n{table(['', *MEASURES, 'helped', 'hurt'], lines)}"


def run(config: Config) -> None:
    """Train, measure and publish."""
    quiet()
    vectors = config.vectors or config.work / "vectors"
    if config.vectors is None:
        encode.run(EncodeConfig(model=config.model, collection=config.collection, out=vectors))
    first = config.work / "train.trec"
    from_vectors: dict[str, Any] = {"model": config.model, "vectors": vectors}
    search.run(search.Config(collection=config.collection, split="train", out=first, k=20, **from_vectors))
    without = trained(config, first, "without")
    with_lol = trained(config, first, "lol", lol=1.0)
    rows: dict[str, dict[str, Any] | None] = {
        "plain": None,
        "Rocchio": {"feedback": "rocchio", "docs": config.docs},
        "encoder, not trained": {"feedback": "rocchio", "docs": config.docs},
        "encoder": {"feedback": "encoder", "model": str(without)},
        "encoder with LoL": {"feedback": "encoder", "model": str(with_lol)},
    }
    under = conditions(None, packages=("torch", "transformers"))
    publish("Feedback encoders", under, [compared(config, vectors, rows)], config.out)


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
