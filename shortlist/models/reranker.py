"""Pointwise rerankers: a query and a document read together, one score."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import apply_reading, pooled_states, real_tokens
from shortlist.models.outputs import Rows
from shortlist.records import Document, Query, as_documents, as_queries
from shortlist.text.contract import Adjust, InputContract, Reading
from shortlist.text.inputs import Inputs

Scores = Float[np.ndarray, " docs"]


@final
class Reranker(nn.Module):
    """A backbone and a bias-less projection of its pooled hidden state to a scalar (RankLLaMA).

    A language model that answers with a token is one too: the projection is then that token's row of its output
    embedding, or the difference of two.

    Args:
        head: weight of the projection. There is no default: a checkpoint without its head is not a reranker.

    https://arxiv.org/abs/2310.08319
    """

    row_shape: tuple[int, ...] = ()

    def __init__(
        self, backbone: PreTrainedModel, inputs: Inputs, reading: Reading, head: Float[Tensor, "1 dim"]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        self.reading = reading
        apply_reading(backbone, reading)
        self.head = nn.Parameter(head.float())

    @property
    def contract(self) -> InputContract:
        """How its texts become ids, and its output is read."""
        return InputContract(self.inputs.form, self.reading)

    @classmethod
    def load(
        cls, name: str, *, contract: str | None = None, adjust: Adjust | None = None, **options: Any
    ) -> "AnyReranker":
        """Load a model folder, or the name of one on the hub, ready to score, whichever kind of reranker it holds.

        Args:
            contract: input contract by name, for a folder that does not say its own.
            adjust: makes the contract that is used of that one, such as with other lengths.
            options: device and precision, as for `models.run.for_inference`.

        Raises:
            UserError: no model is there, it has no head, or nothing says what its input looks like.
        """
        from shortlist.models.checkpoint import load_reranker
        from shortlist.models.run import for_inference

        reranker = load_reranker(name, contract=contract, adjust=adjust)
        for_inference(reranker, **options)
        return reranker

    def score(self, query: str | Query, documents: Sequence[str | Document], **options: Any) -> Scores:
        """Score of each document for the query; options as in `models.run.run_model`."""
        return _score(self, query, documents, **options)

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """A score, float32, for each right-padded pair."""
        pooling = self.reading.pooling
        pooled = pooled_states(self.backbone, token_ids, lengths, pooling=pooling).float()
        return Rows(pooled @ self.head[0])


@final
class CrossEncoder(nn.Module):
    """An encoder with the classification head that it was published with, of one label or two.

    Args:
        classifier: transformers' own sequence classifier. With two labels the score is how much larger the second
            one's logit is: the log-odds of being relevant.
    """

    row_shape: tuple[int, ...] = ()

    def __init__(self, classifier: PreTrainedModel, inputs: Inputs, reading: Reading) -> None:
        super().__init__()
        self.backbone = classifier
        self.inputs = inputs
        self.reading = reading
        apply_reading(classifier, reading)

    @property
    def contract(self) -> InputContract:
        """How its texts become ids, and its output is read."""
        return InputContract(self.inputs.form, self.reading)

    def score(self, query: str | Query, documents: Sequence[str | Document], **options: Any) -> Scores:
        """Score of each document for the query; options as in `models.run.run_model`."""
        return _score(self, query, documents, **options)

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """A score, float32, for each right-padded pair."""
        options: dict[str, Any] = {"attention_mask": real_tokens(token_ids, lengths)}
        if self.reading.token_types and getattr(self.backbone.config, "type_vocab_size", 0) > 1:
            ends = (token_ids == self.inputs.special_id("<sep>")).long()
            options["token_type_ids"] = (ends.cumsum(1) - ends).clamp(max=1)  # 1 behind the first `<sep>`
        logits = self.backbone(input_ids=token_ids, **options).logits.float()
        return Rows(logits[:, -1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0])


AnyReranker = Reranker | CrossEncoder


def _score(reranker: AnyReranker, query: str | Query, documents: Sequence[str | Document], **options: Any) -> Scores:
    from shortlist.models.run import score_pairs

    [query] = as_queries([query])
    return score_pairs(reranker, [(query, document) for document in as_documents(documents)], **options)


def new_head(backbone: PreTrainedModel, *, seed: int) -> Float[Tensor, "1 dim"]:
    """The head that training starts from, as small as the backbone's own initial weights."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(backbone.config, "initializer_range", 0.02)
    return torch.randn(1, backbone.config.hidden_size, generator=generator) * std
