"""The reranker of pairs: its model reads the query with one document at a time."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from shortlist.errors import in_python
from shortlist.math.combination import COMBINATIONS
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder
from shortlist.models.kinds import load_model
from shortlist.models.run import Model, Pair, compact_ids, described_model, for_inference, run_batches
from shortlist.records import Document, Query, as_documents, as_queries, is_one
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.lists import score_each
from shortlist.rerankers.pointwise import LongQueries, pointwise
from shortlist.text.contract import Adjust, InputContract
from shortlist.text.extracts import pair_extracts
from shortlist.text.segments import PairSegments, pair_segments


class Reranker:
    """Scores a document by reading it together with the query: texts in, arrays out.

    Args:
        model: model ready to run, whose contract limits the length of an input.
        token_budget: most tokens in one forward pass, padding included (None: chosen for the device).
        segments: part of a document that its score is made of. `maxp` and `avgp` read all of it, in segments of the
            model's input length; `extract` reads the sentences with most of the query's words that fit the input
            length, and the others the beginning that fits.
        stride: tokens between the beginnings of two segments.
        long_queries: whether a query that leaves no room for a document is refused or cut.
    """

    def __init__(
        self,
        model: Model,
        *,
        token_budget: int | None = None,
        segments: PairSegments = "whole",
        stride: int = 256,
        long_queries: LongQueries = "refuse",
    ) -> None:
        self.model, self.inputs = model, model.inputs
        self.token_budget, self.segments, self.stride = token_budget, segments, stride
        self.long_queries = long_queries

    @property
    def contract(self) -> InputContract:
        """The model's input contract."""
        return self.model.contract

    @classmethod
    def load(
        cls,
        name: str | ModelFolder,
        *,
        contract: str | InputContract | None = None,
        adjust: Adjust | None = None,
        instruction: str | None = None,
        max_length: int | None = None,
        layers: int | None = None,
        segments: PairSegments = "whole",
        window: int | None = None,
        stride: int | None = None,
        token_budget: int | None = None,
        device: torch.device | str | None = None,
        precision: Precision = "fp32",
        packed: bool | None = None,
    ) -> "Reranker":
        """Load a reranker of any kind from a folder or the hub, ready to score.

        Args:
            name: the model's folder or hub name.
            contract: the arguments from here on are as for `pointwise`.

        Raises:
            UserError: there is no model, it has no head, or it has no input contract.
        """
        with in_python(reranker_contract="contract"):
            prepared = pointwise(
                model=name,
                contract=contract,
                adjust=adjust,
                instruction=instruction,
                max_length=max_length,
                layers=layers,
                segments=segments,
                window=window,
                stride=stride,
                token_budget=token_budget,
                device=device,
                precision=precision,
                packed=packed,
            )
            return prepared.open()  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {described_model(self.model)}>"

    def score(
        self,
        query: str | Query,
        documents: str | Document | Iterable[str | Document],
        *,
        token_budget: int | None = None,
    ) -> Float[np.ndarray, "*docs"]:
        """Score each document for the query; higher is better.

        Args:
            documents: several, for one score each; or one, for its score.
            token_budget: replaces the reranker's token budget.

        Raises:
            UserError: something is neither a text nor a record.
        """
        [query] = as_queries([query])
        scores, _ = self._scored(query, as_documents(documents), token_budget or self.token_budget)
        return scores[0, ...] if is_one(documents) else scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield scores as they become known, with the pairs of all lists sorted by length."""
        if self.segments == "extract":  # whose words are counted in a query's own candidates
            own = (Candidates(as_queries([query])[0], as_documents(documents)) for query, documents in lists)
            return score_each(lambda query, documents: self._scored(query, documents, self.token_budget), own)
        texts = ((as_queries([query])[0], as_documents(documents)) for query, documents in lists)
        pairs = [(query, document) for query, documents in texts for document in documents]
        return map(Scored._make, self._stream(pairs, self.token_budget))

    def _scored(
        self, query: Query, documents: Sequence[Document], token_budget: int | None
    ) -> tuple[Float[np.ndarray, " docs"], int]:
        """Score the documents of one query, and count the tokens that were read."""
        scores, num_tokens = np.empty(len(documents), dtype=np.float32), 0
        for numbers, part, tokens in self._stream([(query, document) for document in documents], token_budget):
            scores[numbers], num_tokens = part, num_tokens + tokens
        return scores, num_tokens

    def _stream(
        self, pairs: Sequence[Pair], token_budget: int | None
    ) -> Iterator[tuple[Int[np.ndarray, " some"], Float[np.ndarray, " some"], int]]:
        if self.long_queries == "cut":
            shorter = self.inputs.cut_queries(dict.fromkeys(query for query, _ in pairs))
            pairs = [(shorter.get(query, query), document) for query, document in pairs]
        if self.segments == "extract" and pairs:
            query = pairs[0][0]
            pairs = [(query, shorter) for shorter in pair_extracts(self.inputs, query, [one for _, one in pairs])]
        combine = COMBINATIONS.get(self.segments)
        if combine is None:
            token_ids = compact_ids(self.inputs.pair_ids, pairs)
            for batch, rows, num_tokens in run_batches(self.model, token_ids, token_budget=token_budget):
                yield batch, rows.values.numpy(), num_tokens
            return
        parts = pair_segments(self.inputs, pairs, stride=self.stride)
        left = np.array([len(segments) for segments in parts], dtype=np.int64)
        owners, ends = np.repeat(np.arange(len(parts)), left), np.cumsum(left)
        starts, scores = ends - left, np.empty(len(owners), dtype=np.float32)
        token_ids = compact_ids(self.inputs.pair_ids, [pair for segments in parts for pair in segments])
        for batch, rows, num_tokens in run_batches(self.model, token_ids, token_budget=token_budget):
            scores[batch] = rows.values.numpy()
            np.subtract.at(left, owners[batch], 1)
            ready = np.unique(owners[batch])
            ready = ready[left[ready] == 0]
            whole = [combine(scores[starts[i] : ends[i]], np.zeros(1, dtype=np.int64))[0] for i in ready]
            yield ready, np.array(whole, dtype=np.float32), num_tokens


class CrossEncoder(Reranker):
    """A reranker whose model is an encoder with the classifier it was published with."""


CLASSES: dict[str, type[Reranker]] = {"classifier": CrossEncoder}
"""Classes of rerankers by the kind of model; all other kinds are a plain `Reranker`."""


def open_reranker(
    folder: ModelFolder,
    contract: InputContract,
    *,
    reading: dict[str, Any],
    running: dict[str, Any],
    layers: int | None = None,
) -> Reranker:
    """Load a reranker that is read by this contract.

    Args:
        reading: settings of `Reranker`.
        running: settings of `models.run.for_inference`.
        layers: as for `rerankers.pointwise.pointwise`.
    """
    model = load_model(folder, "pair", contract, layers=layers)
    for_inference(model, **running)
    return CLASSES.get(model.kind, Reranker)(model, **reading)
