"""Compressed vectors in memory and exact ones on disk, beside exact search: memory, time and what is found.

    python benchmarks/compact.py --docs 1000000 --out benchmarks/compact.md

Made-up vectors around random centres, in float16 on disk. `ivf-pq` keeps a short code of each in memory, finds
candidates by it, and scores these by the vectors on disk. What a larger corpus takes is foretold by the same formula as
`shortlist index --dry-run`, and shown beside what was measured.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from measuring import conditions, publish, quiet, table, turns

from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.index.ann import AnnIndex
from shortlist.index.flat import FlatIndex
from shortlist.index.parameters import automatic, memory_and_disk
from shortlist.progress import say

SHARD = 100_000
KIND = "ivf-pq"


@dataclass(frozen=True, kw_only=True)
class Config:
    docs: int = 1_000_000
    """Documents."""
    dim: int = 384
    """Numbers of a vector."""
    centres: int = 2000
    """Centres that vectors lie around."""
    queries: int = 100
    """Queries, each near a document."""
    rounds: int = 3
    """Times that every side searches."""
    refine: tuple[int, ...] = (1, 4, 8, 16)
    """Candidates scored exactly, in multiples of 10; with 1 the codes decide alone."""
    out: Path | None = None
    """Markdown file to write too."""


def made_up(config: Config, folder: Path) -> tuple[VectorReader, np.ndarray]:
    """A store of unit vectors, and queries near some of them."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((config.centres, config.dim), dtype=np.float32)
    writer, near = VectorWriter(folder, config.dim, dtype="float16"), []
    for number, first in enumerate(range(0, config.docs, SHARD)):
        count = min(SHARD, config.docs - first)
        rows = centres[random.integers(0, config.centres, count)]
        rows = rows + random.standard_normal((count, config.dim), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        writer.write_shard(number, [str(first + place) for place in range(count)], rows)
        near.append(rows[: config.queries])
    queries = np.concatenate(near)[:: max(1, len(near))][: config.queries]
    queries = queries + 0.03 * random.standard_normal(queries.shape, dtype=np.float32)
    return VectorReader(folder), queries / np.linalg.norm(queries, axis=1, keepdims=True)


def main(config: Config) -> None:
    quiet()
    under = conditions(None, packages=("torch", "faiss-cpu"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors, queries = made_up(config, folder / "vectors")
        parameters = automatic(KIND, vectors.num_docs, vectors.dim)
        start = time.perf_counter()
        AnnIndex.build(vectors, folder / KIND, kind=KIND, parameters=parameters)
        built = time.perf_counter() - start
        say(f"built in {built:.0f} s")
        exact = FlatIndex(vectors)
        sides = {"exact": exact}
        sides |= {f"refine {n}": AnnIndex.open(folder / KIND, vectors, refine=n) for n in config.refine}
        best = exact.search_vectors(queries, 10)[1]
        recalls, times = {}, {name: [] for name in sides}
        for name, index in sides.items():
            found = index.search_vectors(queries, 10)[1]
            shared = [len({*one.tolist()} & {*two.tolist()}) for one, two in zip(found, best, strict=True)]
            recalls[name] = float(np.mean(shared)) / 10
        for turn in turns(list(sides), config.rounds):
            for name in turn:
                start = time.perf_counter()
                for query in queries:
                    sides[name].search_vectors(query[None], 10)
                times[name].append(1000 * (time.perf_counter() - start) / len(queries))
        index = sides[f"refine {config.refine[0]}"]
        measured = index.ram_bytes
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    rows = [[name, f"{recalls[name]:.3f}", f"{ms:.2f}", f"{middle['exact'] / ms:.1f}"] for name, ms in middle.items()]
    sizes = []
    for docs in (config.docs, 10**7, 10**8, 10**9):
        foretold = memory_and_disk(KIND, automatic(KIND, docs, config.dim), docs, config.dim, dtype="float16")
        found = f"{measured / 2**30:,.2f}" if docs == config.docs else ""
        store = docs * config.dim * 2
        sizes.append([f"{docs:,}", f"{foretold.ram / 2**30:,.2f}", found, f"{store / 2**30:,.1f}"])
    sections = [
        f"## {config.docs:,} vectors of {config.dim} in float16, ten best of {config.queries} queries one by one",
        f"Built in {built:.0f} s: {parameters.lists:,} lists, {parameters.code_bytes} bytes of code a vector.",
        table(["", "recall@10", "ms per query", "times exact"], rows),
        table(["documents", "GiB in memory, foretold", "measured", "GiB of vectors on disk"], sizes),
    ]
    publish("Compressed in memory, exact on disk", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
