"""How fast a run is read and measured: shortlist beside ir_measures' reader and pytrec_eval, and the whole command.

    python benchmarks/evaluate_speed.py --out benchmarks/evaluate_speed.md

A made-up run as of MS MARCO's small dev set, 6,980 queries with 1,000 passages each, some 280 MB, and a judgement of
one or two passages for each query. Each side reads, or measures, in one process in turns, after a first time; the
values are compared. The command runs in a process of its own, imports and all, once with scores of one decimal, so that
most of them are tied and the document ids decide.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ir_measures
import numpy as np
import pytrec_eval
import tyro
from measuring import conditions, publish, rounds_of, table

from shortlist.data.formats import read_qrels, write_qrels
from shortlist.data.runs import read_run_columns
from shortlist.evaluation.measure import per_query
from shortlist.progress import say
from shortlist.records import Qrels

MEASURES = {"nDCG@10": "ndcg_cut_10", "RR": "recip_rank", "R@1000": "recall_1000", "AP": "map"}
"""Our names, and pytrec_eval's."""


@dataclass(frozen=True, kw_only=True)
class Config:
    queries: int = 6980
    """Queries of the run."""
    depth: int = 1000
    """Passages of each."""
    rounds: int = 3
    """Times every side runs, after one run to warm up."""
    out: Path | None = None
    """Markdown file to write too."""


def make(folder: Path, config: Config) -> tuple[Path, Path, Path]:
    """Write the run, the same with rounded scores, and the judgements."""
    rng = np.random.default_rng(0)
    paths = folder / "run.trec", folder / "rounded.trec", folder / "qrels.tsv"
    qrels: Qrels = {}
    with open(paths[0], "w", encoding="ascii") as exact, open(paths[1], "w", encoding="ascii") as rounded:
        for query in range(config.queries):
            query_id, found = str(1_000_000 + query), rng.choice(8_841_823, config.depth, replace=False).tolist()
            scores = (80 + 10 * np.sort(rng.random(config.depth))[::-1]).tolist()
            for rank, (passage, score) in enumerate(zip(found, scores, strict=True), 1):
                exact.write(f"{query_id} Q0 {passage} {rank} {score:.6f} made-up\n")
                rounded.write(f"{query_id} Q0 {passage} {rank} {round(score, 1)} made-up\n")
            relevant = [*rng.choice(found[:50], 1), rng.integers(8_841_823)]
            qrels[query_id] = {str(passage): 1 for passage in relevant[: 1 + query % 2]}
    write_qrels(paths[2], qrels)
    return paths


def measure(config: Config, run: Path, qrels: Qrels) -> list[str]:
    """The rows of both comparisons."""
    columns = read_run_columns(run)
    scored = {
        query_id: {hit.doc_id: hit.score for hit in columns.hits(number)}
        for number, query_id in enumerate(columns.query_ids)
    }
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(MEASURES.values()))
    reading = {
        "ir_measures.read_trec_run": lambda: sum(1 for _ in ir_measures.read_trec_run(str(run))),
        "shortlist": lambda: len(read_run_columns(run).scores),
    }
    measuring = {
        "pytrec_eval": lambda: evaluator.evaluate(scored),
        "shortlist": lambda: per_query(columns, qrels, list(MEASURES)),
    }
    ours, theirs = measuring["shortlist"](), measuring["pytrec_eval"]()
    largest = max(
        abs(ours[name][query_id] - values[their_name])
        for name, their_name in MEASURES.items()
        for query_id, values in theirs.items()
    )
    if largest > 1e-12:
        raise SystemExit(f"the values differ from pytrec_eval's by {largest:.1e}.")
    title = f"{len(columns.scores):,} hits of {config.queries:,} queries"
    return [
        f"## Reading: {title}\n\n{_compare(reading, config.rounds)}",
        f"## Measuring ({', '.join(MEASURES)}): {title}\n\n{_compare(measuring, config.rounds)}\n\n"
        f"Largest difference of a value: {largest:.1e}.",
    ]


def _compare(sides: dict[str, Callable[[], object]], rounds: int) -> str:
    times = rounds_of(sides, rounds)
    peer = next(iter(sides))
    medians = {name: statistics.median(each) for name, each in times.items()}
    rows = [
        [name, f"{medians[name]:.2f}", f"{min(each):.2f}-{max(each):.2f}", f"{medians[peer] / medians[name]:.1f}"]
        for name, each in times.items()
    ]
    return table(["", "median s", "fastest-slowest", f"x {peer}"], rows)


def command(config: Config, runs: dict[str, Path], qrels: Path) -> str:
    """Seconds and peak memory of the whole command."""
    rows = []
    for name, run in runs.items():
        times, peaks = [], []
        for _ in range(config.rounds):
            words = [sys.executable, "-m", "shortlist", "evaluate", "--runs", str(run), "--qrels", str(qrels)]
            start = time.perf_counter()
            process = subprocess.Popen([*words, "--measures", *MEASURES], stdout=subprocess.DEVNULL)
            peaks.append(_peak(process))
            times.append(time.perf_counter() - start)
        rows.append(
            [name, f"{statistics.median(times):.2f}", f"{min(times):.2f}-{max(times):.2f}", f"{max(peaks):.2f}"]
        )
        say(f"command, {name}: {statistics.median(times):.2f} s")
    return f"## The command\n\n{table(['run', 'median s', 'fastest-slowest', 'peak GiB'], rows)}"


def _peak(process: subprocess.Popen) -> float:
    """Wait for the end of a process; the most memory that it was seen to hold, GiB."""
    peak = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text("utf-8").split("\n")
            peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))])
        except OSError:
            break
        time.sleep(0.01)
    if process.wait():
        raise SystemExit("the command failed, as said above.")
    return peak / 2**20


def run(config: Config) -> None:
    """Make the files, measure, publish."""
    under = conditions(None, packages=("numpy", "pyarrow", "ir-measures", "pytrec-eval-terrier"))
    with tempfile.TemporaryDirectory() as scratch:
        exact, rounded, judgements = make(Path(scratch), config)
        sections = measure(config, exact, read_qrels(judgements))
        runs = {"six decimals": exact, "rounded, most scores tied": rounded}
        sections.append(command(config, runs, judgements))
    publish("Reading and measuring a run", under, sections, config.out)


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
