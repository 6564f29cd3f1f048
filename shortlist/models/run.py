"""The inference loop from token ids to rows, shared by all stages and models."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.adapters import kept_adapter
from shortlist.models.apart import on_cores_of_their_own, runs_apart
from shortlist.models.backbone import is_causal, own_rotations
from shortlist.models.files import Precision
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
"""Texts whose token ids are Python integers at the same time; each takes 36 bytes, and only 4 in an array."""

TokenIds = Sequence[int] | Int32[np.ndarray, " _"]

Pair = tuple[Query, Document]

TextsDone = Callable[[int, int], None]
"""Is called with the numbers of texts and tokens (without padding) done since the last call."""

T = TypeVar("T")


@runtime_checkable
class Model(Protocol):
    """A module that computes rows from right-padded token ids, and can be trained."""

    backbone: PreTrainedModel
    inputs: Inputs

    @property
    def kind(self) -> str:
        """The kind of model, a key of `models.kinds.KINDS`."""
        ...

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        ...

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row of the output; `()` for a number."""
        ...

    def __call__(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"], /) -> Rows:
        """Compute the rows of right-padded ids, in float32."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights."""
        ...

    def eval(self) -> Any:
        """Switch to running without dropout, and return the module."""
        ...


def described_model(model: Model) -> str:
    """Describe a model in a few words: architecture, number of parameters, where it runs."""
    weights = list(model.parameters())
    size = sum(weight.numel() for weight in weights)
    device = weights[0].device if weights else "cpu"
    return f"{type(model.backbone).__name__} with {size:,} parameters on {device}"


def pick_device() -> torch.device:
    """Return the first GPU if there is one, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_token_budget(device: torch.device) -> int:
    """Return the tokens per forward pass that keep a device busy and its caches warm."""
    return CPU_TOKENS if device.type == "cpu" else GPU_TOKENS


def for_inference(
    model: Model,
    device: torch.device | str | None = None,
    *,
    precision: Precision = "fp32",
    packed: bool | None = None,
) -> None:
    """Prepare a loaded model for inference only, in place.

    The model is moved to its device and runs without dropout. Its outputs stay float32.

    Args:
        model: the loaded model.
        device: where to run it (None: the first GPU, or the CPU).
        precision: the dtype of the weights and of the values between layers. With int8, the linears' inputs and weights
            are 8-bit integers, and the rest is float32 on a CPU and bfloat16 on a GPU.
        packed: whether to lay out linears on a CPU for oneDNN if this PyTorch can (None: if `packing_pays`).
    """
    device = torch.device(device) if device else pick_device()
    model.eval().requires_grad_(False).to(device)
    prepare_backbone(model.backbone, device, precision=precision, packed=packed)


def prepare_backbone(
    backbone: PreTrainedModel, device: torch.device, *, precision: Precision = "fp32", packed: bool | None = None
) -> None:
    """Prepare a backbone for inference on its device; settings as for `for_inference`."""
    on_cpu = device.type == "cpu"
    dtype = torch.bfloat16 if precision == "bf16" or (precision == "int8" and not on_cpu) else torch.float32
    pack = on_cpu and precision != "int8" and (packing_pays() if packed is None else packed) and packing_is_right(dtype)
    if is_causal(backbone) and on_cpu and getattr(kept_adapter(backbone), "fuses", True):
        fuse_layers(backbone, PackedLinear if pack else Int8Linear if precision == "int8" else PlainLinear, dtype)
    for parameter in backbone.parameters():  # buffers stay: rotations rounded to bfloat16 would be wrong
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    if pack:
        pack_linears(backbone)
    elif precision == "int8":
        quantize_linears(backbone)


def run_batches(
    model: Model, token_ids: Sequence[TokenIds], *, token_budget: int | None = None
) -> Iterator[tuple[Int[np.ndarray, " batch"], Rows, int]]:
    """Run the model in batches, and yield each batch's inputs, rows and number of tokens.

    Inputs are given by their indices, and tokens counted without padding. Inputs of similar length share a batch,
    longest first. The inputs that remain after some batches would form the same batches by themselves.

    Args:
        model: the model to run.
        token_ids: the token ids of every input.
        token_budget: the most tokens in one forward pass, padding included.
    """
    device = next(model.parameters()).device

    def run(batch: Int[np.ndarray, " batch"]) -> tuple[Int[np.ndarray, " batch"], Rows, int]:
        ids, lengths = pad([token_ids[i] for i in batch], model.inputs.pad_id)
        with torch.inference_mode(), own_rotations(model.backbone):
            rows = model(ids.to(device), lengths.to(device))
            rows = Rows(rows.values.cpu(), None if rows.counts is None else rows.counts.cpu())
        return batch, rows, int(lengths.sum())

    batches = token_batches([len(ids) for ids in token_ids], token_budget or default_token_budget(device))
    yield from on_cores_of_their_own(run, batches) if runs_apart(model) else map(run, batches)


def run_model(
    model: Model,
    token_ids: Sequence[TokenIds],
    *,
    token_budget: int | None = None,
    advance: TextsDone | None = None,
) -> Rows:
    """Compute the model's rows for all inputs, on the CPU and in the given order.

    Args:
        model: the model to run.
        token_ids: the token ids of every input.
        token_budget: as in `run_batches`.
        advance: called after each forward pass.
    """
    values = np.empty((len(token_ids), *model.row_shape), dtype=np.float32)  # memory is only used once written
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
    parts.clear()  # otherwise all rows would be in memory three times
    return select(together, torch.from_numpy(np.concatenate(order)).argsort())


def run_texts(
    model: Model,
    tokenize: Callable[[Sequence[T]], list[list[int]]],
    texts: Sequence[T],
    *,
    token_budget: int | None = None,
    advance: TextsDone | None = None,
) -> Rows:
    """Compute the model's rows for texts.

    Args:
        model: a model that is ready to run.
        tokenize: makes its inputs, such as `model.inputs.query_ids`.
        texts: queries, documents or pairs.
        token_budget: as in `run_model`, and so is `advance`.
    """
    return run_model(model, compact_ids(tokenize, texts), token_budget=token_budget, advance=advance)


def embed_queries(
    model: Model, queries: Sequence[Query], *, token_budget: int | None = None, advance: TextsDone | None = None
) -> Float[np.ndarray, "queries dim"]:
    """Embed queries; options as in `run_model`."""
    return run_texts(model, model.inputs.query_ids, queries, token_budget=token_budget, advance=advance).values.numpy()


def embed_with_feedback(
    model: Model,
    queries: Sequence[tuple[Query, Sequence[Document]]],
    *,
    token_budget: int | None = None,
    advance: TextsDone | None = None,
) -> Float[np.ndarray, "queries dim"]:
    """Embed queries that are read with documents; options as in `run_model`."""
    rows = run_texts(model, model.inputs.feedback_ids, queries, token_budget=token_budget, advance=advance)
    return rows.values.numpy()


def embed_documents(
    model: Model, documents: Sequence[Document], *, token_budget: int | None = None, advance: TextsDone | None = None
) -> Float[np.ndarray, "docs dim"]:
    """Embed documents; options as in `run_model`."""
    rows = run_texts(model, model.inputs.document_ids, documents, token_budget=token_budget, advance=advance)
    return rows.values.numpy()


def score_pairs(
    model: Model, pairs: Sequence[Pair], *, token_budget: int | None = None, advance: TextsDone | None = None
) -> Float[np.ndarray, " pairs"]:
    """Score each document for its query; options as in `run_model`."""
    return run_texts(model, model.inputs.pair_ids, pairs, token_budget=token_budget, advance=advance).values.numpy()


def compact_ids(
    tokenize: Callable[[Sequence[T]], list[list[int]]], texts: Sequence[T]
) -> list[Int32[np.ndarray, " _"]]:
    """Tokenize many texts, and return their token ids as arrays."""
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    return [np.array(ids, dtype=np.int32) for i in starts for ids in tokenize(texts[i : i + TEXTS_AT_ONCE])]
