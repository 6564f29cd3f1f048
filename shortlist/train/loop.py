"""The training loop: steps, learning rate, and measurements along the way."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch.optim import Optimizer

from shortlist.errors import UserError
from shortlist.models.save import Trainable
from shortlist.progress import progress, say
from shortlist.train.examples import ahead
from shortlist.train.gather import ALONE, OutOfMemory, World, is_sharded, whole
from shortlist.train.log import Record
from shortlist.train.resume import State
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


def new_optimizer(model: torch.nn.Module, *, learning_rate: float) -> Optimizer:
    """Make an AdamW optimizer without weight decay for all trainable parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=True)


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
    world: World = ALONE,
) -> State:
    """Train until `steps` steps are done.

    Args:
        examples: the examples of the remaining steps.
        state: where to begin; if memory runs out, its token budget is halved and the step is repeated.
        after: called after each step with the state and the measurements; returns the state to continue with.

    Raises:
        UserError: the loss or its gradient is no longer finite, or one input alone does not fit into memory.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    with progress("training", steps, "steps", done=state.step) as advance:
        start = time.perf_counter()
        for example in ahead(examples):
            rate = learning_rate * learning_rate_factor(state.step, steps=steps, warmup_steps=warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            outcome, state = _within_memory(model, example, state, bf16=bf16, seed=seed, world=world)
            norm = whole(torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)).item()
            _stop_if_not_finite(outcome.loss.item(), norm, state.step, example)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state = state._replace(step=state.step + 1)
            num_tokens = sum(map(len, example.token_ids))
            record: Record = {
                "step": state.step,
                "loss": round(outcome.loss.item(), 6),
                "accuracy": round(outcome.accuracy, 4),
                "gradient_norm": round(norm, 4),
                "learning_rate": rate,
                "tokens": num_tokens,
                "tokens_per_second": round(num_tokens / (time.perf_counter() - start)),
            }
            advance(1, _words(record))
            state = after(state, record)
            start = time.perf_counter()
    return state


def _within_memory(
    model: Trainable, example: Example, state: State, *, bf16: bool, seed: int, world: World
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
            "checkpoint is kept. Use --gradient-checkpointing, --lora, bf16 or shorter inputs."
        )
    say(f"step {state.step + 1}: out of memory; from here on {budget} tokens per pass, and one pass's activations.")
    return state._replace(token_budget=budget, cached=True)


def _words(record: Record) -> str:
    return (
        f"loss {record['loss']:.3f}, accuracy {record['accuracy']:.2f}, gradient {record['gradient_norm']:.2f}, "
        f"rate {record['learning_rate']:.1e}, {record['tokens_per_second']:,} tokens/s"
    )


def _stop_if_not_finite(loss: float, norm: float, step: int, example: Example) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        raise UserError(
            f"step {step + 1}: {what} (queries {', '.join(example.query_ids)}); the last checkpoint is kept. "
            "Lower --learning-rate, or train in fp32."
        )
