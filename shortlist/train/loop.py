"""The training loop: steps, learning rate, log, checkpoints."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from shortlist.data.files import open_text
from shortlist.errors import UserError
from shortlist.models.reranker import Reranker
from shortlist.models.retriever import Retriever
from shortlist.progress import progress
from shortlist.train.examples import ahead
from shortlist.train.steps import Example, backward

MAX_GRADIENT_NORM = 1.0


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Linear from 0 to 1 over the warm-up, then linear to 0 at the end; `step` counts from 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (steps - step) / max(1, steps - warmup_steps)


def new_optimizer(model: torch.nn.Module, *, learning_rate: float) -> Optimizer:
    """AdamW without weight decay over everything that trains."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=True)


def fit(
    model: Retriever | Reranker,
    examples: Iterator[Example],
    optimizer: Optimizer,
    *,
    first_step: int,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    step_options: dict[str, Any],
    seed: int,
    log: Path,
    checkpoint: Callable[[int], None],
) -> dict[str, int | float]:
    """Train from `first_step` to `steps`; returns the last step's measurements.

    Args:
        step_options: passed on to `steps.backward`.
        log: JSON lines, one per step; lines past `first_step` are from a run that was interrupted, and go.
        checkpoint: called with the number of steps done, after each.

    Raises:
        UserError: the loss is no longer a number.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    _keep_lines(log, first_step)
    record: dict[str, int | float] = {}
    model.train()
    with open(log, "a", encoding="utf-8") as file, progress("training", steps, "steps") as advance:
        advance(first_step)
        for step, example in enumerate(ahead(examples), start=first_step):
            start = time.perf_counter()
            rate = learning_rate * learning_rate_factor(step, steps=steps, warmup_steps=warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            outcome = backward(model, example, seed=seed + (step << 20), **step_options)
            _stop_if_not_finite(outcome.loss.item(), step, example)
            norm = torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds = time.perf_counter() - start
            record = {
                "step": step + 1,
                "loss": round(outcome.loss.item(), 6),
                "accuracy": round(outcome.accuracy, 4),
                "gradient_norm": round(norm.item(), 4),
                "learning_rate": rate,
                "tokens_per_second": round(sum(map(len, example.token_ids)) / seconds),
            }
            file.write(json.dumps(record) + "\n")
            file.flush()
            checkpoint(step + 1)
            advance(1, f"loss {record['loss']:.3f}, accuracy {record['accuracy']:.2f}")
    return record


def _keep_lines(log: Path, count: int) -> None:
    """Cut the log back to its first `count` lines, so that steps done again are not logged twice."""
    if not log.exists():
        return
    with open_text(log) as file:
        lines = [line for _, line in zip(range(count), file, strict=False)]
    log.write_text("".join(lines), "utf-8")


def _stop_if_not_finite(loss: float, step: int, example: Example) -> None:
    if not math.isfinite(loss):
        shown = ", ".join(example.query_ids[:5])
        raise UserError(
            f"step {step + 1}: the loss is {loss} (queries {shown}, ...); the last checkpoint is kept. "
            "Lower --learning-rate, or train in fp32."
        )
