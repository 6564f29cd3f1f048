"""What filters cost searches that have none: exact search by this checkout beside an older one.

    python benchmarks/filter_cost.py --old OLDER_CHECKOUT --out benchmarks/filter_cost.md

Each side searches the same store in a process of its own, on one thread, in turns; seconds are those of the processor.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from measuring import ROOT, conditions, publish, table, turns

SIDE = """
import sys, time
from pathlib import Path
import numpy as np
try:
    from shortlist.data.stores.vectors import VectorReader, VectorWriter
except ImportError:
    from shortlist.data.vectors import VectorReader, VectorWriter
from shortlist.index.flat import FlatIndex
folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
if not folder.exists():
    writer = VectorWriter(folder, 384)
    for number in range(10):
        ids = [f"{number}-{i}" for i in range(20_000)]
        writer.write_shard(number, ids, rng.standard_normal((20_000, 384), dtype=np.float32))
index = FlatIndex(VectorReader(folder, compare=False))
queries = np.random.default_rng(1).standard_normal((100, 384), dtype=np.float32)
for count in (1, 100):
    index.find(queries[:count], 100)
    taken = []
    for _ in range(7):
        start = time.process_time()
        index.find(queries[:count], 100)
        taken.append(time.process_time() - start)
    print(1000 * float(np.median(taken)))
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the comparison."""

    old: Path
    """Checkout of before there were filters."""
    rounds: int = 5
    """Processes of each side."""
    out: Path | None = None
    """Markdown file to write too."""


def milliseconds(checkout: Path, store: Path) -> list[float]:
    """Search with a checkout's code; return the milliseconds of one query and of a hundred."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SIDE, str(store)]
    said = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    return [float(line) for line in said.stdout.split()]


def main(config: Config) -> None:
    """Measure both sides in turns, and publish."""
    sides = {"before": config.old, "now": ROOT}
    found: dict[str, list[list[float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        milliseconds(ROOT, Path(folder) / "store")  # which writes it
        for turn in turns(list(sides), config.rounds):
            for name in turn:
                found[name].append(milliseconds(sides[name], Path(folder) / "store"))
    rows = [
        [name, *(f"{statistics.median(each):.1f}" for each in zip(*runs, strict=True))] for name, runs in found.items()
    ]
    about = "200,000 vectors of 384, k=100; processor milliseconds, medians over processes of medians of 7."
    publish(
        "Exact search without a filter",
        conditions(None),
        [about, table(["", "1 query", "100 queries"], rows)],
        config.out,
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
