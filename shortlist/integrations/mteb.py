"""MTEB's encoders and cross-encoders (the extra `mteb`).

For example: `mteb.evaluate(RetrieverEncoder("folder"), tasks)`. With a retriever, MTEB searches itself, exactly. A
reranker gets the candidates of MTEB's reranking tasks.
"""

from collections.abc import Iterable, Mapping
from typing import Any, final

import numpy as np
from jaxtyping import Float

from shortlist.integrations import not_installed
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.retriever import Retriever
from shortlist.models.run import score_pairs
from shortlist.records import Document, as_queries
from shortlist.rerankers.reranker import Reranker
from shortlist.text.contract import Form, is_token

try:
    from mteb.models import ModelMeta
    from mteb.types import PromptType
except ModuleNotFoundError as error:
    raise not_installed(error, "mteb") from None

Columns = Mapping[str, Any]
"""A batch of MTEB's, by column: `text`, and `title` and `body` if documents have them."""


@final
class RetrieverEncoder:
    """A retriever, loaded by name, as MTEB's `EncoderProtocol`.

    Texts are taken as documents unless MTEB marks them as queries.

    Args:
        model: model folder or hub name.
        options: as for `Retriever.load`; MTEB keeps results with different options apart.

    Raises:
        UserError: as for `Retriever.load`.
    """

    def __init__(self, model: str, **options: Any) -> None:
        folder = open_folder(model)
        self.retriever = Retriever.load(folder, **options)
        form = self.retriever.inputs.form
        self.mteb_model_meta = _meta(
            folder,
            form,
            options,
            max_tokens=form.document_length,
            embed_dim=self.retriever.dim,
            similarity_fn_name="cosine" if self.retriever.contract.reading.normalize else "dot",
        )

    def encode(
        self, inputs: Iterable[Columns], *, prompt_type: PromptType | None = None, **_: Any
    ) -> Float[np.ndarray, "texts dim"]:
        """Embed queries or documents, batched by their lengths instead of MTEB's batches."""
        if prompt_type == PromptType.query:
            return self.retriever.encode_queries(_texts(inputs))
        return self.retriever.encode_documents(_documents(inputs))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, "some others"]:
        """Compute the dot products of all vectors with all others.

        They are cosines if the contract normalises vectors.
        """
        return np.atleast_2d(np.asarray(embeddings1)) @ np.atleast_2d(np.asarray(embeddings2)).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, " pairs"]:
        """Compute the dot product of each vector with its counterpart."""
        return (np.asarray(embeddings1) * np.asarray(embeddings2)).sum(-1)


@final
class RerankerCrossEncoder:
    """A reranker, loaded by name, as MTEB's `CrossEncoderProtocol`.

    Args:
        model: model folder or hub name.
        options: as for `Reranker.load`; MTEB keeps results with different options apart.

    Raises:
        UserError: as for `Reranker.load`.
    """

    def __init__(self, model: str, **options: Any) -> None:
        folder = open_folder(model, wanted="reranker")
        self.reranker = Reranker.load(folder, **options)
        form = self.reranker.inputs.form
        self.mteb_model_meta = _meta(folder, form, options, max_tokens=form.pair_length, model_type=["cross-encoder"])

    def predict(self, inputs1: Iterable[Columns], inputs2: Iterable[Columns], **_: Any) -> Float[np.ndarray, " pairs"]:
        """Score each query with its document, batched by length instead of MTEB's batches."""
        pairs = list(zip(as_queries(_texts(inputs1)), _documents(inputs2), strict=True))
        return score_pairs(self.reranker.model, pairs)


def _texts(batches: Iterable[Columns]) -> list[str]:
    return [text for batch in batches for text in batch["text"]]


def _documents(batches: Iterable[Columns]) -> list[Document]:
    """Make documents with title and body apart, as contracts need them.

    MTEB's `text` has both in one.
    """
    rows = [
        row
        for batch in batches
        for row in zip(batch.get("body", batch["text"]), batch.get("title", [""] * len(batch["text"])), strict=True)
    ]
    return [Document(str(place), text, title) for place, (text, title) in enumerate(rows)]


def _meta(model: ModelFolder, form: Form, options: Mapping[str, Any], **known: Any) -> ModelMeta:
    """Describe a model for MTEB.

    The revision of a local model is its identity in manifests, so that results of different models are never mixed up.
    """
    pieces = (*form.query, *form.document, *form.pair)
    settings = {
        "name": model.name if model.revision else f"local/{model.path.resolve().name}",
        "revision": model.revision or model.identity.rpartition(":")[2],
        "n_parameters": model.num_parameters,
        "framework": ["PyTorch"],
        "use_instructions": any(not is_token(piece) and not piece.startswith("{") for piece in pieces),
        "experiment_kwargs": {name: str(value) for name, value in options.items()} or None,
    }
    unknown = {name: None for name, field in ModelMeta.model_fields.items() if field.is_required()}
    return ModelMeta.model_validate(unknown | settings | known)
