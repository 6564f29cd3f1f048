"""The pointwise reranker, which scores a query and a document read together."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import pooled_states
from shortlist.models.outputs import Rows
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs


@final
class PointwiseModel(nn.Module):
    """A backbone and a bias-less projection of its pooled hidden state to a scalar (RankLLaMA).

    A language model that answers with a token works the same way: the projection is then that token's row of its output
    embedding, or the difference of two rows.

    Args:
        backbone: the transformer.
        inputs: makes token ids in the form that the model was trained on.
        reading: the reading that was applied to the backbone.
        head: the weight of the projection. There is no default, since a checkpoint without its head is not a reranker.

    https://arxiv.org/abs/2310.08319
    """

    kind = "reranker"
    row_shape: tuple[int, ...] = ()

    def __init__(
        self, backbone: PreTrainedModel, inputs: Inputs, reading: Reading, head: Float[Tensor, "1 dim"]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        self.reading = reading
        self.head = nn.Parameter(head.float())

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return InputContract(self.inputs.form, self.reading)

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """Compute a float32 score for each right-padded pair."""
        pooling = self.reading.pooling
        pooled = pooled_states(self.backbone, token_ids, lengths, pooling=pooling).float()
        return Rows(pooled @ self.head[0])


def new_head(backbone: PreTrainedModel, *, seed: int) -> Float[Tensor, "1 dim"]:
    """Make a random head to start training from, as small as the backbone's initial weights."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(backbone.config, "initializer_range", 0.02)
    return torch.randn(1, backbone.config.hidden_size, generator=generator) * std
