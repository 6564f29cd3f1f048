"""Sampling of the negatives that join the positives in a training group."""

from collections.abc import Collection, Sequence
from itertools import chain, islice, zip_longest

import numpy as np
from jaxtyping import Float, Int

SOURCES = 0x736F7572
"""Second part of the seed for the sources of steps; an epoch's number is that for its order."""


def interleave(lists: Sequence[Sequence[str]], depth: int) -> list[str]:
    """Merge several ranked lists into one list of `depth` ids.

    All ids of the first rank come first, then all of the second rank, and so on; repeated ids are dropped.
    """
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
    """Draw negatives without replacement: hard ones from the candidates, random ones from the corpus.

    Args:
        candidates: ids that a first stage ranked high, without repetition.
        corpus: ids of the whole collection; not looked at while `random_share` is 0.
        excluded: ids that must not be drawn, such as the positives.
        rng: decides the draw; the same state gives the same draw.
        number: how many to draw.
        random_share: the share of `number` to draw from the whole corpus, candidates included.

    Returns:
        Hard negatives, then random ones, all distinct; fewer than `number` if there are not enough.
    """
    num_random = round(number * random_share)
    eligible = [doc_id for doc_id in candidates if doc_id not in excluded]
    hard = _draw(eligible, number - num_random, rng)
    blocked = {*excluded, *hard}
    drawn = _draw(corpus, num_random + len(blocked), rng) if num_random else []  # enough even if all blocked are drawn
    return hard + [doc_id for doc_id in drawn if doc_id not in blocked][:num_random]


def _draw(items: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    """Draw at most `number` of the items, in random order."""
    rows: list[int] = rng.choice(len(items), size=min(number, len(items)), replace=False).tolist()
    return [items[row] for row in rows]


def highest_allowed(positives: Collection[float], *, ratio: float | None = None, margin: float | None = None) -> float:
    """Return the highest score that a negative may have beside positives with these scores.

    The positive with the lowest score decides.

    Args:
        positives: the positives' scores, at least one.
        ratio: share of the positive's score, such as 0.95 (https://arxiv.org/abs/2407.15831). Below a score under 0, as
            logits may be, the limit lies as far as it would below the same score above 0.
        margin: least distance to the positive's score.
    """
    lowest = min(positives)
    by_ratio = np.inf if ratio is None else lowest - (1 - ratio) * abs(lowest)
    by_margin = np.inf if margin is None else lowest - margin
    return float(min(by_ratio, by_margin))


def draw_depths(
    num_queries: int, versions: int, *, most: int, rng: np.random.Generator
) -> Int[np.ndarray, "versions queries"]:
    """Draw different numbers of documents for each query, from 0 to `most`, all equally likely.

    https://arxiv.org/abs/2204.11545
    """
    return rng.permuted(np.tile(np.arange(most + 1), (num_queries, 1)), axis=1)[:, :versions].T


def epoch_negatives(negatives: Sequence[str], number: int, *, epoch: int, seed: int | Sequence[int]) -> list[str]:
    """Choose the negatives of one group for an epoch.

    The negatives are shuffled into a circle, and each epoch takes the next `number` of them. Over the epochs every
    negative is used equally often (give or take one), and at most once per epoch.

    Args:
        negatives: all negatives of the group.
        number: how many to use; if the group has fewer, all of them are returned.
        epoch: the number of the epoch, from 0.
        seed: decides the shuffle; give each group a different one, such as [seed, index of the group].
    """
    if len(negatives) <= number:
        return list(negatives)
    circle = _draw(negatives, len(negatives), np.random.default_rng(seed))
    start = epoch * number % len(circle)
    return (circle + circle)[start : start + number]


def mixing_shares(sizes: Sequence[float], *, temperature: float) -> Float[np.ndarray, " sources"]:
    """Return the probability of each source, proportional to size^(1/temperature).

    Args:
        sizes: size of each source, more than 0.
        temperature: 1 gives each source its share of the whole, a large one gives all the same.
    """
    logs = np.log(np.asarray(sizes, dtype=np.float64)) / temperature
    powers = np.exp(logs - logs.max())
    return powers / powers.sum()


def draw_sources(shares: Float[np.ndarray, " sources"], steps: int, *, seed: int) -> Int[np.ndarray, " steps"]:
    """Draw the source of each step.

    The first steps are the same, however many there are.
    """
    draws = np.random.default_rng([seed, SOURCES]).random(steps)
    return np.minimum(np.searchsorted(np.cumsum(shares), draws, side="right"), len(shares) - 1)


def shortfall(counts: Int[np.ndarray, " groups"], negatives: int | None) -> int:
    """Count the groups that have fewer than `negatives` negatives (None: there is no such number).

    Args:
        counts: the number of negatives of each group.
    """
    return int((counts < (negatives or 0)).sum())
