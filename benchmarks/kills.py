"""What becomes of an output whose command is killed, or started twice.

    python benchmarks/kills.py --kills 100 --pairs 50 --out benchmarks/kills.md

Every command first runs undisturbed, which says how long it takes and what it writes. Then it is killed (SIGKILL) at
random moments, and the same command runs once more: it must end well, with the same bytes. In pairs, two commands
share one --out: the same command twice, or the command with another setting. The output must be that of one of them,
and whoever does not write it must say so in one line. Files that hold times are not compared.
"""

import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from measuring import conditions, publish, table
from same_work import prepare, training

from shortlist.progress import say

HOLD_TIMES = ("manifest.json", "config.yaml", "log.jsonl", "loss.svg", "README.md")
PRELOADED = ["shortlist.cli", "shortlist.encode", "shortlist.train", "shortlist.rerank", "shortlist.search"]


@dataclass(frozen=True, kw_only=True)
class Config:
    kills: int = 100
    """Kills, spread evenly over the commands."""
    pairs: int = 50
    """Pairs of commands with one --out, spread evenly over the commands."""
    docs: int = 300
    """Documents of the collection."""
    seed: int = 0
    """Random seed of the moments."""
    out: Path | None = None
    """Markdown file to write too."""


class Command(NamedTuple):
    """A command without its --out, and what makes another job of it."""

    words: Sequence[str | Path]
    other: Sequence[str]


class Ended(NamedTuple):
    """How a command has ended."""

    code: int
    err: str
    seconds: float


def commands(folder: Path) -> dict[str, Command]:
    """List the commands over what `same_work.prepare` and `prepare_more` have written."""
    where: tuple[str | Path, ...] = ("--collection", folder / "c", "--split", "train")
    vectors = ("--vectors", folder / "vectors")
    found = folder / "dense.trec"
    groups = ("--groups", folder / "groups.jsonl")
    encode = ("encode", "--model", folder / "retriever", "--collection", folder / "c", "--shard-size", "50")
    train = (*training(folder), "--steps", "6", "--checkpoint-steps", "2")
    rerank = ("rerank", "--model", folder / "reranker", *where, "--run", folder / "first.trec")
    return {
        "index bm25": Command(("index", "--collection", folder / "c"), ("--k1", "1.2")),
        "index hnsw": Command(("index", "--kind", "hnsw", *vectors), ("--set", "links=8")),
        "encode": Command(encode, ("--max-length", "32")),
        "train retriever": Command(("train", "retriever", *train), ("--seed", "7")),
        "train reranker": Command(("train", "reranker", *train, *groups), ("--seed", "7")),
        "search": Command(("search", "--model", folder / "retriever", *vectors, *where, "--k", "100"), ("--k", "50")),
        "rerank": Command((*rerank, "--depth", "20"), ("--depth", "10")),
        "mine": Command(("mine", "--runs", found, *where, "--depth", "40"), ("--seed", "7")),
        "fuse": Command(("fuse", "--runs", found, folder / "first.trec"), ("--method", "zscore")),
    }


def prepare_more(folder: Path) -> None:
    """Write the vectors and the run that later commands read."""
    where = ("--model", folder / "retriever", "--collection", folder / "c")
    undisturbed("encode", *where, "--out", folder / "vectors")
    search = ("search", *where, "--vectors", folder / "vectors", "--split", "train", "--k", "60")
    undisturbed(*search, "--out", folder / "dense.trec")


def _work(words: Sequence[str], err: str) -> None:
    """Run a command in this process, its stderr going into a file."""
    file = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    os.dup2(file, 1)
    from shortlist.cli import main

    sys.exit(main(list(words)))


class Running:
    """A command in a process of its own, forked from one that has imported everything."""

    def __init__(self, words: Sequence[str | Path], err: Path) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.err, self.start = err, time.perf_counter()
        self.process = context.Process(target=_work, args=([str(word) for word in words], str(err)))
        self.process.start()

    def kill(self) -> bool:
        """Kill it; returns whether it was still at work."""
        at_work = self.process.is_alive()
        if at_work:
            os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        return at_work and self.process.exitcode == -signal.SIGKILL

    def end(self) -> Ended:
        """Wait until it ends by itself."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        return Ended(code, self.err.read_text("utf-8"), time.perf_counter() - self.start)


def undisturbed(*words: str | Path) -> Ended:
    """Run a command that must succeed."""
    with tempfile.TemporaryDirectory() as temporary:
        ended = Running(words, Path(temporary) / "err").end()
    if ended.code:
        sys.exit(f"{' '.join(map(str, words))}: exit code {ended.code}\n{ended.err}")
    return ended


def contents(path: Path) -> dict[str, str]:
    """Return the hash of each file of an output; hidden files beside a run belong to it."""
    beside = [path, *path.parent.glob(f".{path.name}*")]
    files = [file for each in beside for file in (sorted(each.rglob("*")) if each.is_dir() else [each])]
    return {
        str(file.relative_to(path.parent)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and not file.name.endswith(HOLD_TIMES)
    }


def kill(name: str, command: Command, out: Path, expected: dict[str, str], after: float) -> Counter[str]:
    """Kill a command after some seconds, let it go on, and count what was wrong."""
    words, err = (*command.words, "--out", out), out.with_name("err")
    running = Running(words, err)
    time.sleep(after)
    killed = running.kill()
    ended = Running(words, err).end()
    found = contents(out)
    wrong = {
        "in the middle": killed,
        "failed": ended.code != 0,
        "traceback": "Traceback" in ended.err,
        "other bytes": any(found.get(file) != digest for file, digest in expected.items()),
        "files left": bool(found.keys() - expected.keys()),
    }
    _say_what(name, wrong, ended)
    return Counter({what: int(value) for what, value in wrong.items()})


def pair(name: str, both: Sequence[Sequence[str | Path]], out: Path, expected: Sequence[Any], after: float) -> Counter:
    """Start two commands with one --out, and count what was wrong."""
    running = []
    for number, words in enumerate(both):
        running.append(Running((*words, "--out", out), out.with_name(f"err{number}")))
        time.sleep(0 if number else after)
    first, second = [process.end() for process in running]
    refused = [ended for ended in (first, second) if ended.code]
    wrong = {
        "one refused": len(refused) == 1,
        "both failed": len(refused) == 2,
        "traceback": any("Traceback" in ended.err for ended in (first, second)),
        "of neither": contents(out) not in expected,
    }
    _say_what(name, wrong, first, second)
    return Counter({what: int(value) for what, value in wrong.items()})


def _say_what(name: str, wrong: dict[str, bool], *ended: Ended) -> None:
    faults = [what for what, value in wrong.items() if value and what not in ("in the middle", "one refused")]
    if faults:
        said = " | ".join(f"{end.code}: {end.err.strip()[-600:]}" for end in ended)
        say(f"{name}: {', '.join(faults)}; {said}")


def main(config: Config) -> None:
    under, rng = conditions(None), random.Random(config.seed)
    killed, paired = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, docs=config.docs)
        prepare_more(folder)
        table_of = commands(folder)
        for number, (name, command) in enumerate(table_of.items()):
            both = [command.words, (*command.words, *command.other)]
            expected, seconds = [], []
            for turn, words in enumerate(both):
                out = folder / f"{number}-{turn}" / "out"
                out.parent.mkdir()
                seconds.append(undisturbed(*words, "--out", out).seconds)
                expected.append(contents(out))
            counts: dict[str, Counter[str]] = {"kill": Counter(), "pair": Counter()}
            kills = len(range(number, config.kills, len(table_of)))
            pairs = len(range(number, config.pairs, len(table_of)))
            for turn in range(kills + pairs):
                out = folder / f"{number}-{2 + turn}" / "out"
                out.parent.mkdir()
                after = rng.uniform(0, seconds[0])
                if turn < kills:
                    counts["kill"] += kill(name, command, out, expected[0], after)
                else:
                    same = turn % 2 == 0
                    counts["pair"] += pair(name, both[:1] * 2 if same else both, out, expected[: 2 - same], after / 2)
            columns = ("in the middle", "failed", "traceback", "other bytes", "files left")
            killed.append([name, f"{seconds[0]:.1f}", str(kills), *(str(counts["kill"][what]) for what in columns)])
            columns = ("one refused", "both failed", "traceback", "of neither")
            paired.append([name, str(pairs), *(str(counts["pair"][what]) for what in columns)])
            for row in (killed[-1], paired[-1]):
                say(" | ".join(row))  # so that a run that is stopped has said something
    first = ["command", "seconds", "kills", "in the middle", "failed afterwards", "tracebacks", "other bytes"]
    sections = [
        "## Killed, then run again",
        table([*first, "files left"], killed),
        "## Two with one --out",
        table(["command", "pairs", "one refused", "both failed", "tracebacks", "output of neither"], paired),
    ]
    publish("Killed and doubled commands", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
