"""A decoder trained to predict the next token, from which retrievers and rerankers can start."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from shortlist.math.attention import span_sums
from shortlist.math.blocks import block_mask, block_positions, block_spans
from shortlist.models.backbone import real_tokens
from shortlist.models.outputs import Rows
from shortlist.models.reading import Probe
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs

LOGIT_ROWS = 128
"""The number of tokens whose logits are held in float32 at a time, few enough for a CPU's caches."""


class Wanted(NamedTuple):
    """The numbers wanted of an input that ends with an answer."""

    start: int
    """The place of the answer's first token that counts."""
    end: int
    """The place behind its last one; `start` where nothing of it counts."""
    position: int = 0
    """The place of the token behind which labels are told apart."""
    labels: tuple[int, ...] = ()
    """The id of each label, whose logit is wanted there."""
    temperature: float | None = None
    """Where it is given, the log-probability of each of the answer's tokens is wanted alone, with logits divided by
    it."""
    layout: "BlockLayout | None" = None
    """Where the input is in blocks, how; documents' attention is then wanted instead of labels' logits."""


class BlockLayout(NamedTuple):
    """The blocks of an input."""

    lengths: tuple[int, ...]
    """The number of tokens of each block: the instruction, documents, and the question with its answer."""
    start: int
    """The position of the last block's first token."""
    asking: slice
    """The tokens of the input whose attention is read."""
    layer: int
    """The layer in which it is read."""


@final
class LanguageModel(nn.Module):
    """A decoder with an output embedding, which is its input embedding unless it has another.

    Args:
        backbone: the decoder without its head.
        inputs: makes token ids of pairs.
        reading: the reading that was applied to the backbone.
        output: the output embedding (None: the input embedding, https://arxiv.org/abs/1608.05859).
    """

    kind = "language-model"
    row_shape: tuple[int, ...] = (2,)

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: Inputs,
        reading: Reading,
        output: Float[Tensor, "vocabulary dim"] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        self.reading = reading
        self.output = None if output is None else nn.Parameter(output)
        self.stop_id: int | None = None
        """The token behind whose first place, after a text's first token, tokens are predicted (None: all are)."""
        self.attention_stop = False
        """Whether tokens after it attend to nothing before it, so that it has to hold all that is before it."""

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return InputContract(self.inputs.form, self.reading)

    def forward(
        self,
        token_ids: Int[Tensor, "batch tokens"],
        lengths: Int[Tensor, " batch"],
        asked: Sequence[Wanted] | None = None,
    ) -> Rows:
        """Compute the loss and the number of correct predictions for each right-padded text.

        The loss is minus the log-likelihood of all tokens except the first, each given the tokens before it (nats,
        float32). A prediction is correct if the actual token is the likeliest one.

        Args:
            asked: what is wanted of each text instead. A text's rows are then numbers: loss and correct predictions of
                the tokens of its answer, and the logit of each label; or the log-probability of each of these tokens.
        """
        if asked is not None:
            return self._answers(token_ids, asked)
        wanted, mask = real_tokens(token_ids, lengths), None  # no logits for padding
        if self.stop_id is not None:
            stops = find_stops(token_ids, self.stop_id)
            wanted = wanted & (torch.arange(token_ids.shape[1], device=token_ids.device) > stops[:, None])
            seen = stopped_attention(stops, token_ids.shape[1]) if self.attention_stop else None
            mask = None if seen is None else as_mask(seen, self.backbone)
        states = self.backbone(input_ids=token_ids, attention_mask=mask, use_cache=False).last_hidden_state
        places = wanted[:, 1:].flatten().nonzero()[:, 0]
        states, targets = states[:, :-1].flatten(0, 1)[places], token_ids[:, 1:].flatten()[places]
        rows = places // max(1, token_ids.shape[1] - 1)
        return Rows(self._sums(states, targets, rows, len(token_ids)))

    def _answers(self, token_ids: Int[Tensor, "batch tokens"], asked: Sequence[Wanted]) -> Rows:
        """Compute the numbers of each text that is asked something."""
        device = token_ids.device
        layouts = [one.layout for one in asked if one.layout is not None]
        probe = read_layouts(layouts, self.backbone) if layouts else None
        options = {} if probe is None else {"probe": probe, **in_blocks(layouts, token_ids)}
        states = self.backbone(input_ids=token_ids, use_cache=False, **options).last_hidden_state
        rows = torch.tensor([row for row, one in enumerate(asked) for _ in range(one.start, one.end)], device=device)
        places = torch.tensor([place for one in asked for place in range(one.start, one.end)], device=device)
        rows, places = rows.long(), places.long()  # without any they would be of floats
        if asked[0].temperature is not None:
            divided = states[rows, places - 1] / asked[0].temperature
            losses = next_tokens(divided, self.embedding, token_ids[rows, places])[:, 0]
            return Rows(-losses, torch.tensor([one.end - one.start for one in asked]))
        sums = self._sums(states[rows, places - 1], token_ids[rows, places], rows, len(asked))
        if probe is not None:
            return _with_documents(sums, probe, layouts)
        ends = torch.tensor([one.position for one in asked], device=device)
        chosen = states[torch.arange(len(asked), device=device), ends]
        counts = [len(one.labels) for one in asked]
        labels = torch.tensor([label for one in asked for label in one.labels], device=device).long()
        logits = label_logits(chosen, self.embedding, labels, counts)
        parts = [part for pair in zip(sums, logits, strict=True) for part in pair]
        return Rows(torch.cat(parts), torch.tensor([2 + count for count in counts]))

    @property
    def embedding(self) -> Float[Tensor, "vocabulary dim"]:
        """The output embedding."""
        return output_embedding(self)

    def _sums(
        self,
        states: Float[Tensor, "tokens dim"],
        targets: Int[Tensor, " tokens"],
        rows: Int[Tensor, " tokens"],
        num_texts: int,
    ) -> Float[Tensor, "texts 2"]:
        """Add up losses and correct predictions of tokens by their texts."""
        sums = states.new_zeros(num_texts, 2, dtype=torch.float32)
        return sums.index_add(0, rows, next_tokens(states, self.embedding, targets))


def in_blocks(layouts: Sequence[BlockLayout], token_ids: Int[Tensor, "batch tokens"]) -> dict[str, Tensor]:
    """Return positions and mask of right-padded inputs in blocks.

    Padding sees itself and what is before it.
    """
    size, device = token_ids.shape[1], token_ids.device
    positions = torch.zeros(len(layouts), size, dtype=torch.long)
    seen = torch.ones(size, size, dtype=torch.bool).tril().repeat(len(layouts), 1, 1)
    for row, layout in enumerate(layouts):
        length = sum(layout.lengths)
        positions[row, :length] = block_positions(layout.lengths, layout.start)
        seen[row, :length, :length] = block_mask(layout.lengths)
    return {"position_ids": positions.to(device), "attention_mask": seen[:, None].to(device)}


def read_layouts(layouts: Sequence[BlockLayout], backbone: PreTrainedModel) -> Probe:
    """Prepare to read the attention of documents in the one layer of all layouts."""
    heads = torch.arange(backbone.config.num_attention_heads, device=next(backbone.parameters()).device)
    spans = [block_spans(layout.lengths) for layout in layouts]
    over = [slice(each[1].start, each[-2].stop) for each in spans]
    return Probe({layouts[0].layer: heads}, [layout.asking for layout in layouts], over=over)


def _with_documents(sums: Float[Tensor, "texts 2"], probe: Probe, layouts: Sequence[BlockLayout]) -> Rows:
    """Put the attention of each text's documents behind its sums."""
    parts: list[Tensor] = []
    for each, mass, layout in zip(sums, probe.found[layouts[0].layer], layouts, strict=True):
        spans = block_spans(layout.lengths)[1:-1]
        moved = [slice(span.start - spans[0].start, span.stop - spans[0].start) for span in spans]
        parts += [each, span_sums(mass.mean(0), moved)]
    return Rows(torch.cat(parts), torch.tensor([len(layout.lengths) for layout in layouts]))


def output_embedding(model: Any) -> Float[Tensor, "vocabulary dim"]:
    """Return a model's own output embedding, or its backbone's input embedding if it has none."""
    return cast(Tensor, model.backbone.get_input_embeddings().weight) if model.output is None else model.output


def label_logits(
    states: Float[Tensor, "texts dim"],
    embedding: Float[Tensor, "vocabulary dim"],
    labels: Int[Tensor, " labels"],
    counts: Sequence[int],
) -> Sequence[Float[Tensor, " _"]]:
    """Compute the logits of each text's labels.

    They are in float32, since losses compare them with one another.

    Args:
        labels: the ids of the labels of all texts, text by text.
        counts: the number of labels of each text.
    """
    with torch.autocast(states.device.type, enabled=False):
        rows = states.float().repeat_interleave(torch.tensor(counts, device=states.device), 0, output_size=len(labels))
        return (rows * embedding[labels].float()).sum(1).split(list(counts))


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
