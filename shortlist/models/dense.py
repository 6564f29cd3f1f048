"""The bi-encoder, which embeds each text as a vector.

The dot product of two vectors is their similarity.
"""

from collections.abc import Callable, Sequence
from typing import final

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.math.matryoshka import shortened
from shortlist.models.backbone import pooled_states
from shortlist.models.latent import LatentPooling
from shortlist.models.outputs import Rows
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs

Activation = Callable[[Tensor], Tensor]


@final
class DenseLayer(nn.Module):
    """A linear layer after the pooling, like the module `Dense` of sentence-transformers.

    Args:
        weight: the weight of the layer.
        bias: its bias, if any.
        activation: the function applied to the output (None: no function).
        residual: what the layer's input is multiplied by and added to the output, if at all.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out features"],
        bias: Float[Tensor, " out"] | None = None,
        activation: Activation | None = None,
        *,
        residual: Float[Tensor, "out features"] | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float())
        self.bias = None if bias is None else nn.Parameter(bias.float())
        self.activation = activation
        self.residual = None if residual is None else nn.Parameter(residual.float())

    @property
    def out_features(self) -> int:
        """The dimension of the output."""
        return len(self.weight)

    @property
    def is_plain(self) -> bool:
        """Whether it is a product with its weight, and nothing more."""
        return self.bias is None and self.activation is None and self.residual is None

    def forward(self, vectors: Float[Tensor, "batch features"]) -> Float[Tensor, "batch out"]:
        """Compute the layer's output, in float32."""
        out = F.linear(vectors, self.weight, self.bias)
        out = out if self.activation is None else self.activation(out)
        return out if self.residual is None else out + F.linear(vectors, self.residual)


@final
class UnitLength(nn.Module):
    """A scaling to length 1 between dense layers, like the module `Normalize` of sentence-transformers."""

    def forward(self, vectors: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        """Scale each vector to length 1."""
        return F.normalize(vectors, dim=-1)


@final
class DenseModel(nn.Module):
    """A backbone whose pooled hidden state is the vector of a query or document.

    This covers RepLLaMA and encoders.

    Args:
        backbone: the transformer.
        inputs: makes token ids in the form that the model was trained on.
        reading: the reading that was applied to the backbone.
        dense: the layers after the pooling in a sentence-transformers model, in order, without a last scaling to length
            1, which is part of the reading.
        pool: the pooling, if it has weights (None: the one that the reading names).

    https://arxiv.org/abs/2310.08319
    """

    kind = "retriever"

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: Inputs,
        reading: Reading,
        dense: Sequence[DenseLayer | UnitLength] = (),
        pool: LatentPooling | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        self.reading = reading
        self.dense = nn.ModuleList(dense)
        self.pool = pool

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return InputContract(self.inputs.form, self.reading)

    @property
    def row_shape(self) -> tuple[int]:
        """The shape of one row of the output, a vector."""
        return (self.reading.cut or self.full_dim,)

    @property
    def full_dim(self) -> int:
        """The dimension of the vectors before they are cut."""
        sizes = [layer.out_features for layer in self.dense if isinstance(layer, DenseLayer)]
        return sizes[-1] if sizes else self.backbone.config.hidden_size

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """Compute a float32 vector for each row of right-padded ids."""
        pooling = self.pool or self.reading.pooling
        return Rows(self.behind_pooling(pooled_states(self.backbone, token_ids, lengths, pooling=pooling)))

    def behind_pooling(self, states: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch dim"]:
        """Compute float32 vectors from pooled hidden states."""
        vectors = states.float()
        for layer in self.dense:
            vectors = layer(vectors)
        return shortened(vectors, self.row_shape[0], unit=self.reading.normalize)
