"""Regularisers that make term weights sparse, and measures of how sparse they are."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def flops(weights: Float[Tensor, "texts vocabulary"]) -> Float[Tensor, ""]:
    """Add up the squares of the terms' mean weights.

    It is the expected number of products of a search, made smooth: terms that many texts have cost most.

    https://arxiv.org/abs/2004.05665
    """
    return weights.mean(0).square().sum()


def l1(weights: Float[Tensor, "texts vocabulary"]) -> Float[Tensor, ""]:
    """Average the sum of a text's weights."""
    return weights.sum(1).mean()


def idf_flops(weights: Float[Tensor, "texts vocabulary"], idf: Float[Tensor, " vocabulary"]) -> Float[Tensor, ""]:
    """Add up the squares of the terms' mean weights, where rare terms cost less.

    The sum over terms of (mean weight * mean idf / idf)^2; the mean idf is taken over the terms whose idf is above 0.
    Those of idf 0 cost as the commonest of the others do. For equal idf it is `flops`.

    The form is ours. The paper's first version names such a loss; its second version and the published code have plain
    `flops`, with the idf in queries alone, which `--query-terms idf` with `flops` gives.

    Args:
        idf: the weight that a query has for each term.

    https://arxiv.org/abs/2411.04403
    """
    known = idf[idf > 0]
    least, mean = (known.min(), known.mean()) if len(known) else (idf.new_ones(()), idf.new_ones(()))
    return (weights.mean(0) * (mean / idf.clamp(min=float(least)))).square().sum()


REGULARISERS: dict[str, Callable[..., Float[Tensor, ""]]] = {"flops": flops, "l1": l1, "idf-flops": idf_flops}
"""The regularisers by name; the last one needs the terms' inverse document frequencies."""


def denser_than(weights: Float[Tensor, "texts vocabulary"], terms: int) -> Float[Tensor, "texts vocabulary"]:
    """Set to 0 the weights of texts that have at most so many terms."""
    return weights * ((weights > 0).sum(1, keepdim=True) > terms)


def mean_terms(weights: Float[Tensor, "texts vocabulary"]) -> float:
    """Average the number of terms of a text."""
    return (weights > 0).sum(1).float().mean().item()


def expected_products(
    queries: Float[Tensor, "queries vocabulary"], documents: Float[Tensor, "docs vocabulary"]
) -> float:
    """Average the number of terms that a query and a document share, over all pairs."""
    return torch.dot((queries > 0).float().mean(0), (documents > 0).float().mean(0)).item()


def ramp(step: int, steps: int) -> float:
    """Return the share of a regulariser's weight at a step, counted from 0.

    It grows with the square of the steps done, up to 1 after `steps` of them.
    """
    return 1.0 if steps <= 0 else min(1.0, ((step + 1) / steps)) ** 2


def steered(factor: float, terms: float, wanted: float, *, gain: float = 0.05, most: float = 1e4) -> float:
    """Return the factor of a regulariser's weight for the next step.

    It grows while texts have more terms than wanted, and shrinks while they have fewer.

    Args:
        factor: the factor so far.
        terms: the number of terms that a text has now.
        wanted: the number it is to have.
        gain: the power of the ratio of the two that the factor is multiplied by.
        most: the greatest factor; its inverse is the least.
    """
    ratio = min(4.0, max(0.25, terms / wanted))
    return min(most, max(1 / most, factor * ratio**gain))
