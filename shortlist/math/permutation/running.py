"""Questions, answers and plans, and running the plans of many lists together."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64

T = TypeVar("T")
Question = tuple[int, ...]
"""Documents to show together, by their first-stage ranks counted from 0, in the order in which to show them."""
Verdict = Sequence[float]
"""A score for each document of a question, higher is better; NaN: nothing was said of it."""
PlanPart = Generator[list[Question], list[Verdict], T]
"""Yields questions that may be asked together, never none; receives their answers in the same order."""
Plan = PlanPart[Float64[np.ndarray, " docs"]]
"""A part whose result is a score for each document: NaN where it was not placed, and otherwise all different."""


def run_plan(plan: Plan, answer: Callable[[list[Question]], Sequence[Verdict]]) -> Float64[np.ndarray, " docs"]:
    """Run the plan of one list to its end, and return its scores.

    Args:
        plan: one of `PLANS`, called.
        answer: is given the questions of a round and returns their answers in the same order.
    """
    [(_, scores)] = run_plans([plan], lambda asked: answer([question for _, question in asked]))
    return scores


def run_plans(
    plans: Iterable[PlanPart[T]], answer: Callable[[list[tuple[int, Question]]], Sequence[Verdict]]
) -> Iterator[tuple[int, T]]:
    """Run the plans of many lists, asking what all want to know at once.

    Args:
        plans: one for each list.
        answer: is given (number of the list, question) pairs and returns the answers in the same order.

    Yields:
        The number of a list and its result, the scores of its documents, as lists finish.

    Raises:
        ValueError: there are more or fewer answers than questions.
    """
    plans = list(plans)
    asked, ended = _advance(plans, {number: [] for number in range(len(plans))}, [])
    yield from ended.items()
    while asked:
        pairs = [(number, question) for number, questions in asked.items() for question in questions]
        answers = answer(pairs)
        if len(answers) != len(pairs):
            raise ValueError(f"{len(pairs)} questions got {len(answers)} answers")
        asked, ended = _advance(plans, asked, answers)
        yield from ended.items()


class Count(NamedTuple):
    """Questions of a plan in all."""

    questions: int
    rounds: int
    """How many times it waits for answers."""
    documents: int
    """How many documents all questions show together."""


def upside_down(questions: list[Question]) -> list[Verdict]:
    """Answer as if the first stage had put the documents in exactly the wrong order."""
    return [[float(document) for document in question] for question in questions]


def count_questions(plan: Plan, answer: Callable[[list[Question]], Sequence[Verdict]] = upside_down) -> Count:
    """Run a plan to see how much it asks when it is answered like this.

    Sorts ask about as much as they ever do when the first stage is wrong throughout.
    """
    rounds: list[list[Question]] = []

    def count(questions: list[Question]) -> Sequence[Verdict]:
        rounds.append(questions)
        return answer(questions)

    run_plan(plan, count)
    questions = [question for asked in rounds for question in asked]
    return Count(len(questions), len(rounds), sum(map(len, questions)))


def together(parts: Sequence[PlanPart[T]]) -> PlanPart[list[T]]:
    """Make one part of several that do not depend on each other."""
    asked, results = _advance(parts, {number: [] for number in range(len(parts))}, [])
    while asked:
        answers = yield [question for questions in asked.values() for question in questions]
        asked, ended = _advance(parts, asked, answers)
        results |= ended
    return [results[number] for number in range(len(parts))]


def _advance(
    parts: Sequence[PlanPart[T]], asked: Mapping[int, list[Question]], answers: Sequence[Verdict]
) -> tuple[dict[int, list[Question]], dict[int, T]]:
    """Send the answers to the parts that asked.

    Returns:
        What each asks next, and the results of those that ended.
    """
    told = iter(answers)
    asking: dict[int, list[Question]] = {}
    ended: dict[int, T] = {}
    for number, questions in asked.items():
        part = parts[number]
        try:
            asking[number] = part.send(list(islice(told, len(questions)))) if questions else next(part)
        except StopIteration as end:
            ended[number] = end.value
    return asking, ended
