"""Losses compared on the same groups, steps and seeds: nDCG@10 beside plain InfoNCE, with time and memory.

    python benchmarks/objectives.py functions --work work/functions --out benchmarks/objectives_functions.md
    python benchmarks/objectives.py scifact --data ../shared/data/scifact --backbone MINILM --work work/scifact

Each training starts from the same retriever and sees the same training queries, with their positive and hard
negatives of BM25 and of that retriever. The teacher whose scores some losses follow is the shipped reranker for
functions, and for SciFact, for whose texts there is no reranker here, both first stages together by z-scores.
`functions` is the demo's collection: functions of the standard library are searched, those of the packages installed
beside it teach. Differences are tested over queries (paired two-sided t-test, each query's nDCG averaged over seeds,
Holm-corrected over the rows). What is done is not done again: an interrupted run goes on.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from measuring import ROOT, conditions, in_a_process, publish, quiet, table, turns

from shortlist.data.collections import open_collection
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run
from shortlist.evaluation.measure import per_query
from shortlist.math.significance import holm, paired_t_test
from shortlist.progress import say
from shortlist.recipe import run_recipe

LOSSES = {
    "InfoNCE": ["infonce"],
    "InfoNCE, focal": ["infonce", "infonce.focal=0.5"],
    "RankNet": ["ranknet"],
    "LambdaRank": ["lambdarank"],
    "ListMLE of the teacher": ["listmle", "listmle.order=teacher"],
    "margin-MSE": ["margin_mse", "margin_mse.scale=10"],
    "KL": ["kl"],
    "KL + InfoNCE": ["kl", "infonce=0.2"],
    "margin-MSE + InfoNCE": ["margin_mse=0.05", "margin_mse.scale=20", "infonce"],
    "JS": ["js"],
    "PLD": ["pld"],
    "PLD + InfoNCE": ["pld=0.2", "infonce"],
    "PG-RANK": ["policy"],
}
"""Rows of the table, and what `--loss` says for each."""

TASKS: dict[str, dict[str, Any]] = {
    "functions": {
        "steps": {
            "test": {"stage": "functions", "sources": "standard-library", "dev": 300},
            "train": {
                "stage": "functions",
                "sources": "installed",
                "apart_from": "$test",
                "max_pairs": 6000,
                "dev": 0,
                "mined": 400,
            },
        },
        "split": "mined",
        "teacher": {"stage": "rerank", "model": "shortlist-mini", "run": "$fused", "depth": 10, "split": "mined"},
        "analyser": {"language": "code"},
        "training": {"max_length": 128, "learning_rate": 0.0002},
    },
    "scifact": {
        "steps": {},
        "split": "train",
        "teacher": {},
        "analyser": {},
        "training": {"max_length": 128, "learning_rate": 0.00003},
    },
}
"""What makes the collections, the split to learn from, and how to train, for each task."""


@dataclass(frozen=True, kw_only=True)
class Config:
    task: tyro.conf.Positional[Literal["functions", "scifact"]]
    """What to search."""
    work: Path
    """Folder for everything that is made."""
    data: Path = ROOT.parent / "shared" / "data" / "scifact"
    """SciFact in BEIR's layout, for that task."""
    backbone: str = "shortlist-mini"
    """Retriever to start from."""
    seeds: int = 3
    """Trainings of each row."""
    batch_size: int = 32
    """Queries of a step."""
    negatives: int = 7
    """Hard negatives of a query, at most the seven that are mined."""
    learning_rate: float | None = None
    """Learning rate (None: the task's)."""
    steps: int | None = None
    """Steps of each training (None: one pass over the groups)."""
    rows: tuple[str, ...] = tuple(LOSSES)
    """Rows to measure; the first is what the others are compared with."""
    out: Path | None = None
    """Markdown file to write too."""


def prepare(config: Config) -> None:
    """Make the collections, and groups with a teacher's scores."""
    task = TASKS[config.task]
    test, train = ("$test", "$train") if task["steps"] else (str(config.data),) * 2
    search = {"stage": "search", "collection": train, "split": task["split"], "k": 200}
    steps = task["steps"] | {
        "words": {"stage": "index", "collection": train, **task["analyser"]},
        "words-run": {**search, "index": "$words"},
        "vectors": {"stage": "encode", "model": config.backbone, "collection": train},
        "dense-run": {**search, "model": config.backbone, "vectors": "$vectors"},
        "fused": {"stage": "fuse", "runs": ["$words-run", "$dense-run"], "method": "zscore", "k": 200},
        **({"teacher": {**task["teacher"], "collection": train}} if task["teacher"] else {}),
        "groups": {
            "stage": "mine",
            "runs": ["$fused"],
            "teacher": "$teacher" if task["teacher"] else "$fused",
            "collection": train,
            "split": task["split"],
            "depth": 20,
            "negatives": 7,
        },
        "start": {"stage": "encode", "model": config.backbone, "collection": test},
        "start-run": {"stage": "search", "model": config.backbone, "vectors": "$start", "collection": test, "k": 100},
    }
    run_recipe({"steps": steps}, config.work / "prepared", where="the preparation")


def train(config: Config, row: str, seed: int) -> None:
    """Train with the losses of a row, and search the test queries."""
    quiet()
    task, prepared = TASKS[config.task], config.work / "prepared"
    test, learned = (prepared / "test", prepared / "train") if task["steps"] else (config.data,) * 2
    steps = {
        "model": {
            "stage": "train",
            "kind": "retriever",
            "backbone": config.backbone,
            "collection": str(learned),
            "split": task["split"],
            "groups": str(prepared / "groups" / "groups.jsonl"),
            "batch_size": config.batch_size,
            "negatives": config.negatives,
            "warmup_steps": 5,
            "temperature": None if row == "margin-MSE" else 0.05,
            "loss": LOSSES[row],
            "seed": seed,
            "steps": config.steps,
            **task["training"],
            **({} if config.learning_rate is None else {"learning_rate": config.learning_rate}),
        },
        "vectors": {"stage": "encode", "model": "$model", "collection": str(test)},
        "run": {"stage": "search", "model": "$model", "vectors": "$vectors", "collection": str(test), "k": 100},
    }
    run_recipe({"steps": steps}, trained(config, row, seed), where=f"{row}, seed {seed}")


def trained(config: Config, row: str, seed: int) -> Path:
    """The folder of one training."""
    return config.work / f"{row.lower().replace(', ', '-').replace(' + ', '-').replace(' ', '-')}-{seed}"


def main(config: Config) -> None:
    quiet()
    under, start = conditions(None), time.perf_counter()
    prepare(config)
    for seed in range(config.seeds):
        for row in next(turns(config.rows, 1)):
            in_a_process(train, config, row, seed)
            say(f"seed {seed}, {row}: done after {time.perf_counter() - start:.0f} s")
    publish(f"Losses compared: {config.task}", under, [results(config)], config.out)


def results(config: Config) -> str:
    """The table of all rows."""
    test = config.work / "prepared" / "test" if TASKS[config.task]["steps"] else config.data
    qrels = open_collection(str(test)).qrels("test")

    def values(run: Path) -> np.ndarray:
        by_query = per_query(read_run(run), qrels, ["nDCG@10"], complete=True)["nDCG@10"]
        return np.array([by_query[query_id] for query_id in sorted(by_query)])

    of_row = {
        row: np.mean([values(trained(config, row, seed) / "run" / "run.trec") for seed in range(config.seeds)], 0)
        for row in config.rows
    }
    first, *others = config.rows
    p_values = holm([paired_t_test(of_row[row] - of_row[first]) or 0.0 for row in others])
    start = values(config.work / "prepared" / "start-run" / "run.trec").mean()
    rows = [["before training", f"{start:.4f}", "", "", "", "", ""]]
    for row, p in zip(config.rows, [None, *p_values], strict=True):
        manifests = [read_manifest(trained(config, row, seed) / "model") or {} for seed in range(config.seeds)]
        each = [values(trained(config, row, seed) / "run" / "run.trec").mean() for seed in range(config.seeds)]
        seconds = np.median([manifest["results"]["seconds"] for manifest in manifests])
        peak = np.median([manifest["results"]["peak_bytes"] for manifest in manifests]) / 2**30
        mean = of_row[row].mean()
        tested = ["", ""] if p is None else [f"{mean - of_row[first].mean():+.4f}", f"{p:.3f}"]
        cells = [row, f"{mean:.4f}", f"{min(each):.4f}-{max(each):.4f}", *tested, f"{seconds:.0f}", f"{peak:.2f}"]
        rows.append(cells)
    columns = ["loss", "nDCG@10", "by seed", "difference", "p", "seconds", "peak GiB"]
    losses = json.dumps({row: " ".join(LOSSES[row]) for row in config.rows})
    return f"{len(qrels)} queries, {config.seeds} seeds. `--loss` of each row: `{losses}`\n\n{table(columns, rows)}"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
