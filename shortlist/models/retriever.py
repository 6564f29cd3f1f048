"""The bi-encoder: one text, one vector; the dot product of two vectors is their similarity."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import apply_contract, pooled_states
from shortlist.text.contract import Inputs


class Retriever(nn.Module):
    """A backbone whose pooled hidden state is the vector of a query or a document (RepLLaMA, and encoders alike).

    https://arxiv.org/abs/2310.08319
    """

    def __init__(self, backbone: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        apply_contract(backbone, inputs.contract)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.backbone.config.hidden_size

    def forward(
        self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """Vectors, float32, of right-padded ids."""
        pooling = self.inputs.contract.pooling
        vectors = pooled_states(self.backbone, token_ids, lengths, pooling=pooling).float()
        return F.normalize(vectors, dim=-1) if self.inputs.contract.normalize else vectors
