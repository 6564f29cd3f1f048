"""Retrievers, which turn texts into vectors."""

from collections.abc import Iterable, Sequence
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float

from shortlist.models.folder import ModelFolder
from shortlist.models.ready import load_ready
from shortlist.models.run import (
    Model,
    Precision,
    TextsDone,
    described_model,
    embed_documents,
    embed_queries,
    embed_with_feedback,
)
from shortlist.records import Document, Query, as_documents, as_queries, is_one
from shortlist.text.contract import Adjust, InputContract


@final
class Retriever:
    """A model that embeds queries and documents as vectors.

    The dot product of two vectors is their similarity.

    Args:
        model: a model that is ready to run; its `inputs` turn texts into token ids.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.inputs = model, model.inputs

    @classmethod
    def load(
        cls,
        name: str | ModelFolder,
        *,
        contract: str | InputContract | None = None,
        adjust: Adjust | None = None,
        dims: int | None = None,
        device: torch.device | str | None = None,
        precision: Precision = "fp32",
        packed: bool | None = None,
    ) -> "Retriever":
        """Load a model, ready to encode, from a folder or the hub.

        Args:
            name: the model's folder or hub name.
            contract: the input contract, by name or as an object, for a folder that does not contain one.
            adjust: changes that contract before use, such as its lengths.
            dims: cut vectors to their first numbers, this many, as for Matryoshka models (None: leave them whole).
            device: where to run it, such as `cuda:1` (None: the first GPU, or the CPU).
            precision: dtype of the weights, as for `models.run.for_inference`.
            packed: whether to lay out linears for a CPU, as for `models.run.for_inference`.

        Raises:
            UserError: there is no model, its input contract is unknown, its vectors have fewer dimensions, or it gives
                a vector for each token.
        """
        running: dict[str, Any] = {"device": device, "precision": precision, "packed": packed}
        return cls(load_ready(name, used_as=cls.__name__, contract=contract, adjust=adjust, dims=dims, **running))

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return self.model.contract

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""
        return self.model.row_shape[-1]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {described_model(self.model)}, vectors of {self.dim}>"

    def encode_queries(
        self,
        queries: str | Query | Iterable[str | Query],
        *,
        token_budget: int | None = None,
        advance: TextsDone | None = None,
    ) -> Float[np.ndarray, "*queries dim"]:
        """Embed queries.

        Args:
            queries: several, for one row each; or one, for its vector.
            token_budget: most tokens in one forward pass, padding included (None: chosen for the device).
            advance: called after each forward pass.

        Raises:
            UserError: something is neither a text nor a query.
        """
        vectors = embed_queries(self.model, as_queries(queries), token_budget=token_budget, advance=advance)
        return vectors[0] if is_one(queries) else vectors

    def encode_with_feedback(
        self,
        queries: Sequence[tuple[Query, Sequence[Document]]],
        *,
        token_budget: int | None = None,
        advance: TextsDone | None = None,
    ) -> Float[np.ndarray, "queries dim"]:
        """Embed queries, each with the documents that were found for it.

        Args:
            queries: the queries with their documents, the best first; there may be none.
            token_budget: as for `encode_queries`, and so is `advance`.

        Raises:
            UserError: the model reads queries alone.
        """
        self.contract.form.check_feedback(self.inputs.tokenizer.name_or_path)
        return embed_with_feedback(self.model, queries, token_budget=token_budget, advance=advance)

    def encode_documents(
        self,
        documents: str | Document | Iterable[str | Document],
        *,
        token_budget: int | None = None,
        advance: TextsDone | None = None,
    ) -> Float[np.ndarray, "*docs dim"]:
        """Embed documents.

        Args:
            documents: several, for one row each; or one, for its vector.
            token_budget: as for `encode_queries`, and so is `advance`.

        Raises:
            UserError: something is neither a text nor a document.
        """
        vectors = embed_documents(self.model, as_documents(documents), token_budget=token_budget, advance=advance)
        return vectors[0] if is_one(documents) else vectors
