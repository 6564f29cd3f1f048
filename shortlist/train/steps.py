"""One training step: token ids -> outputs -> loss -> gradients, in length-bucketed micro-batches.

The plain step keeps every activation until the backward pass. The cached step runs the model twice instead and keeps
the activations of one micro-batch at a time (https://arxiv.org/abs/2101.06983). With several processes, each runs its
share of the micro-batches. The gradients are the same in all these cases.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortlist.models.language import Wanted
from shortlist.models.outputs import Rows, join, select
from shortlist.models.run import Model
from shortlist.text.batching import pad, token_batches
from shortlist.train.gather import ALONE, World, gather_rows, is_sharded, sum_gradients, within_memory
from shortlist.train.start import Start


class Outcome(NamedTuple):
    """Loss and accuracy of a batch's outputs."""

    loss: Float[Tensor, ""]
    accuracy: float | None
    """Share of queries whose positive scores highest among the documents that count; for a language model, share of
    tokens that it predicted as the likeliest (None: where it is rewarded for what it says)."""
    measured: Mapping[str, float] = MappingProxyType({})
    """Further measurements for the log, by name."""


class Example(NamedTuple):
    """A batch ready to train on: the model's inputs, and the objective for its outputs."""

    token_ids: list[list[int]]
    query_ids: list[str]
    objective: Callable[..., Outcome]
    """Evaluates the outputs; gets `start_rows` and `guide_rows` besides, if the two fields below ask for them."""
    reads_start: bool = False
    """Whether a loss compares with the outputs that the model gave before training."""
    guide_ids: Sequence[list[int]] = ()
    """A guide's inputs: every query, then every document; empty without a guide. Or the documents whose vectors stay,
    for the model that gives these."""
    asked: Sequence[Wanted] = ()
    """What a language model is asked about each input; empty for models that read whole inputs."""
    updates: int = 1
    """How many steps the optimizer takes on it, one after another."""
    draw: "Callable[..., Example] | None" = None
    """Makes the example to train on with the model as it is now: `draw(model, seed=..., token_budget=..., bf16=...,
    world=...)` (None: it is one)."""


class Micro(NamedTuple):
    """A forward pass: the numbers of its inputs, and the seed of its dropout."""

    texts: Int[np.ndarray, " batch"]
    seed: int


def deal(lengths: Sequence[int], token_budget: int, *, seed: int, processes: int = 1) -> list[list[Micro]]:
    """Assign forward passes to processes, equally many to each and similar in size.

    If the number of passes does not divide evenly, the shortest input is run again: sharded models need every process
    to take part in every pass, and every process must have a gradient for the same parameters.

    Args:
        lengths: number of tokens of each input.
        token_budget: most tokens in one forward pass, padding included.
    """
    budget = min(token_budget, -(-sum(lengths) // processes))  # otherwise a few large passes would leave processes idle
    buckets = token_batches(lengths, max(1, budget))
    buckets += [buckets[-1][-1:]] * (-len(buckets) % processes)
    return [[Micro(buckets[i], seed + i) for i in range(rank, len(buckets), processes)] for rank in range(processes)]


def compute_outputs(
    model: Model,
    token_ids: Sequence[list[int]],
    *,
    token_budget: int,
    bf16: bool,
    world: World = ALONE,
    asked: Sequence[Wanted] = (),
) -> Rows:
    """Compute the model's rows for all inputs, in order, without gradients.

    Every process runs its share, and all get the rows of all inputs.

    Args:
        token_budget: most tokens in one forward pass, padding included.
        bf16: compute matrix products in bfloat16.
        asked: as in `Example`.

    Raises:
        OutOfMemory: some process ran out of memory; raised in every process.
    """
    shares = deal([len(ids) for ids in token_ids], token_budget, seed=0, processes=world.size)

    def outputs() -> Rows:
        with torch.no_grad(), _precision(model, bf16=bf16):
            return join([_forward(model, token_ids, micro, asked) for micro in shares[world.rank]])

    return _in_order(within_memory(outputs, _together(model, world)), shares, world)


def backward(
    model: Model,
    example: Example,
    *,
    token_budget: int,
    bf16: bool,
    seed: int,
    cached: bool = False,
    start: Start | None = None,
    guide: Model | None = None,
    world: World = ALONE,
) -> Outcome:
    """Add the gradients of the example's loss to the model's parameters.

    With several processes, the parameters must have no gradients at the start.

    Args:
        example: the whole batch, the same in every process.
        token_budget: most tokens in one micro-batch, padding included.
        bf16: compute matrix products in bfloat16; weights, loss and gradients stay float32.
        seed: base of the dropout seeds. Each micro-batch has its own, so that both passes of the cached step drop the
            same activations.
        cached: run the cached step instead of the plain one.
        start: the model before training, for examples with `reads_start`.
        guide: the model that reads the examples' `guide_ids`.

    Raises:
        OutOfMemory: some process ran out of memory; raised in every process, and gradients are then undefined.
    """
    beside: dict[str, Rows] = {}
    if start is not None and example.reads_start:
        with start.restored():
            computing: dict[str, Any] = {"token_budget": token_budget, "bf16": bf16, "world": world}
            beside["start_rows"] = compute_outputs(model, example.token_ids, asked=example.asked, **computing)
    if guide is not None and example.guide_ids:  # it has its own precision
        computing = {"token_budget": token_budget, "bf16": False, "world": world}
        beside["guide_rows"] = compute_outputs(guide, example.guide_ids, **computing)
    shares = deal([len(ids) for ids in example.token_ids], token_budget, seed=seed, processes=world.size)
    local_micros = shares[world.rank]
    together = _together(model, world)

    def outputs() -> tuple[Rows, list[int]]:
        with torch.set_grad_enabled(not cached), _precision(model, bf16=bf16):
            parts = [_forward(model, example.token_ids, micro, example.asked) for micro in local_micros]
            return join(parts), [len(part.values) for part in parts]

    def again(gradients: Sequence[Tensor]) -> None:
        with _precision(model, bf16=bf16):
            for micro, gradient in zip(local_micros, gradients, strict=True):
                output = _forward(model, example.token_ids, micro, example.asked).values
                with torch.autocast(output.device.type, enabled=False):
                    output.backward(gradient)

    rows, sizes = within_memory(outputs, together)
    leaf = rows.values.detach().requires_grad_()
    torch.manual_seed(seed)  # each process computes the whole loss: what a loss draws has to be the same in all
    outcome = example.objective(_in_order(Rows(leaf, rows.counts), shares, world), **beside)
    outcome.loss.backward()
    gradients = leaf.grad
    assert gradients is not None  # set by backward, for the type checker
    within_memory(lambda: again(gradients.split(sizes)) if cached else rows.values.backward(gradients), together)
    sum_gradients(model, world)
    return outcome._replace(loss=outcome.loss.detach())


def _together(model: Model, world: World) -> World:
    """Return the processes that may wait for each other's memory.

    A sharded model's passes wait for all others anyway.
    """
    return ALONE if is_sharded(model) else world


def _in_order(local_rows: Rows, shares: Sequence[Sequence[Micro]], world: World) -> Rows:
    """Gather the rows of all processes in the order of the inputs, without repeats."""
    places = [np.concatenate([micro.texts for micro in share]) for share in shares]
    rows = gather_rows(local_rows, [len(place) for place in places], world)
    _, first = np.unique(np.concatenate(places), return_index=True)
    return select(rows, torch.from_numpy(first))


def _precision(model: Model, *, bf16: bool) -> torch.autocast:
    """Make the autocast context of a step.

    It surrounds all passes, so that each weight is rounded to bfloat16 once.
    """
    return torch.autocast(_device(model).type, torch.bfloat16, enabled=bf16)


def _forward(model: Model, token_ids: Sequence[list[int]], micro: Micro, asked: Sequence[Wanted]) -> Rows:
    device = _device(model)
    wanted = {"asked": [asked[text] for text in micro.texts]} if asked else {}
    ids, lengths = pad([token_ids[text] for text in micro.texts], model.inputs.pad_id)
    torch.manual_seed(micro.seed)
    rows = model(ids.to(device), lengths.to(device), **wanted)
    return rows._replace(values=rows.values.float())


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device
