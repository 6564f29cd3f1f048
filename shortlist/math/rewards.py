"""Rewards of answers about documents, as pure functions of answers and grades."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Said(NamedTuple):
    """Scores and faults of an answer about documents."""

    scores: Sequence[float]
    """A score for each document, higher is better; NaN for one of which nothing was said."""
    well_formed: bool = True
    """Whether it has the form that was asked for."""
    bad_tags: int = 0
    """How many of the tags that were asked for are missing, repeated or out of order."""
    outside: bool = False
    """Whether it named something that was not offered."""

    @property
    def says_nothing(self) -> bool:
        """Whether nothing was said of any document."""
        return all(map(math.isnan, self.scores))


Grades = Sequence[float]
"""The grade of each document that was shown, 0 for one that is not relevant."""


def order_ndcg(said: Said, grades: Grades, *, k: int = 10) -> float:
    """Compute nDCG@k of the documents in the order of their scores.

    It is 0 for a malformed answer. Grades count as they are. Documents of which nothing was said come last, and equal
    ones stay as they were shown.
    """
    return _ndcg(said, grades, k) if said.well_formed else 0.0


def order_mrr(said: Said, grades: Grades, *, k: int = 10) -> float:
    """Compute the reciprocal rank of the first relevant document; 0 if malformed."""
    found = [rank for rank, place in enumerate(_order(said)[:k], 1) if grades[place] > 0]
    return 1 / found[0] if found and said.well_formed else 0.0


def order_recall(said: Said, grades: Grades, *, k: int = 10) -> float:
    """Compute the share of the relevant documents among the first k; 0 if malformed."""
    return _recall(said, grades, k) if said.well_formed else 0.0


def exact_label(said: Said, grades: Grades) -> float:
    """Give 1 to a well-formed answer that names a best document, otherwise 0 (Rank-R1).

    https://arxiv.org/abs/2503.06034
    """
    if not said.well_formed or said.says_nothing:
        return 0.0
    return float(0 < grades[_order(said)[0]] == max(grades))


def exclusion(
    said: Said,
    grades: Grades,
    *,
    gold: float = 0.0,
    outside: float = -0.5,
    none: float = -1.0,
    tag: float = -0.25,
    form: float = -1.0,
) -> float:
    """Reward an answer that excludes one document, for not excluding the best (IRanker).

    It gets 1 for any document but one of the highest grade, and less for each bad tag.

    Args:
        gold: the reward for excluding one of the highest grade.
        outside: for naming what is not a candidate.
        none: for naming nothing.
        tag: added for each bad tag.
        form: added to an answer that names a document in another form than asked for, with the right tags.

    https://arxiv.org/abs/2506.21638
    """
    faults = tag * said.bad_tags + form * (not said.well_formed and not said.bad_tags and not said.says_nothing)
    if said.says_nothing:
        return (outside if said.outside else none) + faults
    excluded = int(np.nanargmin(said.scores))
    best = 0 < grades[excluded] == max(grades)
    return (gold if best else 1.0) + faults


def binary(said: Said, grades: Grades, *, form: float = 1.0) -> float:
    """Reward a yes or no about one document for form and truth (ProRank's warm-up).

    One that is right gets 1 beside what its form earns.

    Args:
        form: the reward for the form.

    https://arxiv.org/abs/2506.03487
    """
    if not said.well_formed or said.says_nothing:
        return 0.0
    return form + float((said.scores[0] > 0) == (grades[0] > 0))


def group(
    said: Said,
    grades: Grades,
    *,
    k: int = 10,
    recall: float = 0.2,
    likeness: float = 0.1,
    unread: float = -0.1,
    form: float = -0.5,
) -> float:
    """Reward grades for a group by their order and their likeness to true ones (GroupRank).

    It is nDCG@k, plus recall@k and 1 less the Jensen-Shannon divergence of the shares that grades have in their sum.

    Args:
        recall: weight of recall@k.
        likeness: weight of the likeness.
        unread: the reward of an answer with the right tags and no grades that can be read.
        form: the reward of an answer with other faults.

    https://arxiv.org/abs/2511.11653
    """
    if said.bad_tags or (not said.well_formed and not said.says_nothing):
        return form
    if said.says_nothing:
        return unread
    alike = 1 - jensen_shannon(_shares(np.nan_to_num(said.scores)), _shares(grades))
    return _ndcg(said, grades, k) + recall * _recall(said, grades, k) + likeness * alike


def list_ranks(
    said: Sequence[Sequence[Said]],
    grades: Grades,
    *,
    highest: float = 10.0,
    above: float = -1.0,
    form: float = -1.0,
) -> list[list[float]]:
    """Reward each document's scores by their place among all scores for the query (ERank).

    A relevant document's score gets 1 / its rank among the scores of all documents and samples, where equal scores
    share the best of their ranks. Another document's score gets minus the square of its share of the highest grade. The
    paper compares it with the grade of its first training instead, and its constants are not published; these are ours.

    Args:
        said: for each document, what each sample said.
        highest: the highest grade that may be given.
        above: the reward of a score for another document that is higher than one for a relevant document.
        form: the reward of a malformed answer, which has no rank.

    https://arxiv.org/abs/2509.00520
    """
    readable = [[one.well_formed and not one.says_nothing for one in row] for row in said]
    scores = [
        (one.scores[0], grade)
        for row, oks, grade in zip(said, readable, grades, strict=True)
        for one, ok in zip(row, oks, strict=True)
        if ok
    ]
    lowest = min((score for score, grade in scores if grade > 0), default=math.inf)

    def reward(one: Said, grade: float) -> float:
        score = one.scores[0]
        if grade > 0:
            return 1 / (1 + sum(other > score for other, _ in scores))
        return above if score > lowest else -((score / highest) ** 2)

    return [
        [reward(one, grade) if ok else form for one, ok in zip(row, oks, strict=True)]
        for row, oks, grade in zip(said, readable, grades, strict=True)
    ]


def jensen_shannon(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Compute the Jensen-Shannon divergence of two distributions, in bits, from 0 to 1."""
    p, q = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    middle = (p + q) / 2
    return sum(float((x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum()) / 2 for x in (p, q))


def _shares(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Divide numbers by their sum; equal shares if it is 0."""
    found = np.clip(np.asarray(values, dtype=float), 0, None)
    return found / found.sum() if found.sum() else np.full(len(found), 1 / len(found))


def _order(said: Said) -> list[int]:
    """Return documents' places from the highest score down, equal ones as they were shown."""
    return sorted(range(len(said.scores)), key=lambda place: -_or_last(said.scores[place]))


def _or_last(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _ndcg(said: Said, grades: Grades, k: int) -> float:
    found, best = [grades[place] for place in _order(said)], sorted(grades, reverse=True)
    ideal = _dcg(best[:k])
    return _dcg(found[:k]) / ideal if ideal else 0.0


def _dcg(grades: Grades) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))


def _recall(said: Said, grades: Grades, k: int) -> float:
    relevant = sum(grade > 0 for grade in grades)
    return sum(grades[place] > 0 for place in _order(said)[:k]) / max(1, relevant)


ANSWER_REWARDS: dict[str, Callable[..., float]] = {
    "ndcg": order_ndcg,
    "mrr": order_mrr,
    "recall": order_recall,
    "label": exact_label,
    "exclusion": exclusion,
    "binary": binary,
    "group": group,
}
"""Rewards of single answers, by the names that `train --reward` takes."""

LIST_REWARDS: dict[str, Callable[..., list[list[float]]]] = {"list": list_ranks}
"""Rewards of all answers about a query's documents together."""
