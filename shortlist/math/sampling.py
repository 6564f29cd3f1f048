"""Which documents stand beside the positives of a training group."""

from collections.abc import Collection, Iterable, Sequence
from itertools import chain, islice, zip_longest

import numpy as np

from shortlist.records import Group


def interleave(lists: Sequence[Sequence[str]], depth: int) -> list[str]:
    """The first `depth` ids of several ranked lists: all first ranks, then all second ranks, each id once."""
    ranks = chain.from_iterable(zip_longest(*lists))
    return list(islice(dict.fromkeys(doc_id for doc_id in ranks if doc_id is not None), depth))


def draw_negatives(
    candidates: Sequence[str],
    corpus: Sequence[str],
    excluded: Collection[str],
    rng: np.random.Generator,
    *,
    number: int,
    random_share: float = 0.0,
) -> list[str]:
    """Draw negatives without replacement: hard ones from the candidates, the rest from anywhere.

    Args:
        candidates: ids that a first stage ranked high, without repetition.
        corpus: ids of the whole collection; not looked at while `random_share` is 0.
        excluded: ids that must not be drawn, such as the positives.
        rng: decides the draw; the same state draws the same.
        number: how many to draw.
        random_share: this part of `number` comes from the whole corpus, candidates included.

    Returns:
        Hard negatives, then random ones; fewer than asked where there are not enough, never one id twice.
    """
    num_random = round(number * random_share)
    eligible = [doc_id for doc_id in candidates if doc_id not in excluded]
    hard = _draw(eligible, number - num_random, rng)
    blocked = {*excluded, *hard}
    drawn = _draw(corpus, num_random + len(blocked), rng) if num_random else []  # enough even if all blocked are drawn
    return hard + [doc_id for doc_id in drawn if doc_id not in blocked][:num_random]


def _draw(items: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    """At most `number` of the items, in random order."""
    rows: list[int] = rng.choice(len(items), size=min(number, len(items)), replace=False).tolist()
    return [items[row] for row in rows]


def epoch_negatives(negatives: Sequence[str], number: int, *, epoch: int, seed: int | Sequence[int]) -> list[str]:
    """The negatives of one group that an epoch trains on: the next `number` of a shuffled circle.

    Over the epochs every negative is used equally often (give or take one), and none twice in one epoch.

    Args:
        negatives: all that the group has.
        number: how many to use; fewer come back where the group has fewer.
        epoch: from 0.
        seed: decides the shuffle; give each group its own, such as [seed, index of the group].
    """
    if len(negatives) <= number:
        return list(negatives)
    circle = _draw(negatives, len(negatives), np.random.default_rng(seed))
    start = epoch * number % len(circle)
    return (circle + circle)[start : start + number]


def shortfall(groups: Iterable[Group], negatives: int) -> int:
    """How many groups have fewer negatives than asked for."""
    return sum(len(group.negatives) < negatives for group in groups)
