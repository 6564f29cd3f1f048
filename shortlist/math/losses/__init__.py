"""What training minimises: functions of a Ranking, by the names that `train --loss` knows."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from shortlist.math.losses.contrastive import infonce
from shortlist.math.losses.distillation import kl

Loss = Callable[..., Float[Tensor, ""]]
"""A function of a Ranking and of keyword parameters that all have defaults."""

LOSSES: dict[str, Loss] = {"infonce": infonce, "kl": kl}

NEEDS: dict[str, tuple[str, ...]] = {"kl": ("teacher",)}
"""What a loss needs that not every group has: a `teacher`, or `grades` that say more than which is the positive."""
