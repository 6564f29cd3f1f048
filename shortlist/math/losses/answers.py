"""Losses of answers that a language model writes."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Likelihoods(NamedTuple):
    """The likelihoods of the right answers to a batch's questions."""

    losses: Float[Tensor, " queries"]
    """Minus the log-likelihood of each answer, in nats."""
    num_tokens: Int[Tensor, " queries"]
    """The number of tokens of each answer."""


def lm(answers: Likelihoods) -> Float[Tensor, ""]:
    """Compute the mean cross-entropy of the tokens of right answers, in nats.

    All tokens of a batch count alike, so that a query with a longer answer counts more.

    https://arxiv.org/abs/2312.02724, https://arxiv.org/abs/2406.15657
    """
    return answers.losses.sum() / answers.num_tokens.sum().clamp(min=1)
