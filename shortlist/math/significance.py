"""Whether a difference between two systems could be chance: tests and intervals over paired values of queries."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

BATCH = 1 << 22
"""Numbers that are drawn at the same time."""


def paired_t_test(differences: Float[np.ndarray, " queries"]) -> float | None:
    """How likely a mean at least this far from 0 is by chance, the differences being normally distributed.

    Two-sided; None for fewer than two queries.
    """
    if len(differences) < 2:
        return None
    if differences.max() == differences.min():  # no variance: the test divides by it
        return 1.0 if differences[0] == 0 else 0.0
    from scipy.stats import ttest_1samp

    _, p = ttest_1samp(differences, 0.0)
    return float(np.asarray(p))


def randomisation_test(
    differences: Float[np.ndarray, " queries"], *, resamples: int = 10_000, seed: int = 0
) -> float | None:
    """The share of random assignments of each query's two values to the two systems whose means differ as much.

    Two-sided; exact where there are no more assignments than `resamples`; None for fewer than two queries.

    https://doi.org/10.1145/1321440.1321528
    """
    if len(differences) < 2:
        return None
    if not differences.any():
        return 1.0
    from scipy.stats import permutation_test

    test = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def bootstrap_interval(
    values: Float[np.ndarray, " queries"], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Between which two numbers the mean lies in this share of all samples of as many queries, drawn from these."""
    rng, at_once = np.random.default_rng(seed), max(1, BATCH // len(values))
    means = [
        values[rng.integers(len(values), size=(min(at_once, resamples - done), len(values)))].mean(axis=1)
        for done in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons such that calling those below 0.05 real is wrong once in 20 families, not tests.

    The k-th smallest of n counts (n - k + 1) times, and no less than the one before it.

    https://www.jstor.org/stable/4615733
    """
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate(np.sort(p_values) * np.arange(len(p_values), 0, -1))
    result = np.empty(len(p_values))
    result[order] = np.minimum(corrected, 1.0)
    return result.tolist()
