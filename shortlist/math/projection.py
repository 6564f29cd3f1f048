"""Gradients of groups' losses in one linear layer over frozen vectors, without a backward pass.

Scores are q·W·d / temperature, where W begins as the identity: the layer that a projection behind a frozen model would
train first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class GroupGradients(NamedTuple):
    """The gradient of each group's loss in W, as the outer product of two vectors."""

    queries: Float[np.ndarray, "groups dim"]
    pulls: Float[np.ndarray, "groups dim"]
    """Sum of the documents' vectors, each times what its probability is too high, over the temperature."""
    losses: Float[np.ndarray, " groups"]


def group_gradient(
    query: Float[np.ndarray, " dim"],
    documents: Float[np.ndarray, "docs dim"],
    num_positives: int,
    *,
    temperature: float,
) -> tuple[Float[np.ndarray, " dim"], float]:
    """Return the second factor of the gradient of a group's loss, and the loss.

    The loss is the cross-entropy between the softmax of the scores and equal shares of the positives, which come first.
    """
    scores = documents @ query / temperature
    logs = scores - np.logaddexp.reduce(scores)
    share = np.zeros(len(documents))
    share[:num_positives] = 1 / num_positives
    return (np.exp(logs) - share) @ documents / temperature, float(-(share * logs).sum())


def gradient_norms(gradients: GroupGradients) -> Float[np.ndarray, " groups"]:
    """Return the length of each group's gradient: how much the group would change the layer."""
    return np.linalg.norm(gradients.queries, axis=1) * np.linalg.norm(gradients.pulls, axis=1)


def mean_gradient(gradients: GroupGradients) -> Float[np.ndarray, "dim dim"]:
    """Return the mean of the groups' gradients."""
    return gradients.queries.T @ gradients.pulls / len(gradients.queries)


SMALLEST = 1e-3
"""Least eigenvalue of products of means, relative to the largest."""


def products_of_means(sources: Sequence[GroupGradients]) -> Float[np.ndarray, "sources sources"]:
    """Estimate the dot products of the gradients that sources would have with endless groups.

    The square of a mean over few groups is too large by their noise, so that a source of noisy groups would get too
    small a weight: the products of groups with themselves are left out. Eigenvalues that this makes too small are
    raised.
    """
    means = np.stack([mean_gradient(source).ravel() for source in sources])
    products = means @ means.T
    for place, source in enumerate(sources):
        count, own = len(source.queries), float((gradient_norms(source) ** 2).sum())
        if count > 1:
            products[place, place] = (count**2 * products[place, place] - own) / (count * (count - 1))
    values, vectors = np.linalg.eigh(products)
    return (vectors * np.maximum(values, SMALLEST * max(values.max(), 0))) @ vectors.T


def along(gradients: GroupGradients, direction: Float[np.ndarray, "dim dim"]) -> Float[np.ndarray, " groups"]:
    """Return the dot product of each group's gradient with another one.

    It is how much a small step down one loss lowers the other."""
    return np.einsum("gd,gd->g", gradients.queries @ direction, gradients.pulls)


def concatenated(parts: Sequence[GroupGradients]) -> GroupGradients:
    """Join the gradients of several sets of groups."""
    return GroupGradients(*map(np.concatenate, zip(*parts, strict=True)))
