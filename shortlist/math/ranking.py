"""What a loss over scores is given: queries beside documents, and what is known of each pair."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Ranking(NamedTuple):
    """Queries beside the documents they are ranked against: the one input of every loss over scores.

    A row is a query. A column is a document of the batch where all queries share them (a retriever), or a place in the
    query's own list (a reranker). A loss looks at nothing where `keep` is False; anything may stand there, NaN too.

    What only some losses need reaches them without another argument:

    - Numbers that a user chooses, such as a margin or how many rankings are sampled, are keyword parameters of the
      loss, with defaults. A reward is a function of `relevance` that such a parameter names.
    - Further numbers of every pair, such as the scores that the model had at the start, are further fields after
      `keep`, None where no loss of the training needs them (`NEEDS` in losses).
    - Whatever decides which documents count, such as a guide's similarities, has had its say in `keep`.
    - Several sets of scores, such as those of vectors cut to several dimensions, are several rankings; their losses are
      added up by whoever made them.
    """

    scores: Float[Tensor, "queries docs"]
    """The model's; higher is better."""
    relevance: Float[Tensor, "queries docs"]
    """Grades: 0 where nothing is known to be relevant, 1 for the positive of a batch without grades."""
    teacher: Float[Tensor, "queries docs"] | None
    """A teacher's scores, NaN where it did not look; None without a teacher."""
    keep: Bool[Tensor, "queries docs"]
    """False where a document must not count: there is none, it counts in another column, or it answers the query too
    and must not be pushed away."""
