"""How fast every stage is alone and beside a process that keeps a core busy: this checkout beside an older one.

    git worktree add ../before COMMIT
    python benchmarks/busy.py --old ../before --out benchmarks/busy.md

In every round each stage is run by both checkouts, as a command, alone and beside a busy process, interleaved. A
training is measured by its tokens per second after the first steps, a server by the queries that it answers in some
seconds, every other stage by the time of the whole command. Training is also run with one thread beside the busy
process. Memory is the largest sum of the proportional set sizes (PSS) of a command and all processes it starts.

Random words, passages of lognormal lengths around 71. `mini` is the retriever shortlist-mini; S and M are random LLaMA
weights of 4 layers of 256 and 8 layers of 512 dimensions. About 40 minutes with 5 rounds; leave the machine alone.
"""

import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro
from measuring import ROOT, conditions, publish, table, turns

from shortlist.progress import say

Stage = Literal["train mini", "train S", "train M", "encode", "rerank", "search", "evaluate", "serve"]
STAGES: tuple[Stage, ...] = ("train mini", "train S", "train M", "encode", "rerank", "search", "evaluate", "serve")
MEAN_LENGTH, SPREAD = 71, 0.4
"""Words of a passage: lognormal. Nearly every word is a token."""
NUM_QUERIES = 600
SHAPES = {"S": ("256", "4", "4"), "M": ("512", "8", "8")}
"""Dimensions, layers and heads of the models with random weights."""
BATCH, MOST_TOKENS = 32, 128
"""Queries of a step, with a passage each, and the most tokens of a passage."""
WARM_UP = 2
"""Steps of a training that are not measured."""
CLIENTS = 4
"""Clients of the server, each with the next query when it has its answer."""
SPIN = "while True: pass"


@dataclass(frozen=True, kw_only=True)
class Config:
    old: Path
    """Checkout of the older version."""
    stages: tuple[Stage, ...] = STAGES
    """Stages to measure."""
    rounds: int = 5
    """Times each checkout does each stage, alone and beside the busy process."""
    steps: int = 12
    """Steps of a training."""
    docs: int = 3000
    """Passages."""
    serve_seconds: float = 8.0
    """How long a server is asked, after as long a warm-up."""
    folder: Path | None = None
    """Folder for data and models, which is kept for the next run (None: a temporary one)."""
    out: Path | None = None
    """Markdown file to write too."""


class Side(NamedTuple):
    """One way to run a stage."""

    checkout: Literal["old", "new"]
    busy: bool
    one_thread: bool = False


SIDES = [Side("old", False), Side("new", False), Side("old", True), Side("new", True)]
ALONE = Side("old", True, one_thread=True)
"""Training with one thread beside the busy process."""


class Measured(NamedTuple):
    """A stage's seconds (for a training or a server, those of a thousand tokens or queries) and memory."""

    seconds: float
    gib: float


class Runner:
    """Runs commands of a checkout in a folder."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder

    def start(self, *words: str | Path, one_thread: bool = False) -> "subprocess.Popen[bytes]":
        """Start a command with its output going into a file."""
        environment = os.environ | {"PYTHONPATH": str(self.root), "HF_HUB_OFFLINE": "1"}
        for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
            environment.pop(name, None)
        environment |= {"OMP_NUM_THREADS": "1"} if one_thread else {}
        with open(self.folder / "output", "wb") as output:
            command = [sys.executable, "-P", "-m", "shortlist", *map(str, words)]
            return subprocess.Popen(command, env=environment, cwd=self.folder, stdout=output, stderr=output)

    def run(self, *words: str | Path, one_thread: bool = False) -> Measured:
        """Run a command to its end."""
        start = time.perf_counter()
        process = self.start(*words, one_thread=one_thread)
        with _memory(process.pid) as peak:
            if process.wait():
                sys.exit(f"{' '.join(map(str, words))}: {(self.folder / 'output').read_text('utf-8')}")
        return Measured(time.perf_counter() - start, peak())


def prepare(runner: Runner, *, docs: int) -> None:
    """Write a collection of random words, the models, vectors and runs that the stages read."""
    rng, drawn = random.Random(0), np.random.default_rng(0)
    words = ["".join(rng.choice("aeiou" if i % 2 else "bdfgklmnprst") for i in range(6)) for _ in range(8000)]
    lengths = drawn.lognormal(np.log(MEAN_LENGTH) - SPREAD**2 / 2, SPREAD, docs).round().astype(int).clip(4, 190)
    texts = [" ".join(rng.choices(words, k=length)) for length in lengths]
    queries = [" ".join(rng.sample(text.split(), 4)) for text in texts[:NUM_QUERIES]]
    where = runner.folder / "c"
    (where / "qrels").mkdir(parents=True)
    _write(where / "corpus.jsonl", [json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(texts)])
    _write(where / "queries.jsonl", [json.dumps({"_id": f"q{i}", "text": text}) for i, text in enumerate(queries)])
    _write(where / "qrels/train.tsv", ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(len(queries)))])
    for size, (hidden, layers, heads) in SHAPES.items():
        shape = ("--hidden", hidden, "--layers", layers, "--heads", heads, "--vocab-size", "8000")
        runner.run("init", "--collection", where, "--out", size, *shape)
    runner.run("index", "--collection", where, "--out", "bm25")
    split = ("--collection", where, "--split", "train")
    runner.run("search", "--index", "bm25", *split, "--k", "1000", "--out", "bm25.trec")
    ranked = [
        line for line in (runner.folder / "bm25.trec").read_text("utf-8").splitlines() if int(line.split()[3]) <= 20
    ]
    _write(runner.folder / "first.trec", ranked[: 20 * 60])
    runner.run("encode", "--model", "shortlist-mini", "--collection", where, "--out", "vectors")


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def train(runner: Runner, config: Config, size: str, *, one_thread: bool = False) -> Measured:
    """Train for some steps; the seconds are those of a thousand tokens."""
    out = runner.folder / "out"
    backbone = "shortlist-mini" if size == "mini" else runner.folder / size
    settings = ("--max-length", str(MOST_TOKENS), "--batch-size", str(BATCH), "--warmup-steps", "1")
    where = ("--collection", runner.folder / "c", "--steps", str(config.steps), "--epochs", "99", "--out", out)
    memory = runner.run("train", "retriever", "--backbone", backbone, *settings, *where, one_thread=one_thread).gib
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    return Measured(statistics.median(1000 / line["tokens_per_second"] for line in lines[WARM_UP:]), memory)


def serve(runner: Runner, config: Config) -> Measured:
    """Ask a server for some seconds; the seconds are those of a thousand queries."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sources = ("--collection", "c", "--retriever", "shortlist-mini", "--vectors", "vectors")
    process = runner.start("serve", *sources, "--reranker", "shortlist-mini", "--port", str(port))
    queries = [json.loads(line)["text"] for line in (runner.folder / "c/queries.jsonl").read_text("utf-8").splitlines()]
    answered, ends = 0, time.monotonic() + 1e9

    def ask(number: int) -> int:
        done = 0
        while time.monotonic() < ends:
            body = json.dumps(
                {"query": queries[(number + CLIENTS * done) % len(queries)], "k": 10, "depth": 10}
            ).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/search", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
            done += 1
        return done

    try:
        while True:
            if process.poll() is not None:
                sys.exit(f"serve: {(runner.folder / 'output').read_text('utf-8')}")
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                break
            time.sleep(0.2)
        with _memory(process.pid) as peak, ThreadPoolExecutor(CLIENTS) as clients:
            for _ in ("warm-up", "measured"):
                ends = time.monotonic() + config.serve_seconds
                answered = sum(clients.map(ask, range(CLIENTS)))
        return Measured(1000 * config.serve_seconds / answered, peak())
    finally:
        process.terminate()
        process.wait()


def command(*words: str) -> Callable[[Runner, Config], Measured]:
    """A stage that is measured by the time of its whole command."""
    return lambda runner, config: runner.run(*words)


SPLIT = ("--collection", "c", "--split", "train")
STAGE: dict[Stage, Callable[[Runner, Config], Measured]] = {
    "train mini": partial(train, size="mini"),
    "train S": partial(train, size="S"),
    "train M": partial(train, size="M"),
    "encode": command("encode", "--model", "shortlist-mini", "--collection", "c", "--out", "out"),
    "rerank": command("rerank", "--model", "shortlist-mini", "--run", "first.trec", *SPLIT, "--out", "out/run.trec"),
    "search": command("search", "--model", "shortlist-mini", "--vectors", "vectors", *SPLIT, "--out", "out/run.trec"),
    "evaluate": command("evaluate", "--runs", "bm25.trec", "first.trec", *SPLIT),
    "serve": serve,
}
"""How to measure each stage, in a folder where `out` is free."""


@contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    """Keep a core busy, if wanted."""
    process = subprocess.Popen([sys.executable, "-c", SPIN]) if wanted else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


@contextmanager
def _memory(pid: int) -> Iterator[Callable[[], float]]:
    """Watch the proportional set size of a process and of all that it starts; yields its largest sum, GiB."""
    largest, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(0.5):
            largest = max(largest, sum(map(_pss, _tree(pid))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: largest / 2**20
    finally:
        ended.set()
        thread.join()


def _tree(pid: int) -> list[int]:
    """A process and all that come from it."""
    with suppress(OSError):
        children = [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text("ascii").split()
        ]
        return [pid, *(one for child in children for one in _tree(child))]
    return []


def _pss(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def measure(runner: Runner, config: Config, stage: Stage, side: Side) -> Measured:
    """Run a stage once."""
    shutil.rmtree(runner.folder / "out", ignore_errors=True)
    (runner.folder / "out").mkdir()
    options = {"one_thread": True} if side.one_thread else {}
    with _busy(side.busy):
        return STAGE[stage](runner, config, **options)


def summary(results: dict[tuple[Stage, Side], list[Measured]], stages: Sequence[Stage]) -> list[str]:
    """The table of all stages, and that of training beside one thread."""

    def seconds(stage: Stage, side: Side) -> float:
        return statistics.median(measured.seconds for measured in results[stage, side])

    def memory(stage: Stage, side: Side) -> float:
        return max(measured.gib for measured in results[stage, side])

    old, new, *_ = SIDES
    rows, trained = [], []
    for stage in stages:
        times = [seconds(stage, side) for side in SIDES]
        shown = [f"{1000 / time:,.0f}/s" if stage.startswith(("train", "serve")) else f"{time:.1f} s" for time in times]
        ratios = [times[0] / times[1], times[2] / times[3], times[2] / times[0], times[3] / times[1]]
        held = memory(stage, new), memory(stage, old)
        cells = [stage, *shown, *(f"{ratio:.2f}" for ratio in ratios), f"{held[0]:.2f}", f"{held[0] / held[1]:.2f}"]
        rows.append(cells)
        if stage.startswith("train"):
            alone = seconds(stage, ALONE)
            trained.append([stage, f"{1000 / alone:,.0f}/s", f"{alone / times[3]:.2f}", f"{times[2] / times[3]:.2f}"])
    columns = ["", "old, alone", "new, alone", "old, busy", "new, busy", "x alone", "x busy"]
    columns += ["old: busy / alone", "new: busy / alone", "new GiB", "x memory"]
    beside = table(["beside the busy process", "one thread, old", "new / one thread", "new / old"], trained)
    return [table(columns, rows), *([beside] if trained else [])]


def main(config: Config) -> None:
    under = conditions(None, packages=("torch", "transformers"))
    roots = {"old": config.old.resolve(), "new": ROOT}
    results: dict[tuple[Stage, Side], list[Measured]] = defaultdict(list)
    loads: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (config.folder or Path(temporary)).resolve()
        runners = {name: Runner(root, folder) for name, root in roots.items()}
        if not (folder / "vectors").exists():
            folder.mkdir(exist_ok=True)
            prepare(runners["old"], docs=config.docs)
        for number in range(config.rounds):
            for stage in config.stages:
                sides = [*SIDES, ALONE] if stage.startswith("train") else SIDES
                for side in list(turns(sides, number + 1))[-1]:
                    loads.append(os.getloadavg()[0])
                    measured = measure(runners[side.checkout], config, stage, side)
                    results[stage, side].append(measured)
                    say(f"round {number + 1}/{config.rounds}: {stage}, {side}: {measured.seconds:.2f} s")
        shutil.rmtree(folder / "out", ignore_errors=True)
    under += (
        f"\n- load of one minute before each run: {min(loads):.1f} to {max(loads):.1f}, the benchmark's own included"
    )
    notes = (
        "Ratios are those of medians: `x alone` and `x busy` how many times as fast as the older checkout, "
        "`busy / alone` how many times as long a checkout takes beside the busy process."
    )
    publish("Every stage alone and beside a busy core", under, [notes, *summary(results, config.stages)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
