"""What it costs to bring an index up to date after a change of its corpus, beside building it.

    python benchmarks/update_speed.py --out benchmarks/update_speed.md

Made-up chunks of 150 words that follow Zipf's law. In every round 1% of them change: half are replaced, a quarter is
removed, and as many new ones come in at random places. Both sides are the whole command, `shortlist index` or
`shortlist encode --update`, with the hashing of the corpus and of the output; imports are left out. Seconds are those
of the processor, as other processes may run beside it; the wall's are given too. The last state is compared with one
made anew.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from measuring import conditions, publish, table

from shortlist import encode, index
from shortlist.data.manifest import read_manifest
from shortlist.data.stores.vectors import VectorReader
from shortlist.index.bm25 import BM25Index
from shortlist.index.flat import FlatIndex

WORDS = 150
NUM_WORDS = 500_000


@dataclass(frozen=True, kw_only=True)
class Config:
    chunks: int = 100_000
    """Chunks to index by words."""
    encoded: int = 5_000
    """Chunks to encode."""
    rounds: int = 5
    """Updates, one after another."""
    model: str = "shortlist-mini"
    out: Path | None = None
    """Markdown file to write too."""


class Took(NamedTuple):
    cpu: float
    wall: float


def took(work: Callable[[], Any]) -> Took:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Took(time.process_time() - cpu, time.perf_counter() - wall)


def chunks(count: int, first: int, words: int = WORDS) -> list[str]:
    """Lines of a corpus."""
    rng = np.random.default_rng(first)
    shares = np.cumsum((30.0 + np.arange(NUM_WORDS)) ** -1.1)
    lines = []
    for number in range(first, first + count):
        found = np.searchsorted(shares, rng.uniform(0, shares[-1], words)).tolist()
        record = {"_id": f"doc-{number}.md#0", "title": "A title", "text": " ".join(f"w{word}" for word in found)}
        lines.append(json.dumps(record | {"metadata": {"document": f"doc-{number}.md", "begin": 0}}) + "\n")
    return lines


def changed(lines: list[str], number: int) -> list[str]:
    """The lines with 1% replaced, removed and added."""
    rng, hundredth = random.Random(number), len(lines) // 100
    fresh = chunks(hundredth, 10_000_000 * (number + 1))
    places = rng.sample(range(len(lines)), 3 * hundredth // 4)
    replaced, removed = places[: hundredth // 2], set(places[hundredth // 2 :])
    lines = list(lines)
    for place in replaced:
        lines[place] = lines[place].split(' "text"')[0] + ' "text"' + fresh.pop().split(' "text"')[1]
    lines = [line for place, line in enumerate(lines) if place not in removed]
    for line in fresh[: len(removed)]:
        lines.insert(rng.randrange(len(lines)), line)
    return lines


def write(folder: Path, lines: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    partial = folder / "partial"
    partial.write_text("".join(lines))
    os.replace(partial, folder / "corpus.jsonl")
    time.sleep(2.1)  # so that digests of what has settled are remembered, as they usually are


def by_words(config: Config, folder: Path) -> tuple[Took, list[Took], list[Took], float]:
    """The first build, the updates, the middle query's time after each, and that of an index built anew."""
    lines, data = chunks(config.chunks, 0), folder / "words"
    write(data, lines)
    made = index.Config(collection=str(data), out=folder / "bm25")
    first, updates, asked = took(lambda: index.run(made)), [], []
    queries = [" ".join(f"w{word}" for word in np.random.default_rng(i).integers(10, 3000, 3)) for i in range(200)]
    for number in range(config.rounds):
        lines = changed(lines, number)
        write(data, lines)
        updates.append(took(lambda: index.run(made)))
        opened = BM25Index.load(made.out)
        asked.append(took(lambda opened=opened: [opened.search(query, 10) for query in queries]))
    anew = index.Config(collection=str(data), out=folder / "anew")
    index.run(anew)
    fresh = BM25Index.load(anew.out)
    answers: list[Any] = []
    seconds = took(lambda: answers.extend(fresh.search(query, 10) for query in queries))
    updated = BM25Index.load(made.out)
    assert [updated.search(query, 10) for query in queries] == answers
    return first, updates, asked, seconds.cpu / len(queries)


def by_vectors(config: Config, folder: Path) -> tuple[Took, list[Took], list[int]]:
    """The first encoding, the updates, and how many chunks each of these embedded."""
    lines, data = chunks(config.encoded, 0, 60), folder / "vectors"
    write(data, lines)
    made: dict[str, Any] = {"model": config.model, "collection": str(data)}
    store = folder / "store"
    first = took(lambda: encode.run(encode.Config(**made, out=store)))
    updates, embedded = [], []
    for number in range(config.rounds):
        lines = changed(lines, number)
        write(data, lines)
        updates.append(took(lambda: encode.run(encode.Config(**made, out=store, update=True))))
        embedded.append((read_manifest(store) or {})["results"]["embedded"])
    encode.run(encode.Config(**made, out=folder / "anew-store"))
    queries = np.random.default_rng(0).standard_normal((20, VectorReader(store).dim), dtype=np.float32)
    updated, anew = (FlatIndex(VectorReader(path)).find(queries, 10) for path in (store, folder / "anew-store"))
    assert [[hit.doc_id for hit in hits] for hits in updated] == [[hit.doc_id for hit in hits] for hits in anew]
    return first, updates, embedded


def row(name: str, first: Took, updates: list[Took], more: str) -> list[Any]:
    cpu, wall = (statistics.median(getattr(update, name) for update in updates) for name in Took._fields)
    shares = f"{cpu / first.cpu:.1%} | {wall / first.wall:.1%}".split(" | ")
    return [name, f"{first.cpu:.2f}", f"{cpu:.2f}", shares[0], f"{first.wall:.2f}", f"{wall:.2f}", shares[1], more]


def main(config: Config) -> None:
    under = conditions(None, packages=("numpy", "PyStemmer", "torch"))
    with tempfile.TemporaryDirectory() as name:
        rows = []
        if config.chunks:
            first, updates, asked, fresh = by_words(config, Path(name))
            ms = ", ".join(f"{1000 * each.cpu / 200:.2f}" for each in asked)
            more = f"ms a query after each update {ms}; built anew {1000 * fresh:.2f}"
            rows.append(row(f"BM25, {config.chunks:,} chunks", first, updates, more))
        if config.encoded:
            first, updates, embedded = by_vectors(config, Path(name))
            more = f"{', '.join(map(str, embedded))} of {config.encoded:,} embedded"
            rows.append(row(f"vectors, {config.encoded:,} chunks", first, updates, more))
    head = ["", "build, CPU s", "update of 1%, CPU s", "share", "build, wall s", "update, wall s", "share", ""]
    publish("Bringing an index up to date", under, [table(head, rows)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
