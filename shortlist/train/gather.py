"""Training in several processes: rank, gathered rows, summed gradients, sharding.

Every process draws the same batch from the seed, runs the model on its share of the inputs, gathers the outputs of all,
and computes the whole loss. So there are no ranks in a loss, and no process's negatives can be out of line with
another's labels.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from shortlist.errors import UserError
from shortlist.models.outputs import Rows
from shortlist.models.run import Model, pick_device
from shortlist.together import shared_folder

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long one process waits for another, such as while the first reads a large corpus. What has started the processes
ends all if one dies."""

BUFFER = 1 << 24
"""Numbers per message when gradients are summed: 64 MiB."""


class World(NamedTuple):
    """This process's rank among those that train together, and their number."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the leading process, which writes the outputs."""
        return self.rank == 0


ALONE = World()


@contextmanager
def meet() -> Iterator[World]:
    """Join the other processes that torchrun or `together` started.

    A process that neither has started trains alone.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    world = World(*(int(os.environ[name]) for name in names)) if "RANK" in os.environ else ALONE
    if world.size == 1:
        yield ALONE
        return
    device = own_device(world)
    if device.type == "cuda" and world.local_size > (gpus := torch.cuda.device_count()):
        raise UserError(f"{world.local_size} processes, and {gpus} GPUs here; expected a GPU for each.")
    folder = shared_folder()
    where: dict[str, Any] = {"timeout": PATIENCE}
    if folder:
        where |= {"init_method": f"file://{folder / 'store'}", "rank": world.rank, "world_size": world.size}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device, **where)
    else:
        dist.init_process_group("gloo", **where)
    yield world
    gc.collect()  # sharded models hang in cycles; what they keep of the group must not outlive it, or the exit aborts
    dist.destroy_process_group()  # not after an error: the others may be in the middle of a message


def own_device(world: World) -> torch.device:
    """Choose this process's device: the GPU with its local rank, or the CPU."""
    device = pick_device()
    return torch.device("cuda", world.local_rank) if device.type == "cuda" else device


def in_turn(work: Callable[[], T], world: World) -> T:
    """Do the work in one process of each machine after another.

    This helps when the work briefly needs much memory.
    """
    result = None
    for turn in range(world.local_size):
        if turn == world.local_rank:
            result = work()
        if world.size > 1:
            dist.barrier()
    return result  # type: ignore[return-value]


def shard(model: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Split every parameter among the processes (FSDP2).

    Each layer is assembled only while it computes. Gradients are summed over the processes, as they are for whole
    models here; FSDP's default is their mean.

    https://arxiv.org/abs/2304.11277
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # without it, 1 is a factor to multiply by, not on a CPU


def is_sharded(model: Model) -> bool:
    """Whether `shard` has split this model."""
    return isinstance(model, FSDPModule)


def let_go(model: nn.Module) -> None:
    """Free the whole parameters that a sharded model still holds.

    After a pass without a backward pass FSDP keeps those outside the layers, and would not see shards that change.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Assemble a tensor that may be sharded among the processes; all must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """Move a value to another tensor's device and number type, and shard it alike.

    If the tensor is sharded, this process's shard of the value is returned.
    """
    value = value.to(tensor.device, tensor.dtype)
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def gather_rows(rows: Rows, texts: Sequence[int], world: World = ALONE) -> Rows:
    """Gather the rows of all processes, in the order of the processes.

    Each row's gradient goes back to the process that computed it.

    Args:
        texts: how many texts each process has.
    """
    if world.size == 1:
        return rows
    sizes, counts = texts, None
    if rows.counts is not None:
        counts = _gather(rows.counts.to(rows.values.device), texts)
        sizes = [int(process_counts.sum()) for process_counts in counts.split(list(texts))]
    return Rows(_Gather.apply(rows.values, tuple(sizes), world.rank), counts)  # type: ignore[arg-type]


def _gather(local: Shaped[Tensor, "local *shape"], sizes: Sequence[int]) -> Shaped[Tensor, "all *shape"]:
    """Gather the rows of all processes, whose numbers of rows are `sizes`."""
    padded = local.new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: tuple[int, ...], rank: int) -> Tensor:
        ctx.start, ctx.size = sum(sizes[:rank]), sizes[rank]
        return _gather(values, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # Every process computes the whole loss, so the gradient of this process's rows is whole: nothing to add up.
        return gradients[0][ctx.start : ctx.start + ctx.size], None, None


def sum_gradients(model: Model, world: World = ALONE) -> None:
    """Add up the gradients of all processes in place.

    Afterwards every process has the gradients of the whole batch. With FSDP they are summed already.
    """
    if world.size == 1 or is_sharded(model):
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    start = 0
    while start < len(trained):
        end, numbers = start + 1, trained[start].numel()
        while end < len(trained) and numbers + trained[end].numel() <= BUFFER:
            numbers += trained[end].numel()
            end += 1
        gradients = [p.grad for p in trained[start:end] if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        start = end


def on_any(claim: bool, world: World = ALONE) -> bool:
    """Whether the claim is true in at least one process."""
    if world.size == 1:
        return claim
    flag = torch.tensor(float(claim), device=own_device(world))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def from_leader(tensor: Tensor, world: World = ALONE) -> Tensor:
    """Return the leading process's tensor in every process; all have the same shape."""
    if world.size > 1:
        dist.broadcast(tensor, 0)
    return tensor


class OutOfMemory(Exception):  # noqa: N818 (a condition to react to)
    """A device could not hold what a step needs."""


def within_memory(work: Callable[[], T], world: World = ALONE) -> T:
    """Do the work, and raise OutOfMemory in every process if any of them ran out.

    The work must not wait for another process, as one that has run out of memory never answers.
    """
    result, failed = None, False
    try:
        result = work()
    except (RuntimeError, MemoryError) as error:  # on a CPU, torch raises a plain RuntimeError
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "t allocate memory" not in str(error):
            raise
        failed = True
    if on_any(failed, world):
        raise OutOfMemory
    return result  # type: ignore[return-value]
