"""The reranker by late interaction, ready to score."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float

from shortlist.data.stores.tokens import TokenReader
from shortlist.math.matching import late_scores
from shortlist.math.maxsim import TokenVectors
from shortlist.models.folder import ModelFolder
from shortlist.models.late_retriever import LateRetriever
from shortlist.records import Document, Query, as_documents, as_queries, is_one
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.lists import DOCS_AT_ONCE, score_parts
from shortlist.rerankers.stored import CandidateVectors
from shortlist.text.contract import InputContract


@runtime_checkable
class EncodesTexts(Protocol):
    """A late retriever, or any object that turns queries and documents into token vectors."""

    def encode_queries(self, queries: Sequence[Query], *, token_budget: int | None = None) -> TokenVectors:
        """Compute the token vectors of queries."""
        ...

    def encode_documents(self, documents: Sequence[Document], *, token_budget: int | None = None) -> TokenVectors:
        """Compute the token vectors of documents."""
        ...


@final
class LateReranker:
    """Scores documents by late interaction: texts in, arrays out.

    A document without vectors gets the lowest score that vectors of length 1 can have, so that scores stay finite.

    Args:
        retriever: encodes queries, and documents that are not stored.
        stored: token vectors of documents (None: all documents are encoded).
        token_budget: most tokens in one forward pass, padding included (None: chosen for the device).
    """

    def __init__(
        self, retriever: EncodesTexts, *, stored: TokenReader | None = None, token_budget: int | None = None
    ) -> None:
        self.retriever, self.stored, self.token_budget = retriever, stored, token_budget
        self._vectors = CandidateVectors(stored, self._encoded)

    def _encoded(self, documents: list[Document]) -> TokenVectors:
        return self.retriever.encode_documents(documents, token_budget=self.token_budget)

    def __repr__(self) -> str:
        where = "" if self.stored is None else f", with {self.stored.num_docs:,} stored documents"
        return f"<LateReranker with {self.retriever!r}{where}>"

    def score(
        self, query: str | Query, documents: str | Document | Iterable[str | Document]
    ) -> Float[np.ndarray, "*docs"]:
        """Score each document for the query; higher is better.

        Args:
            documents: several, for one score each; or one, for its score.

        Raises:
            UserError: something is neither a text nor a record.
        """
        given = as_documents(documents)
        [scored] = self.score_lists([Candidates(as_queries([query])[0], given)]) if given else [None]
        scores = np.empty(0, np.float32) if scored is None else scored.scores
        return scores[0, ...] if is_one(documents) else scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield the scores of each list; documents of several lists are encoded once."""
        return score_parts(self._score_part, lists, most=DOCS_AT_ONCE)

    def _score_part(self, lists: Sequence[Candidates], start: int) -> Iterator[Scored]:
        queries = self.retriever.encode_queries([query for query, _ in lists], token_budget=self.token_budget)
        known = self._vectors(document for _, documents in lists for document in documents)
        for query, (_, documents) in zip(queries, lists, strict=True):
            vectors = [known[document] for document in documents]
            counts = np.array([len(one) for one in vectors], dtype=np.int64)
            lowest = -np.linalg.norm(query, axis=1).sum()
            scores = np.full(len(documents), lowest if len(query) else 0.0, dtype=np.float32)
            if len(query) and counts.any():
                asked = TokenVectors(query, np.array([len(query)]))
                found = late_scores(asked, TokenVectors(np.concatenate(vectors), counts))[0]
                scores[counts > 0] = found[counts > 0]
            yield Scored(start + np.arange(len(documents)), scores, int(counts.sum()))
            start += len(documents)


def open_late_reranker(
    folder: ModelFolder,
    contract: InputContract,
    *,
    vectors: Path | None,
    token_budget: int | None,
    running: dict[str, Any],
) -> LateReranker:
    """Load a reranker by late interaction.

    Args:
        vectors: token vectors of the documents (None: they are encoded).
        running: settings of `models.run.for_inference`.
    """
    retriever = LateRetriever.load(folder, contract=contract, **running)
    return LateReranker(retriever, stored=TokenReader(vectors) if vectors else None, token_budget=token_budget)
