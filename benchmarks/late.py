"""Late interaction beside one vector for a text: the same backbone, groups, steps and seeds.

    python benchmarks/late.py --backbone MINILM --work work/late --out benchmarks/late.md

Both learn from SciFact's training queries and from functions of installed packages, each query with its positive and
negatives of BM25. They search SciFact, the passages that first stages returned for DL19, and functions of the standard
library, none of whose queries they have seen. Differences are tested over queries (paired two-sided t-test, each
query's nDCG averaged over seeds, Holm-corrected over the rows of a collection). What is done is not done again: an
interrupted run goes on.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
import yaml
from measuring import ROOT, conditions, in_a_process, publish, quiet, table

from shortlist.data.collections import open_collection
from shortlist.data.files import folder_bytes
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run
from shortlist.evaluation.measure import per_query
from shortlist.math.significance import holm, paired_t_test
from shortlist.progress import say
from shortlist.recipe import run_recipe

KINDS: dict[str, dict[str, Any]] = {
    "retriever": {"learning_rate": 0.00005, "temperature": 0.05},
    "late": {"learning_rate": 0.00005, "temperature": 1.0},
}
"""Settings of each kind's training."""


@dataclass(frozen=True, kw_only=True)
class Config:
    backbone: str
    """Retriever to start from."""
    work: Path
    """Folder for everything that is made."""
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with `scifact` and `msmarco-dl19` in BEIR's layout."""
    seeds: int = 1
    """Trainings of each kind."""
    epochs: int = 1
    """Passes over the groups."""
    functions: int = 600
    """Queries of functions to learn from, beside SciFact's 809."""
    negatives: int = 3
    """Negatives of each query."""
    out: Path | None = None
    """Markdown file to write too."""


class Task(NamedTuple):
    """A collection that is searched."""

    collection: Path
    split: str
    level: int
    language: str


def tasks(config: Config) -> dict[str, Task]:
    """The collections by name."""
    functions = config.work / "prepared" / "test"
    return {
        "SciFact": Task(config.data / "scifact", "test", 1, "english"),
        "DL19": Task(config.data / "msmarco-dl19", "dl19_sub", 2, "english"),
        "functions": Task(functions, "test", 1, "code"),
    }


def prepare(config: Config) -> None:
    """Make the functions, and groups of both sources."""
    steps: dict[str, Any] = {
        "test": {"stage": "functions", "sources": "standard-library", "dev": 300},
        "train": {
            "stage": "functions",
            "sources": "installed",
            "apart_from": "$test",
            "max_pairs": 20000,
            "dev": 0,
            "mined": config.functions,
        },
    }
    sources = {"scifact": (str(config.data / "scifact"), "train", "english"), "functions": ("$train", "mined", "code")}
    for name, (collection, split, language) in sources.items():
        search = {"stage": "search", "collection": collection, "split": split, "k": 50}
        steps |= {
            f"{name}-words": {"stage": "index", "collection": collection, "language": language},
            f"{name}-words-run": {**search, "index": f"${name}-words"},
            f"{name}-groups": {
                "stage": "mine",
                "runs": [f"${name}-words-run"],
                "collection": collection,
                "split": split,
                "depth": 20,
                "negatives": config.negatives,
            },
        }
    run_recipe({"steps": steps}, config.work / "prepared", where="the preparation")
    made = config.work / "prepared"
    listed = {
        "scifact": {"collection": str(config.data / "scifact"), "groups": str(made / "scifact-groups/groups.jsonl")},
        "functions": {
            "collection": str(made / "train"),
            "split": "mined",
            "groups": str(made / "functions-groups/groups.jsonl"),
        },
    }
    (config.work / "sources.yaml").write_text(yaml.safe_dump(listed))


def train(config: Config, kind: str, seed: int) -> None:
    """Train one kind, and search all collections."""
    quiet()
    steps: dict[str, Any] = {
        "model": {
            "stage": "train",
            "kind": kind,
            "backbone": config.backbone,
            "sources": str(config.work / "sources.yaml"),
            "max_length": 160,
            "batch_size": 32,
            "warmup_steps": 5,
            "epochs": config.epochs,
            "seed": seed,
            **KINDS[kind],
        }
    }
    run_recipe({"steps": steps | searches(config, "$model")}, trained(config, kind, seed), where=f"{kind}, seed {seed}")


def searches(config: Config, model: str) -> dict[str, Any]:
    """Steps that encode and search every collection."""
    steps: dict[str, Any] = {}
    for name, task in tasks(config).items():
        steps[f"{name}-vectors"] = {"stage": "encode", "model": model, "collection": str(task.collection)}
        found = {"model": model, "vectors": f"${name}-vectors", "collection": str(task.collection), "k": 100}
        steps[f"{name}-run"] = {"stage": "search", "split": task.split, **found}
    return steps


def by_words(config: Config) -> dict[str, Any]:
    """Steps that search every collection with BM25."""
    steps: dict[str, Any] = {}
    for name, task in tasks(config).items():
        steps[f"{name}-words"] = {"stage": "index", "collection": str(task.collection), "language": task.language}
        found = {"index": f"${name}-words", "collection": str(task.collection), "split": task.split, "k": 100}
        steps[f"{name}-run"] = {"stage": "search", **found}
    return steps


def trained(config: Config, kind: str, seed: int) -> Path:
    """The folder of one training."""
    return config.work / f"{kind}-{seed}"


def main(config: Config) -> None:
    quiet()
    under, start = conditions(None), time.perf_counter()
    prepare(config)
    run_recipe({"steps": by_words(config)}, config.work / "words", where="BM25")
    run_recipe({"steps": searches(config, config.backbone)}, config.work / "backbone", where="the backbone")
    for seed in range(config.seeds):
        for kind in KINDS:
            in_a_process(train, config, kind, seed)
            say(f"seed {seed}, {kind}: done after {time.perf_counter() - start:.0f} s")
    publish("Late interaction beside one vector", under, [results(config)], config.out)


def results(config: Config) -> str:
    """The table of all rows."""
    rows = {"BM25": ["words"], "the backbone": ["backbone"]} | {
        f"{kind}, tuned": [f"{kind}-{seed}" for seed in range(config.seeds)] for kind in KINDS
    }
    cells: dict[str, list[str]] = {row: [row] for row in rows}
    for name, task in tasks(config).items():
        qrels = open_collection(str(task.collection)).qrels(task.split)
        values = {}
        for row, folders in rows.items():
            runs = [read_run(config.work / folder / f"{name}-run" / "run.trec") for folder in folders]
            each = [per_query(run, qrels, ["nDCG@10"], complete=True)["nDCG@10"] for run in runs]
            values[row] = np.mean([[one[query_id] for query_id in sorted(one)] for one in each], 0)
        last = values["late, tuned"]
        others = [row for row in rows if row != "late, tuned"]
        tested = dict(zip(others, holm([paired_t_test(last - values[row]) or 0.0 for row in others]), strict=True))
        for row, found in values.items():
            cells[row].append(f"{found.mean():.4f}" + (f" (p = {tested[row]:.3f})" if row in tested else ""))
    for kind in KINDS:
        folder = config.work / f"{kind}-0"
        made = (read_manifest(folder / "model") or {})["results"]
        stores = sum(folder_bytes(folder / f"{name}-vectors") for name in tasks(config)) / 2**20
        cells[f"{kind}, tuned"] += [
            f"{made['seconds']:.0f}",
            f"{made['peak_bytes'] / 2**30:.2f}",
            f"{stores:.0f}",
        ]
    columns = ["nDCG@10", *tasks(config), "training, s", "peak GiB", "stores, MiB"]
    filled = [[*row, *[""] * (len(columns) - len(row))] for row in cells.values()]
    return f"{config.seeds} seeds, {config.epochs} epochs; *p* against late interaction.\n\n{table(columns, filled)}"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
