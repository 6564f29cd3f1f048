"""Pointwise reranking: a model reads the query with one document at a time."""

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from shortlist.errors import UserError
from shortlist.late import late
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.records import Query
from shortlist.rerankers.prepared import Prepared, any_query
from shortlist.text.contract import Adjust, InputContract
from shortlist.text.inputs import Inputs
from shortlist.text.segments import PairSegments, segment_contract, unused_settings

LongQueries = Literal["refuse", "cut"]
"""What to do with a query that leaves no room for a document: refuse it, or cut it to half of a pair."""


def pointwise(
    *,
    model: str | ModelFolder | None = None,
    contract: str | InputContract | None = None,
    instruction: str | None = None,
    max_length: int | None = None,
    segments: PairSegments = "whole",
    window: int = 512,
    stride: int = 256,
    precision: Precision = "fp32",
    token_budget: int | None = None,
    long_queries: LongQueries = "refuse",
    packed: bool | None = None,
    device: Any = None,
    adjust: Adjust | None = None,
) -> Prepared:
    """Prepare a pointwise reranker.

    Args:
        model: folder or hub name.
        contract: input contract or its name, for a folder without one.
        instruction: instruction for the model, if its contract has a field for one.
        max_length: most tokens of a pair (None: the model's limit).
        segments: part of a document to read: `text.segments.PairSegments`.
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
            late("rerankers.reranker", "open_reranker"),
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
        costs=partial(getattr, folder, "costs"),
        whole_lists=segments == "extract",  # a query's words are counted in all of its candidates
    )


def _identities(folder: ModelFolder, contract: InputContract) -> dict[str, str]:
    return {"model": folder.identity, "contract": contract.of_pairs()}


def _check(folder: ModelFolder, contract: InputContract, queries: Iterable[Query]) -> None:
    Inputs(contract.form, folder.tokenizer).check_queries(queries)
