"""A decoder that is trained to predict the next token: what a retriever or a reranker may start from."""

from typing import cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import apply_contract, real_tokens
from shortlist.text.contract import Inputs


@final
class LanguageModel(nn.Module):
    """A backbone whose input embedding is its output embedding too, so that nothing but the backbone is learnt.

    https://arxiv.org/abs/1608.05859
    """

    def __init__(self, backbone: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        apply_contract(backbone, inputs.contract)
        backbone.config.tie_word_embeddings = True  # saved with it, so that transformers' own model is the same one

    def forward(
        self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch 2"]:
        """Of each right-padded text: minus the log-likelihood of all tokens but the first, each after those before it
        (nats, float32), and how many of them are the likeliest."""
        states = self.backbone(input_ids=token_ids, use_cache=False).last_hidden_state
        places = real_tokens(token_ids, lengths)[:, 1:].flatten().nonzero()[:, 0]  # no logits for padding
        embedding = cast(Tensor, self.backbone.get_input_embeddings().weight)
        logits = F.linear(states[:, :-1].flatten(0, 1)[places], embedding).float()
        targets = token_ids[:, 1:].flatten()[places]
        losses = F.cross_entropy(logits, targets, reduction="none")
        likeliest = (logits.detach().argmax(1) == targets).float()
        rows = places // max(1, token_ids.shape[1] - 1)
        return logits.new_zeros(len(token_ids), 2).index_add(0, rows, torch.stack([losses, likeliest], 1))
