"""Learned sparse retrieval: a weight for some terms of the vocabulary.

A document's score is the dot product of its weights and the query's.
"""

from typing import cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import real_tokens, token_states
from shortlist.models.outputs import Rows
from shortlist.models.term_heads import Lookup, TokenHead, VocabularyHead
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs, find_id
from shortlist.text.marks import NO_VECTOR, OF_QUERY, TOKEN_ID


@final
class SparseModel(nn.Module):
    """A backbone with a head that gives terms of the vocabulary weights (SPLADE).

    While it trains, its rows are as wide as the vocabulary, one for each text: losses, their gradients, the cached step
    and several processes then need nothing of their own. When it runs (`eval`), a row is a term's number and weight, as
    many as a text has. The numbers are exact in float32, as no vocabulary has 2**24 terms.

    Args:
        backbone: the transformer.
        inputs: makes token ids, with marks, in the form that the model was trained on.
        reading: the reading that was applied to the backbone.
        head: gives terms their weights.
        query_head: does so for queries (None: `head` does).

    https://arxiv.org/abs/2109.10086
    """

    kind = "sparse"
    row_shape: tuple[int, ...] = (2,)

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: Inputs,
        reading: Reading,
        head: VocabularyHead | TokenHead,
        query_head: TokenHead | Lookup | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.inputs, self.reading = backbone, inputs, reading
        self.head, self.query_head = head, query_head
        left_out = [find_id(inputs.tokenizer, name) for name in reading.left_out]
        known = torch.tensor([number for number in left_out if number is not None], dtype=torch.int64)
        self.register_buffer("left_out", known, persistent=False)

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return InputContract(self.inputs.form, self.reading)

    @property
    def num_terms(self) -> int:
        """The number of terms of the vocabulary."""
        return cast(Tensor, self.backbone.get_input_embeddings().weight).shape[0]

    @property
    def output(self) -> nn.Parameter | None:
        """The output embedding, if it is not the input embedding."""
        return self.head.weight if self.has_language_head else None

    @property
    def has_language_head(self) -> bool:
        """Whether the model is a complete language model, and is saved as one of transformers."""
        return isinstance(self.head, VocabularyHead)

    @property
    def saved(self) -> dict[str, str]:
        """The parameters beside the backbone: name -> key in the folder."""
        heads = {"head": self.head, "query_head": self.query_head}
        return {f"{at}.{name}": key for at, head in heads.items() if head for name, key in head.keys.items()}

    @property
    def looked_up(self) -> Float[Tensor, " vocabulary"]:
        """The weights of queries' terms, where queries are looked up."""
        weights = cast(Tensor, cast(nn.Module, self.query_head).weight)
        return weights.index_fill(0, cast(Tensor, self.left_out), 0.0)

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """Compute the weights of right-padded ids, in float32, as the class says.

        A text without tokens, or without a term above 0, has no rows.
        """
        token_ids = token_ids if token_ids.shape[1] else F.pad(token_ids, (0, 1))
        real = real_tokens(token_ids, lengths)
        weights = self.weights(token_ids & TOKEN_ID, real, real & (token_ids & NO_VECTOR == 0), _asked(token_ids))
        return Rows(weights) if self.training else entries(weights)

    def weights(
        self,
        token_ids: Int[Tensor, "batch tokens"],
        real: Bool[Tensor, "batch tokens"],
        wanted: Bool[Tensor, "batch tokens"],
        asked: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch vocabulary"]:
        """Compute the weight of every term.

        Args:
            token_ids: right-padded ids without marks.
            real: the tokens that are read.
            wanted: the tokens that give weights.
            asked: the texts that are queries, where queries are encoded in another way.
        """
        embedding = cast(Tensor, self.backbone.get_input_embeddings().weight)
        own = self.query_head
        states, weights = None, None
        if own is None or own.reads_states or not asked.all():
            attended = real.clone()
            attended[:, :1] |= ~real.any(1, keepdim=True)  # attention to nothing would be NaN
            states = token_states(self.backbone, token_ids, attended, some_unread=False)
            weights = self.head(states, wanted, token_ids, embedding)
        if own is not None:
            weights_of_queries = own(states, wanted, token_ids, embedding)
            weights = (
                weights_of_queries if weights is None else torch.where(asked[:, None], weights_of_queries, weights)
            )
        assert weights is not None  # for the type checker
        left_out = cast(Tensor, self.left_out)
        weights = weights.index_fill(1, left_out, 0.0) if len(left_out) else weights
        weights = _strongest(weights, self.reading.keep_terms, ~asked)
        return _strongest(weights, self.reading.keep_query_terms, asked)


def entries(weights: Float[Tensor, "texts vocabulary"]) -> Rows:
    """Turn weights of all terms into rows of number and weight, if above 0."""
    texts, terms = (weights > 0).nonzero(as_tuple=True)
    counts = torch.bincount(texts, minlength=len(weights))
    return Rows(torch.stack([terms.float(), weights[texts, terms]], 1), counts)


def vocabulary_wide(rows: Rows, size: int) -> Float[Tensor, "texts vocabulary"]:
    """Turn a sparse model's rows into weights of all terms, whichever form they have."""
    if rows.counts is None:
        return rows.values
    counts = rows.counts.to(rows.values.device)
    texts = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    empty = rows.values.new_zeros(len(counts), size)
    return empty.index_put((texts, rows.values[:, 0].detach().long()), rows.values[:, 1])


def _asked(token_ids: Int[Tensor, "batch tokens"]) -> Bool[Tensor, " batch"]:
    """Find the texts whose ids are marked as a query's."""
    return (token_ids & OF_QUERY != 0).any(1)


def _strongest(
    weights: Float[Tensor, "texts vocabulary"], most: int, these: Bool[Tensor, " texts"]
) -> Float[Tensor, "texts vocabulary"]:
    """Keep the greatest weights of some texts; among equals the first terms.

    Args:
        most: how many are kept (0: all).
        these: the texts that are cut.
    """
    if not most or most >= weights.shape[1]:
        return weights
    order = torch.argsort(weights, dim=1, descending=True, stable=True)[:, :most]
    kept = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, order, True) | ~these[:, None]
    return weights * kept
