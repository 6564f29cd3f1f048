"""Optimizers as `--optimizer` names them: their making, their state, and its files."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from shortlist.config import read_options
from shortlist.errors import UserError, unknown
from shortlist.math.low_rank import along_rows, leading_directions, project, turned, unproject
from shortlist.models.backbone import hushed
from shortlist.train.gather import like

_FLAG = "--optimizer"


class LowRankAdamW(Optimizer):
    """AdamW that holds moments in the leading directions of a matrix's gradient (GaLore).

    The directions are found anew every `gap` steps, and the moments go on in the new ones. Steps are `scale` times as
    long as AdamW's. Whatever is no matrix, or has no side longer than `rank` on both, is trained by plain AdamW.

    With `lengths` it is GradNormLoRP: each row of a matrix is a length times a direction. The length has moments of its
    own, and the gradient of the direction alone is projected, without its part along the row. (The authors' code sets
    lengths back at each step and keeps that part, so that it does what GaLore does.)

    Args:
        params: the parameters to train.
        lr: learning rate.
        rank: number of directions.
        gap: steps between two searches for directions.
        scale: factor of the steps of matrices.
        beta1: as for AdamW, like the remaining settings.
        lengths: train lengths and directions of rows apart.

    https://arxiv.org/abs/2403.03507, https://arxiv.org/abs/2412.19616
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        rank: int,
        gap: int,
        scale: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        lengths: bool = False,
    ) -> None:
        settings = {"rank": rank, "gap": gap, "scale": scale, "betas": (beta1, beta2), "eps": eps, "lengths": lengths}
        super().__init__(params, settings | {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._change(p, p.grad, group)

    def _change(self, p: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[p]
        step = state["step"] = state.get("step", 0) + 1
        moments = partial(_direction, state, step=step, betas=group["betas"], eps=group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        if not _is_projected(p, group["rank"]):
            p.add_(moments(gradient), alpha=-group["lr"])
            return
        of_length, gradient = along_rows(p, gradient) if group["lengths"] else (None, gradient)
        if (step - 1) % group["gap"] == 0:
            state["directions"] = leading_directions(gradient, group["rank"])
        low = moments(project(gradient, state["directions"]))
        change = unproject(low, state["directions"], tall=p.shape[0] >= p.shape[1]).to(p.dtype)
        if of_length is None:
            p.add_(change, alpha=-group["lr"] * group["scale"])
        else:
            growth = moments(of_length, name="length_") * -group["lr"]
            p.copy_(turned(p, change * (-group["lr"] * group["scale"]), growth))


def _direction(
    state: dict[str, Any], gradient: Tensor, *, step: int, betas: tuple[float, float], eps: float, name: str = ""
) -> Tensor:
    """Update a gradient's two moments, and return AdamW's direction."""
    if f"{name}exp_avg" not in state:
        state[f"{name}exp_avg"], state[f"{name}exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    first, second = state[f"{name}exp_avg"], state[f"{name}exp_avg_sq"]
    first.lerp_(gradient, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    spread = second.sqrt().div_((1 - betas[1] ** step) ** 0.5).add_(eps)
    return (first / spread).div_(1 - betas[0] ** step)


def _is_projected(p: Tensor, rank: int) -> bool:
    return p.ndim == 2 and min(p.shape) > rank


class OptimizerKind(NamedTuple):
    """A kind of optimizer."""

    words: str
    """What it holds for each weight."""
    defaults: Mapping[str, Any]
    """Its options with their defaults."""
    make: Callable[..., Optimizer]
    """Makes it of parameters, with `lr` and the options by name."""
    state_bytes: Callable[..., int]
    """Bytes that it holds for a parameter, whose options are given by name."""
    shards: bool = False
    """Whether it can work on parts of matrices."""


def _make_adamw(params: list[Tensor], *, lr: float, beta1: float, beta2: float, **options: Any) -> Optimizer:
    return torch.optim.AdamW(params, lr=lr, betas=(beta1, beta2), fused=True, **options)


def _make_adafactor(params: list[Tensor], *, lr: float, eps: float, **options: Any) -> Optimizer:
    return torch.optim.Adafactor(params, lr=lr, eps=(None, eps), **options)


def _make_8bit(params: list[Tensor], *, beta1: float, beta2: float, paged: bool = False, **options: Any) -> Optimizer:
    if paged and not torch.cuda.is_available():
        raise UserError(f"{_FLAG} paged-adamw-8bit: pages lie in a GPU's memory, and there is none; use adamw-8bit.")
    return _eight_bit()(params, betas=(beta1, beta2), is_paged=paged, **options)


@cache
def _eight_bit() -> Any:
    """Return bitsandbytes' AdamW, to which a checkpoint's values can be given back."""
    try:
        with hushed():
            from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError:
        raise UserError(f"{_FLAG}: 8-bit optimizers need bitsandbytes; pip install 'shortlist[qlora]'.") from None

    class EightBit(AdamW8bit):
        def begin_state(self, p: Tensor) -> None:
            """Make what a parameter's first step would: maps of the 8 bits, empty moments."""
            for number, group in enumerate(self.param_groups):
                for place, other in enumerate(group["params"]):
                    if other is p:
                        self.init_state(group, p, number, place)

    return EightBit


def _bytes_of_adamw(p: Tensor, **options: Any) -> int:
    return 2 * p.numel() * p.element_size()


def _bytes_of_8bit(p: Tensor, *, min_8bit_size: int, **options: Any) -> int:
    """Two bytes, and two scales for every 256 weights; small parameters have two float32 moments."""
    return 8 * p.numel() if p.numel() < min_8bit_size else 2 * p.numel() + 2 * 4 * -(-p.numel() // 256)


def _bytes_of_adafactor(p: Tensor, **options: Any) -> int:
    """Return the bytes of one number for each row and column of a matrix.

    A vector has one for each of its numbers.
    """
    if p.ndim < 2:
        return p.numel() * p.element_size()
    return (p.numel() // p.shape[-1] + p.numel() // p.shape[-2]) * p.element_size()


def _bytes_of_low_rank(p: Tensor, *, rank: int, lengths: bool = False, **options: Any) -> int:
    """Return the bytes of directions, and of the moments as these see them."""
    if not _is_projected(p, rank):
        return _bytes_of_adamw(p)
    return 4 * (rank * min(p.shape) + 2 * rank * max(p.shape) + (2 * p.shape[0] if lengths else 0))


_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
_LOW_RANK = {"rank": 128, "gap": 200, "scale": 0.25, **_ADAM}

OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind("two float32 moments", _ADAM, _make_adamw, _bytes_of_adamw, shards=True),
    "adamw-8bit": OptimizerKind(
        "two moments of 8 bits (https://arxiv.org/abs/2110.02861)",
        {**_ADAM, "min_8bit_size": 4096},
        _make_8bit,
        _bytes_of_8bit,
    ),
    "paged-adamw-8bit": OptimizerKind(
        "the same, moved out of a full GPU",
        {**_ADAM, "min_8bit_size": 4096},
        partial(_make_8bit, paged=True),
        _bytes_of_8bit,
    ),
    "adafactor": OptimizerKind(
        "a number for each row and column (https://arxiv.org/abs/1804.04235)",
        {"beta2_decay": -0.8, "eps": 1e-3, "d": 1.0, "weight_decay": 0.0},
        _make_adafactor,
        _bytes_of_adafactor,
    ),
    "galore": OptimizerKind(
        "two moments of a projection of the gradient (https://arxiv.org/abs/2403.03507)",
        _LOW_RANK,
        LowRankAdamW,
        _bytes_of_low_rank,
    ),
    "gradnorm": OptimizerKind(
        "the same, lengths and directions of rows apart (https://arxiv.org/abs/2412.19616)",
        _LOW_RANK,
        partial(LowRankAdamW, lengths=True),
        partial(_bytes_of_low_rank, lengths=True),
    ),
}
"""The kinds by name."""

REMADE = ("qmap1", "qmap2")
"""Parts of a state that are the same in every training, which no checkpoint holds."""


class OptimizerSettings(NamedTuple):
    """A kind of optimizer, with a value for each of its options."""

    kind: str
    options: Mapping[str, Any]

    def state_bytes(self, p: Tensor) -> int:
        """Return the bytes that it holds for a parameter."""
        return OPTIMIZERS[self.kind].state_bytes(p, **self.options)


ADAMW = OptimizerSettings("adamw", _ADAM)


def parse_optimizer(text: str, *, sharded: bool = False) -> OptimizerSettings:
    """Parse a name and its options, such as `galore,rank=64`.

    Args:
        sharded: whether parameters are split among processes.

    Raises:
        UserError: an unknown name or option, a value out of range, or parts of matrices where wholes are needed.
    """
    name, _, rest = text.partition(",")
    if name not in OPTIMIZERS:
        raise UserError(f"{_FLAG} {text}: {unknown('optimizer', name, OPTIMIZERS)}")
    kind, where = OPTIMIZERS[name], f"{_FLAG} {text}"
    options = {**kind.defaults, **read_options(where, name, rest, kind.defaults)}
    for option, (fits, expected) in _EXPECTED.items():
        if option in options and not fits(options[option]):
            raise UserError(f"{where}: {option} is {options[option]}; expected {expected}.")
    if sharded and not kind.shards:
        raise UserError(f"--sharded: {_FLAG} {name} needs whole matrices; leave out one of the two.")
    return OptimizerSettings(name, options)


_EXPECTED: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("rank", "gap", "min_8bit_size"), (lambda value: value >= 1, "at least 1")),
    **dict.fromkeys(("beta1", "beta2"), (lambda value: 0 <= value < 1, "at least 0 and below 1")),
    **dict.fromkeys(("eps", "scale"), (lambda value: value > 0, "more than 0")),
    "weight_decay": (lambda value: value >= 0, "at least 0"),
    "beta2_decay": (lambda value: value <= 0, "at most 0"),
    "d": (lambda value: value >= 1, "at least 1"),
}


def new_optimizer(model: nn.Module, *, learning_rate: float, settings: OptimizerSettings = ADAMW) -> Optimizer:
    """Make an optimizer for all trainable parameters.

    Raises:
        UserError: a package or a GPU is missing.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return OPTIMIZERS[settings.kind].make(trained, lr=learning_rate, **settings.options)


def check_available(settings: OptimizerSettings) -> None:
    """Refuse an optimizer that lacks a package or a GPU here.

    Raises:
        UserError: as for `new_optimizer`.
    """
    new_optimizer(nn.Linear(1, 1), learning_rate=1.0, settings=settings)


def state_of(optimizer: Optimizer, p: Tensor) -> dict[str, Tensor]:
    """Return what an optimizer holds for a parameter, as tensors to save."""
    state = optimizer.state.get(p, {})
    return {
        name: value if isinstance(value, Tensor) else torch.tensor(value)
        for name, value in state.items()
        if name not in REMADE
    }


def restore_state(optimizer: Any, p: Tensor, saved: Mapping[str, Tensor]) -> None:
    """Give an optimizer back what `state_of` returned."""
    if hasattr(optimizer, "begin_state"):
        optimizer.begin_state(p)
    state = optimizer.state[p]
    for name, value in saved.items():
        if name in state and isinstance(state[name], Tensor):
            state[name].copy_(value)
        elif value.ndim == 0 and value.dtype == torch.int64:
            state[name] = int(value)
        else:
            state[name] = like(value, p) if value.ndim and isinstance(p, DTensor) else value.to(p.device)
