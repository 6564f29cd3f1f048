"""The pointwise reranker: a query and a document read together, one score."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import apply_contract, pooled_states
from shortlist.text.contract import Inputs


class Reranker(nn.Module):
    """A backbone and a bias-less projection of its pooled hidden state to a scalar (RankLLaMA).

    Args:
        head: weight of the projection. There is no default: a checkpoint without its head is not a reranker.

    https://arxiv.org/abs/2310.08319
    """

    def __init__(self, backbone: PreTrainedModel, inputs: Inputs, head: Float[Tensor, "1 dim"]) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        apply_contract(backbone, inputs.contract)
        self.score = nn.Parameter(head.float())

    def forward(
        self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Scores, float32, of right-padded pairs."""
        pooling = self.inputs.contract.pooling
        pooled = pooled_states(self.backbone, token_ids, lengths, pooling=pooling).float()
        return pooled @ self.score[0]


def new_head(backbone: PreTrainedModel, *, seed: int) -> Float[Tensor, "1 dim"]:
    """The head that training starts from, as small as the backbone's own initial weights."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(backbone.config, "initializer_range", 0.02)
    return torch.randn(1, backbone.config.hidden_size, generator=generator) * std
