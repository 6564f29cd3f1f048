"""The bi-encoder: one text, one vector; the dot product of two vectors is their similarity."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.errors import unknown
from shortlist.math.pooling import POOLINGS
from shortlist.models.backbone import hidden_states, is_causal
from shortlist.text.contract import Inputs


class Retriever(nn.Module):
    """A backbone whose pooled hidden state is the vector of a query or a document (RepLLaMA, and encoders alike).

    https://arxiv.org/abs/2310.08319
    """

    def __init__(self, backbone: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        self.causal = is_causal(backbone)
        if inputs.contract.pooling not in POOLINGS:
            raise unknown("pooling", inputs.contract.pooling, POOLINGS)
        self.pool = POOLINGS[inputs.contract.pooling]

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.backbone.config.hidden_size

    def forward(
        self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """Vectors, float32, of right-padded ids."""
        vectors = self.pool(hidden_states(self.backbone, token_ids, lengths, causal=self.causal), lengths).float()
        return F.normalize(vectors, dim=-1) if self.inputs.contract.normalize else vectors
