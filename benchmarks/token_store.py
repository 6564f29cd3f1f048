"""Stores of token vectors: size, and the speed of fitting, writing, reading and checking, for each dtype.

    python benchmarks/token_store.py --out benchmarks/token_store.md
    python benchmarks/token_store.py --docs 500        a small one, to see that it runs

Vectors are random around random directions, of length 1, so that centroids have something to find. Times are of one
process, in CPU seconds of all its threads and, where the disk matters, by the clock; the least of --repeats. A read is
of everything once, from the page cache, turned into float32.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from measuring import conditions, publish, table

from shortlist.data.stores.tokens import RESIDUALS, TOKEN_DTYPES, TokenReader, TokenWriter
from shortlist.math.maxsim import TokenVectors
from shortlist.math.residual import fit_codebook
from shortlist.math.thinning import thinned

TOKENS_A_BLOCK = 1 << 14
"""Vectors that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class Config:
    docs: int = 10_000
    """Documents."""
    tokens: int = 100
    """Vectors of each document, on average."""
    dim: int = 128
    """Dimensions."""
    shard_size: int = 2_500
    """Documents in a shard."""
    repeats: int = 3
    """How often a read is measured."""
    sample: int = 100_000
    """Vectors that a codebook is fitted to in the measurement of k-means alone."""
    out: Path | None = None
    """Markdown file to write too."""


def make_vectors(config: Config, directions: int = 4096, noise: float = 0.7) -> TokenVectors:
    """Random unit vectors around random directions."""
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    counts = rng.integers(config.tokens // 2, config.tokens * 3 // 2 + 1, config.docs)
    centres = F.normalize(torch.randn(directions, config.dim, generator=generator), dim=1)
    chosen = centres[torch.randint(directions, (int(counts.sum()),), generator=generator)]
    chosen += noise / config.dim**0.5 * torch.randn(chosen.shape, generator=generator)
    return TokenVectors(F.normalize(chosen, dim=1, out=chosen).numpy(), counts)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def write(config: Config, vectors: TokenVectors, folder: Path, dtype: str) -> None:
    """Write a store, shard by shard."""
    writer = TokenWriter(folder, config.dim, dtype, num_docs=config.docs)
    ends = np.cumsum(vectors.counts)
    for number, first in enumerate(range(0, config.docs, config.shard_size)):
        last = min(first + config.shard_size, config.docs)
        part = vectors.values[(ends[first - 1] if first else 0) : ends[last - 1]]
        doc_ids = [f"document-{i}" for i in range(first, last)]
        writer.write_shard(number, doc_ids, TokenVectors(part, vectors.counts[first:last]))


def read(folder: Path) -> None:
    """Read everything as float32."""
    for block in TokenReader(folder, compare=False).blocks(TOKENS_A_BLOCK):
        block.float32().sum()


def cosine(folder: Path, vectors: TokenVectors) -> float:
    """The mean cosine of what was stored and what is read, of the first documents."""
    found = TokenReader(folder, compare=False).take(np.arange(min(1000, len(vectors))))
    exact = vectors.values[: len(found.values)]
    return float((found.values * exact).sum(1).mean() / np.linalg.norm(found.values, axis=1).mean())


def measure(config: Config, vectors: TokenVectors, dtype: str, work: Path) -> list[str]:
    """A row of the table."""
    folder, given = work / dtype, vectors.values.nbytes
    clock, cpu = timed(lambda: write(config, vectors, folder, dtype))
    size = sum(path.stat().st_size for path in folder.iterdir())
    once = min(timed(lambda: read(folder)) for _ in range(config.repeats))
    checked, _ = timed(lambda: TokenReader(folder))
    picked = np.random.default_rng(1).choice(config.docs, min(1000, config.docs), replace=False)
    store = TokenReader(folder, compare=False)
    pick, _ = min(timed(lambda: store.take(picked)) for _ in range(config.repeats))
    return [
        dtype,
        f"{size / len(vectors.values):.1f}",
        f"{cosine(folder, vectors):.4f}",
        f"{given / clock / 1e6:,.0f}",
        f"{cpu:.1f}",
        f"{given / once[1] / 1e9:.2f}",
        f"{1e3 * pick:.1f}",
        f"{checked:.2f}",
    ]


def main(config: Config) -> None:
    under = conditions(None, packages=("torch", "numpy"))
    vectors = make_vectors(config)
    sample = torch.from_numpy(vectors.values[: config.sample])
    fits = [
        [dtype, f"{timed(lambda bits=bits: fit_codebook(sample, bits=bits, num_vectors=len(vectors.values)))[1]:.2f}"]
        for dtype, bits in RESIDUALS.items()
    ]
    some = TokenVectors(vectors.values[: int(vectors.counts[:200].sum())], vectors.counts[:200])
    thin = [
        ["--pool-tokens 2", f"{1e3 * timed(lambda: thinned(some, factor=2.0))[1] / len(some):.2f}"],
        ["--keep-tokens 32", f"{1e3 * timed(lambda: thinned(some, budget=32))[1] / len(some):.2f}"],
    ]
    with tempfile.TemporaryDirectory() as name:
        rows = [measure(config, vectors, dtype, Path(name)) for dtype in TOKEN_DTYPES]
    head = ["dtype", "bytes a vector", "cosine", "write, MB/s", "CPU s", "read, GB/s CPU", "1,000 docs, ms", "check, s"]
    size = f"{len(vectors):,} documents, {len(vectors.values):,} vectors of {config.dim} dimensions"
    sections = [
        f"{size}, {vectors.values.nbytes / 1e9:.2f} GB in float32. Bytes are of all files; rates of float32.",
        table(head, rows),
        f"Fitting a codebook to {len(sample):,} vectors, CPU seconds:",
        table(["dtype", "seconds"], fits),
        "Fewer vectors for each document, CPU milliseconds per document:",
        table(["setting", "ms"], thin),
    ]
    publish("Stores of token vectors", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
