"""Significance tests of all pairs of systems at once, over the same queries.

A loop over the pairs computes the same; here all pairs share one pass over arrays.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from shortlist.math.significance import BATCH

SystemValues = Float[np.ndarray, "systems queries"]
"""A value of each system for each query."""
PValues = Float[np.ndarray, " pairs"]
"""The p-value of each pair, in the order of `pairs_of`; 1 for two systems with equal values."""
EQUAL = 1e-12
"""Relative difference of sums that rounding may cause."""
WITHIN, BETWEEN = 128, 48
"""Points at which the distribution of the range is computed: over its place, and over the estimated deviation."""


def pairs_of(num_systems: int) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Return the numbers of both systems of each pair, in order."""
    first, second = np.triu_indices(num_systems, 1)
    return first, second


def t_tests(values: SystemValues) -> PValues:
    """Compute the p-values of paired two-sided t-tests, each as `significance.paired_t_test` does."""
    from scipy.special import stdtr

    first, second = pairs_of(len(values))
    differences = values[first] - values[second]
    num_queries = values.shape[1]
    means, constant = differences.mean(1), np.ptp(differences, axis=1) == 0
    error = np.where(constant, 1.0, differences.std(1, ddof=1)) / np.sqrt(num_queries)
    p = 2 * stdtr(num_queries - 1, -np.abs(means / error))
    return np.where(constant, np.where(differences[:, 0] == 0, 1.0, 0.0), p)


def randomisation_tests(values: SystemValues, *, resamples: int = 10_000, seed: int = 0) -> PValues:
    """Compute the p-values of two-sided randomisation tests.

    Each query's two values are assigned to the two systems at random, the same way for all pairs. The p-value is the
    share of assignments whose means differ at least as much as the observed ones. It is exact if there are at most
    `resamples` assignments.

    https://doi.org/10.1145/1321440.1321528
    """
    first, second = pairs_of(len(values))
    differences = values[first] - values[second]
    observed = np.abs(differences.sum(1)) * (1 - EQUAL)
    extreme, done = np.zeros(len(first), dtype=np.int64), 0
    for signs in _signs(values.shape[1], resamples, seed, max(1, BATCH // max(1, len(first)))):
        extreme += (np.abs(signs @ differences.T) >= observed).sum(0)
        done += len(signs)
    exact = 2 ** values.shape[1] <= resamples
    p = extreme / done if exact else (extreme + 1) / (done + 1)
    return np.where(differences.any(1), p, 1.0)


def _signs(num_queries: int, resamples: int, seed: int, at_once: int) -> Iterator[Float[np.ndarray, "some queries"]]:
    """Yield rows of signs: all there are, or random ones if those are too many."""
    if 2**num_queries <= resamples:
        yield np.array(list(itertools.product((-1.0, 1.0), repeat=num_queries)))
        return
    rng = np.random.default_rng(seed)
    for done in range(0, resamples, at_once):
        shape = min(at_once, resamples - done), num_queries
        yield rng.integers(0, 2, shape, dtype=np.int8) * 2.0 - 1.0


def tukey_hsd(values: SystemValues) -> PValues:
    """Compute the p-values of Tukey's honestly significant differences, after an analysis of variance.

    The variance that neither system nor query explains is the noise. If values below 0.05 are called real, at most one
    table of systems in 20 contains a wrong call, so no further correction is due.

    https://doi.org/10.1145/2094072.2094076
    """
    num_systems, num_queries = values.shape
    first, second = pairs_of(num_systems)
    means, freedom = values.mean(1), (num_systems - 1) * (num_queries - 1)
    left = values - means[:, None] - values.mean(0)[None] + values.mean()
    noise = np.sqrt((left**2).sum() / freedom / num_queries)
    apart = np.abs(means[first] - means[second])
    if noise <= EQUAL * np.abs(values).max(initial=0.0):
        return np.where(apart <= EQUAL * np.abs(values).max(initial=0.0), 1.0, 0.0)
    return range_tail(apart / noise, num_systems, freedom)


def range_tail(ranges: Float[np.ndarray, " some"], num_systems: int, freedom: int) -> Float[np.ndarray, " some"]:
    """Compute the probability that a studentised range is at least this large.

    It is the range of `num_systems` normal values, divided by a deviation that is estimated with `freedom` degrees of
    freedom. The absolute error is below 1e-9; scipy.stats.studentized_range computes the same one value at a time.
    """
    from scipy.stats import chi2

    low, high = (float(np.sqrt(chi2.ppf(share, freedom) / freedom)) for share in (1e-15, 1 - 1e-15))
    deviations, weights = _points(BETWEEN, low, high)
    density = chi2.pdf(freedom * deviations**2, freedom) * 2 * freedom * deviations
    weights = weights * density
    below = np.zeros(len(ranges))
    at_once = max(1, BATCH // (WITHIN * BETWEEN))
    for start in range(0, len(ranges), at_once):
        part = ranges[start : start + at_once]
        below[start : start + at_once] = _range_below(part[:, None] * deviations[None], num_systems) @ weights
    return np.clip(1 - below / weights.sum(), 0.0, 1.0)


def _range_below(ranges: Float[np.ndarray, "some points"], num_systems: int) -> Float[np.ndarray, "some points"]:
    """Compute the probability that the range of standard normal values is below each number."""
    from scipy.special import ndtr

    tops, weights = _points(WITHIN, -8.5, 8.5)
    density = weights * num_systems * np.exp(-(tops**2) / 2) / np.sqrt(2 * np.pi)
    spread = ndtr(tops) - ndtr(tops - ranges[..., None])
    return (spread ** (num_systems - 1)) @ density


def _points(number: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the points and weights of Gauss and Legendre for an integral."""
    points, weights = np.polynomial.legendre.leggauss(number)
    return (points + 1) / 2 * (high - low) + low, weights * (high - low) / 2


def randomised_tukey(values: SystemValues, *, resamples: int = 10_000, seed: int = 0) -> PValues:
    """Compute the p-values of Tukey's test by randomisation, which assumes no normal distribution.

    The values of each query are assigned to the systems at random. The p-value of a pair is the share of assignments in
    which the best and the worst system differ at least as much as the pair does.

    https://doi.org/10.1145/2094072.2094076
    """
    first, second = pairs_of(len(values))
    rng, at_once = np.random.default_rng(seed), max(1, BATCH // values.size)
    ranges = []
    for done in range(0, resamples, at_once):
        number = min(at_once, resamples - done)
        shuffled = rng.permuted(np.broadcast_to(values, (number, *values.shape)), axis=1)
        ranges.append(np.ptp(shuffled.sum(2), axis=1))
    sums = values.sum(1)
    apart = np.abs(sums[first] - sums[second]) * (1 - EQUAL)
    extreme = resamples - np.searchsorted(np.sort(np.concatenate(ranges)), apart)
    return (extreme + 1) / (resamples + 1)
