"""A decoder trained to predict the next token, from which retrievers and rerankers can start."""

from typing import Any, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from shortlist.models.backbone import real_tokens
from shortlist.models.outputs import Rows
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs

LOGIT_ROWS = 128
"""The number of tokens whose logits are held in float32 at a time, few enough for a CPU's caches."""


@final
class LanguageModel(nn.Module):
    """A language model whose input embedding is also its output embedding.

    Only the backbone is trained.

    https://arxiv.org/abs/1608.05859
    """

    kind = "language-model"
    row_shape: tuple[int, ...] = (2,)

    def __init__(self, backbone: PreTrainedModel, inputs: Inputs, reading: Reading) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        self.reading = reading
        self.stop_id: int | None = None
        """The token behind whose first place, after a text's first token, tokens are predicted (None: all are)."""
        self.attention_stop = False
        """Whether tokens after it attend to nothing before it, so that it has to hold all that is before it."""

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return InputContract(self.inputs.form, self.reading)

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """Compute the loss and the number of correct predictions for each right-padded text.

        The loss is minus the log-likelihood of all tokens except the first, each given the tokens before it (nats,
        float32). A prediction is correct if the actual token is the likeliest one.
        """
        wanted, mask = real_tokens(token_ids, lengths), None  # no logits for padding
        if self.stop_id is not None:
            stops = find_stops(token_ids, self.stop_id)
            wanted = wanted & (torch.arange(token_ids.shape[1], device=token_ids.device) > stops[:, None])
            seen = stopped_attention(stops, token_ids.shape[1]) if self.attention_stop else None
            mask = None if seen is None else as_mask(seen, self.backbone)
        states = self.backbone(input_ids=token_ids, attention_mask=mask, use_cache=False).last_hidden_state
        places = wanted[:, 1:].flatten().nonzero()[:, 0]
        states, targets = states[:, :-1].flatten(0, 1)[places], token_ids[:, 1:].flatten()[places]
        embedding = cast(Tensor, self.backbone.get_input_embeddings().weight)
        rows = places // max(1, token_ids.shape[1] - 1)
        sums = embedding.new_zeros(len(token_ids), 2, dtype=torch.float32)
        return Rows(sums.index_add(0, rows, next_tokens(states, embedding, targets)))


def as_mask(seen: Bool[Tensor, "batch 1 tokens tokens"], backbone: PreTrainedModel) -> Tensor:
    """Make an attention mask in the form that the backbone's attention takes: sdpa or eager."""
    if backbone.config._attn_implementation == "sdpa":
        return seen
    hidden = torch.finfo(backbone.dtype).min
    return torch.zeros_like(seen, dtype=backbone.dtype).masked_fill(~seen, hidden)


def find_stops(token_ids: Int[Tensor, "batch tokens"], stop_id: int) -> Int[Tensor, " batch"]:
    """Find the place of each text's first stop token after its first token."""
    return (token_ids[:, 1:] == stop_id).int().argmax(1) + 1


def stopped_attention(stops: Int[Tensor, " batch"], num_tokens: int) -> Bool[Tensor, "batch 1 tokens tokens"]:
    """Say which tokens each token sees, where a stop hides what is before it.

    A token sees itself and earlier ones, but behind the stop none from before it.

    Args:
        stops: the place of each text's stop token.

    https://arxiv.org/abs/2504.05216
    """
    place = torch.arange(num_tokens, device=stops.device)
    seen = place <= place[:, None]
    behind, before = place > stops[:, None], place < stops[:, None]
    return (seen & ~(behind[:, :, None] & before[:, None, :]))[:, None]


def next_tokens(
    states: Float[Tensor, "tokens dim"], embedding: Float[Tensor, "vocabulary dim"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, "tokens 2"]:
    """Compute each token's cross-entropy, and whether the token is the likeliest.

    The cross-entropy is F.cross_entropy of the product of states and embedding, in float32. The second number is 1 if
    the token is the likeliest and 0 if not. For the backward pass this keeps one number per logit, in the precision of
    the product, where PyTorch keeps three; that saves a quarter of a small model's step.
    """
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    return _NextTokens.apply(states.to(dtype), embedding.to(dtype), targets)  # type: ignore[return-value]


class _NextTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
        out = states.new_empty(len(states), 2, dtype=torch.float32)
        errors = states.new_empty(len(states), len(embedding))
        for x, target, error, row in zip(*(t.split(LOGIT_ROWS) for t in (states, targets, errors, out)), strict=True):
            logs = torch.log_softmax(x @ embedding.T, 1, dtype=torch.float32)
            target_logs = logs.gather(1, target[:, None])
            row[:, :1], row[:, 1:] = -target_logs, target_logs == logs.amax(1, keepdim=True)
            error.copy_(logs.exp_().scatter_add_(1, target[:, None], torch.full_like(target_logs, -1)))
        ctx.save_for_backward(states, embedding, errors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        states, embedding, errors = ctx.saved_tensors
        scale = gradient[:, :1].to(states.dtype)
        return (errors @ embedding) * scale, errors.T @ (states * scale), None
