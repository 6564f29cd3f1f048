"""Late-interaction retrievers, which turn texts into a vector for each token."""

from collections.abc import Iterable
from typing import Any, TypeVar, final, overload

import numpy as np
import torch
from jaxtyping import Float

from shortlist.math.maxsim import TokenVectors, maxsim
from shortlist.models.folder import ModelFolder
from shortlist.models.outputs import Rows
from shortlist.models.ready import load_ready
from shortlist.models.run import Model, Precision, TextsDone, described_model, run_texts
from shortlist.records import Document, Query, as_documents, as_queries, is_one
from shortlist.text.contract import Adjust, InputContract

T = TypeVar("T")


@final
class LateRetriever:
    """A model that gives queries and documents a vector for each token.

    A document's score is the sum, over the query's vectors, of the best similarity to one of the document's. A query
    without text has the vectors of its markers and of what fills it up. A document without a vector scores -inf.

    Args:
        model: a late-interaction model that is ready to run; its `inputs` turn texts into token ids.
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
    ) -> "LateRetriever":
        """Load a model, ready to encode, from a folder or the hub.

        Args:
            name: the model's folder or hub name: ours, or in the layout of Stanford's ColBERT, of PyLate, or of a
                MultiVectorEncoder of sentence-transformers.
            contract: the input contract, by name or as an object, for a folder that does not contain one.
            adjust: changes that contract before use, such as its lengths.
            dims: cut vectors to their first numbers, this many, as for Matryoshka models (None: leave them whole).
            device: where to run it, such as `cuda:1` (None: the first GPU, or the CPU).
            precision: dtype of the weights, as for `models.run.for_inference`.
            packed: whether to lay out linears for a CPU, as for `models.run.for_inference`.

        Raises:
            UserError: there is no model, its input contract is unknown, or it gives one vector for a text.
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

    @overload
    def encode_queries(  # pyright: ignore[reportOverlappingOverload] (a text is an iterable of texts, too)
        self, queries: str | Query, *, token_budget: int | None = None, advance: TextsDone | None = None
    ) -> Float[np.ndarray, "tokens dim"]: ...

    @overload
    def encode_queries(
        self, queries: Iterable[str | Query], *, token_budget: int | None = None, advance: TextsDone | None = None
    ) -> TokenVectors: ...

    def encode_queries(
        self,
        queries: str | Query | Iterable[str | Query],
        *,
        token_budget: int | None = None,
        advance: TextsDone | None = None,
    ) -> TokenVectors | Float[np.ndarray, "tokens dim"]:
        """Compute the vectors of queries.

        Args:
            queries: several; or one, for an array of its vectors.
            token_budget: most tokens in one forward pass, padding included (None: chosen for the device).
            advance: called after each forward pass.

        Raises:
            UserError: something is neither a text nor a query.
        """
        options: dict[str, Any] = {"token_budget": token_budget, "advance": advance}
        vectors = as_token_vectors(run_texts(self.model, self.inputs.query_ids, as_queries(queries), **options))
        return vectors.values if is_one(queries) else vectors

    @overload
    def encode_documents(  # pyright: ignore[reportOverlappingOverload]
        self, documents: str | Document, *, token_budget: int | None = None, advance: TextsDone | None = None
    ) -> Float[np.ndarray, "tokens dim"]: ...

    @overload
    def encode_documents(
        self, documents: Iterable[str | Document], *, token_budget: int | None = None, advance: TextsDone | None = None
    ) -> TokenVectors: ...

    def encode_documents(
        self,
        documents: str | Document | Iterable[str | Document],
        *,
        token_budget: int | None = None,
        advance: TextsDone | None = None,
    ) -> TokenVectors | Float[np.ndarray, "tokens dim"]:
        """Compute the vectors of documents.

        Args:
            documents: several; or one, for an array of its vectors.
            token_budget: as for `encode_queries`, and so is `advance`.

        Raises:
            UserError: something is neither a text nor a document.
        """
        options: dict[str, Any] = {"token_budget": token_budget, "advance": advance}
        vectors = as_token_vectors(run_texts(self.model, self.inputs.document_ids, as_documents(documents), **options))
        return vectors.values if is_one(documents) else vectors

    @overload
    def score(  # pyright: ignore[reportOverlappingOverload]
        self, query: str | Query, documents: str | Document
    ) -> float: ...

    @overload
    def score(self, query: str | Query, documents: Iterable[str | Document]) -> Float[np.ndarray, " docs"]: ...

    def score(
        self, query: str | Query, documents: str | Document | Iterable[str | Document]
    ) -> float | Float[np.ndarray, " docs"]:
        """Score documents for a query.

        Args:
            documents: several, for a score each; or one, for its score.

        Raises:
            UserError: something is neither a text nor a query or document.
        """
        asked = run_texts(self.model, self.inputs.query_ids, as_queries([query]))
        found = run_texts(self.model, self.inputs.document_ids, as_documents(documents))
        scores = maxsim(as_token_vectors(asked), as_token_vectors(found))[0]
        return float(scores[0]) if is_one(documents) else scores


def as_token_vectors(rows: Rows) -> TokenVectors:
    """Return a late-interaction model's output as token vectors."""
    counts = np.zeros(0, dtype=np.int64) if rows.counts is None else rows.counts.numpy()
    return TokenVectors(rows.values.numpy(), counts)
