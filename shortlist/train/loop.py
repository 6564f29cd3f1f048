"""The training loop: steps, learning rate, and measurements along the way."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from shortlist.errors import UserError
from shortlist.models.adapters import add_regulariser, after_step
from shortlist.models.run import Model
from shortlist.models.save import Trainable
from shortlist.progress import progress, say
from shortlist.train.examples import ahead
from shortlist.train.gather import ALONE, OutOfMemory, World, is_sharded, whole
from shortlist.train.layers import LayerSampling
from shortlist.train.log import Record
from shortlist.train.resume import State
from shortlist.train.start import Start
from shortlist.train.steps import Example, Outcome, backward

MAX_GRADIENT_NORM = 1.0

TOKENS = {"cpu": 1024, "cuda": 65536}
"""Tokens per forward pass by device. On a CPU they are few enough for the caches, as activations are kept for the
backward pass."""


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Return the factor of the learning rate at a step, counted from 0.

    It grows linearly to 1 over the warm-up, then falls linearly to 0 at the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (steps - step) / max(1, steps - warmup_steps)


def fit(
    model: Trainable,
    examples: Iterator[Example],
    optimizer: Optimizer,
    state: State,
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    bf16: bool,
    seed: int,
    after: Callable[[State, Record], State],
    start: Start | None = None,
    guide: Model | None = None,
    adapter: Any = None,
    sampling: LayerSampling | None = None,
    world: World = ALONE,
) -> State:
    """Train until `steps` steps are done.

    Args:
        examples: the examples of the remaining steps.
        state: where to begin; if memory runs out, its token budget is halved and the step is repeated.
        after: called after each step with the state and the measurements; returns the state to continue with.
        start: as for `backward`.
        guide: as for `backward`.
        adapter: what `add_adapter` returned, if the model has one.
        sampling: chooses the layers to train (None: all).

    Raises:
        UserError: the loss or its gradient is no longer finite, or one input alone does not fit into memory.
    """
    beside = {name: value for name, value in {"start": start, "guide": guide}.items() if value is not None}
    model.train()
    with progress("training", steps, "steps", done=state.step) as advance:
        begin = time.perf_counter()
        for example in ahead(examples):
            rate = learning_rate * learning_rate_factor(state.step, steps=steps, warmup_steps=warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if sampling is not None:
                sampling.choose(state.step, optimizer)
            if example.draw is not None:
                own_seed = seed + (state.step << 20)
                example = example.draw(model, seed=own_seed, token_budget=state.token_budget, bf16=bf16, world=world)
            update = partial(_update, model, example, optimizer, adapter, bf16=bf16, seed=seed, world=world, **beside)
            for _ in range(example.updates - 1):
                *_, state = update(state)
            outcome, norm, state = update(state)
            state = state._replace(step=state.step + 1)
            num_tokens = sum(map(len, example.token_ids))
            record: Record = {
                "step": state.step,
                "loss": round(outcome.loss.item(), 6),
                **({} if outcome.accuracy is None else {"accuracy": round(outcome.accuracy, 4)}),
                "gradient_norm": round(norm, 4),
                "learning_rate": rate,
                "tokens": num_tokens,
                "tokens_per_second": round(num_tokens / (time.perf_counter() - begin)),
                **outcome.measured,
            }
            advance(1, _words(record))
            state = after(state, record)
            begin = time.perf_counter()
    return state


def _update(
    model: Trainable, example: Example, optimizer: Optimizer, adapter: Any, state: State, **computing: Any
) -> tuple[Outcome, float, State]:
    """Take a step of the optimizer; return its outcome and the gradient's norm."""
    outcome, state = _within_memory(model, example, state, **computing)
    add_regulariser(adapter)
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = whole(torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)).item()
    _stop_if_not_finite(outcome.loss.item(), norm, state.step, example)
    optimizer.step()
    after_step(adapter, state.step + 1)
    optimizer.zero_grad(set_to_none=True)
    return outcome, norm, state


def _within_memory(
    model: Trainable, example: Example, state: State, *, bf16: bool, seed: int, world: World, **beside: Any
) -> tuple[Outcome, State]:
    """Compute one step's gradients, with smaller micro-batches if memory runs out.

    From then on, micro-batches stay smaller and are held in memory one at a time.
    """
    while True:
        try:
            outcome = backward(
                model,
                example,
                token_budget=state.token_budget,
                bf16=bf16,
                seed=seed + (state.step << 20),
                cached=state.cached,
                world=world,
                **beside,
            )
            return outcome, state
        except OutOfMemory:
            pass  # leave the handler first, to free what the traceback holds
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        state = _smaller(state, example, processes=world.size, sharded=is_sharded(model))


def _smaller(state: State, example: Example, *, processes: int, sharded: bool) -> State:
    lengths = list(map(len, example.token_ids))
    budget = min(state.token_budget, -(-sum(lengths) // processes)) // 2
    if sharded:
        raise UserError(
            f"step {state.step + 1}: out of memory, and sharded training cannot repeat a step that the other processes "
            f"are in; the last checkpoint is kept. Use --token-budget {budget} or less, or --grad-cache."
        )
    if state.cached and state.token_budget <= max(lengths):
        raise UserError(
            f"step {state.step + 1}: out of memory with one input of {max(lengths)} tokens at a time; the last "
            "checkpoint is kept. Use --gradient-checkpointing, --adapter, bf16 or shorter inputs."
        )
    say(f"step {state.step + 1}: out of memory; from here on {budget} tokens per pass, and one pass's activations.")
    return state._replace(token_budget=budget, cached=True)


def _words(record: Record) -> str:
    terms = ""
    if "document_terms" in record:
        terms = f"{record['query_terms']:.0f} and {record['document_terms']:.0f} terms, "
    words = [f"{name} {record[name]:.2f}" for name in ("reward", "accuracy") if name in record]
    return (
        f"loss {record['loss']:.3f}, {terms}{', '.join(words)}, gradient {record['gradient_norm']:.2f}, "
        f"rate {record['learning_rate']:.1e}, {record['tokens_per_second']:,} tokens/s"
    )


def _stop_if_not_finite(loss: float, norm: float, step: int, example: Example) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        raise UserError(
            f"step {step + 1}: {what} (queries {', '.join(example.query_ids)}); the last checkpoint is kept. "
            "Lower --learning-rate, or train in fp32."
        )
