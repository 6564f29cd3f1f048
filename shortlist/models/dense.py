"""The bi-encoder: one text, one vector; the dot product of two vectors is their similarity."""

from collections.abc import Callable, Sequence
from typing import final

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import pooled_states
from shortlist.models.outputs import Rows
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs

Activation = Callable[[Tensor], Tensor]


@final
class DenseLayer(nn.Module):
    """A linear layer behind the pooling and what is done to its output, as sentence-transformers' module `Dense`.

    Args:
        activation: applied to the output (None: nothing).
    """

    def __init__(
        self,
        weight: Float[Tensor, "out features"],
        bias: Float[Tensor, " out"] | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float())
        self.bias = None if bias is None else nn.Parameter(bias.float())
        self.activation = activation

    @property
    def out_features(self) -> int:
        """Numbers that come out."""
        return len(self.weight)

    def forward(self, vectors: Float[Tensor, "batch features"]) -> Float[Tensor, "batch out"]:
        """The layer's output, float32."""
        vectors = F.linear(vectors, self.weight, self.bias)
        return vectors if self.activation is None else self.activation(vectors)


@final
class DenseModel(nn.Module):
    """A backbone whose pooled hidden state is the vector of a query or a document (RepLLaMA, and encoders alike).

    Args:
        inputs: what makes the ids that it was trained on.
        reading: as the backbone was loaded with.
        dense: layers that sentence-transformers puts behind the pooling, in their order.

    https://arxiv.org/abs/2310.08319
    """

    kind = "retriever"

    def __init__(
        self, backbone: PreTrainedModel, inputs: Inputs, reading: Reading, dense: Sequence[DenseLayer] = ()
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        self.reading = reading
        self.dense = nn.ModuleList(dense)

    @property
    def contract(self) -> InputContract:
        """How its texts become ids, and its output is read."""
        return InputContract(self.inputs.form, self.reading)

    @property
    def row_shape(self) -> tuple[int]:
        """Shape of one row of the output: a vector."""
        weights = [layer.weight for layer in self.dense]
        return (len(weights[-1]) if weights else self.backbone.config.hidden_size,)  # type: ignore[return-value]

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """A vector, float32, for each row of right-padded ids."""
        pooling = self.reading.pooling
        return Rows(self.behind_pooling(pooled_states(self.backbone, token_ids, lengths, pooling=pooling)))

    def behind_pooling(self, states: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch dim"]:
        """Vectors, float32, of pooled hidden states."""
        vectors = states.float()
        for layer in self.dense:
            vectors = layer(vectors)
        return F.normalize(vectors, dim=-1) if self.reading.normalize else vectors
