"""The model as it was before training, which some losses compare with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shortlist.models.save import Trainable
from shortlist.train.gather import is_sharded, let_go


class Start:
    """The weights that a model had before training, as far as training may change them.

    With an adapter these are few, and the rest is shared; otherwise they take as much memory as the model.
    """

    def __init__(self, model: Trainable, *, adapter: bool = False) -> None:
        """Copy the weights; call it before a checkpoint is loaded.

        Args:
            model: the model, ready to train.
            adapter: only parameters that train now will ever train.
        """
        self._model = model
        self._weights = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad or not adapter
        }

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Give the model its first weights back for a while, and switch its dropout off.

        No graph of the model may be alive meanwhile.
        """
        model = self._model
        let_go(model)
        parameters = {name: p for name, p in model.named_parameters() if name in self._weights}
        swap = _swap_by_copying if is_sharded(model) else _swap
        current = {name: swap(p, self._weights[name]) for name, p in parameters.items()}
        model.eval()
        try:
            yield
        finally:
            let_go(model)
            for name, p in parameters.items():
                swap(p, current[name])
            model.train()


def _swap(p: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """Make a parameter use another tensor, and return the one that it used."""
    before, p.data = p.data, value
    return before


def _swap_by_copying(p: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """Overwrite a parameter's values, as a sharded model keeps further references to its tensor."""
    before = p.detach().clone()
    with torch.no_grad():
        p.copy_(value)
    return before
