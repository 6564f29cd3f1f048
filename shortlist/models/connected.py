"""Connected adapters: a bottleneck behind each layer, and a way from each to the next.

Adapters inside a frozen model learn slowly, since the gradient of one reaches another through frozen layers alone. Here
the outputs of the bottlenecks are also connected among themselves, beside the model. There is no public code of the
paper, so the formula is our reading of it:

    o_l = up_l(relu(down_l(x_l))) + o_(l-1) + aside_l(o_(l-1))      x'_l = x_l + o_l

x_l is the output of the frozen layer l, x'_l is what the next layer reads, and aside_l is a bottleneck of its own.
Everything that leads to an output starts at 0, so that a new adapter changes nothing.

https://arxiv.org/abs/2208.09847
"""

from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import transformer_layers

CONNECTED = "connected"
"""The name in the backbone."""

_BEFORE: ContextVar[Tensor | None] = ContextVar("before", default=None)
"""The last bottleneck's output in this thread's pass."""


class Bottleneck(nn.Module):
    """Two linear layers with few numbers between them; the second starts at 0."""

    def __init__(self, dim: int, rank: int, **options: Any) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, rank, **options), nn.Linear(rank, dim, **options)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Compute the bottleneck's output."""
        return self.up(F.relu(self.down(x)))


class Connected(nn.Module):
    """The adapters of a backbone.

    Args:
        dim: the dimension of its states.
        layers: the numbers of the layers with an adapter.
        rank: numbers between the two linears of a bottleneck.
        aside: the same between one adapter and the next; with 0 an output is handed on as it is.
    """

    fuses = False

    def __init__(self, dim: int, layers: Sequence[int], *, rank: int, aside: int, **options: Any) -> None:
        super().__init__()
        self.inside = nn.ModuleDict({str(layer): Bottleneck(dim, rank, **options) for layer in layers})
        behind = list(layers)[1:] if aside else []
        self.aside = nn.ModuleDict({str(layer): Bottleneck(dim, aside, **options) for layer in behind})

    def begin(self, model: Any, args: Any) -> None:
        """Forget the pass before."""
        _BEFORE.set(None)

    def after(self, layer: str, module: Any, args: Any, output: Any) -> Any:
        """Add the adapter of a layer to its output."""
        states = output[0] if isinstance(output, tuple) else output
        own, before = self.inside[layer](states), _BEFORE.get()
        if before is not None:
            own = own + before
            own = own + self.aside[layer](before) if layer in self.aside else own
        _BEFORE.set(own)
        states = states + own.to(states.dtype)
        return (states, *output[1:]) if isinstance(output, tuple) else states


def connect(model: PreTrainedModel, layers: Sequence[int], *, rank: int, aside: int) -> Connected:
    """Add connected adapters to a backbone, in place.

    Args:
        layers: the numbers of the layers (none: all of them).
        rank: as for `Connected`, like `aside`.
    """
    there = transformer_layers(model)
    chosen = sorted(layers) or range(len(there))
    weight: Any = model.get_input_embeddings().weight
    connected = Connected(
        model.config.hidden_size, chosen, rank=rank, aside=aside, device=weight.device, dtype=torch.float32
    )
    model.add_module(CONNECTED, connected)
    model.register_forward_pre_hook(connected.begin)
    for layer in chosen:
        there[layer].register_forward_hook(partial(connected.after, str(layer)))
    return connected
