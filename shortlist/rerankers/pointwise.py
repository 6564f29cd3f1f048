"""Pointwise reranking: a model reads the query with one document at a time."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from shortlist.errors import UserError, in_python
from shortlist.math.combination import COMBINATIONS
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import load_model
from shortlist.models.run import Model, Pair, Precision, compact_ids, described_model, for_inference, run_batches
from shortlist.records import Document, Query, as_documents, as_queries, is_one
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.prepared import Prepared, any_query
from shortlist.text.contract import Adjust, InputContract
from shortlist.text.inputs import Inputs
from shortlist.text.segments import Segments, pair_segments, segment_contract, unused_settings

LongQueries = Literal["refuse", "cut"]
"""What to do with a query that leaves no room for a document: refuse it, or cut it to half of a pair."""


class Reranker:
    """Scores a document by reading it together with the query: texts in, arrays out.

    Args:
        model: model ready to run, whose contract limits the length of an input.
        token_budget: most tokens in one forward pass, padding included (None: chosen for the device).
        segments: part of a document that its score is made of. `maxp` and `avgp` read all of it, in segments of the
            model's input length; the others read only the beginning that fits the input length.
        stride: tokens between the beginnings of two segments.
        long_queries: whether a query that leaves no room for a document is refused or cut.
    """

    def __init__(
        self,
        model: Model,
        *,
        token_budget: int | None = None,
        segments: Segments = "whole",
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
        segments: Segments = "whole",
        window: int = 512,
        stride: int = 256,
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
        pairs = [(query, document) for document in as_documents(documents)]
        scores = np.empty(len(pairs), dtype=np.float32)
        for numbers, batch_scores, _ in self._stream(pairs, token_budget or self.token_budget):
            scores[numbers] = batch_scores
        return scores[0, ...] if is_one(documents) else scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield scores as they become known, with the pairs of all lists sorted by length."""
        texts = ((as_queries([query])[0], as_documents(documents)) for query, documents in lists)
        pairs = [(query, document) for query, documents in texts for document in documents]
        return map(Scored._make, self._stream(pairs, self.token_budget))

    def _stream(
        self, pairs: Sequence[Pair], token_budget: int | None
    ) -> Iterator[tuple[Int[np.ndarray, " some"], Float[np.ndarray, " some"], int]]:
        if self.long_queries == "cut":
            shorter = self.inputs.cut_queries(dict.fromkeys(query for query, _ in pairs))
            pairs = [(shorter.get(query, query), document) for query, document in pairs]
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


def pointwise(
    *,
    model: str | ModelFolder | None = None,
    contract: str | InputContract | None = None,
    instruction: str | None = None,
    max_length: int | None = None,
    segments: Segments = "whole",
    window: int = 512,
    stride: int = 256,
    precision: Precision = "fp32",
    token_budget: int | None = None,
    long_queries: LongQueries = "refuse",
    packed: bool | None = None,
    device: torch.device | str | None = None,
    adjust: Adjust | None = None,
) -> Prepared:
    """Prepare a pointwise reranker.

    Args:
        model: folder or hub name.
        contract: input contract or its name, for a folder without one.
        instruction: instruction for the model, if its contract has a field for one.
        max_length: most tokens of a pair (None: the model's limit).
        segments: part of a document to read: `text.segments.Segments`.
        window: tokens of a segment, query and prompt included.
        stride: tokens from the beginning of a segment's text to the beginning of the next one's.
        precision: as for `models.run.for_inference`, and so are `packed` and `device`.
        token_budget: most tokens in one forward pass, padding included (None: chosen for the device).
        long_queries: whether a query that leaves no room for a document is refused or cut to half of a pair.
        adjust: changes the contract before the other settings do.

    Raises:
        UserError: there is no such model, or the lengths do not fit together.
    """
    if model is None:
        raise UserError("--method pointwise needs a --model: a reranker's folder or hub name.")
    folder = open_folder(model, wanted="reranker") if isinstance(model, str) else model
    read_by = folder.contract("pair", contract)
    read_by = (adjust(read_by) if adjust else read_by).with_instruction(instruction)
    lengths = {"window": window, "stride": stride, "max_length": max_length}
    read_by = folder.check_lengths(segment_contract(read_by, segments, **lengths))
    reading = {"precision": precision, "segments": segments, "window": window, "stride": stride}
    unused = unused_settings(segments)
    return Prepared(
        open=partial(
            _open,
            folder,
            read_by,
            reading={
                "token_budget": token_budget,
                "segments": segments,
                "stride": stride,
                "long_queries": long_queries,
            },
            running={"device": device, "precision": precision, "packed": packed},
        ),
        model=folder,
        identities=partial(_identities, folder, read_by),
        settings={name: value for name, value in reading.items() if name not in unused},
        check=partial(_check, folder, read_by) if long_queries == "refuse" else any_query,
        num_parameters=partial(getattr, folder, "num_parameters"),
    )


def _open(
    folder: ModelFolder, contract: InputContract, *, reading: dict[str, Any], running: dict[str, Any]
) -> Reranker:
    model = load_model(folder, "pair", contract)
    for_inference(model, **running)
    return CLASSES.get(model.kind, Reranker)(model, **reading)


def _identities(folder: ModelFolder, contract: InputContract) -> dict[str, str]:
    return {"model": folder.identity, "contract": contract.of_pairs()}


def _check(folder: ModelFolder, contract: InputContract, queries: Iterable[Query]) -> None:
    Inputs(contract.form, folder.tokenizer).check_queries(queries)
