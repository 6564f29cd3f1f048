"""Computation of a decoder's last layer for only one token per row."""

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
    """One token of each row, and the modules that are computed only for it."""

    modules: tuple[nn.Module, ...]
    positions: Int[Tensor, " batch"]


CHOSEN: ContextVar[Chosen | None] = ContextVar("chosen", default=None)
"""This thread's choice; other threads that run the same model at the same time have choices of their own."""

ADDING = Lock()


@contextmanager
def last_mlp_only_at(model: nn.Module, positions: Int[Tensor, " batch"]) -> Iterator[None]:
    """Run a decoder's last output projection and MLP at one position of each row.

    This applies inside the block, where only these positions may be read. Everything after the last attention works
    token by token, so the states at `positions` and the gradients from them are the same as without this; states
    elsewhere are meaningless. It does nothing for a model without `layers[-1].mlp`, or while a model with checkpointed
    layers trains: they run again after the block.
    """
    token = CHOSEN.set(Chosen(_listening(model), positions))
    try:
        yield
    finally:
        CHOSEN.reset(token)


def _listening(model: nn.Module) -> tuple[nn.Module, ...]:
    """Find the modules of a decoder that can be computed for one token.

    The hooks that do so are added to them and stay there.
    """
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
    """Return the positions that a module is computed for now; None for all of them."""
    chosen = CHOSEN.get()
    # a module with these hooks may by now be inside an adapter, which is chosen in its place
    return chosen.positions if chosen and any(module is one for one in chosen.modules) else None


def _with_positions(layer: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    positions = _positions(layer)
    return None if positions is None else (args, options | {"only_at": positions})


def _without_others(module: nn.Module, args: tuple[Any, ...]) -> Float[Tensor, "batch dim"] | None:
    positions = _positions(module)
    return None if positions is None else args[0][torch.arange(len(positions), device=positions.device), positions]


def _with_axis(module: nn.Module, args: Any, out: Tensor) -> Float[Tensor, "batch 1 out"] | None:
    # this is added to the states of all tokens, and correct for one of them
    return None if _positions(module) is None else out[:, None]
