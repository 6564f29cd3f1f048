"""How many documents BM25 indexes in how much memory, and how fast it then answers, beside bm25s used directly.

    python benchmarks/bm25_scale.py --out benchmarks/bm25_scale.md

Made-up documents whose words follow Zipf's law, some 60 each; each build is a process of its own, so that its peak
memory is its own (what its imports take is given beside it). bm25s reads the same words and holds the corpus in memory,
which a machine may not have for a million documents: `--no-peer` leaves it out. Queries are three words, asked one by
one.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np
import tyro
from measuring import conditions, in_a_process, peak_gib, publish, table

from shortlist.index.analysis import ANALYSERS
from shortlist.index.bm25 import BM25Index
from shortlist.progress import say
from shortlist.records import Document, Query

WORDS_PER_DOCUMENT = 60
NUM_WORDS = 2_000_000
"""Different words; the word of rank r occurs as often as 1 / (30 + r)^1.1, so that the first is 1 word in 200."""
BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Config:
    docs: tuple[int, ...] = (100_000, 1_000_000)
    """Documents to index, one table each."""
    queries: int = 200
    """Queries asked of each index."""
    k: tuple[int, ...] = (10, 1000)
    """Documents per query."""
    peer: bool = True
    """Also measure bm25s."""
    out: Path | None = None
    """Markdown file to write too."""


def documents(num_docs: int) -> Iterator[Document]:
    """The same made-up documents every time, made as they are asked for."""
    rng = np.random.default_rng(0)
    shares = np.cumsum((30.0 + np.arange(NUM_WORDS)) ** -1.1)
    for start in range(0, num_docs, BATCH):
        lengths = rng.lognormal(np.log(WORDS_PER_DOCUMENT), 0.3, BATCH).astype(int) + 1
        words = np.searchsorted(shares, rng.uniform(0, shares[-1], lengths.sum())).tolist()
        ends = np.cumsum(lengths).tolist()
        for number, (length, end) in enumerate(zip(lengths.tolist(), ends, strict=True), start):
            if number < num_docs:
                yield Document(f"doc-{number:08d}", " ".join(f"w{word}" for word in words[end - length : end]))


def questions(count: int) -> list[Query]:
    """Three words each, neither the most frequent nor rare."""
    rng = np.random.default_rng(1)
    return [Query(str(i), " ".join(f"w{word}" for word in rng.integers(10, 3000, 3))) for i in range(count)]


def build_ours(num_docs: int, folder: Path) -> tuple[float, float, float]:
    """Seconds, and GiB of memory before and at most."""
    before, start = peak_gib(), time.perf_counter()
    BM25Index.build(documents(num_docs), folder=folder)
    return time.perf_counter() - start, before, peak_gib()


def build_peer(num_docs: int, folder: Path) -> tuple[float, float, float]:
    """The same through bm25s: the words of all documents in memory, then `index` and `save`."""
    before, start = peak_gib(), time.perf_counter()
    vocabulary: dict[str, int] = {}
    english = ANALYSERS["english"]
    tokens = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in english(document.text)]
        for document in documents(num_docs)
    ]
    index = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    index.index((tokens, vocabulary), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)
    return time.perf_counter() - start, before, peak_gib()


def ask_ours(folder: Path, queries: list[Query], k: int) -> tuple[float, float]:
    """Milliseconds of the middle query, and GiB of memory at most."""
    index = BM25Index.load(folder)
    return _milliseconds(lambda query: index.search([query], k), queries), peak_gib()


def ask_peer(folder: Path, queries: list[Query], k: int) -> tuple[float, float]:
    """The same through bm25s, which gives row numbers instead of document ids."""
    index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
    english = ANALYSERS["english"]

    def ask(query: Query) -> object:
        return index.retrieve([english(query.text)], k=k, show_progress=False)

    return _milliseconds(ask, queries), peak_gib()


def _milliseconds(ask: Callable[[Query], object], queries: list[Query]) -> float:
    times: list[float] = []
    for query in queries[:5] + queries:
        start = time.perf_counter()
        ask(query)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[5:])


def section(num_docs: int, config: Config) -> str:
    """Build and ask, ours and the peer."""
    columns = ["", "s", "docs/s", "imports GiB", "peak GiB", "disk GiB"]
    columns += [f"ms/query, k={k}" for k in config.k] + ["searching GiB"]
    sides = {"shortlist": (build_ours, ask_ours)} | ({"bm25s": (build_peer, ask_peer)} if config.peer else {})
    queries, rows = questions(config.queries), []
    for name, (build, ask) in sides.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "index"
            seconds, before, peak = in_a_process(build, num_docs, folder)
            say(f"{name}: {num_docs:,} documents in {seconds:.0f} s, {peak:.2f} GiB")
            disk = sum(path.stat().st_size for path in folder.iterdir()) / 2**30
            asked = [in_a_process(ask, folder, queries, k) for k in config.k]
        cells = [f"{seconds:.1f}", f"{num_docs / seconds:,.0f}", f"{before:.2f}", f"{peak:.2f}", f"{disk:.2f}"]
        rows.append([name, *cells, *(f"{ms:.2f}" for ms, _ in asked), f"{max(gib for _, gib in asked):.2f}"])
    return f"## {num_docs:,} documents\n\n{table(columns, rows)}"


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    under = conditions(None, packages=("bm25s", "numpy", "PyStemmer"))
    publish("BM25 at corpus scale", under, [section(num_docs, config) for num_docs in config.docs], config.out)
