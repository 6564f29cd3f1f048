"""Importance of texts: how much likelier a target's words are in them."""

import numpy as np
from jaxtyping import Float, Int

UNSEEN = 1e-8
"""Probability of what a bag does not hold, where nothing is added to the counts, as DSIR's authors have it."""


def log_ratios(
    target: Int[np.ndarray, " buckets"], pool: Int[np.ndarray, " buckets"], *, smoothing: float
) -> Float[np.ndarray, " buckets"]:
    """Return the log of target share over pool share for each bucket.

    Args:
        smoothing: what is added to each count (Laplace). With 0, a bucket that the target lacks costs about 8 to 10
            nats, which says more about the target's size than about the text.

    https://arxiv.org/abs/2302.03169
    """
    return np.log(_share(target, smoothing) + UNSEEN) - np.log(_share(pool, smoothing) + UNSEEN)


def divergence(target: Int[np.ndarray, " buckets"], other: Int[np.ndarray, " buckets"], *, smoothing: float) -> float:
    """Return the Kullback-Leibler divergence of a bag of words from the target's, in nats."""
    shares = _share(target, smoothing)
    return float((shares * log_ratios(target, other, smoothing=smoothing))[shares > 0].sum())


def _share(counts: Int[np.ndarray, " buckets"], smoothing: float) -> Float[np.ndarray, " buckets"]:
    return (counts + smoothing) / (counts.sum() + smoothing * len(counts))


def text_weights(
    ratios: Float[np.ndarray, " grams"], texts: Int[np.ndarray, " grams"], num_texts: int, *, mean: bool
) -> Float[np.ndarray, " texts"]:
    """Add up the ratios of each text's words, or take their mean.

    Texts without words get -inf.

    Args:
        ratios: log p - log q of each word or pair of words.
        texts: the text that each is from.
        mean: a sum grows with a text's length, so that length decides where ratios are seldom above 0.
    """
    counts = np.bincount(texts, minlength=num_texts)
    sums = np.bincount(texts, weights=ratios, minlength=num_texts)
    return np.where(counts > 0, sums / np.maximum(counts, 1) if mean else sums, -np.inf)


def best_numbers(
    weights: Float[np.ndarray, " texts"], size: int, *, temperature: float = 0.0, seed: int = 0
) -> Int[np.ndarray, " chosen"]:
    """Return the numbers of the texts to take, ascending.

    Args:
        size: how many, at most as many as have a finite weight.
        temperature: 0 takes the texts of the highest weights. Otherwise Gumbel noise times this is added first, which
            draws texts without replacement with probabilities proportional to exp(weight / temperature).
        seed: decides the noise.

    https://arxiv.org/abs/1903.06059
    """
    if temperature > 0:
        weights = weights + temperature * np.random.default_rng(seed).gumbel(size=len(weights))
    return np.sort(np.lexsort((np.arange(len(weights)), -weights))[:size])
