"""The inputs of losses: queries with scores of their documents, and samples with rewards."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Ranking(NamedTuple):
    """Queries and the documents they rank, the only input of every loss over scores.

    A row is a query. A column is a document of the batch if all queries share the documents (a retriever), or a
    position in the query's own list (a reranker). A loss ignores entries where `keep` is False; their values may be
    anything, including NaN.

    Losses that need more get it without another argument:

    - Numbers that a user chooses, such as a margin or the number of sampled rankings, are keyword parameters of the
      loss, with defaults. Such a parameter can also name a reward, which is a function of `relevance`.
    - Further numbers for every pair, such as the `start` model's scores, are further fields after `keep`. They are None
      if no loss of the training needs them (`NEEDS` in losses).
    - Data that decides which documents count, such as a guide's similarities (`math/guidance.py`), is already applied
      in `keep`.
    - Several sets of scores, such as the scores of vectors cut to several dimensions, are several rankings. The code
      that makes them adds up their losses.
    """

    scores: Float[Tensor, "queries docs"]
    """The model's scores; higher is better."""
    relevance: Float[Tensor, "queries docs"]
    """Grades: 0 for a document not known to be relevant, 1 for the positive of a batch without grades."""
    teacher: Float[Tensor, "queries docs"] | None
    """A teacher's scores, NaN for pairs that it did not score; None without a teacher."""
    keep: Bool[Tensor, "queries docs"]
    """False where a document must not count: because the entry is empty, because the document counts in another column,
    or because it also answers the query and must not be pushed away."""
    start: Float[Tensor, "queries docs"] | None = None
    """The scores of the model as it was before training, NaN for synthetic documents; None if no loss of the training
    needs them."""
    yes: Float[Tensor, "queries docs"] | None = None
    """The logits of "yes" alone, where scores are those of "yes" less those of "no"; None where scores are no such
    differences."""


class Rollout(NamedTuple):
    """Samples of a policy with their rewards, the only input of its losses.

    A sample is an answer, whose steps are its tokens, or a ranking, whose steps are its places. What is said of steps
    that `keep` leaves out may be anything that is finite.
    """

    log_probs: Float[Tensor, "questions samples steps"]
    """The log-probability of each step; nothing but this is trained."""
    before: Float[Tensor, "questions samples steps"]
    """What it was when the sample was drawn; equal to `log_probs` at the first update after that."""
    rewards: Float[Tensor, "questions samples"]
    """What each sample earned; higher is better."""
    keep: Bool[Tensor, "questions samples steps"]
    """False behind a sample's last step."""
    most: int
    """The most steps that a sample may have."""
    start: Float[Tensor, "questions samples steps"] | None = None
    """The log-probability of each step by the model as it was before training; None if nothing needs it."""
