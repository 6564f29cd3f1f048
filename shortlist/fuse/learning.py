"""Learned fusion: judged queries teach how far to trust each run."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from shortlist.data.fusers import SCORERS, ordered
from shortlist.errors import UserError, check_installed
from shortlist.evaluation.measure import of_run, per_query
from shortlist.math.logistic import fit_logistic
from shortlist.math.run_features import list_features
from shortlist.math.trees import Forest
from shortlist.progress import progress
from shortlist.records import Qrels, Run

FOLDS = 5
TREES = {"num_leaves": 4, "learning_rate": 0.05}
"""LightGBM's defaults (31 leaves, rate 0.1) learn a few hundred queries by heart: nDCG@10 .460 against .495 with these
on the 100 topics of Robust 2003."""
NUM_TREES = 100


class JudgedQuery(NamedTuple):
    """The candidates of a judged query."""

    query_id: str
    doc_ids: list[str]
    features: Float[np.ndarray, "docs features"]
    grades: Int[np.ndarray, " docs"]


Predict = Callable[[Float[np.ndarray, "docs features"]], Float[np.ndarray, " docs"]]


class Learner(NamedTuple):
    """A way to learn a fusion."""

    features: tuple[str, ...]
    """What it looks at in each run."""
    fit: Callable[[Sequence[JudgedQuery]], dict[str, Any]]
    """Returns the parameters that `data.fusers.SCORERS` reads."""


def learn_logistic(examples: Sequence[JudgedQuery]) -> dict[str, Any]:
    """Learn a weighted sum: the log-odds that a document is relevant."""
    features = np.concatenate([example.features for example in examples])
    line = fit_logistic(features, np.concatenate([example.grades for example in examples]) > 0)
    return {"weights": line.weights.tolist(), "bias": line.bias}


def check_learner(name: str) -> None:
    """Refuse a learner whose package is missing, before anything is written."""
    if name == "trees":
        check_installed("--learner trees", {"lightgbm": "'shortlist[learn]'"})


def learn_trees(examples: Sequence[JudgedQuery]) -> dict[str, Any]:
    """Learn small trees with LightGBM's LambdaMART.

    https://www.microsoft.com/en-us/research/publication/from-ranknet-to-lambdarank-to-lambdamart-an-overview/
    """
    check_learner("trees")
    import lightgbm  # pyright: ignore[reportMissingImports]

    data = lightgbm.Dataset(
        np.concatenate([example.features for example in examples]),
        np.concatenate([example.grades for example in examples]),
        group=[len(example.doc_ids) for example in examples],
    )
    settings = TREES | {"objective": "lambdarank", "verbose": -1, "deterministic": True, "force_col_wise": True}
    booster = lightgbm.train(settings | {"seed": 0}, data, NUM_TREES)
    return flattened([tree["tree_structure"] for tree in booster.dump_model()["tree_info"]])


def flattened(roots: Sequence[dict[str, Any]]) -> dict[str, list[int | float]]:
    """Number the nodes of LightGBM's trees as in `math.trees.Forest`, parents before children."""
    flat: dict[str, list[int | float]] = {name: [] for name in Forest._fields}

    def add(node: dict[str, Any]) -> int:
        number, inner = len(flat["left"]), "split_feature" in node
        flat["feature"].append(node["split_feature"] if inner else 0)
        flat["threshold"].append(node["threshold"] if inner else 0.0)
        flat["value"].append(0.0 if inner else node["leaf_value"])
        flat["left"].append(-1)
        flat["right"].append(-1)
        if inner:
            flat["left"][number], flat["right"][number] = add(node["left_child"]), add(node["right_child"])
        return number

    flat["roots"] = [add(root) for root in roots]
    return flat


LEARNERS: dict[str, Learner] = {
    "logistic": Learner(("zscore", "reciprocal_rank", "found"), learn_logistic),
    "trees": Learner(("score", "zscore", "scaled", "reciprocal_rank", "found"), learn_trees),
}


def make_examples(runs: Sequence[Run], qrels: Qrels, features: Sequence[str]) -> list[JudgedQuery]:
    """Make an example of each judged query that a run has.

    Documents without judgement count as not relevant.

    Raises:
        UserError: fewer than two queries are judged, or no document that a run found is relevant.
    """
    judged = [query_id for query_id in dict.fromkeys(name for run in runs for name in run) if query_id in qrels]
    examples = []
    for query_id in judged:
        doc_ids, values = list_features([run.get(query_id, []) for run in runs], features)
        grades = np.array([max(0, qrels[query_id].get(doc_id, 0)) for doc_id in doc_ids], dtype=np.int64)
        examples.append(JudgedQuery(query_id, doc_ids, values, grades))
    if len(examples) < 2 or not any(example.grades.any() for example in examples):
        raise UserError(
            f"--dev-runs: {len(examples)} of their queries are judged and "
            f"{sum(bool(example.grades.any()) for example in examples)} find a relevant document; expected at least 2 "
            "judged queries, and some that find one."
        )
    return examples


def folds_of(num_queries: int, *, seed: int = 0) -> Int[np.ndarray, " queries"]:
    """Draw a fold for each query, all about as large."""
    return np.random.default_rng(seed).permutation(num_queries) % min(FOLDS, num_queries)


class Rehearsal(NamedTuple):
    """Fusions that were each learned from some folds and scored on the one left out."""

    examples: Sequence[JudgedQuery]
    scores: Sequence[Predict]
    """The function for each example, learned without it."""

    def run(self, change: Callable[[JudgedQuery], Float[np.ndarray, "docs features"]] | None = None) -> Run:
        """Score every example by its function; `change` makes other features of it first."""
        return {
            example.query_id: ordered(example.doc_ids, score(change(example) if change else example.features))
            for example, score in zip(self.examples, self.scores, strict=True)
        }


def rehearse(examples: Sequence[JudgedQuery], learner: str) -> Rehearsal:
    """Learn from all folds but one, in turn.

    Raises:
        UserError: a fold has nothing to learn from.
    """
    folds = folds_of(len(examples))
    scores: list[Predict] = [lambda features: features[:, 0]] * len(examples)
    num_folds = int(folds.max()) + 1
    with progress("learning", num_folds, "folds") as advance:
        for fold in range(num_folds):
            some = [example for example, number in zip(examples, folds, strict=True) if number != fold]
            predict = SCORERS[learner](LEARNERS[learner].fit(some), examples[0].features.shape[1])
            for place in np.flatnonzero(folds == fold).tolist():
                scores[place] = predict
            advance()
    return Rehearsal(examples, scores)


def importance(
    rehearsal: Rehearsal, qrels: Qrels, measure: str, columns: Sequence[Sequence[int]], *, repeats: int = 3
) -> Iterator[float]:
    """Yield how much of a measure is lost where columns say nothing.

    The values of the columns are dealt out anew among the documents of each query.

    Args:
        columns: the columns to deal out together, for each yielded number.
        repeats: number of deals, whose mean is taken.

    https://doi.org/10.1023/A:1010933404324
    """
    whole = mean_of(rehearsal.run(), qrels, measure)
    for some in columns:
        lost = []
        for seed in range(repeats):
            random = np.random.default_rng(seed)

            def dealt(example: JudgedQuery, some: Sequence[int] = some, random: np.random.Generator = random):
                features = example.features.copy()
                features[:, some] = features[random.permutation(len(features))][:, some]
                return features

            lost.append(whole - mean_of(rehearsal.run(dealt), qrels, measure))
        yield float(np.mean(lost))


def mean_of(run: Run, qrels: Qrels, measure: str) -> float:
    """Return a measure of a run, over its judged queries."""
    return of_run(measure, per_query(run, qrels, [measure])[measure])
