"""Late interaction: a vector for each token of a query or document.

A document's score is the sum, over the query's vectors, of the best similarity to one of the document's.
"""

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.math.matryoshka import shortened
from shortlist.models.backbone import real_tokens, token_states
from shortlist.models.dense import DenseLayer, UnitLength
from shortlist.models.outputs import Rows
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs
from shortlist.text.marks import NO_VECTOR, TOKEN_ID, UNREAD


@final
class LateModel(nn.Module):
    """A backbone whose projected states are a text's vectors, one for each token (ColBERT).

    What a token does is in the marks of its id, so that queries and documents are read alike.

    Args:
        backbone: the transformer.
        inputs: makes token ids, with marks, in the form that the model was trained on.
        reading: the reading that was applied to the backbone.
        layers: the projection, and any layers before it, in order.

    https://arxiv.org/abs/2004.12832
    """

    kind = "late"

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: Inputs,
        reading: Reading,
        layers: Sequence[DenseLayer | UnitLength] = (),
    ) -> None:
        super().__init__()
        self.backbone, self.inputs, self.reading = backbone, inputs, reading
        self.layers = nn.ModuleList(layers)

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return InputContract(self.inputs.form, self.reading)

    @property
    def row_shape(self) -> tuple[int]:
        """The shape of one row of the output, a token's vector."""
        return (self.reading.cut or self.full_dim,)

    @property
    def full_dim(self) -> int:
        """The dimension of the vectors before they are cut."""
        sizes = [layer.out_features for layer in self.layers if isinstance(layer, DenseLayer)]
        return sizes[-1] if sizes else self.backbone.config.hidden_size

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """Compute a float32 vector for each token of right-padded ids, except for those marked NO_VECTOR.

        A text without tokens has no vectors. Where all tokens are marked UNREAD, they read one another.
        """
        token_ids = token_ids if token_ids.shape[1] else F.pad(token_ids, (0, 1))  # a backbone reads one token at least
        real, form = real_tokens(token_ids, lengths), self.inputs.form
        attended = real & (token_ids & UNREAD == 0)
        attended |= real & ~attended.any(1, keepdim=True)
        attended[:, :1] |= lengths[:, None] == 0  # attention to nothing would be NaN
        some_unread = bool(form.expansion) and not form.expansion_read
        states = token_states(self.backbone, token_ids & TOKEN_ID, attended, some_unread=some_unread)
        wanted = real & (token_ids & NO_VECTOR == 0)
        places = wanted.flatten().nonzero()[:, 0]  # as an operation by itself, which a forecast of memory sees
        return Rows(self.projected(states.flatten(0, 1)[places]), wanted.sum(1))

    def projected(self, states: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens dim"]:
        """Compute float32 vectors from tokens' states."""
        vectors = states.float()
        for layer in self.layers:
            vectors = layer(vectors)
        return shortened(vectors, self.row_shape[0], unit=self.reading.normalize)


def new_projection(backbone: PreTrainedModel, dim: int, *, seed: int) -> Float[Tensor, "dim hidden"]:
    """Make a random projection to start training from, as small as the backbone's initial weights."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(backbone.config, "initializer_range", 0.02)
    return torch.randn(dim, backbone.config.hidden_size, generator=generator) * std
