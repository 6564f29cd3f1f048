"""Kinds of models that the package does not have, which give other rows than one vector or one score for each text."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import is_causal, real_tokens
from shortlist.models.outputs import Rows, split
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs
from shortlist.train.steps import Example, Outcome


class Toy(nn.Module):
    """A backbone whose states another class makes rows of."""

    kind = "toy"

    def __init__(self, backbone: PreTrainedModel, inputs: Inputs) -> None:
        super().__init__()
        self.backbone, self.inputs = backbone, inputs

    @property
    def contract(self) -> InputContract:
        return InputContract(self.inputs.form, Reading())

    def states(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        options = {"use_cache": False} if is_causal(self.backbone) else {"attention_mask": mask}
        return self.backbone(input_ids=token_ids, **options).last_hidden_state.float()

    def words(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Weight of each word of the vocabulary for each text, most of them 0."""
        states, embedding = self.states(token_ids, mask), self.backbone.get_input_embeddings().weight
        logits = (states @ embedding.T.float() - 1).masked_fill(~mask[..., None], 0)
        return logits.relu().amax(1)


class PerToken(Toy):
    """A vector for each token, as late interaction has them."""

    @property
    def row_shape(self) -> tuple[int]:
        return (self.backbone.config.hidden_size,)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Rows:
        mask = real_tokens(token_ids, lengths)
        return Rows(F.normalize(self.states(token_ids, mask)[mask], dim=-1), lengths)


class Words(Toy):
    """A row as wide as the vocabulary for each text, as learned sparse retrieval trains with."""

    @property
    def row_shape(self) -> tuple[int]:
        return (self.backbone.config.vocab_size,)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Rows:
        return Rows(self.words(token_ids, real_tokens(token_ids, lengths)))


class Pairs(Toy):
    """A word and its weight for each word that has one; some texts have none."""

    row_shape = (2,)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Rows:
        weights = self.words(token_ids, real_tokens(token_ids, lengths))
        text, word = weights.nonzero(as_tuple=True)
        values = weights.new_empty(len(word), 2)
        values[:, 0], values[:, 1] = word, weights[text, word]
        return Rows(values, text.bincount(minlength=len(weights)))


TOYS = [PerToken, Words, Pairs]


def maxsim_example(token_ids: list[list[int]], num_queries: int) -> Example:
    """The first texts are queries, answered by the texts that follow; each row of a query counts by its best match."""

    def objective(rows: Rows) -> Outcome:
        texts = split(rows)
        queries, docs = texts[:num_queries], texts[num_queries:]
        scores = torch.stack([torch.stack([(q @ d.T).amax(1).mean() for d in docs]) for q in queries])
        right = torch.arange(num_queries)
        return Outcome(F.cross_entropy(scores, right), (scores.argmax(1) == right).float().mean().item())

    return Example(token_ids, [f"q{i}" for i in range(num_queries)], objective)
