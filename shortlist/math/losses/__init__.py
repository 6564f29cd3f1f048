"""Losses that training minimises, by the names that `train --loss` takes."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from shortlist.math.losses.contrastive import infonce
from shortlist.math.losses.distillation import kl

Loss = Callable[..., Float[Tensor, ""]]
"""A function of a Ranking and of keyword parameters that all have defaults."""

LOSSES: dict[str, Loss] = {"infonce": infonce, "kl": kl}

WITHOUT_POSITIVES = {"anchor"}
"""Names of losses that learn from a list of documents without knowing a positive."""

NEEDS: dict[str, tuple[str, ...]] = {"kl": ("teacher",)}
"""Data that a loss needs and not every group has: a `teacher`, or `grades` beyond marking the positive."""
