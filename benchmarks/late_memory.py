"""How much memory a search by late interaction takes where the token store is four times what it may keep in memory.

    python benchmarks/late_memory.py --out benchmarks/late_memory.md

Made-up token vectors of length 1 in float32. Every search opens the store in a process of its own with `memory_gib`,
looks for the 10 best of all queries, and does so again. Peak is the most that the process has held (VmHWM), with the
pages of the store's files that it had mapped at that time; what of it is no file is given too (RssAnon). The system's
own cache of files is not the process's.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from measuring import conditions, in_a_process, peak_gib, publish, table

from shortlist.data.stores.tokens import TokenReader, TokenWriter
from shortlist.index.building import build_index
from shortlist.index.kinds import INDEXES
from shortlist.index.late import LateIndex
from shortlist.index.protocols import Opening
from shortlist.math.maxsim import TokenVectors

K, TOKENS, DIM = 10, 64, 128


@dataclass(frozen=True, kw_only=True)
class Config:
    memory_gib: float = 0.5
    """What a search may keep in memory of the store that it scans."""
    times: int = 4
    """Size of the token store, in multiples of that."""
    queries: int = 64
    """Queries, of 32 tokens each."""
    shard: int = 4_096
    """Documents of 64 tokens in a shard."""
    kinds: tuple[str, ...] = ("narrow", "late")
    """Indexes to search besides the store alone."""
    out: Path | None = None
    """Markdown file to write too."""


class Peak(NamedTuple):
    """What a process has held, GiB."""

    opened: float
    """Before the first search."""
    most: float
    anonymous: float


def units(seed: int, *shape: int) -> np.ndarray:
    """Random vectors of length 1."""
    vectors = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def write(folder: Path, config: Config) -> float:
    """Write the store, and return its size in GiB."""
    writer, counts = TokenWriter(folder, DIM), np.full(config.shard, TOKENS)
    values = units(0, config.shard * TOKENS, DIM)
    for number in range(round(config.times * config.memory_gib * 2**30 / values.nbytes)):
        names = [str(number * config.shard + row) for row in range(config.shard)]
        part = np.roll(values, number + 1, axis=1)  # other vectors, and quicker than to draw them
        writer.write_shard(number, names, TokenVectors(part, counts))
    return TokenReader(folder, compare=False).num_bytes / 2**30


def build(kind: str, store: Path, folder: Path) -> None:
    """Build an index."""
    build_index(INDEXES[kind], store, folder, {"dtype": "int8"} if kind == "narrow" else {})


def _held(name: str) -> float:
    lines = Path("/proc/self/status").read_text("utf-8").split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def most_anonymous(work: Callable[[], Any]) -> float:
    """The most memory that is no file while something works, looked at every hundredth of a second."""
    seen, done = [_held("RssAnon:")], Event()

    def look() -> None:
        while not done.wait(0.01):
            seen.append(_held("RssAnon:"))

    watching = Thread(target=look)
    watching.start()
    work()
    done.set()
    watching.join()
    return max(seen)


def search(kind: str | None, store: Path, folder: Path, config: Config) -> Peak:
    """Search twice, and return what the process has held."""
    torch.set_num_threads(1)
    how, queries = Opening(vectors=store, memory_gib=config.memory_gib), units(1, config.queries * 32, DIM)
    index: Any = (
        INDEXES[kind].open(folder, {}, how) if kind else LateIndex(TokenReader(store), memory_gib=how.memory_gib)
    )
    asked, opened = TokenVectors(queries, np.full(config.queries, 32)), peak_gib()

    def twice() -> None:
        for _ in range(2):
            index.search_tokens(asked, K)

    anonymous = most_anonymous(twice)
    return Peak(opened, peak_gib(), anonymous)


def main(config: Config) -> None:
    """Measure and write the table."""
    under, rows = conditions(None, packages=("torch",)), []
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary) / "tokens"
        size = in_a_process(write, store, config)
        for kind in (None, *config.kinds):
            folder = Path(temporary) / str(kind)
            if kind:
                in_a_process(build, kind, store, folder)
            peak = in_a_process(search, kind, store, folder, config)
            allowed = "yes" if peak.most < config.memory_gib + 1 else "no"
            rows.append([kind or "store alone, exact", *(f"{value:.2f}" for value in peak), allowed])
    columns = ("searched", "opened, GiB", "peak, GiB", "of it no file, GiB", f"below {config.memory_gib + 1:g} GiB")
    title = f"A store of {size:.1f} GiB where {config.memory_gib:g} GiB may be kept"
    publish("Memory of late interaction", under, [f"## {title}", table(columns, rows)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
