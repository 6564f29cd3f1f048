"""How long each loss takes, forward and backward, and what share of a training step that is.

    python benchmarks/losses_speed.py --out benchmarks/losses_speed.md

A ranking has 128 queries and the 2,048 documents of their groups of 16, as a retriever ranks a batch. The teacher has
scored each query's own group, as `mine --teacher` writes it, or all documents. Grades are 0 to 3 in the own group.

The step beside it is that of `train_speed.py`: model S, 8 queries with 16 passages each. A step of 128 queries is 16
times that work, so its time is taken as 16 times as long. Losses and steps take turns in one process with one thread.
Times are seconds of the processor, so that what runs beside them matters little.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import train_speed
import tyro
from measuring import ROOT, conditions, publish, quiet, table
from torch import nn

from shortlist.math.losses import LOSSES, NEEDS
from shortlist.math.ranking import Ranking
from shortlist.progress import say
from shortlist.train.loop import MAX_GRADIENT_NORM
from shortlist.train.optimizers import new_optimizer

QUERIES, GROUP = 128, 16
MORE = {"ranknet": {"order": "teacher"}, "listmle": {"order": "teacher"}, "margin_mse": {"pairs": "all"}}
"""Parameters by which losses do other work."""
PAIRS_OF_ALL = ("ranknet",)
"""Losses that compare any two documents: half a billion pairs, if the teacher scored all."""


@dataclass(frozen=True, kw_only=True)
class Config:
    rounds: int = 9
    """Times that everything is measured, after a warm-up."""
    steps: int = 1
    """Training steps in each round."""
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with msmarco-dl19/ and llama-tokenizer/."""
    out: Path | None = None
    """Markdown file to write too."""


def ranking(*, all_taught: bool) -> Ranking:
    """A batch of groups, seen by a retriever that knows a little."""
    generator = torch.Generator().manual_seed(0)
    docs = QUERIES * GROUP
    own = torch.arange(docs) // GROUP == torch.arange(QUERIES)[:, None]
    scores, teacher, start = (torch.randn(QUERIES, docs, generator=generator) for _ in range(3))
    relevance = torch.zeros(QUERIES, docs)
    relevance[own] = torch.randint(0, 3, (docs,), generator=generator).float()
    relevance[torch.arange(QUERIES), torch.arange(QUERIES) * GROUP] = 3
    teacher = teacher if all_taught else teacher.masked_fill(~own, torch.nan)
    keep = torch.rand(QUERIES, docs, generator=generator) < 0.99
    return Ranking(scores + own, relevance, teacher, keep | (relevance == 3), start)


def cases() -> dict[str, Callable[[], None]]:
    """Every loss, in each form that takes another time."""
    few, every = ranking(all_taught=False), ranking(all_taught=True)
    found: dict[str, Callable[[], None]] = {}
    for name in LOSSES:
        found[name] = partial(once, name, few, {})
        options = MORE.get(name, {})
        if options:
            found[f"{name}, {', '.join(f'{key} {value}' for key, value in options.items())}"] = partial(
                once, name, few, options
            )
        if name not in PAIRS_OF_ALL and ("teacher" in NEEDS.get(name, ()) or "teacher" in options.values()):
            found[f"{name}, teacher of all documents"] = partial(once, name, every, options)
    return found


def once(name: str, given: Ranking, options: dict) -> None:
    """Compute one loss and the gradient of its scores."""
    scores = given.scores.clone().requires_grad_()
    LOSSES[name](given._replace(scores=scores), **options).backward()


def main(config: Config) -> None:
    quiet()
    torch.set_num_threads(1)
    under = conditions(None, packages=("torch", "transformers"))
    step_config = train_speed.Config(data=config.data, steps=max(1, config.steps))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train_speed.prepare(folder, "S", step_config)
        drawn = train_speed.draw(folder, step_config)
        model, gradients = train_speed.build("shortlist", folder, drawn, step_config)
        optimizer = new_optimizer(model, learning_rate=1e-4)

        def step(i: int) -> None:
            gradients(i)
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        losses = cases()
        works = {**losses, "step": lambda: [step(i) for i in range(config.steps)]}
        seconds: dict[str, list[float]] = {name: [] for name in works}
        loads = []
        for number in range(config.rounds + 1):
            for name, work in works.items():
                begin = time.process_time()
                work()
                if number:
                    seconds[name].append(time.process_time() - begin)
            loads.append(os.getloadavg()[0])
            say(f"round {number}/{config.rounds}: a step of 8 queries {seconds['step'][-1:]} s, load {loads[-1]:.1f}")
    small = statistics.median(seconds.pop("step")) / config.steps
    whole = small * QUERIES / train_speed.QUERIES
    rows = []
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = f"{1000 * min(times):.1f}-{1000 * max(times):.1f}"
        rows.append([name, f"{1000 * median:.1f}", spread, f"{median / whole:.2%}", f"{median / small:.1%}"])
    under += f"\n- load average of the machine meanwhile: {min(loads):.1f} to {max(loads):.1f}"
    section = f"A step of {train_speed.QUERIES} queries of model S: {small:.2f} s; of {QUERIES}: {whole:.1f} s.\n\n"
    shares = ["share of a step", f"of one of {train_speed.QUERIES} queries"]
    section += table(["loss", "median ms", "fastest-slowest", *shares], rows)
    publish("Losses on [128, 2048] scores, forward and backward", under, [section], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
