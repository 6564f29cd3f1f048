"""A projector of hidden states to vectors that are compared by their angle."""

from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shortlist.errors import UserError
from shortlist.models.files import PROJECTOR
from shortlist.models.folder import ModelFolder
from shortlist.models.heads import find_tensor


@final
class Projector(nn.Module):
    """Two linear layers without a bias, between which negative numbers become 0.

    Args:
        first: the weight of the first layer.
        second: the weight of the second one.

    https://arxiv.org/abs/2509.25085
    """

    def __init__(self, first: Float[Tensor, "middle dim"], second: Float[Tensor, "out middle"]) -> None:
        super().__init__()
        self.first = nn.Parameter(first.float(), requires_grad=False)
        self.second = nn.Parameter(second.float(), requires_grad=False)

    def forward(self, states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        """Project states, in float32."""
        return F.linear(F.linear(states.float(), self.first).relu(), self.second)


def load_projector(folder: ModelFolder) -> Projector:
    """Load the projector of a model's folder.

    Raises:
        UserError: a weight is missing, or the two do not fit together.
    """
    first, second = (find_tensor(folder.whole.backbone_path, name) for name in PROJECTOR)
    if first is None or second is None or second.shape[-1] != len(first):
        found = [None if weight is None else list(weight.shape) for weight in (first, second)]
        raise UserError(
            f"{folder.name}: its projector has weights of the shapes {found[0]} and {found[1]}; expected "
            f"{PROJECTOR[0]} and {PROJECTOR[1]}, the second with as many columns as the first has rows."
        )
    return Projector(first, second)
