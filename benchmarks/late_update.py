"""What it costs to bring an index for late interaction up to date after 1% more documents, beside building it.

    python benchmarks/late_update.py --out benchmarks/late_update.md

Made-up token vectors of length 1. Both sides are the whole of `shortlist index`, with the hashing of its output and
without imports, in seconds of the processor, as other processes may run beside it. The store's files are old enough
for their digests to be remembered, as they usually are.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from measuring import conditions, publish, table

from shortlist import index
from shortlist.data.stores.tokens import TokenWriter
from shortlist.math.maxsim import TokenVectors

DIM = 128
SETTLED = 2.1
"""Seconds after which the digest of a file is remembered."""


@dataclass(frozen=True, kw_only=True)
class Config:
    docs: tuple[int, ...] = (20_000, 100_000)
    """Documents, a row each."""
    tokens: int = 60
    """Tokens of a document."""
    shard_size: int = 8_000
    """Documents in a shard."""
    updates: int = 3
    """Updates, one after another."""
    kind: str = "late"
    out: Path | None = None
    """Markdown file to write too."""


class Store:
    """A token store that grows, as `shortlist encode` leaves it."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self.folder, self.tokens, self.shards, self.docs = folder, tokens, 0, 0
        self.writer = TokenWriter(folder, DIM)

    def add(self, count: int) -> None:
        """Add a shard of documents."""
        values = np.random.default_rng(self.shards).standard_normal((count * self.tokens, DIM), dtype=np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        names = [str(self.docs + row) for row in range(count)]
        self.writer.write_shard(self.shards, names, TokenVectors(values, np.full(count, self.tokens)))
        self.shards, self.docs = self.shards + 1, self.docs + count
        manifest = {"stage": "encode", "job": str(self.shards), "complete": True, "config": {}}
        (self.folder / "manifest.json").write_text(json.dumps(manifest))


def seconds(job: index.Config) -> float:
    """Run the stage, and return its seconds of the processor."""
    time.sleep(SETTLED)
    start = time.process_time()
    index.run(job)
    return time.process_time() - start


def row(docs: int, config: Config, folder: Path) -> list[str]:
    """Build and update, and return a row of the table."""
    store = Store(folder / "tokens", config.tokens)
    for first in range(0, docs, config.shard_size):
        store.add(min(config.shard_size, docs - first))
    index.run(index.Config(kind=config.kind, vectors=store.folder, out=folder / "warm"))  # and what is used is loaded
    job, updates = index.Config(kind=config.kind, vectors=store.folder, out=folder / "index"), []
    built = seconds(job)
    for _ in range(config.updates):
        store.add(docs // 100)
        updates.append(seconds(job))
    share = statistics.median(updates) / built
    return [f"{docs:,}", f"{built:.2f}", ", ".join(f"{one:.3f}" for one in updates), f"{share:.1%}"]


def main(config: Config) -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    under, rows = conditions(None, packages=("torch",)), []
    for docs in config.docs:
        with tempfile.TemporaryDirectory() as temporary:
            rows.append(row(docs, config, Path(temporary)))
    columns = ("documents", "built, s", "updates of 1%, s", "middle update / build")
    section = f"## The kind `{config.kind}`, {config.tokens} tokens of {DIM} numbers a document\n\n"
    publish("Updates of late interaction", under, [section + table(columns, rows)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
