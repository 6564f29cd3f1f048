"""Command `demo`: a whole search system, fine-tuned and measured on this machine's own Python."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from shortlist.ask import DEMO_FOLDER, show
from shortlist.config import load_yaml
from shortlist.data.files import atomic_write
from shortlist.data.manifest import read_manifest
from shortlist.late import late
from shortlist.pipeline import Pipeline
from shortlist.pipeline.flags import Sources, from_flags
from shortlist.pipeline.spec import written
from shortlist.recipe import run_recipe

EXAMPLES = ("parse an ISO date", "remove a directory and everything in it", "split a string the way a shell would")
bf16_pays = late("models.kernels.linear", "bf16_pays")
HITS = 3
DEPTH = 30
"""Number of documents that are reranked, in the recipe and in pipeline.yaml."""


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path = DEMO_FOLDER
    """Folder for the collections, models, runs and results; continued where it left off."""
    from_scratch: bool = False
    """Train both models from random weights, not from the pair shortlist-mini."""


def make_recipe(config: Config) -> dict[str, Any]:
    """Return the demo's recipe with the precision that suits this machine.

    The precision is measured once per folder.
    """
    recipe = _packaged("recipe.yaml")
    before = config.out / "recipe.yaml"
    known = load_yaml(before).get("settings", {}).get("precision") if before.is_file() else None
    recipe["settings"]["precision"] = known or ("bf16" if bf16_pays() else "fp32")
    if config.from_scratch:
        other, steps = _packaged("from-scratch.yaml"), recipe["steps"]
        collections = {name: steps.pop(name) for name in ("test", "train")}
        recipe = {"settings": recipe["settings"] | other["settings"], "steps": collections | other["steps"] | steps}
    return recipe


def _packaged(name: str) -> dict[str, Any]:
    return yaml.safe_load(files("shortlist.demo").joinpath(name).read_text("utf-8"))


def run(config: Config) -> None:
    """Build the system, train and measure it, and show examples."""
    out = config.out
    run_recipe(make_recipe(config), out, where="the demo's recipe")
    results = json.loads((out / "results" / "results.json").read_text("utf-8"))
    with atomic_write(out / "results.json") as file:
        json.dump(results, file, indent=2)
    explain(out)
    show_examples(out)


def explain(out: Path) -> None:
    """Print what was searched, and what the rows of the tables are made of."""
    test, train = (_results(out / name) for name in ("test", "train"))
    print(
        f"Searched: {test['functions']:,} functions of the standard library, {test['queries']} queries. Learnt from: "
        f"{train['train']:,} pairs of the packages beside it, nothing like the former "
        f"({train['test_summaries'] + train['test_bodies']:,} left out)."
    )
    words, dense = _results(out / "hybrid-run" / "run.trec")["weights"]
    print(f"Hybrid: the BM25 that splits identifiers and RepLLaMA, {words:g} : {dense:g} by their z-scores.")
    print(
        f"RankLLaMA reorders the first {DEPTH}. Behind a comma: how much the first stage's z-scores and its own count. "
        f"All such weights are chosen on {test['dev']} other queries."
    )


def _results(out: Path) -> Mapping[str, Any]:
    return (read_manifest(out) or {})["results"]


def show_examples(out: Path) -> None:
    """Print what a few questions find, and how to ask more.

    The pipeline for further questions is written to pipeline.yaml.
    """
    at = out.resolve()
    weights = tuple(_results(out / "hybrid-run" / "run.trec")["weights"])
    sources = Sources(
        index=(at / "bm25-code",),
        model=str(at / "repllama"),
        vectors=at / "vectors",
        fusion="zscore",
        weights=weights,
    )
    share = _results(out / "hybrid-mixed-run" / "run.trec")["weights"][1]
    second = {"reranker": str(at / "rankllama"), "depth": DEPTH, "reranker_share": share} if share else {}
    description = from_flags(sources, collection=str(at / "test"), **second)
    with atomic_write(out / "pipeline.yaml") as file:
        yaml.safe_dump(written(description), file, sort_keys=False)
    pipeline = Pipeline.open(description)
    for example in EXAMPLES:
        print(f"\n> {example}")
        show(pipeline.answer([example], HITS)[0])
    folder = "" if out == DEMO_FOLDER else f" --demo-folder {shlex.quote(str(out))}"
    print(f'\nAsk it yourself:  shortlist ask --demo "parse an ISO date"{folder}')
