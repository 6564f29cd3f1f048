"""Learned fusions, which `shortlist fuse --method learned` writes as JSON."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from shortlist.data.files import read_json
from shortlist.errors import UserError
from shortlist.math.run_features import FEATURES, list_features
from shortlist.math.trees import Forest, is_sound, sum_of_trees
from shortlist.records import Hit, Run

ScoreRows = Callable[[Float[np.ndarray, "docs features"]], Float[np.ndarray, " docs"]]
"""A function of documents' features that gives their scores."""

WROTE = "expected one that `shortlist fuse --method learned` wrote"


class Fuser(NamedTuple):
    """A learned fusion of so many runs."""

    num_runs: int
    features: tuple[str, ...]
    """What it looks at in each run, keys of `math.run_features.FEATURES`."""
    score: ScoreRows
    made_by: Sequence[Any]
    """Stages and models of each run that it learned from (None: unknown)."""

    def __call__(self, runs: Sequence[Run]) -> Run:
        """Fuse runs of the searchers that it learned from, in the same order.

        Raises:
            UserError: there are more or fewer runs.
        """
        if len(runs) != self.num_runs:
            raise UserError(
                f"a learned fusion of {self.num_runs} runs was given {len(runs)}; expected runs of the same searchers, "
                "in the same order, as it learned from."
            )
        query_ids = dict.fromkeys(query_id for run in runs for query_id in run)
        return {query_id: self.fuse_query([run.get(query_id, []) for run in runs]) for query_id in query_ids}

    def fuse_query(self, lists: Sequence[Sequence[Hit]]) -> list[Hit]:
        """Fuse the lists of one query.

        Documents with equal scores keep the order in which they first occur.
        """
        doc_ids, features = list_features(lists, self.features)
        return ordered(doc_ids, self.score(features))


def ordered(doc_ids: list[str], scores: Float[np.ndarray, " docs"]) -> list[Hit]:
    """Return documents as hits, best first."""
    return [Hit(doc_ids[place], float(scores[place])) for place in np.argsort(-scores, kind="stable").tolist()]


def column_names(num_runs: int, features: Sequence[str]) -> list[str]:
    """Name the columns of `list_features`."""
    return [f"{feature} of run {run}" for run in range(1, num_runs + 1) for feature in features] + [
        "runs that found it"
    ]


def linear(parameters: Mapping[str, Any], num_features: int) -> ScoreRows:
    """ScoreRows by a weighted sum of the features."""
    weights, bias = np.array(parameters["weights"], dtype=np.float64), float(parameters["bias"])
    if weights.shape != (num_features,) or not np.isfinite(weights).all():
        raise ValueError(f"{weights.size} weights for {num_features} features")
    return lambda features: features @ weights + bias


def boosted(parameters: Mapping[str, Any], num_features: int) -> ScoreRows:
    """ScoreRows by a sum of decision trees."""
    numbers = {
        name: np.array(parameters[name], dtype=np.float64 if name in ("threshold", "value") else np.int64)
        for name in Forest._fields
    }
    if not is_sound(forest := Forest(**numbers), num_features):
        raise ValueError("a tree that does not end in leaves")
    return lambda features: sum_of_trees(forest, features)


SCORERS: dict[str, Callable[[Mapping[str, Any], int], ScoreRows]] = {"logistic": linear, "trees": boosted}
"""What the parameters of each learner mean."""


def open_fuser(content: Mapping[str, Any], *, where: str) -> Fuser:
    """Make the fusion that a file describes.

    Raises:
        UserError: it is no learned fusion.
    """
    try:
        features = tuple(content["features"])
        num_runs = len(content["runs"])
        if num_runs < 2 or not set(features) <= FEATURES.keys():
            raise ValueError("no features of runs")
        score = SCORERS[content["learner"]](content["parameters"], num_runs * len(features) + 1)
        return Fuser(num_runs, features, score, [run.get("made_by") for run in content["runs"]])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: is no learned fusion ({error}); {WROTE}.") from None


def read_fuser(path: Path) -> Fuser:
    """Read a learned fusion.

    Raises:
        UserError: the file is missing, or is no learned fusion.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {WROTE}.")
    return open_fuser(read_json(path), where=str(path))
