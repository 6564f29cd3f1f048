"""Whether this checkout is as fast as an older one: both in turns, each in a process of its own that stays.

    git worktree add ../before COMMIT
    python benchmarks/same_speed.py --old ../before --out same_speed.md

Random LLaMA weights of 4 layers of 256 dimensions, random words in passages of lognormal lengths around 71. In every
round each checkout does every task once, the other one first each time. A ratio is the older one's median time divided
by this one's: above 1, this one is faster. Its interval holds 95% of the ratios of rounds that are drawn again with
replacement. The exit code is 1 if an interval ends below `--least`. What comes out is compared too.

One run with 9 rounds is about ten minutes on two cores; leave the machine alone meanwhile.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from jaxtyping import Float
from measuring import ROOT, conditions, publish, table, turns

from shortlist.progress import say

Task = Literal["encode", "score", "rerank", "train"]
DRAWS = 10_000
WORK = Path(__file__).with_name("same_work.py")


@dataclass(frozen=True, kw_only=True)
class Config:
    old: Path
    """Checkout of the older version."""
    tasks: tuple[Task, ...] = ("encode", "score", "rerank", "train")
    """encode: vectors of all passages; score: of half of them for one query; rerank: the command, 200 pairs; train:
    steps of a retriever."""
    rounds: int = 9
    """Times each checkout does each task, after one to warm up."""
    docs: int = 1000
    """Passages."""
    least: float = 0.98
    """Ratio that every interval must reach."""
    out: Path | None = None
    """Markdown file to write too."""


class Checkout:
    """A process that does tasks with the code of a checkout."""

    def __init__(self, root: Path, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(WORK), str(folder)]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment, cwd=folder)
        if (found := Path(self.ask("where"))) != root:
            raise SystemExit(f"{root}: the code that runs is that of {found}.")

    def ask(self, task: str, **options: Any) -> Any:
        """Let it do a task; returns what it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"task": task, **options}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{task}: the process ended with code {self.process.wait()}.")
        return json.loads(line)


def interval(old: Float[np.ndarray, " rounds"], new: Float[np.ndarray, " rounds"]) -> tuple[float, float, float]:
    """Ratio of the medians, and the ends of its 95% interval."""
    drawn = np.random.default_rng(0).integers(len(old), size=(DRAWS, len(old)))
    low, high = np.quantile(np.median(old[drawn], axis=1) / np.median(new[drawn], axis=1), [0.025, 0.975])
    return float(np.median(old) / np.median(new)), float(low), float(high)


def main(config: Config) -> None:
    under = conditions(None)
    roots = {"old": config.old.resolve(), "new": ROOT}
    seconds: dict[Task, dict[str, list[float]]] = {task: {"old": [], "new": []} for task in config.tasks}
    results: dict[Task, set[str]] = {task: set() for task in config.tasks}
    with tempfile.TemporaryDirectory() as temporary:
        sides = {name: Checkout(root, Path(temporary)) for name, root in roots.items()}
        sides["old"].ask("prepare", docs=config.docs)
        for number, turn in enumerate(turns(list(sides), config.rounds + 1)):
            for task in config.tasks:
                for name in turn:
                    took, result = sides[name].ask(task)
                    results[task].add(result)
                    if number:
                        seconds[task][name].append(took)
            say(f"round {number}/{config.rounds}")
        for side in sides.values():
            assert side.process.stdin is not None
            side.process.stdin.close()
            side.process.wait()
    rows, slower = [], False
    for task, times in seconds.items():
        old, new = (np.array(times[name]) for name in ("old", "new"))
        ratio, low, high = interval(old, new)
        slower |= high < config.least
        same = "the same" if len(results[task]) == 1 else "NOT the same"
        verdict = "slower" if high < config.least else "as fast"
        cells = [f"{np.median(old):.3f}", f"{np.median(new):.3f}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}"]
        rows.append([task, *cells, verdict, same])
    columns = ["task", "old s", "new s", "old / new", "95% interval", f"interval reaches {config.least}", "results"]
    publish("This checkout beside an older one", under, [table(columns, rows)], config.out)
    sys.exit(slower)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
