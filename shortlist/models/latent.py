"""Latent attention, a pooling with weights of its own."""

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shortlist.math.pooling import mean

LATENTS = 512
"""Learned vectors of a new pooling, as in the paper."""


@final
class LatentPooling(nn.Module):
    """An average of tokens' states that have attended to an array of learned vectors.

    Each state attends to the array, and then passes through two linear layers; both results are added to the state.

    Args:
        latents: the learned vectors.
        widen: the weight of the first linear layer.
        narrow: the weight of the second one.

    https://arxiv.org/abs/2405.17428
    """

    def __init__(
        self,
        latents: Float[Tensor, "latents dim"],
        widen: Float[Tensor, "inner dim"],
        narrow: Float[Tensor, "dim inner"],
    ) -> None:
        super().__init__()
        self.latents, self.widen, self.narrow = (nn.Parameter(weight.float()) for weight in (latents, widen, narrow))

    @classmethod
    def new(cls, dim: int, *, seed: int) -> "LatentPooling":
        """Make a pooling to train; it begins close to the mean of the states."""
        generator = torch.Generator().manual_seed(seed)
        latents, widen = (0.02 * torch.randn(rows, dim, generator=generator) for rows in (LATENTS, dim))
        return cls(latents, widen, torch.zeros(dim, dim))

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "LatentPooling":
        """Make a pooling from its weights, by their names here."""
        return cls(**weights)

    def forward(
        self, hidden: Float[Tensor, "batch tokens dim"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """Pool the states of right-padded texts, in float32."""
        real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        states = torch.where(real[..., None], hidden.float(), 0)  # padding may hold anything
        attention = torch.softmax(states @ self.latents.T / self.latents.shape[1] ** 0.5, dim=-1)
        states = states + attention @ self.latents
        states = states + F.linear(F.gelu(F.linear(states, self.widen)), self.narrow)
        return mean(states, lengths)
