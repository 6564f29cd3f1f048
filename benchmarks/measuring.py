"""Time several ways of doing the same work in one process, interleaved; check that they agree; write the table."""

import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
import torch
import transformers

from shortlist.data.files import atomic_write
from shortlist.models.kernels.linear import PackedLinear, packing_is_right
from shortlist.progress import say

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = {"float32": 1e-5, "bf16": 5e-2, "int8": 1e-1}
PACKAGES = ("torch", "transformers", "sentence-transformers")
Side = Callable[[], np.ndarray]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """How long each round of one side took, and how far its numbers are from the definition's."""

    name: str
    seconds: list[float]
    difference: float

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)


def measure(
    sides: dict[str, Side], expected: np.ndarray, rounds: int, *, num_tokens: int, peak_seconds: float | None = None
) -> str:
    """Time the sides in turn and return the table of medians and ratios.

    Args:
        sides: name -> the whole work, which returns one row per text; where a name ends in `bf16` or `int8`, the rows
            may differ more.
        expected: the definition's rows, which every side must give.
        rounds: times every side runs after its warm-up; each round starts with another side, so that none always
            runs behind the same neighbour.
        num_tokens: of all texts together, padding not counted.
        peak_seconds: how long the work's arithmetic would take at the machine's float32 matrix peak.

    Raises:
        SystemExit: a side gives other numbers, so that its time means nothing.
    """
    timings = [Timing(name, [], _difference(name, side(), expected)) for name, side in sides.items()]
    for number, turn in enumerate(turns(timings, rounds)):
        for timing in turn:
            timing.seconds.append(_seconds(sides[timing.name]))
        last = ", ".join(f"{timing.name} {timing.seconds[-1]:.2f} s" for timing in timings)
        say(f"round {number + 1}/{rounds}: {last}")
    return _table(timings, num_texts=len(expected), num_tokens=num_tokens, peak_seconds=peak_seconds)


def turns(sides: Sequence[T], rounds: int) -> Iterator[list[T]]:
    """The order of the sides in each round, another one first each time."""
    for number in range(rounds):
        shift = number % len(sides)
        yield [*sides[shift:], *sides[:shift]]


def rounds_of(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each side, interleaved, after one run of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for number, turn in enumerate(turns(list(sides), rounds)):
        for name in turn:
            start = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - start)
        say(f"round {number + 1}/{rounds}: " + ", ".join(f"{name} {own[-1]:.2f} s" for name, own in seconds.items()))
    return seconds


def in_a_process(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function in a new process, for what belongs to a process: its peak memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


def peak_gib() -> float:
    """The most memory that this process has held, GiB.

    Not getrusage's number: a new process starts that one at its parent's.
    """
    lines = Path("/proc/self/status").read_text("utf-8").split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


@torch.inference_mode()
def matrix_peak(rounds: int = 10) -> float:
    """Most float32 operations per second that a large matrix product reaches here: PyTorch's own or a packed one."""
    fastest = 0.0
    for rows, width in ((2048, 1024), (2048, 2048), (4096, 4096)):
        plain, x = torch.nn.Linear(width, width, bias=False), torch.randn(rows, width)
        products = [plain, PackedLinear(plain)] if packing_is_right() else [plain]
        seconds = min(_seconds(partial(product, x)) for _ in range(rounds) for product in products)
        fastest = max(fastest, 2 * rows * width * width / seconds)
    return fastest


class Peer:
    """A tool that runs in an environment of its own, on one thread, and answers a line with a line of JSON.

    Args:
        python: the environment's Python.
        script: a script beside this file.
        arguments: what it is called with.
    """

    def __init__(self, python: str, script: str, *arguments: str | Path) -> None:
        command = [python, str(Path(__file__).with_name(script)), *map(str, arguments)]
        alone = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process: Any = subprocess.Popen(command, env=os.environ | alone, **pipe)

    def ask(self, command: str) -> dict[str, Any]:
        """Have a command carried out, and return what it tells."""
        print(command, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()


def conditions(tevatron: Path | None, *, grad_cache: Path | None = None, packages: Sequence[str] = PACKAGES) -> str:
    """Date, commit, machine, versions and command; ask before measuring, while the code is what was loaded."""
    versions = [f"{name} {version(name)}" for name in packages]
    versions += [f"{name} {commit_of(at)}" for name, at in (("Tevatron", tevatron), ("GradCache", grad_cache)) if at]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return (
        f"- {date.today()}, commit {commit_of(ROOT)}\n"
        f"- {_processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} torch threads\n"
        f"- {', '.join(versions)}\n"
        f"- `{command}`"
    )


def publish(title: str, under: str, sections: Sequence[str], out: Path | None) -> None:
    """Print the tables below the conditions they were measured under, and write them to `out`."""
    page = "\n\n".join([f"# {title}", under, *sections]) + "\n"
    print(page, end="")
    if out:
        with atomic_write(out) as file:
            file.write(page)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def quiet() -> None:
    """Keep the libraries' progress bars and notes off the terminal."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _difference(name: str, result: np.ndarray, expected: np.ndarray) -> float:
    difference = float(np.abs(result - expected).max())
    tolerance = TOLERANCE[_precision(name)]
    if not difference <= tolerance:
        raise SystemExit(f"{name}: differs from the definition by {difference:.1e}; expected at most {tolerance:.0e}.")
    return difference


def _precision(name: str) -> str:
    return next((narrow for narrow in ("bf16", "int8") if name.endswith(narrow)), "float32")


def _seconds(side: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def _table(timings: Sequence[Timing], *, num_texts: int, num_tokens: int, peak_seconds: float | None) -> str:
    peers = [timing for timing in timings if not timing.name.startswith("shortlist")]
    ratios = [f"x {timing.name}" for timing in peers]
    columns = ["", "median s", "fastest-slowest", "texts/s", "tokens/s", *ratios, "max difference"]
    columns += ["of the fp32 peak"] if peak_seconds else []
    rows = []
    for timing in timings:
        cells = [timing.name, f"{timing.median:.2f}", f"{min(timing.seconds):.2f}-{max(timing.seconds):.2f}"]
        cells += [f"{num_texts / timing.median:,.0f}", f"{num_tokens / timing.median:,.0f}"]
        cells += [f"{other.median / timing.median:.2f}" for other in peers]
        cells.append(f"{timing.difference:.1e}")
        if peak_seconds:
            cells.append(f"{peak_seconds / timing.median:.0%}" if _precision(timing.name) == "float32" else "")
        rows.append(cells)
    return table(columns, rows)


def commit_of(checkout: Path) -> str:
    """The commit of a checkout, with `-dirty` behind it if files of it are changed."""
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n")
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
