"""The reranker by a query's vector that has read the first documents, ready to score."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float

from shortlist.data.stores.vectors import VectorReader
from shortlist.errors import UserError
from shortlist.math.query_vectors import cosines
from shortlist.models.folder import ModelFolder
from shortlist.models.retriever import Retriever
from shortlist.models.run import run_model
from shortlist.records import Document, Query, as_documents, as_queries
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.language import LONGEST_PROMPT
from shortlist.rerankers.lists import DOCS_AT_ONCE, score_parts
from shortlist.rerankers.stored import CandidateVectors
from shortlist.text.contract import InputContract
from shortlist.text.prompts import Prompt
from shortlist.text.rendering import Renderer


@final
class EmbeddingReranker:
    """Scores documents by their vectors and a query's that has read the first ones.

    A score is the cosine of the two. Documents behind the first `window` are in no prompt, and scored like the others.

    Args:
        retriever: encodes prompts, and documents that are not stored.
        renderer: makes token ids of the prompt.
        window: documents in a prompt; 0: queries are encoded alone, as the retriever reads them in search.
        stored: vectors of documents (None: all documents are encoded).
        token_budget: most tokens in one forward pass, padding included (None: chosen for the device).

    Raises:
        UserError: the stored vectors have another dimension.

    https://arxiv.org/abs/2510.22733
    """

    def __init__(
        self,
        retriever: Retriever,
        renderer: Renderer,
        *,
        window: int,
        stored: VectorReader | None = None,
        token_budget: int | None = None,
    ) -> None:
        self.retriever, self.renderer, self.window = retriever, renderer, window
        self.stored, self.token_budget = stored, token_budget
        self._vectors = CandidateVectors(stored, self._encoded)
        if stored is not None and stored.dim != retriever.dim:
            raise UserError(
                f"{stored.folder}: holds vectors of {stored.dim} dimensions, and the model's have {retriever.dim}; "
                "encode again, without --dims."
            )

    def _encoded(self, documents: list[Document]) -> Float[np.ndarray, "docs dim"]:
        return self.retriever.encode_documents(documents, token_budget=self.token_budget)

    def __repr__(self) -> str:
        where = "" if self.stored is None else f", with {self.stored.num_docs:,} stored documents"
        return f"<{type(self).__name__} with {self.retriever!r}{where}>"

    def score(self, query: str | Query, documents: Iterable[str | Document]) -> Float[np.ndarray, " docs"]:
        """Score the documents of one query, given in the first stage's order."""
        given = as_documents(list(documents))
        [scored] = self.score_lists([Candidates(as_queries([query])[0], given)])
        return scored.scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield the scores of each list; documents of several lists are encoded once."""
        return score_parts(self._score_part, lists, most=DOCS_AT_ONCE)

    def _score_part(self, lists: Sequence[Candidates], start: int) -> Iterator[Scored]:
        asked = [(query, documents[: self.window]) for query, documents in lists if documents]
        if self.window:
            prompts = [one.ids for one in self.renderer.render_many(asked)]
        else:
            prompts = self.retriever.inputs.query_ids([query for query, _ in asked])
        queries = iter(run_model(self.retriever.model, prompts, token_budget=self.token_budget).values.numpy())
        sizes = iter(map(len, prompts))
        known = self._vectors(document for _, documents in lists for document in documents)
        for _, documents in lists:
            if not documents:
                yield Scored(np.empty(0, np.int64), np.empty(0, np.float32), 0)
                continue
            vectors = np.stack([known[document] for document in documents])
            yield Scored(start + np.arange(len(documents)), cosines(next(queries), vectors), next(sizes))
            start += len(documents)


def open_embedding(
    folder: ModelFolder,
    contract: InputContract,
    *,
    prompt: Prompt,
    window: int,
    vectors: Path | None,
    max_length: int | None,
    token_budget: int | None,
    running: dict[str, Any],
) -> EmbeddingReranker:
    """Load a retriever that reranks; arguments as for `rerankers.embedding.by_embedding`.

    Args:
        running: settings of `models.run.for_inference`.
    """
    retriever = Retriever.load(folder, contract=contract, **running)
    longest = getattr(retriever.model.backbone.config, "max_position_embeddings", None) or LONGEST_PROMPT
    prompt = prompt.cut_at(contract.form.document_length)
    renderer = Renderer(prompt, retriever.inputs.tokenizer, most_tokens=min(max_length or longest, longest))
    stored = VectorReader(vectors) if vectors else None
    return EmbeddingReranker(retriever, renderer, window=window, stored=stored, token_budget=token_budget)
