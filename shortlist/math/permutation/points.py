"""Plans that collect points, or take documents out: all pairs, tournaments, groups, exclusion."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from shortlist.math.permutation.answers import check_least, prefer, put_best_first, scores_by_place, told_apart
from shortlist.math.permutation.running import Plan, PlanPart, Question, together

INFINITE = 1e30
"""What an infinite score counts as where scores are averaged."""
MOST_IN_GROUP = 20
"""The most documents that a tournament of its own choice of rounds shows together."""


def all_pairs(num_docs: int) -> Plan:
    """Compare all pairs in both orders, and add up wins and halves.

    A document that both answers prefer gets 1; if there is none, both documents get ½. The scores are these sums; equal
    ones are lowered by a little, in first-stage order.

    https://arxiv.org/abs/2306.17563
    """
    pairs = list(combinations(range(num_docs), 2))
    wins = np.zeros(num_docs)
    winners = yield from prefer(pairs)
    for pair, winner in zip(pairs, winners, strict=True):
        if winner is None:
            wins[list(pair)] += 0.5
        else:
            wins[winner] += 1
    return told_apart(wins)


class Round(NamedTuple):
    """One round of a tournament: groups of documents whose best survive."""

    groups: int
    survivors: int
    """How many go on, of all groups together."""


def tournaments(num_docs: int, *, rounds: Sequence[Round] | None = None, repeats: int = 2, seed: int = 0) -> Plan:
    """Let documents compete in groups, round after round, with a point for each round survived.

    Every group has documents from all over the first stage's order, shown in random order. The points of several
    tournaments are added, and equal ones lowered by a little, in first-stage order. All documents are placed.

    Args:
        num_docs: how many documents the list has.
        rounds: what to play; by default `halving_rounds`. Rounds that all would survive are left out.
        repeats: how many tournaments; they do not depend on each other.
        seed: decides the order in which each group is shown.

    https://arxiv.org/abs/2406.11678
    """
    rounds = halving_rounds(num_docs) if rounds is None else rounds
    generators = [np.random.default_rng([seed, number]) for number in range(repeats)]
    points = yield from together([_tournament(num_docs, rounds, rng) for rng in generators])
    return told_apart(sum(points, np.zeros(num_docs)))


def halving_rounds(num_docs: int) -> list[Round]:
    """Choose rounds that each keep about half, until two documents are left.

    The number that survives is the one of 1, 2, 5, 10, 20, 50, ... that is nearest to half, by their ratio. Up to 20
    documents are one group; more are 5 groups, or as many as it takes to have at most 20 in each. For 100 documents
    these are the rounds of TourRank: 50, 20, 10, 5 and 2 survivors of 5, 5, 1, 1 and 1 groups.
    """
    rounds: list[Round] = []
    left = num_docs
    while left > 2 or (left == 2 and not rounds):
        numbers = [digit * 10**zeros for zeros in range(len(str(left))) for digit in (1, 2, 5)]
        survivors = min(numbers, key=lambda number: abs(math.log(2 * number / left)))
        groups = 1 if left <= MOST_IN_GROUP else max(5, math.ceil(left / MOST_IN_GROUP))
        rounds.append(Round(groups, survivors))
        left = survivors
    return rounds


def exclusion(num_docs: int, *, window: int = 20) -> Plan:
    """Ask for the worst document, put it last, and ask again without it.

    Only the last `window` documents that are left are shown, in first-stage order. With perfect answers the best
    `window - 1` come first in the right order, because whatever is taken out earlier has as many above it. It takes
    `num_docs - 1` questions, one after another. All documents are placed.

    https://arxiv.org/abs/2506.21638
    """
    check_least(2, window=window)
    left = list(range(num_docs))
    removed: list[int] = []
    while len(left) > 1:
        shown = tuple(left[-window:])
        [answer] = yield [shown]
        removed.append(put_best_first(zip(shown, answer, strict=True))[-1])
        left.remove(removed[-1])
    return scores_by_place([*left, *reversed(removed)], num_docs)


def groups(num_docs: int, *, size: int, repeats: int = 1, seed: int = 0) -> Plan:
    """Ask for scores of documents in random groups, and average what several repetitions say.

    The groups of a repetition are as equal as they can be. With a size of 2, a document that is left over is shown
    with another once more. Equal means are lowered by a little, in first-stage order; a document of which no answer
    said anything is not placed, nor is a single one that would have to be compared.

    Args:
        num_docs: how many documents the list has.
        size: the most documents in a group; 1 asks for each document alone.
        repeats: how many times all documents are shown, each time in other groups.
        seed: decides the groups.

    https://arxiv.org/abs/2511.11653
    """
    check_least(1, size=size)
    rng = np.random.default_rng(seed)
    questions = [shown for _ in range(repeats) for shown in _split(rng.permutation(num_docs).tolist(), size)]
    answers = (yield questions) if questions else []
    totals, counts = np.zeros(num_docs), np.zeros(num_docs)
    for shown, answer in zip(questions, answers, strict=True):
        for document, score in zip(shown, answer, strict=True):
            if not math.isnan(score):
                totals[document] += min(max(score, -INFINITE), INFINITE)
                counts[document] += 1
    return told_apart(np.divide(totals, counts, out=np.full(num_docs, np.nan), where=counts > 0))


def all_at_once(num_docs: int) -> Plan:
    """Ask for scores of all documents at once, in first-stage order.

    Equal scores are lowered by a little, in that order. Nothing is asked about a single document.
    """
    if num_docs < 2:
        return np.full(num_docs, np.nan)
    [scores] = yield [tuple(range(num_docs))]
    return told_apart(np.array(scores, dtype=np.float64).clip(-INFINITE, INFINITE))


def _tournament(
    num_docs: int, rounds: Sequence[Round], rng: np.random.Generator
) -> PlanPart[Float64[np.ndarray, " docs"]]:
    """Play the rounds of one tournament, and return each document's points."""
    points = np.zeros(num_docs)
    left = list(range(num_docs))
    for most_groups, survivors in rounds:
        if survivors >= len(left):
            continue
        num_groups = max(1, min(most_groups, survivors, len(left) // 2))
        questions = [tuple(rng.permutation(left[group::num_groups]).tolist()) for group in range(num_groups)]
        answers = yield questions
        ranked = [put_best_first(sorted(zip(*told, strict=True))) for told in zip(questions, answers, strict=True)]
        places = [(rank, group) for group, documents in enumerate(ranked) for rank in range(len(documents))]
        left = sorted(ranked[group][rank] for rank, group in sorted(places)[:survivors])
        points[left] += 1
    return points


def _split(documents: list[int], size: int) -> list[Question]:
    """Split documents into groups of about the same size, at most `size`."""
    if size == 1:
        return [(document,) for document in documents]
    if len(documents) < 2:
        return []
    number = math.ceil(len(documents) / size)
    parts = [documents[part::number] for part in range(number)]
    if len(parts[-1]) == 1:
        parts[-1].append(documents[0])  # a comparison takes two
    return [tuple(part) for part in parts]
