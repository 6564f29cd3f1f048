"""The reranker that asks a language model by a plan, for many queries at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float

from shortlist.math.permutation import Plan, Question, Verdict, run_plans
from shortlist.records import Document, Query, as_documents, as_queries
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.asking import Questions
from shortlist.rerankers.limits import LimitReachedError

MakePlan = Callable[[int], Plan]
"""Makes the plan for a number of documents."""


@final
class AskingReranker:
    """A reranker that asks a language model about a few documents at a time.

    Args:
        questions: asks the model.
        plan: makes the plan for a list.
    """

    def __init__(self, questions: Questions, plan: MakePlan) -> None:
        self.questions, self.plan = questions, plan

    def score(self, query: str | Query, documents: Iterable[str | Document]) -> Float[np.ndarray, " docs"]:
        """Score the documents of one query, given in the first stage's order.

        Those that were not placed have NaN.
        """
        documents = as_documents(list(documents))
        scores = np.full(len(documents), np.nan)
        for part in self.score_lists([Candidates(as_queries([query])[0], documents)]):
            scores[part.numbers] = part.scores
        return scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield the scores of lists as they are finished; all lists advance together.

        Lists that are not finished when a limit is reached have no scores.
        """
        lists = [Candidates(as_queries([query])[0], as_documents(documents)) for query, documents in lists]
        starts = np.cumsum([0, *(len(documents) for _, documents in lists)])
        tokens = self._num_tokens()

        def answer(asked: Sequence[tuple[int, Question]]) -> list[Verdict]:
            shown = [(lists[number], question) for number, question in asked]
            return self.questions([(query, [documents[i] for i in question]) for (query, documents), question in shown])

        try:
            for number, scores in run_plans([self.plan(len(documents)) for _, documents in lists], answer):
                read, tokens = self._num_tokens() - tokens, self._num_tokens()
                yield Scored(starts[number] + np.arange(len(scores)), scores.astype(np.float32), read)
        except LimitReachedError:
            return

    def _num_tokens(self) -> int:
        return self.questions.tally.prompt_tokens + self.questions.tally.answer_tokens

    def close(self) -> None:
        """Close the log of answers."""
        self.questions.close()

    def costs(self) -> dict[str, Any]:
        """Return the calls, tokens and faults so far."""
        return self.questions.tally._asdict()
