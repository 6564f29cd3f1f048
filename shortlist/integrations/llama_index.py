"""LlamaIndex's embeddings, node postprocessors and retrievers (the extra `llama-index`)."""

import asyncio
from typing import Any, final

from shortlist.errors import UserError
from shortlist.integrations import Passage, best_first, metadata_of, not_installed
from shortlist.models.retriever import Retriever
from shortlist.pipeline import Pipeline
from shortlist.records import as_documents
from shortlist.rerankers import Ranker

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
except ModuleNotFoundError as error:
    raise not_installed(error, "llama-index") from None


@final
class PipelineRetriever(BaseRetriever):
    """A pipeline as a LlamaIndex retriever.

    Nodes come best first, with the documents' ids and texts. Their `metadata` has doc_id, title, url, and the rank and
    score at each step; language models see only the title.

    Args:
        k: number of nodes per query.
        where: filter over the documents' metadata, such as "year >= 2020 and lang = 'de'" (None: all documents).
        options: other options of `Pipeline.answer`.
    """

    def __init__(self, pipeline: Pipeline, k: int = 10, *, where: str | None = None, **options: Any) -> None:
        super().__init__()
        self.pipeline, self.k, self.where, self.options = pipeline, k, where, options

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        results = self.pipeline.search(query_bundle.query_str, self.k, where=self.where, **self.options)
        return [
            NodeWithScore(node=_node(metadata_of(result), result.document.text), score=result.score)
            for result in results
        ]


def _node(metadata: dict[str, Any], text: str) -> TextNode:
    hidden = [name for name in metadata if name != "title" or not metadata["title"]]
    shown = {"excluded_llm_metadata_keys": hidden, "excluded_embed_metadata_keys": hidden}
    return TextNode(id_=metadata["doc_id"], text=text, metadata=metadata, **shown)


@final
class RetrieverEmbedding(BaseEmbedding):
    """A retriever as a LlamaIndex embedding; vector stores should compare by dot product."""

    retriever: Retriever = Field(exclude=True)
    embed_batch_size: int = Field(default=256, gt=0, le=2048)
    """Number of texts per call; the model makes batches of similar length from them."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.retriever.encode_queries([query])[0].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.retriever.encode_documents(as_documents(texts)).tolist()


@final
class RerankerPostprocessor(BaseNodePostprocessor):
    """A reranker as a LlamaIndex node postprocessor.

    It returns the best nodes, best first, with their new scores. It reads `title` and `url` from the nodes' `metadata`
    if its contract has fields for them.
    """

    reranker: Ranker = Field(exclude=True)
    top_n: int | None = None
    """Number of nodes to keep (None: all)."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise UserError("postprocess_nodes: there is no query to rerank by; give it query_str or query_bundle.")
        passages = [Passage(node.node.get_content(MetadataMode.NONE), node.node.metadata) for node in nodes]
        ranked = best_first(self.reranker, query_bundle.query_str, passages, self.top_n)
        return [NodeWithScore(node=nodes[place].node, score=score) for place, score in ranked]
