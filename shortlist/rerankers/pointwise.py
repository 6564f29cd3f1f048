"""Pointwise reranking: a model reads the query with one document at a time."""

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from shortlist.data.files import optional_json
from shortlist.errors import UserError
from shortlist.late import late
from shortlist.models.files import Precision, layer_heads
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.records import Query
from shortlist.rerankers.prepared import Prepared, any_query
from shortlist.text.contract import Adjust, InputContract
from shortlist.text.inputs import Inputs
from shortlist.text.segments import PairSegments, refuse_unused, segment_contract, unused_settings

LongQueries = Literal["refuse", "cut"]
"""What to do with a query that leaves no room for a document: refuse it, or cut it to half of a pair."""


def pointwise(
    *,
    model: str | ModelFolder | None = None,
    contract: str | InputContract | None = None,
    instruction: str | None = None,
    max_length: int | None = None,
    layers: int | None = None,
    segments: PairSegments = "whole",
    window: int | None = None,
    stride: int | None = None,
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
        layers: of a model with heads behind several layers, the one whose score is read; those above are not computed
            (None: the last).
        segments: part of a document to read: `text.segments.PairSegments`.
        window: tokens of a segment, query and prompt included (None: 512).
        stride: tokens from the beginning of a segment's text to the beginning of the next one's (None: 256).
        precision: as for `models.run.for_inference`, and so are `packed` and `device`.
        token_budget: most tokens in one forward pass, padding included (None: chosen for the device).
        long_queries: whether a query that leaves no room for a document is refused or cut to half of a pair.
        adjust: changes the contract before the other settings do.

    Raises:
        UserError: there is no such model, it has no head behind that layer, the lengths do not fit together, or one of
            them changes nothing.
    """
    refuse_unused(segments, [name for name, given in (("window", window), ("stride", stride)) if given is not None])
    window, stride = 512 if window is None else window, 256 if stride is None else stride
    if model is None:
        raise UserError("--method pointwise needs a --model: a reranker's folder or hub name.")
    folder = open_folder(model, wanted="reranker") if isinstance(model, str) else model
    _check_layers(folder, layers)
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
            layers=layers,
        ),
        model=folder,
        identities=partial(_identities, folder, read_by),
        settings={name: value for name, value in reading.items() if name not in unused}
        | ({} if layers is None else {"layers": layers}),
        check=partial(_check, folder, read_by) if long_queries == "refuse" else any_query,
        costs=partial(getattr, folder, "costs"),
        whole_lists=segments == "extract",  # a query's words are counted in all of its candidates
    )


def _check_layers(folder: ModelFolder, layers: int | None) -> None:
    """Refuse a layer behind which a model has no head.

    Raises:
        UserError: it has none there.
    """
    heads = layer_heads(folder.whole.backbone_path)
    if layers is None or (heads is not None and layers in heads):
        return
    if heads is not None:
        raise UserError(
            f"--layers is {layers}; {folder.name} has heads behind its layers {heads.start} to {heads.stop - 1}."
        )
    count = optional_json(folder.whole.backbone_path / "config.json").get("num_hidden_layers", "its")
    raise UserError(f"--layers {layers}: {folder.name} has one head, behind the last of {count} layers; leave it out.")


def _identities(folder: ModelFolder, contract: InputContract) -> dict[str, str]:
    return {"model": folder.identity, "contract": contract.of_pairs()}


def _check(folder: ModelFolder, contract: InputContract, queries: Iterable[Query]) -> None:
    Inputs(contract.form, folder.tokenizer).check_queries(queries)
