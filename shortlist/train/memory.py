"""Estimate of one device's memory in a training step, made without that memory.

The model's code runs forwards and backwards on tensors without contents, while the bytes of all living tensors are
counted. So the estimate works for any architecture, adapter, precision and kind of attention. Left out are the memory
of libraries and of messages between processes, and memory that an allocator keeps for later; a CPU's allocator may
keep as much again, and more.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shortlist.models.language import Wanted
from shortlist.models.save import Trainable
from shortlist.train.optimizers import ADAMW, OptimizerSettings

FOUR_BITS = 0.5 + 1 / 64
"""Bytes per 4-bit weight, with its share of the scales: a byte for every 64 weights."""

Pass = tuple[int, int]
"""The shape of a forward pass: rows, and tokens per row including padding."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated bytes on one device at the peak of a step."""

    weights: int
    """Those of the model, and any that are kept beside it."""
    gradients: int
    optimizer: int
    """What the optimizer holds for each weight that trains, such as AdamW's two moments."""
    activations: int
    """Tensors that the forward passes keep for the backward pass, and what the backward pass needs besides."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations


def step_memory(
    model: Trainable,
    passes: Sequence[Pass],
    *,
    device: torch.device,
    bf16: bool = False,
    dtype: torch.dtype = torch.float32,
    four_bit: bool = False,
    cached: bool = False,
    shards: int = 1,
    optimizer: OptimizerSettings = ADAMW,
    asked: Callable[[int, int], Sequence[Wanted]] | None = None,
) -> Memory:
    """Estimate the memory of one process that runs these passes in a step.

    Args:
        model: its weights may lie on the device `meta`.
        passes: the largest first; those after the second are taken to hold as much per token as the second.
        device: device it would run on, of a kind that this machine has.
        dtype: number type of the frozen weights; the others keep theirs.
        four_bit: keep frozen linear weights in 4 bits.
        cached: use the grad-cached step, which holds one pass at a time.
        shards: number of processes that share weights, gradients and moments, layer by layer (FSDP2).
        optimizer: the optimizer, which decides what is held for each weight.
        asked: returns what a language model is asked about the inputs of a pass, by its shape (None: nothing).
    """
    bits = _four_bit_weights(model) if four_bit else set()

    def size(p: Tensor) -> int | float:
        width = p.element_size() if p.requires_grad else FOUR_BITS if id(p) in bits else dtype.itemsize
        return p.numel() * width

    def trained(p: Tensor) -> int | float:
        return size(p) if p.requires_grad else 0

    moments = sum(optimizer.state_bytes(p) for p in model.parameters() if p.requires_grad) / shards
    step = _Step(model, passes[:1] if cached else passes[:2], bf16=bf16, asked=asked)
    peak, per_token = step.run(device, dtype)
    further = 0 if cached else sum(rows * tokens for rows, tokens in passes[2:])
    return Memory(
        weights=round(_divided(model, size, shards)),
        gradients=round(_divided(model, trained, shards)),
        optimizer=round(moments),
        activations=round(peak + further * per_token),
    )


def _four_bit_weights(model: nn.Module) -> set[int]:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return {id(linear.weight) for linear in linears if not linear.weight.requires_grad}


def _divided(model: nn.Module, size: Callable[[Tensor], int | float], shards: int) -> int | float:
    """Compute a sharded process's peak size.

    It is the process's shard, plus what it briefly holds whole: two layers, and everything outside the layers.
    """
    whole = sum(map(size, model.parameters()))
    if shards == 1:
        return whole
    layers = next((module for module in model.modules() if isinstance(module, nn.ModuleList)), ())
    sizes = [sum(map(size, layer.parameters())) for layer in layers]
    return whole / shards + whole - sum(sizes) + 2 * max(sizes, default=0)


class _Step(nn.Module):
    """Forward passes and one backward pass through them, on tensors without contents."""

    def __init__(
        self,
        model: Trainable,
        passes: Sequence[Pass],
        *,
        bf16: bool,
        asked: Callable[[int, int], Sequence[Wanted]] | None,
    ) -> None:
        super().__init__()
        self.model, self.passes, self.bf16, self.asked = model, passes, bf16, asked

    def run(self, device: torch.device, dtype: torch.dtype) -> tuple[int, float]:
        """Run the passes and return their peak bytes and the bytes kept per token.

        The peak leaves out weights and gradients; the bytes per token are those that the last forward pass kept.
        """
        self.train()
        with FakeTensorMode(allow_non_fake_inputs=True), _Alive() as alive:
            tensors = {}
            for name, tensor in chain(self.named_parameters(), self.named_buffers()):
                frozen = tensor.is_floating_point() and isinstance(tensor, nn.Parameter) and not tensor.requires_grad
                tensors[name] = torch.empty_like(tensor, device=device, dtype=dtype if frozen else tensor.dtype)
                if tensor.requires_grad:  # gradients are counted elsewhere, so they are here from the start
                    tensors[name].requires_grad_().grad = torch.empty_like(tensors[name])
            return functional_call(self, tensors, (device, alive))

    def forward(self, device: torch.device, alive: "_Alive") -> tuple[int, float]:
        start, left, outputs = alive.now, 0, []
        alive.most = start
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            for rows, tokens in self.passes:
                before = alive.now
                ids = torch.zeros(rows, tokens, dtype=torch.long, device=device)
                lengths = torch.full((rows,), tokens, device=device)
                wanted = {"asked": self.asked(rows, tokens)} if self.asked else {}
                outputs.append(self.model(ids, lengths, **wanted).values.float())
                left = (alive.now - before) / (rows * tokens)
        torch.cat(outputs).sum().backward()
        return alive.most - start, left


class _Alive(TorchDispatchMode):
    """Counts the bytes of all living tensors that were made inside this context."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default and isinstance(args[0], FakeTensor):
            # asks which tokens are not padding: without contents, all of them
            return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.long)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
                continue  # what a sparse one holds are tensors of their own
            if tensor.untyped_storage()._cdata not in self._seen:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
