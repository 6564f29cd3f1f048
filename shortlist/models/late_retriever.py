"""Late-interaction retrievers, which turn texts into a vector for each token."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, final, overload

import numpy as np
import torch
from jaxtyping import Float

from shortlist.errors import in_python
from shortlist.math.maxsim import TokenVectors, maxsim
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import load_model
from shortlist.models.run import Model, Precision, TextsDone, compact_ids, described_model, for_inference, run_model
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

        def adjusted(found: InputContract) -> InputContract:
            return (adjust(found) if adjust else found).with_dims(dims)

        with in_python():
            folder = open_folder(name) if isinstance(name, str) else name
            model = load_model(folder, "document", contract, adjust=adjusted, used_as=cls.__name__)
        for_inference(model, device, precision=precision, packed=packed)
        return cls(model)

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
        vectors = embed_tokens(self.model, self.inputs.query_ids, as_queries(queries), token_budget, advance)
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
        vectors = embed_tokens(self.model, self.inputs.document_ids, as_documents(documents), token_budget, advance)
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
        asked = embed_tokens(self.model, self.inputs.query_ids, as_queries([query]))
        scores = maxsim(asked, embed_tokens(self.model, self.inputs.document_ids, as_documents(documents)))[0]
        return float(scores[0]) if is_one(documents) else scores


def embed_tokens(
    model: Model,
    tokenize: Callable[[Sequence[T]], list[list[int]]],
    texts: Sequence[T],
    token_budget: int | None = None,
    advance: TextsDone | None = None,
) -> TokenVectors:
    """Compute a vector for each token of texts.

    Args:
        model: a late-interaction model that is ready to run.
        tokenize: makes its inputs, such as `model.inputs.query_ids`.
        texts: the queries or documents.
        token_budget: as in `models.run.run_model`, and so is `advance`.
    """
    rows = run_model(model, compact_ids(tokenize, texts), token_budget=token_budget, advance=advance)
    counts = np.zeros(0, dtype=np.int64) if rows.counts is None else rows.counts.numpy()
    return TokenVectors(rows.values.numpy(), counts)
