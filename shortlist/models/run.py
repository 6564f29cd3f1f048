"""Token ids -> rows: the one inference loop that every stage shares, whatever the model."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import is_causal
from shortlist.models.kernels.fused import fuse_layers
from shortlist.models.kernels.linear import PackedLinear, PlainLinear, pack_linears, packing_is_right, packing_pays
from shortlist.models.kernels.quantized import Int8Linear, quantize_linears
from shortlist.models.outputs import Rows, join, select
from shortlist.records import Document, Query
from shortlist.text.batching import pad, token_batches
from shortlist.text.contract import InputContract
from shortlist.text.inputs import Inputs

CPU_TOKENS = 2048
GPU_TOKENS = 16384
TEXTS_AT_ONCE = 4096
"""Texts whose token ids are Python's integers at the same time: 36 bytes for each, an array's are 4."""

Precision = Literal["fp32", "bf16", "int8"]

TokenIds = Sequence[int] | Int32[np.ndarray, " _"]

Pair = tuple[Query, Document]

Done = Callable[[int, int], None]
"""Told the number of texts and of their tokens, padding not counted, that were done since the last call."""

T = TypeVar("T")


@runtime_checkable
class Model(Protocol):
    """A module that can be run and trained: it reads right-padded token ids and gives rows."""

    backbone: PreTrainedModel
    inputs: Inputs

    @property
    def kind(self) -> str:
        """Its kind, a key of `models.kinds.KINDS`."""
        ...

    @property
    def contract(self) -> InputContract:
        """How its texts become ids, and its output is read."""
        ...

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row of its output; `()` for a number."""
        ...

    def __call__(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"], /) -> Rows:
        """Rows of right-padded ids, values float32."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""
        ...

    def eval(self) -> Any:
        """Let it run without dropout; returns the module."""
        ...


def pick_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_token_budget(device: torch.device) -> int:
    """Tokens per forward pass that keep a device busy and its caches warm."""
    return CPU_TOKENS if device.type == "cpu" else GPU_TOKENS


def for_inference(
    model: Model,
    device: torch.device | None = None,
    *,
    precision: Precision = "fp32",
    packed: bool | None = None,
) -> None:
    """Make a loaded model ready to run and nothing else: on its device, no dropout; its outputs stay float32.

    Args:
        precision: of the weights and of what passes between layers; in int8, of the linears' inputs and weights, the
            rest being float32 on a CPU and bfloat16 on a GPU.
        packed: whether a CPU's float32 linears are laid out for oneDNN, where this PyTorch can (None: where
            `packing_pays`).
    """
    device = device or pick_device()
    model.eval().requires_grad_(False).to(device)
    backbone, on_cpu = model.backbone, device.type == "cpu"
    dtype = torch.bfloat16 if precision == "bf16" or (precision == "int8" and not on_cpu) else torch.float32
    pack = on_cpu and precision != "int8" and (packing_pays() if packed is None else packed) and packing_is_right(dtype)
    if is_causal(backbone) and on_cpu:
        fuse_layers(backbone, PackedLinear if pack else Int8Linear if precision == "int8" else PlainLinear, dtype)
    for parameter in backbone.parameters():  # not the buffers: rotations rounded to bfloat16 turn too far
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    if pack:
        pack_linears(backbone)
    elif precision == "int8":
        quantize_linears(backbone)


def run_batches(
    model: Model, token_ids: Sequence[TokenIds], *, token_budget: int | None = None
) -> Iterator[tuple[Int[np.ndarray, " batch"], Rows, int]]:
    """Yield which inputs a forward pass was made of, their rows, and the number of its tokens, padding not counted.

    Batches are made of inputs of like length, longest first; what is left of the same inputs makes the same batches.

    Args:
        token_budget: most tokens in one forward pass, padding included.
    """
    device = next(model.parameters()).device
    for batch in token_batches([len(ids) for ids in token_ids], token_budget or default_token_budget(device)):
        ids, lengths = pad([token_ids[i] for i in batch], model.inputs.pad_id)
        with torch.inference_mode():
            rows = model(ids.to(device), lengths.to(device))
            rows = Rows(rows.values.cpu(), None if rows.counts is None else rows.counts.cpu())
        yield batch, rows, int(lengths.sum())


def run_model(
    model: Model,
    token_ids: Sequence[TokenIds],
    *,
    token_budget: int | None = None,
    advance: Done | None = None,
) -> Rows:
    """The model's rows for every input, on the CPU, in the order given; options as in `run_batches`.

    Args:
        advance: called after each forward pass.
    """
    values = np.empty((len(token_ids), *model.row_shape), dtype=np.float32)  # memory that is not written costs nothing
    order: list[np.ndarray] = []
    parts: list[Rows] = []
    for batch, rows, num_tokens in run_batches(model, token_ids, token_budget=token_budget):
        if rows.counts is None:
            values[batch] = rows.values.numpy()
        else:
            order.append(batch)
            parts.append(rows)
        if advance:
            advance(len(batch), num_tokens)
    if not parts:
        return Rows(torch.from_numpy(values))
    together = join(parts)
    parts.clear()  # else all rows would be there three times
    return select(together, torch.from_numpy(np.concatenate(order)).argsort())


def embed_queries(model: Model, queries: Sequence[Query], **options) -> Float[np.ndarray, "queries dim"]:
    """Vectors of queries; options as in `run_model`."""
    return run_model(model, compact_ids(model.inputs.query_ids, queries), **options).values.numpy()


def embed_documents(model: Model, documents: Sequence[Document], **options) -> Float[np.ndarray, "docs dim"]:
    """Vectors of documents; options as in `run_model`."""
    return run_model(model, compact_ids(model.inputs.document_ids, documents), **options).values.numpy()


def score_pairs(model: Model, pairs: Sequence[Pair], **options) -> Float[np.ndarray, " pairs"]:
    """Score of each document for its query; options as in `run_model`."""
    return run_model(model, compact_ids(model.inputs.pair_ids, pairs), **options).values.numpy()


def compact_ids(
    tokenize: Callable[[Sequence[T]], list[list[int]]], texts: Sequence[T]
) -> list[Int32[np.ndarray, " _"]]:
    """The token ids of many texts, as arrays."""
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    return [np.array(ids, dtype=np.int32) for i in starts for ids in tokenize(texts[i : i + TEXTS_AT_ONCE])]
