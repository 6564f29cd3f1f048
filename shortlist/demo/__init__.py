"""Command `demo`: a whole search system, trained and measured on this machine's own Python."""

import json
import shlex
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.resources import files
from pathlib import Path
from sys import version
from typing import Any

import yaml

from shortlist import search
from shortlist.config import from_settings
from shortlist.data.collections import open_collection
from shortlist.data.files import atomic_write
from shortlist.data.manifest import start_job
from shortlist.functions.sources import build_test, build_train
from shortlist.models.linear import bf16_pays
from shortlist.progress import say
from shortlist.recipe import run_recipe
from shortlist.search import DEMO_FOLDER, open_index, print_hits

EXAMPLES = ("parse an ISO date", "remove a directory and everything in it", "split a string the way a shell would")
HITS = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path = DEMO_FOLDER
    """Folder for the collections, models, runs and results; continued where it left off."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the collections are made with; a job of its own, since no stage but the demo makes them."""

    out: Path
    overwrite: bool = False


def build_collections(out: Path) -> str:
    """Write the collections `test` and `train`, unless they are there and made from the Python of today.

    Returns:
        The precision to train with on this machine, chosen once.
    """
    installed = sorted(f"{d.name}=={d.version}" for d in distributions())
    inputs = {"python": version, "packages": installed}
    job = start_job(Sources(out=out, overwrite=True), stage="demo", inputs=inputs, folder=True)
    precision = job.decide("precision", lambda: "bf16" if bf16_pays() else "fp32")
    if job.done:
        return precision
    test = build_test(out / "test")
    train = build_train(out / "train", test=out / "test")
    say(
        f"demo: {test['functions']:,} functions to search, {test['queries']} queries; "
        f"{train['pairs']:,} pairs to learn from, {train['test_summaries'] + train['test_bodies']} like the "
        "standard library's left out."
    )
    job.finish(test=test, train=train)
    return precision


def run(config: Config) -> None:
    """Build, train, measure, and show."""
    out = config.out
    precision = build_collections(out / "collections")
    recipe = yaml.safe_load(files("shortlist.demo").joinpath("recipe.yaml").read_text("utf-8"))
    recipe["settings"] |= {name: str(out / "collections" / name) for name in ("test", "train")}
    recipe["settings"]["precision"] = precision
    run_recipe(recipe, out, where="the demo's recipe")
    results = json.loads((out / "results" / "results.json").read_text("utf-8"))
    with atomic_write(out / "results.json") as file:
        json.dump(results, file, indent=2)
    explain(results)
    show_examples(out)


def explain(results: dict[str, Any]) -> None:
    """Say what the table does not: what the hybrid is made of, and what to expect of the reranker."""
    rows = {row["name"]: row for row in results["rows"]}
    change = rows["Hybrid + RankLLaMA"]["MRR@10"] - rows["Hybrid"]["MRR@10"]
    verb = "adds" if change >= 0 else "takes away"
    print("Hybrid: RepLLaMA and the BM25 that splits identifiers, fused by reciprocal rank.")
    print(f"RankLLaMA {verb} {abs(change):.3f} MRR@10 on the hybrid: a reranker wants more training than minutes.")


def show_examples(out: Path) -> None:
    """Print what a few questions find, and how to ask more; leaves the settings for that in search.yaml."""
    settings = {"collection": "collections/test", "index": "bm25-code", "model": "repllama", "vectors": "vectors"}
    settings = {name: str(out.resolve() / place) for name, place in settings.items()}
    with atomic_write(out / "search.yaml") as file:
        yaml.safe_dump(settings, file, sort_keys=False)
    index = open_index(from_settings(search.Config, settings, where="the demo's search.yaml"))
    collection = open_collection(settings["collection"])
    for example in EXAMPLES:
        print(f"\n> {example}")
        print_hits(collection, index, example, k=HITS)
    where = "" if out == DEMO_FOLDER else f" --demo-folder {shlex.quote(str(out))}"
    print(f'\nSearch by hand:  shortlist search --demo "parse an ISO date"{where}')
