"""A trained sparse model beside BM25, one vector for a text, and what they find together.

    python benchmarks/sparse.py --model SPLADE --dense MINILM --work work/sparse --out benchmarks/sparse.md

They search SciFact, NFCorpus and the passages that first stages returned for DL19. Hybrids add up ranks (rrf).
Differences are tested over queries (paired two-sided t-test, Holm-corrected over the rows of a collection). Each search
by terms is compared with the scores of all documents. What is done is not done again: an interrupted run goes on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from measuring import ROOT, conditions, publish, quiet, table
from scipy.sparse import csr_array

from shortlist import SparseRetriever
from shortlist.data.collections import open_collection
from shortlist.data.runs import read_run
from shortlist.data.stores.terms import TermReader
from shortlist.evaluation.measure import per_query
from shortlist.index.sparse import SparseIndex
from shortlist.math.significance import holm, paired_t_test
from shortlist.math.terms import TermWeights
from shortlist.recipe import run_recipe

HYBRIDS = {
    "BM25 and sparse": ("words", "sparse"),
    "dense and sparse": ("dense", "sparse"),
    "BM25 and dense": ("words", "dense"),
    "all three": ("words", "dense", "sparse"),
}
ROWS = {"BM25": "words", "dense": "dense", "sparse": "sparse"} | {name: name.replace(" ", "-") for name in HYBRIDS}
"""Rows of the table, and the steps of their runs."""
MEASURES = ("nDCG@10", "R@100")
K = 100


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Trained masked language model, read with the contract `splade`."""
    dense: str
    """Retriever with one vector for a text."""
    work: Path
    """Folder for everything that is made."""
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with `scifact`, `nfcorpus` and `msmarco-dl19` in BEIR's layout."""
    out: Path | None = None
    """Markdown file to write too."""


class Task(NamedTuple):
    """A collection that is searched."""

    folder: str
    split: str = "test"


TASKS = {"SciFact": Task("scifact"), "NFCorpus": Task("nfcorpus"), "DL19": Task("msmarco-dl19", "dl19_sub")}


def steps(config: Config, task: Task) -> dict[str, Any]:
    """Make all runs of a collection."""
    collection = str(config.data / task.folder)
    search = {"stage": "search", "collection": collection, "split": task.split, "k": K}
    splade = {"model": config.model, "contract": "splade"}
    made: dict[str, Any] = {
        "bm25": {"stage": "index", "collection": collection},
        "words": {**search, "index": ["$bm25"]},
        "vectors": {"stage": "encode", "model": config.dense, "collection": collection},
        "dense": {**search, "model": config.dense, "vectors": "$vectors"},
        "terms": {"stage": "encode", **splade, "collection": collection},
        "inverted": {"stage": "index", "kind": "sparse", "vectors": "$terms"},
        "sparse": {**search, **splade, "index": ["$inverted"]},
    }
    for name, parts in HYBRIDS.items():
        made[ROWS[name]] = {"stage": "fuse", "runs": [f"${part}" for part in parts], "k": K}
    return made


def compared(config: Config, task: Task, made: Path) -> int:
    """Count the queries whose documents and scores are those of a sum over all documents.

    Raises:
        AssertionError: one has others.
    """
    queries = open_collection(str(config.data / task.folder)).queries(task.split)
    asked = SparseRetriever.load(config.model, contract="splade").encode_queries(queries)
    store = TermReader(made / "terms")
    documents = store.take(np.arange(store.num_docs))
    everywhere = (_matrix(asked, store.num_terms) @ _matrix(documents, store.num_terms).T).toarray().astype(np.float32)
    scores, positions = SparseIndex(store).search_terms(asked, K)
    best = np.argsort(-everywhere, axis=1, kind="stable")[:, : scores.shape[1]]
    expected = np.take_along_axis(everywhere, best, 1)
    there = expected > 0
    assert (positions[there] == best[there]).all()
    assert (scores[there] == expected[there]).all()
    assert (positions[~there] == -1).all()
    return len(queries)


def _matrix(weights: TermWeights, num_terms: int) -> Any:
    ends = np.concatenate([[0], np.cumsum(weights.counts)])
    return csr_array((weights.weights.astype(np.float64), weights.terms, ends), shape=(len(weights), num_terms))


def main(config: Config) -> None:
    quiet()
    under, exact = conditions(None), 0
    cells: dict[str, list[str]] = {row: [row] for row in ROWS}
    for name, task in TASKS.items():
        made = config.work / task.folder
        run_recipe({"steps": steps(config, task)}, made, where=name)
        exact += compared(config, task, made)
        for row, values in measured(config, task, made).items():
            cells[row] += values
    columns = ["", *(f"{name} {measure}" for name in TASKS for measure in MEASURES)]
    said = (
        f"*p* of nDCG@10 against sparse. {exact:,} queries find, by the index, the documents and scores that a sum "
        "over all documents gives."
    )
    publish(
        "Sparse, dense, words and hybrids", under, [f"{said}\n\n{table(columns, list(cells.values()))}"], config.out
    )


def measured(config: Config, task: Task, made: Path) -> dict[str, list[str]]:
    """Measure all runs of a collection."""
    qrels = open_collection(str(config.data / task.folder)).qrels(task.split)
    values: dict[str, dict[str, np.ndarray]] = {}
    for row, step in ROWS.items():
        each = per_query(read_run(made / step / "run.trec"), qrels, list(MEASURES), complete=True)
        values[row] = {measure: np.array([found[query] for query in sorted(found)]) for measure, found in each.items()}
    others = [row for row in ROWS if row != "sparse"]
    against = values["sparse"]["nDCG@10"]
    tested = dict(
        zip(others, holm([paired_t_test(values[row]["nDCG@10"] - against) or 0.0 for row in others]), strict=True)
    )
    return {
        row: [
            f"{found['nDCG@10'].mean():.4f}" + (f" (p = {tested[row]:.3f})" if row in tested else ""),
            f"{found['R@100'].mean():.3f}",
        ]
        for row, found in values.items()
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
