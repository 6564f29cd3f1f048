"""Pooling of the hidden states of a text's tokens into one vector."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Pooling = Callable[[Float[Tensor, "batch tokens dim"], Int[Tensor, " batch"]], Float[Tensor, "batch dim"]]


def last(hidden: Float[Tensor, "batch tokens dim"], lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
    """Take the hidden state of each text's last real token.

    That is `</s>` where the contract appends it.

    Args:
        hidden: final hidden states, padded on the right.
        lengths: the number of real tokens of each text. The ids are not used, so a pad id equal to `</s>` does no harm.

    https://arxiv.org/abs/2310.08319
    """
    places = (lengths - 1)[:, None, None].expand(-1, -1, hidden.shape[2])
    return hidden.gather(1, places)[:, 0]  # indexing by a range would fix the number of texts in torch.export


def cls(hidden: Float[Tensor, "batch tokens dim"], lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
    """Take the hidden state of each text's first token."""
    return hidden[:, 0]


def mean(hidden: Float[Tensor, "batch tokens dim"], lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
    """Average the hidden states of each text's real tokens."""
    real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return torch.where(real[..., None], hidden, 0).sum(1) / lengths[:, None].to(hidden.dtype)


def weighted_mean(
    hidden: Float[Tensor, "batch tokens dim"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, "batch dim"]:
    """Average each text's hidden states, weighted by their positions from 1 on.

    Later tokens of a decoder have seen more of the text.

    https://arxiv.org/abs/2202.08904
    """
    places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    weights = torch.where(places <= lengths[:, None], places, 0).to(hidden.dtype)
    states = torch.where(weights[..., None] > 0, hidden, 0)
    return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


POOLINGS: dict[str, Pooling] = {"last": last, "cls": cls, "mean": mean, "weighted": weighted_mean}
"""The poolings by name; `latent`, which has weights, is a module of a model (`models.latent`)."""
