"""Significance tests and confidence intervals over paired values of queries.

They say whether a difference between two systems could be chance.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

BATCH = 1 << 22
"""How many numbers are drawn at once."""


def paired_t_test(differences: Float[np.ndarray, " queries"]) -> float | None:
    """Compute the p-value of a paired two-sided t-test.

    This is the probability of a mean at least this far from 0 by chance, for normally distributed differences; None for
    fewer than two queries.
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
    """Compute the p-value of a two-sided randomisation test.

    Each query's two values are assigned to the two systems at random. The p-value is the share of assignments whose
    means differ at least as much as the observed ones. It is exact if there are at most `resamples` assignments, and
    None for fewer than two queries.

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
    """Compute a bootstrap confidence interval of the mean.

    The values are resampled with replacement. The share `confidence` of the samples have their mean in the interval.
    """
    rng, at_once = np.random.default_rng(seed), max(1, BATCH // len(values))
    means = [
        values[rng.integers(len(values), size=(min(at_once, resamples - done), len(values)))].mean(axis=1)
        for done in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several comparisons by Holm's method.

    If corrected values below 0.05 are called real, at most one family of comparisons in 20 contains a wrong call, where
    uncorrected values promise that for single tests only. The k-th smallest of n values is multiplied by (n - k + 1),
    and is at least as large as the one before it.

    https://www.jstor.org/stable/4615733
    """
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate(np.sort(p_values) * np.arange(len(p_values), 0, -1))
    result = np.empty(len(p_values))
    result[order] = np.minimum(corrected, 1.0)
    return result.tolist()
