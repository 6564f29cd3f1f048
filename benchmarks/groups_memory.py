"""Memory and time of opening large files of groups for training, and of drawing batches from them.

    python benchmarks/groups_memory.py --lines 1000000 10000000 --out benchmarks/groups_memory.md

Made-up groups of 8 negatives, each with a query and a judgement of its own in a BEIR folder, whose corpus is small.
Each size is opened in a process of its own; "in memory" keeps groups and queries as Python objects, for comparison.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from measuring import conditions, in_a_process, peak_gib, publish, quiet, table

from shortlist.data import groups as groups_module
from shortlist.settings.train import Config as Training
from shortlist.train.build import collect_parts
from shortlist.train.mixture import Mixture

DOCUMENTS = 1000
STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Config:
    lines: tuple[int, ...] = (1_000_000, 10_000_000)
    """Numbers of groups on disk."""
    held: tuple[int, ...] = (100_000, 1_000_000)
    """Numbers of groups in memory."""
    out: Path | None = None
    """Markdown file to write too."""


def write(folder: Path, count: int) -> None:
    """A collection, and groups of its queries."""
    (folder / "qrels").mkdir(parents=True)
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"_id": f"d{i}", "text": f"text {i}"}) + "\n" for i in range(DOCUMENTS))
    negatives = [json.dumps([f"d{(i + j) % DOCUMENTS}" for j in range(1, 9)]) for i in range(DOCUMENTS)]
    with (
        open(folder / "queries.jsonl", "w", encoding="utf-8") as queries,
        open(folder / "qrels" / "train.tsv", "w", encoding="utf-8") as qrels,
        open(folder / "groups.jsonl", "w", encoding="utf-8") as groups,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for i in range(count):
            doc = i % DOCUMENTS
            queries.write(f'{{"_id": "q{i}", "text": "what is the question with the number {i}"}}\n')
            qrels.write(f"q{i}\td{doc}\t1\n")
            groups.write(f'{{"query_id": "q{i}", "positives": ["d{doc}"], "negatives": {negatives[doc]}}}\n')


def opened(folder: Path, *, on_disk: bool) -> tuple[float, float, float, float]:
    """GiB before and at most, seconds to open, and milliseconds for a batch of 128 groups."""
    groups_module.STORED_BYTES = 1 if on_disk else 1 << 62
    before, start = peak_gib(), time.perf_counter()
    names = {"collection": str(folder), "groups": str(folder / "groups.jsonl"), "backbone": "", "out": folder / "out"}
    config = Training(kind="retriever", steps=STEPS, negatives=7, **names)
    mixture = Mixture(config, collect_parts(config))
    assert mixture.relevant
    seconds, start = time.perf_counter() - start, time.perf_counter()
    num_queries = sum(len(batch.queries) for _, batch in mixture.batches(range(STEPS)))
    assert num_queries == STEPS * config.batch_size
    return before, peak_gib(), seconds, (time.perf_counter() - start) / STEPS * 1000


def main(config: Config) -> None:
    quiet()
    under = conditions(None, packages=("numpy",))
    rows: list[list[str]] = []
    for on_disk, counts in ((False, config.held), (True, config.lines)):
        for count in counts:
            with tempfile.TemporaryDirectory() as name:
                write(Path(name), count)
                size = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file()) / 2**30
                before, most, seconds, milliseconds = in_a_process(opened, Path(name), on_disk=on_disk)
            where = "on disk" if on_disk else "in memory"
            per_group = (most - before) * 2**30 / count
            rows.append(
                [
                    f"{count:,}",
                    where,
                    f"{size:.2f}",
                    f"{most:.2f}",
                    f"{per_group:,.0f}",
                    f"{seconds:,.0f}",
                    f"{milliseconds:.1f}",
                ]
            )
    columns = ["groups", "kept", "files, GiB", "peak RSS, GiB", "bytes per group", "opening, s", "a batch of 128, ms"]
    publish("Memory of large files of groups", under, [table(columns, rows)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
