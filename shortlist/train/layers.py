"""Layer sampling: training a few layers at a time saves the others' gradients and moments.

Every few steps layers are drawn anew, more often those with many outlying weights in the model that training started
from. What lies outside the layers, such as embeddings and norms, always trains. The optimizer forgets a layer that is
no longer drawn, so that a layer that comes back starts with empty moments (OwLore, https://arxiv.org/abs/2405.18380).
"""

from collections.abc import Collection
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from shortlist.config import read_options
from shortlist.errors import UserError
from shortlist.math.outliers import draw_layers, outlier_share
from shortlist.models.backbone import transformer_layers
from shortlist.models.save import Trainable

_FLAG = "--layers-sampled"


class SamplingSettings(NamedTuple):
    """Settings of the drawing of layers."""

    number: int
    """Layers that train at a time."""
    every: int = 20
    """Steps until the next draw."""
    threshold: float = 13.0
    """A weight is outlying above this many times the mean size of its layer's weights."""


def parse_sampling(text: str) -> SamplingSettings:
    """Parse a number and options, such as `2,every=20`.

    Raises:
        UserError: an unknown option, or a value out of range.
    """
    number, _, rest = text.partition(",")
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"{_FLAG} {text}: the number of layers is {number!r}; expected at least 1.")
    defaults = {"every": SamplingSettings(1).every, "threshold": SamplingSettings(1).threshold}
    options = read_options(f"{_FLAG} {text}", _FLAG, rest, defaults)
    settings = SamplingSettings(int(number), **options)
    if settings.every < 1 or settings.threshold <= 0:
        raise UserError(f"{_FLAG} {text}: expected every of at least 1 and a threshold above 0.")
    return settings


class LayerSampling:
    """The draws of a training.

    Args:
        model: the model as training starts, with whatever trains.
        settings: how layers are drawn.
        seed: decides the draws.
    """

    def __init__(self, model: Trainable, settings: SamplingSettings, *, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self._layers = _trained_layers(model, settings)
        self.shares = [
            outlier_share([p.detach() for p in layer if p.ndim == 2], settings.threshold) for layer in self._layers
        ]

    def choose(self, step: int, optimizer: Optimizer) -> list[int]:
        """Let the layers drawn for a step (from 0) train, and return their numbers."""
        period, settings = step // self.settings.every, self.settings
        chosen = draw_layers(self.shares, settings.number, seed=self.seed, period=period)
        _train_only(self._layers, chosen)
        for number, layer in enumerate(self._layers):
            for p in layer if number not in chosen else ():
                optimizer.state.pop(p, None)
        return chosen


def hold_back(model: Trainable, settings: SamplingSettings) -> None:
    """Freeze as many layers as are frozen at any time, for a forecast.

    Raises:
        UserError: the model has fewer layers than are to be drawn.
    """
    _train_only(_trained_layers(model, settings), range(settings.number))


def _trained_layers(model: Trainable, settings: SamplingSettings) -> list[list[nn.Parameter]]:
    layers = [[p for p in layer.parameters() if p.requires_grad] for layer in transformer_layers(model.backbone)]
    if settings.number > len(layers):
        raise UserError(f"{_FLAG} {settings.number}: the model has {len(layers)} layers; expected at most as many.")
    return layers


def _train_only(layers: list[list[nn.Parameter]], chosen: Collection[int]) -> None:
    for number, layer in enumerate(layers):
        for p in layer:
            p.requires_grad_(number in chosen)
            if number not in chosen:
                p.grad = None
