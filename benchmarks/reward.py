"""Does training by reward beat the model it starts from? A reranker's rankings, and a language model's labels.

    python benchmarks/reward.py --wikiqa data/wikiqa --library runs/asking/library --bm25 runs/asking/bm25 \
        --work work/reward --out benchmarks/reward.md

The shipped reranker, which has read nothing but code, learns WikiQA's questions (`benchmarks/wikiqa.py` makes the
collection) by the rewards of rankings that it samples, and by InfoNCE from the same groups; it orders BM25's first 20
for the questions of the other split. The shipped language model learns to name the best of three functions, by
Rank-R1's reward of the exact label, from the queries of the library's split `dev`; it orders BM25's first 10 for those
of `test`, in one order. What is done is not done again: an interrupted run goes on.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from measuring import conditions, publish, quiet, table

from shortlist.data.manifest import read_manifest
from shortlist.recipe import run_recipe
from shortlist.train.log import read_log

ROWS: dict[str, dict[str, Any]] = {
    "InfoNCE": {"loss": ["infonce"]},
    "nDCG@10, PG-RANK": {"reward": "ndcg,samples=16"},
    "nDCG@10, DPO with an anchor (HyPO)": {"reward": "ndcg,samples=16", "policy": "dpo", "loss": ["anchor=0.1"]},
}
"""What each training of the reranker adds to the same settings."""
MEASURED = ("reward", "kl", "entropy", "answer_length", "malformed")


@dataclass(frozen=True, kw_only=True)
class Config:
    wikiqa: Path
    """WikiQA as a collection."""
    work: Path
    """Folder for everything that is made."""
    library: Path | None = None
    """The standard library's functions, from recipes/shortlist-mini/asking.yaml (None: WikiQA alone)."""
    bm25: Path | None = None
    """Their index, from the same recipe."""
    labels: int = 80
    """Steps of the language model."""
    out: Path | None = None
    """Markdown file to write too."""


def questions(collection: str) -> dict[str, Any]:
    """Train the reranker for WikiQA in several ways, and measure all on the other split."""
    common = {"stage": "train", "kind": "reranker", "backbone": "shortlist-mini", "collection": collection}
    common |= {"groups": "$groups", "max_length": 128, "negatives": 7, "batch_size": 16, "epochs": 1}
    common |= {"learning_rate": 0.0003, "warmup_steps": 5, "processes": 1}
    searched = {"stage": "search", "index": "$bm25", "collection": collection}
    reranked = {"stage": "rerank", "run": "$words", "collection": collection, "split": "dev", "depth": 20}
    steps: dict[str, Any] = {
        "bm25": {"stage": "index", "collection": collection},
        "found": {**searched, "split": "train", "k": 30},
        "groups": {"stage": "mine", "runs": ["$found"], "collection": collection, "depth": 30, "negatives": 12},
        "words": {**searched, "split": "dev", "k": 20},
        "start": {**reranked, "model": "shortlist-mini"},
    }
    for number, own in enumerate(ROWS.values()):
        steps |= {f"trained-{number}": common | own, f"run-{number}": {**reranked, "model": f"$trained-{number}"}}
    runs = ["$start", "$words", *(f"$run-{number}" for number in range(len(ROWS)))]
    names = ["before training", "BM25", *ROWS]
    measured = {"stage": "evaluate", "collection": collection, "split": "dev", "measures": ["nDCG@10", "MRR@10"]}
    return {"steps": steps | {"results": {**measured, "runs": runs, "names": names}}}


def labels(config: Config) -> dict[str, Any]:
    """Train the language model to name the best of three functions, and measure it on the other split."""
    collection, index = str(config.library), str(config.bm25)
    training = {"stage": "train", "kind": "reranker", "backbone": "shortlist-mini", "collection": collection}
    training |= {"split": "dev", "reward": "label", "prompt": "setwise", "negatives": 2, "batch_size": 8}
    training |= {"steps": config.labels, "learning_rate": 0.0001, "warmup_steps": 5, "processes": 1}
    asked = {"stage": "rerank", "method": "setwise", "window": 3, "depth": 10, "top": 5, "run": "$words"}
    asked |= {"collection": collection, "split": "test"}
    steps = {
        "words": {"stage": "search", "index": index, "collection": collection, "split": "test", "k": 20},
        "trained": training,
        "start": {**asked, "model": "shortlist-mini"},
        "after": {**asked, "model": "$trained"},
        "results": {
            "stage": "evaluate",
            "runs": ["$start", "$words", "$after"],
            "names": ["before training", "BM25", "exact label, GRPO"],
            "collection": collection,
            "split": "test",
            "measures": ["nDCG@10", "MRR@10"],
        },
    }
    return {"steps": steps}


def section(title: str, folder: Path, trained: dict[str, str]) -> str:
    """The table of one collection; p compares each row with the model before training."""
    results = json.loads((folder / "results" / "results.json").read_text("utf-8"))
    rows = []
    for row in results["rows"]:
        p = row["difference"]["nDCG@10"]["t_test_holm"] if row.get("difference") else None
        chance = "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
        found = (read_manifest(folder / trained[row["name"]]) or {})["results"] if row["name"] in trained else {}
        spent = [str(found.get("step", "")), str(found.get("seconds", ""))]
        rows.append([row["name"], f"{row['nDCG@10']:.4f}", f"{row['MRR@10']:.4f}", chance, *spent])
    columns = ["", "nDCG@10", "MRR@10", "p", "steps", "seconds"]
    return f"## {title}\n\n{results['queries']} queries.\n\n{table(columns, rows)}"


def course(title: str, folder: Path, parts: int = 4) -> str:
    """What the log says of a training, as means over parts of it."""
    log = read_log(folder)
    size = len(log) // parts
    names = [name for name in MEASURED if name in log[0]]
    rows = []
    for start in range(0, size * parts, size):
        part = log[start : start + size]
        rows.append([f"{start + 1}-{start + size}", *(f"{sum(r[n] for r in part) / size:.3f}" for n in names)])
    return f"{title}, means over steps:\n\n{table(['steps', *names], rows)}"


def main(config: Config) -> None:
    quiet()
    under = conditions(None)
    run_recipe(questions(str(config.wikiqa)), config.work / "wikiqa", where="wikiqa")
    if config.library:
        run_recipe(labels(config), config.work / "labels", where="labels")
    trained = {name: f"trained-{number}" for number, name in enumerate(ROWS)}
    sections = [
        section("WikiQA: the shipped reranker", config.work / "wikiqa", trained),
        course("PG-RANK", config.work / "wikiqa" / "trained-1"),
        "Seconds are of training, beside whatever else the machine did. p compares with the model before training.",
    ]
    if config.library:
        named = {"exact label, GRPO": "trained"}
        title = "The standard library: the shipped language model, sets of three"
        sections[2:2] = [section(title, config.work / "labels", named)]
        sections[3:3] = [course("The exact label", config.work / "labels" / "trained")]
    publish("Training by reward, against the model it starts from", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
