"""LangChain's embeddings, document compressors and retrievers (the extra `langchain`)."""

from collections.abc import Sequence
from typing import Any, final

from shortlist.errors import UserError
from shortlist.integrations import Passage, best_first, metadata_of, not_installed
from shortlist.models.retriever import Retriever
from shortlist.pipeline import Pipeline
from shortlist.records import as_documents
from shortlist.rerankers import Ranker

try:
    from langchain_core.documents import BaseDocumentCompressor
    from langchain_core.documents import Document as Found
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict, Field
except ModuleNotFoundError as error:
    raise not_installed(error, "langchain") from None


@final
class PipelineRetriever(BaseRetriever):
    """A pipeline as a LangChain retriever.

    Documents come best first. Their `metadata` has doc_id, title, url, score, and the rank and score at each step.
    """

    pipeline: Pipeline
    k: int = 10
    """Number of documents per query."""
    where: str | None = None
    """Filter over the documents' metadata, such as "year >= 2020 and lang = 'de'" (None: all documents)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Other options of `Pipeline.answer`."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Found]:
        return [
            Found(
                id=result.document.doc_id,
                page_content=result.document.text,
                metadata=metadata_of(result) | {"score": result.score},
            )
            for result in self.pipeline.search(query, self.k, where=self.where, **self.options)
        ]


@final
class RetrieverEmbeddings(Embeddings):
    """A retriever as LangChain embeddings; vector stores should compare by dot product.

    Raises:
        UserError: it gives no single vector for each text.
    """

    def __init__(self, retriever: Retriever | Any) -> None:
        if not isinstance(retriever, Retriever):
            raise UserError(
                f"retriever is a {type(retriever).__name__}; embeddings take a Retriever, with one vector a text, "
                "and PipelineRetriever searches with any."
            )
        self.retriever: Retriever = retriever

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.retriever.encode_documents(as_documents(texts)).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.retriever.encode_queries([text])[0].tolist()


@final
class RerankerCompressor(BaseDocumentCompressor):
    """A reranker as a LangChain document compressor.

    It returns the best documents, best first, with their new `score` in `metadata`. It reads `title` and `url` from
    `metadata` if its contract has fields for them.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    reranker: Ranker
    top_n: int | None = None
    """Number of documents to keep (None: all)."""

    def compress_documents(self, documents: Sequence[Found], query: str, callbacks: Any = None) -> list[Found]:
        passages = [Passage(document.page_content, document.metadata) for document in documents]
        return [
            documents[place].model_copy(update={"metadata": documents[place].metadata | {"score": score}})
            for place, score in best_first(self.reranker, query, passages, self.top_n)
        ]
