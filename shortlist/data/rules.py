"""Rules that cut ranked lists, as `shortlist cut calibrate` writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from shortlist.data.files import read_json
from shortlist.errors import UserError
from shortlist.records import Hit

CUT_BY = ("rank", "ratio", "score")
"""What a rule looks at: the rank, the score as a share of the best score of the query, or the score."""


class Rule(NamedTuple):
    """A rule, and what it was calibrated on."""

    by: str
    """One of CUT_BY."""
    at: float
    """The last rank, or the lowest share or score, that is kept."""
    made_by: Sequence[Mapping[str, Any]] | None = None
    """Stage and model of each stage of the run that it was calibrated on (None: unknown)."""


def read_rule(path: Path) -> Rule:
    """Read a rule.

    Raises:
        UserError: the file is missing, or is no rule.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a rule that `shortlist cut calibrate` wrote.")
    found = read_json(path)
    fits = found.get("by") in CUT_BY and isinstance(found.get("at"), int | float)
    if not fits or not np.isfinite(found["at"]):
        raise UserError(f"{path}: is no rule; expected one that `shortlist cut calibrate` wrote.")
    return Rule(found["by"], found["at"], found.get("made_by"))


def stages_and_models(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Return what a rule depends on: stage and model of each stage of a run.

    None where nothing is known.
    """
    return [
        {"stage": stage["stage"], "model": stage.get("model")} for stage in stages if stage["stage"] != "cut"
    ] or None


def looseness(by: str, scores: Float[np.ndarray, " hits"], *, where: str) -> Float[np.ndarray, " hits"]:
    """Return how loose a cut must be to keep each hit of a query.

    Hits are best first. A hit is kept by a rule if the number is at most that of the rule (`loosest`).

    Raises:
        UserError: the best score is not above 0, so that there are no shares of it.
    """
    if by == "rank":
        return np.arange(1.0, len(scores) + 1)
    if by == "score":
        return -scores
    if len(scores) and scores[0] <= 0:
        raise UserError(
            f"{where}: the best score is {scores[0]:g}; `ratio` needs scores above 0. Cut by score or by rank."
        )
    return -scores / (scores[0] if len(scores) else 1.0)


def loosest(rule: Rule) -> float:
    """Return the number of `looseness` up to which a rule keeps hits."""
    return float(rule.at if rule.by == "rank" else -rule.at)


def kept(rule: Rule, hits: Sequence[Hit], *, where: str) -> list[Hit]:
    """Return the hits of a query, best first, that a rule keeps.

    Args:
        where: the name of the run or step, for errors.
    """
    needed = looseness(rule.by, np.array([hit.score for hit in hits], dtype=float), where=where)
    return list(hits[: int((needed <= loosest(rule)).sum())])
