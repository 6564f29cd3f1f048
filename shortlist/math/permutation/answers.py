"""Orders, preferences and scores that plans make of answers."""

import math
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

import numpy as np
from jaxtyping import Float64

from shortlist.math.permutation.running import Plan, PlanPart, Question, Verdict


def put_best_first(told: Iterable[tuple[int, float]]) -> list[int]:
    """Sort documents by what was told of them; equal ones keep their order."""
    known = [(unknown := math.isnan(score), 0.0 if unknown else -score, document) for document, score in told]
    return [document for *_, document in sorted(known, key=itemgetter(0, 1))]


def best_of_set(shown: Question) -> PlanPart[int]:
    """Find the best document by one question; the first stage decides between equal ones."""
    [answer] = yield [shown]
    return put_best_first(sorted(zip(shown, answer, strict=True)))[0]


def prefer(pairs: list[tuple[int, int]]) -> PlanPart[list[int | None]]:
    """Ask for each pair in both orders; return the document preferred twice, or None."""
    if not pairs:
        return []
    answers = yield [question for one, other in pairs for question in ((one, other), (other, one))]
    known = [[-math.inf if math.isnan(score) else score for score in answer] for answer in answers]
    return [
        one if a > b and d > c else other if a < b and d < c else None
        for (one, other), (a, b), (c, d) in zip(pairs, known[::2], known[1::2], strict=True)
    ]


def in_both_orders(make_plan: Callable[[int], Plan], num_docs: int) -> Plan:
    """Ask each question of a plan twice, the second time with its documents turned round.

    The plan, made for this many documents, is told the mean of both answers, so that a liking for a place in the prompt
    cancels. What one answer says nothing of has the other's score.
    """
    plan, answers = make_plan(num_docs), None
    while True:
        try:
            questions = next(plan) if answers is None else plan.send(answers)
        except StopIteration as end:
            return end.value
        told = yield [order for question in questions for order in (question, question[::-1])]
        answers = [_mean(one, other[::-1]) for one, other in zip(told[::2], told[1::2], strict=True)]


def _mean(one: Verdict, other: Verdict) -> Verdict:
    return [b if math.isnan(a) else a if math.isnan(b) else (a + b) / 2 for a, b in zip(one, other, strict=True)]


def scores_by_place(order: Sequence[int], num_docs: int) -> Float64[np.ndarray, " docs"]:
    """Score documents by their places, best first; NaN for those without one."""
    scores = np.full(num_docs, np.nan)
    scores[list(order)] = num_docs - np.arange(len(order), dtype=float)
    return scores


def told_apart(scores: Float64[np.ndarray, " docs"]) -> Float64[np.ndarray, " docs"]:
    """Lower equal scores by a little, later documents more, so that all differ.

    They do so in 32 bits too, in which scores are written.
    """
    order = np.argsort(-scores, kind="stable")[: int(np.isfinite(scores).sum())]  # NaN is sorted to the end
    largest = np.abs(scores[order]).max(initial=0) or 1.0
    steps = np.arange(len(order)) * largest * 2.0**-22  # two neighbouring 32-bit floats at most
    apart = np.full(len(scores), np.nan)
    apart[order] = np.minimum.accumulate(scores[order] + steps) - steps
    return apart


def check_least(least: int, **settings: int) -> None:
    """Refuse settings that are too small to ask anything."""
    for name, value in settings.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
