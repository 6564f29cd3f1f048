"""Latent scores of items that were judged in slates of different scales.

The judged score of item v in slate s is taken for `a * tau * theta_v + b_s` (LATTICE, https://arxiv.org/abs/2510.13217).
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

RIDGE = 1e-6
"""Holds the shifts of slates that share no item at 0."""
STEPS, RATE = 200, 0.01
MIXTURE_STEPS = 100
LEAST_VARIANCE = 1e-4


def latent_scores(
    items: Int[np.ndarray, " judged"],
    slates: Int[np.ndarray, " judged"],
    scores: Float[np.ndarray, " judged"],
    *,
    tau: float = 5.0,
    share: float = 1.0,
) -> Float[np.ndarray, " items"]:
    """Fit a score of each item that explains its judged scores in all slates.

    Args:
        items: the item of each judgement, numbered from 0.
        slates: the slate of each judgement, numbered from 0.
        scores: the judged scores.
        tau: scale of the latent scores.
        share: the weight of the mean squared error, 0 to 1; the likelihood of the slates' orders has the rest. With 1
            the fit is the exact least-squares solution, and tau changes nothing.
    """
    if share == 1:
        return by_least_squares(items, slates, scores)
    return by_descent(items, slates, scores, tau=tau, share=share)


def by_least_squares(
    items: Int[np.ndarray, " judged"], slates: Int[np.ndarray, " judged"], scores: Float[np.ndarray, " judged"]
) -> Float[np.ndarray, " items"]:
    """Minimize the squares of `score - theta_v - b_s`, with the smallest shifts."""
    counts = np.zeros((int(slates.max()) + 1, int(items.max()) + 1))
    sums = np.zeros_like(counts)
    np.add.at(counts, (slates, items), 1)
    np.add.at(sums, (slates, items), scores)
    of_items = counts.sum(0)
    means = sums.sum(0) / of_items
    ties = np.diag(counts.sum(1) + RIDGE) - (counts / of_items) @ counts.T  # the shifts alone, the items eliminated
    shifts = np.linalg.solve(ties, sums.sum(1) - counts @ means)
    return means - shifts @ counts / of_items


def by_descent(
    items: Int[np.ndarray, " judged"],
    slates: Int[np.ndarray, " judged"],
    scores: Float[np.ndarray, " judged"],
    *,
    tau: float,
    share: float,
) -> Float[np.ndarray, " items"]:
    """Minimize `(1 - share) * Plackett-Luce + share * squared error` by AdamW."""
    item, slate, score = torch.from_numpy(items), torch.from_numpy(slates), torch.from_numpy(scores).float()
    count = torch.bincount(item).float()
    theta = (torch.zeros(len(count)).index_add_(0, item, score) / count).requires_grad_()
    shift, scale = torch.zeros(int(slate.max()) + 1, requires_grad=True), torch.tensor(1 / tau, requires_grad=True)
    optimizer = torch.optim.AdamW([theta, shift, scale], lr=RATE)
    places = in_order(slates, scores)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimizer.zero_grad()
            error = (scale * tau * theta[item] + shift[slate] - score).square().mean()
            loss = share * error + (1 - share) * order_loss(tau * theta[item], places)
            loss.backward()
            optimizer.step()
    return theta.detach().double().numpy()


def in_order(slates: Int[np.ndarray, " judged"], scores: Float[np.ndarray, " judged"]) -> Int[Tensor, "slates most"]:
    """Return each slate's judgements, the best first; -1 fills up the short ones."""
    order = np.lexsort((-scores, slates))
    counts = np.bincount(slates)
    places = np.full((len(counts), int(counts.max())), -1, dtype=np.int64)
    places[np.arange(places.shape[1]) < counts[:, None]] = order
    return torch.from_numpy(places)


def order_loss(scores: Float[Tensor, " judged"], places: Int[Tensor, "slates most"]) -> Float[Tensor, ""]:
    """Compute the negative log-likelihood of the slates' orders (Plackett-Luce), per judgement.

    Args:
        scores: of each judgement.
        places: the judgements of each slate, the best first, -1 where there is none.
    """
    there = places >= 0
    filled = torch.where(there, scores[places.clamp(min=0)], torch.finfo(scores.dtype).min / 2)
    below = filled.flip(1).logcumsumexp(1).flip(1)
    return (below - filled)[there].mean()


def crossing(values: Float[np.ndarray, " values"]) -> float:
    """Find where the upper of two fitted normal distributions becomes the likelier one."""
    low, high = float(values.min()), float(values.max())
    if high - low < np.sqrt(LEAST_VARIANCE):
        return low
    means, variances, shares = np.array([low, high]), np.full(2, values.var()), np.full(2, 0.5)
    for _ in range(MIXTURE_STEPS):
        chances = np.exp(_log_densities(values, means, variances, shares))
        chances /= chances.sum(0)
        totals = chances.sum(1)
        means = chances @ values / totals
        variances = (chances * (values - means[:, None]) ** 2).sum(1) / totals + LEAST_VARIANCE
        shares = totals / len(values)
    between = np.linspace(means[0], means[1], 513)
    lower, upper = _log_densities(between, means, variances, shares)
    return float(between[int((upper >= lower).argmax())])


def _log_densities(
    values: Float[np.ndarray, " values"],
    means: Float[np.ndarray, " 2"],
    variances: Float[np.ndarray, " 2"],
    shares: Float[np.ndarray, " 2"],
) -> Float[np.ndarray, "2 values"]:
    """Return the logarithm of each distribution's share of the density, of each value's own largest."""
    spread = (values - means[:, None]) ** 2 / variances[:, None]
    logs = np.log(np.maximum(shares, 1e-12))[:, None] - 0.5 * (spread + np.log(variances)[:, None])
    return logs - logs.max(0)
