"""The end of a decoder, computed for the one token of each row that will be read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shortlist.models.kernels.fused import FusedLayer


class Chosen(NamedTuple):
    """One token of each row, and the modules that are computed for it alone."""

    modules: tuple[nn.Module, ...]
    positions: Int[Tensor, " batch"]


CHOSEN: ContextVar[Chosen | None] = ContextVar("chosen", default=None)
"""What this thread has chosen; others that run the same model at the same time have a choice of their own."""

ADDING = Lock()


@contextmanager
def last_mlp_only_at(model: nn.Module, positions: Int[Tensor, " batch"]) -> Iterator[None]:
    """Inside, a decoder's last output projection and MLP run at one position of each row: nothing else will be read.

    Everything after the last attention works token by token, so the states at `positions` are what they would
    have been, and so are the gradients that come from them; states elsewhere mean nothing. Does nothing for a model
    without `layers[-1].mlp`, or whose layers are checkpointed while it trains: they run again when this is over.
    """
    token = CHOSEN.set(Chosen(_listening(model), positions))
    try:
        yield
    finally:
        CHOSEN.reset(token)


def _listening(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of a decoder that can be computed for one token, each with hooks that see to it, now and for good."""
    layer: Any = next(iter(reversed(getattr(model, "layers", None) or [])), None)
    if isinstance(layer, FusedLayer):
        _add_once(layer._forward_pre_hooks, _with_positions, layer.register_forward_pre_hook, with_kwargs=True)
        return (layer,)
    mlp, projection = getattr(layer, "mlp", None), getattr(getattr(layer, "self_attn", None), "o_proj", None)
    if mlp is None or (model.training and getattr(layer, "gradient_checkpointing", False)):
        return ()
    modules = tuple(module for module in (projection, mlp) if module is not None)
    for module in modules:
        _add_once(module._forward_pre_hooks, _without_others, module.register_forward_pre_hook)
        _add_once(module._forward_hooks, _with_axis, module.register_forward_hook)
    return modules


def _add_once(there: Any, hook: Callable[..., Any], add: Callable[..., Any], **options: Any) -> None:
    with ADDING:
        if hook not in there.values():
            add(hook, **options)


def _positions(module: nn.Module) -> Int[Tensor, " batch"] | None:
    """The positions that a module is computed for now; None: all of them."""
    chosen = CHOSEN.get()
    # a module with these hooks may since lie inside one that takes its place: the layer under an adapter
    return chosen.positions if chosen and any(module is one for one in chosen.modules) else None


def _with_positions(layer: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    positions = _positions(layer)
    return None if positions is None else (args, options | {"only_at": positions})


def _without_others(module: nn.Module, args: tuple[Any, ...]) -> Float[Tensor, "batch dim"] | None:
    positions = _positions(module)
    return None if positions is None else args[0][torch.arange(len(positions), device=positions.device), positions]


def _with_axis(module: nn.Module, args: Any, out: Tensor) -> Float[Tensor, "batch 1 out"] | None:
    # is added to the states of all tokens, and right for one of them
    return None if _positions(module) is None else out[:, None]
