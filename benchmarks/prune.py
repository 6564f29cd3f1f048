"""Training groups chosen by `shortlist prune` beside as many random ones and beside all: nDCG@10 of what they teach.

    python benchmarks/prune.py --groups GROUPS --data ../shared/data/scifact --backbone MINILM --work work/prune \
        --out benchmarks/prune.md

GROUPS have a query of the collection's training split each; those of SciFact are made by
`python benchmarks/objectives.py scifact`, in its folder prepared/groups. Some of them, drawn once, are set aside as
what `prune --dev-groups` gets better at; no row trains on them. Every training starts from the same retriever and takes
the same steps, so that fewer groups are seen more often. Random groups are drawn anew with each seed; the others stay,
and the seed only changes their order. Texts are cut for trained models, not before training. Differences are tested
over queries (paired two-sided t-test, each query's nDCG averaged over seeds, Holm-corrected over the rows) and the
table has the range of the seeds too. What is done is not done again: an interrupted run goes on.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from measuring import ROOT, conditions, in_a_process, publish, quiet, table

from shortlist.data.collections import open_collection
from shortlist.data.groups import open_groups, write_groups
from shortlist.data.runs import read_run
from shortlist.evaluation.measure import per_query
from shortlist.math.significance import holm, paired_t_test
from shortlist.progress import say
from shortlist.recipe import run_recipe

RANDOM = "random"
ROWS: dict[str, dict[str, Any] | None] = {
    RANDOM: None,
    "prune by effort": {},
    "prune by influence and effort": {"dev_groups": "dev.jsonl"},
    "all": None,
}
"""Rows of the table, and the settings of `prune` for those that it chooses; the others are compared with the first."""


@dataclass(frozen=True, kw_only=True)
class Config:
    groups: Path
    """Training groups."""
    work: Path
    """Folder for everything that is made."""
    data: Path = ROOT.parent / "shared" / "data" / "scifact"
    """Collection in BEIR's layout, with splits train and test."""
    backbone: str = "shortlist-mini"
    """Retriever to start from, which also scores the groups."""
    share: float = 0.2
    """Share of the groups to train on."""
    dev: int = 100
    """Groups to set aside."""
    seeds: int = 5
    """Trainings of each row."""
    steps: int = 40
    """Steps of each training."""
    batch_size: int = 16
    """Queries of a step."""
    negatives: int = 4
    """Hard negatives of a query."""
    max_length: int = 128
    """Most tokens of a text."""
    learning_rate: float = 3e-5
    """Learning rate."""
    out: Path | None = None
    """Markdown file to write too."""


def choose(config: Config) -> dict[str, int]:
    """Write the groups of all rows, and return how many each has."""
    groups, prepared = list(open_groups(str(config.groups)).groups), config.work / "prepared"
    order = np.random.default_rng(0).permutation(len(groups)).tolist()
    dev, rest = order[: config.dev], sorted(order[config.dev :])
    size = round(config.share * len(rest))
    write_groups(prepared / "dev.jsonl", [groups[number] for number in dev])
    write_groups(prepared / "all.jsonl", [groups[number] for number in rest])
    for seed in range(config.seeds):
        some = np.random.default_rng(1 + seed).choice(rest, size=size, replace=False).tolist()
        write_groups(prepared / f"random-{seed}.jsonl", [groups[number] for number in some])
    common = {"stage": "prune", "groups": str(prepared / "all.jsonl"), "collection": str(config.data), "size": size}
    steps = {
        slug(row): {**common, "model": config.backbone, "split": "train"}
        | ({"dev_groups": str(prepared / how["dev_groups"])} if how else {})
        for row, how in ROWS.items()
        if how is not None
    }
    corpus = {"stage": "encode", "model": config.backbone, "collection": str(config.data)}
    search = {"stage": "search", "collection": str(config.data), "k": 100}
    start = {"start": corpus, "start-run": {**search, "model": config.backbone, "vectors": "$start"}}
    run_recipe({"steps": steps | start}, prepared, where="the preparation")
    return {row: len(open_groups(str(groups_of(config, row, 0))).groups) for row in ROWS}


def groups_of(config: Config, row: str, seed: int) -> Path:
    """The groups that a row trains on."""
    prepared = config.work / "prepared"
    if ROWS[row] is not None:
        return prepared / slug(row) / "groups.jsonl"
    return prepared / (f"random-{seed}.jsonl" if row == RANDOM else "all.jsonl")


def train(config: Config, row: str, seed: int) -> None:
    """Train on the groups of a row, and search the test queries."""
    quiet()
    steps = {
        "model": {
            "stage": "train",
            "kind": "retriever",
            "backbone": config.backbone,
            "collection": str(config.data),
            "split": "train",
            "groups": str(groups_of(config, row, seed)),
            "batch_size": config.batch_size,
            "negatives": config.negatives,
            "max_length": config.max_length,
            "learning_rate": config.learning_rate,
            "temperature": 0.05,
            "warmup_steps": 5,
            "steps": config.steps,
            "seed": seed,
        },
        "vectors": {"stage": "encode", "model": "$model", "collection": str(config.data)},
        "run": {"stage": "search", "model": "$model", "vectors": "$vectors", "collection": str(config.data), "k": 100},
    }
    run_recipe({"steps": steps}, trained(config, row, seed), where=f"{row}, seed {seed}")


def trained(config: Config, row: str, seed: int) -> Path:
    """The folder of one training."""
    return config.work / f"{slug(row)}-{seed}"


def slug(row: str) -> str:
    """The name of a row in paths."""
    return row.replace(" ", "-")


def results(config: Config, sizes: dict[str, int]) -> str:
    """The table of all rows."""
    qrels = open_collection(str(config.data)).qrels("test")

    def values(run: Path) -> np.ndarray:
        by_query = per_query(read_run(run), qrels, ["nDCG@10"], complete=True)["nDCG@10"]
        return np.array([by_query[query_id] for query_id in sorted(by_query)])

    of_row = {
        row: [values(trained(config, row, seed) / "run" / "run.trec") for seed in range(config.seeds)] for row in ROWS
    }
    means = {row: np.mean(each, 0) for row, each in of_row.items()}
    others = [row for row in ROWS if row != RANDOM]
    p_values = holm([paired_t_test(means[row] - means[RANDOM]) or 0.0 for row in others])
    tested = {
        row: [f"{(means[row] - means[RANDOM]).mean():+.4f}", f"{p:.3f}"]
        for row, p in zip(others, p_values, strict=True)
    }
    start = values(config.work / "prepared" / "start-run" / "run.trec").mean()
    rows = [["before training", "", f"{start:.4f}", "", "", ""]]
    for row, each in of_row.items():
        by_seed = [value.mean() for value in each]
        cells = [row, f"{sizes[row]:,}", f"{means[row].mean():.4f}", f"{min(by_seed):.4f}-{max(by_seed):.4f}"]
        rows.append([*cells, *tested.get(row, ["", ""])])
    columns = ["groups", "number", "nDCG@10", "by seed", "difference", "p"]
    return f"{len(qrels)} queries, {config.seeds} seeds, {config.steps} steps.\n\n{table(columns, rows)}"


def main(config: Config) -> None:
    quiet()
    under, start = conditions(None), time.perf_counter()
    sizes = choose(config)
    for seed in range(config.seeds):
        for row in ROWS:
            in_a_process(train, config, row, seed)
            say(f"seed {seed}, {row}: done after {time.perf_counter() - start:.0f} s")
    publish("Groups chosen by prune", under, [results(config, sizes)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
