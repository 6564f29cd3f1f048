"""Learned sparse retrievers, which turn texts into weights of terms."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast, final, overload

import numpy as np
import torch
from jaxtyping import Float

from shortlist.data.files import optional_json
from shortlist.errors import UserError, in_python
from shortlist.math.terms import TermWeights, dot
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import kind_in
from shortlist.models.lookups import check_weights, looked_up, read_lookup
from shortlist.models.outputs import Rows
from shortlist.models.ready import load_ready
from shortlist.models.run import Precision, TextsDone, described_model, run_texts
from shortlist.records import Document, Query, as_documents, as_queries, is_one
from shortlist.text.contract import Adjust, InputContract
from shortlist.text.inputs import Inputs
from shortlist.text.proof import proved_inputs

T = TypeVar("T")


@dataclass(frozen=True)
class QueryLookup:
    """The part of a model that queries need where they are looked up."""

    inputs: Inputs
    contract: InputContract
    weights: Float[np.ndarray, " vocabulary"]

    @property
    def num_terms(self) -> int:
        """The number of terms of the vocabulary."""
        return len(self.weights)


@final
class SparseRetriever:
    """A model that gives queries and documents weights for terms of its vocabulary.

    A document's score is the dot product of its weights and the query's.

    Args:
        model: a sparse model that is ready to run, or the part of one that queries need.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.inputs = model, cast(Inputs, model.inputs)

    @classmethod
    def load(
        cls,
        name: str | ModelFolder,
        *,
        contract: str | InputContract | None = None,
        adjust: Adjust | None = None,
        queries_only: bool = False,
        device: torch.device | str | None = None,
        precision: Precision = "fp32",
        packed: bool | None = None,
    ) -> "SparseRetriever":
        """Load a model, ready to encode, from a folder or the hub.

        Args:
            name: the model's folder or hub name: ours, in the layout of a SparseEncoder of sentence-transformers, of
                OpenSearch, or a masked language model (with the contract splade).
            contract: the input contract, by name or as an object, for a folder that does not contain one.
            adjust: changes that contract before use, such as its lengths.
            queries_only: load what queries need, which for a model that looks them up is a list of weights alone.
            device: where to run it, such as `cuda:1` (None: the first GPU, or the CPU).
            precision: dtype of the weights, as for `models.run.for_inference`.
            packed: whether to lay out linears for a CPU, as for `models.run.for_inference`.

        Raises:
            UserError: there is no model, its input contract is unknown, or it gives vectors.
        """
        with in_python():
            folder = open_folder(name) if isinstance(name, str) else name
            if queries_only and (part := query_lookup(folder, contract, adjust=adjust)) is not None:
                return cls(part)
        running: dict[str, Any] = {"device": device, "precision": precision, "packed": packed}
        return cls(load_ready(folder, used_as=cls.__name__, contract=contract, adjust=adjust, **running))

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return self.model.contract

    @cached_property
    def terms(self) -> list[str]:
        """The names of the terms, by number; empty behind the tokenizer's last token."""
        tokenizer: Any = self.inputs.tokenizer
        known = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), self.num_terms))))
        return [name or "" for name in known] + [""] * (self.num_terms - len(known))

    @property
    def num_terms(self) -> int:
        """The number of terms of the vocabulary."""
        return self.model.num_terms

    def __repr__(self) -> str:
        described = "for queries alone" if isinstance(self.model, QueryLookup) else described_model(self.model)
        return f"<{type(self).__name__} {described}, {self.num_terms:,} terms>"

    def encode_queries(
        self,
        queries: str | Query | Iterable[str | Query],
        *,
        token_budget: int | None = None,
        advance: TextsDone | None = None,
    ) -> TermWeights:
        """Compute the weights of queries' terms.

        Args:
            queries: several, or one.
            token_budget: most tokens in one forward pass, padding included (None: chosen for the device).
            advance: called after each forward pass.

        Raises:
            UserError: something is neither a text nor a query.
        """
        texts = as_queries(queries)
        if (weights := self._lookup) is None:
            options: dict[str, Any] = {"token_budget": token_budget, "advance": advance}
            return as_term_weights(run_texts(self.model, self.inputs.query_ids, texts, **options))
        ids = self.inputs.query_ids(texts)
        found = looked_up(ids, weights, most=self.contract.reading.keep_query_terms)
        if advance:
            advance(len(texts), sum(map(len, ids)))
        return found

    def encode_documents(
        self,
        documents: str | Document | Iterable[str | Document],
        *,
        token_budget: int | None = None,
        advance: TextsDone | None = None,
    ) -> TermWeights:
        """Compute the weights of documents' terms.

        Args:
            documents: several, or one.
            token_budget: as for `encode_queries`, and so is `advance`.

        Raises:
            UserError: something is neither a text nor a document, or the retriever was loaded for queries alone.
        """
        if isinstance(self.model, QueryLookup):
            raise UserError("The retriever was loaded for queries alone; load it without queries_only.")
        options: dict[str, Any] = {"token_budget": token_budget, "advance": advance}
        return as_term_weights(run_texts(self.model, self.inputs.document_ids, as_documents(documents), **options))

    @overload
    def score(  # pyright: ignore[reportOverlappingOverload] (a text is an iterable of texts, too)
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
        scores = dot(self.encode_queries(as_queries([query])), self.encode_documents(documents))[0]
        return float(scores[0]) if is_one(documents) else scores

    @cached_property
    def _lookup(self) -> Float[np.ndarray, " vocabulary"] | None:
        """The weights of queries' terms, where queries are looked up."""
        if isinstance(self.model, QueryLookup):
            return self.model.weights
        if self.contract.reading.queries != "lookup":
            return None
        return self.model.looked_up.cpu().numpy()


def query_lookup(
    folder: ModelFolder, contract: str | InputContract | None = None, *, adjust: Adjust | None = None
) -> QueryLookup | None:
    """Load what queries need of a model; None if it does not look them up.

    Raises:
        UserError: as for `models.kinds.load_model`.
    """
    found = folder.contract("document", contract)
    found = folder.check_lengths(adjust(found) if adjust else found)
    if found.reading.queries != "lookup" or kind_in(folder, found, "document").used_as != SparseRetriever.__name__:
        return None
    inputs, config = proved_inputs(found.form, folder.tokenizer), folder.whole.backbone_path / "config.json"
    tokenizer: Any = inputs.tokenizer
    size = max(optional_json(config).get("vocab_size") or 0, len(tokenizer))
    weights = read_lookup(folder, tokenizer, size)
    for name in found.reading.left_out:
        weights[tokenizer.convert_tokens_to_ids(name) if name in tokenizer.get_vocab() else slice(0)] = 0
    check_weights(weights, folder.name)
    return QueryLookup(inputs, found, weights)


def as_term_weights(rows: Rows) -> TermWeights:
    """Return a sparse model's output as term weights."""
    values, counts = rows.values.numpy(), rows.counts
    counts = np.zeros(0, dtype=np.int64) if counts is None else counts.numpy()
    return TermWeights(values[:, 0].astype(np.int32), np.ascontiguousarray(values[:, 1]), counts)
