"""The paper's studies at a small size: the recipes of recipes/studies as they are, on real text with small models.

    python benchmarks/studies.py --data ../shared/data --work work/studies --out benchmarks/studies.md

A new LLaMA of random weights is made for each size, so the numbers show that the studies run and what they print, not
how good such models can be. SciFact stands for MS MARCO, its test claims for dev, DL19 and DL20 alike; of BEIR's 13 sets
SciFact, Cranfield and ADI are there, in turn. Groups are BM25's mistakes on the training claims. What is done is not
done again: an interrupted run goes on.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml
from measuring import ROOT, conditions, publish

from shortlist.pipeline import run_recipe
from shortlist.progress import duration, say

STUDIES = ROOT / "recipes" / "studies"
SETS = ("scifact", "cranfield", "adi")


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with scifact/, cranfield/ and adi/."""
    work: Path
    """Folder for everything that is made."""
    layers: int = 2
    """Of the 7B model's stand-in; the 13B model's has one more."""
    hidden: int = 64
    """Length of its hidden state."""
    out: Path | None = None
    """Markdown file to write too."""


def prepare(config: Config) -> dict[str, Any]:
    """Two backbones, and groups of the training claims."""
    scifact, work = str(config.data / "scifact"), config.work / "prepared"
    shape = {"stage": "init", "collection": scifact, "hidden": config.hidden, "vocab_size": 4096}
    steps = {
        "backbone": {**shape, "layers": config.layers},
        "backbone-13b": {**shape, "layers": config.layers + 1},
        "bm25": {"stage": "index", "collection": scifact},
        "train-run": {"stage": "search", "index": "$bm25", "collection": scifact, "split": "train", "k": 100},
        "groups": {"stage": "mine", "runs": ["$train-run"], "collection": scifact, "split": "train", "negatives": 15},
    }
    run_recipe({"steps": steps}, work, where="the preparation")
    splits = dict.fromkeys(("dev", "dl19", "dl20"), "test")
    made = {name: str(work / name) for name in ("backbone", "backbone-13b")}
    return {"collection": scifact, "groups": str(work / "groups" / "groups.jsonl"), **splits, **made}


def settings_of(study: str, small: dict[str, Any], config: Config) -> dict[str, Any]:
    """The study's own settings, with small models and data for those that name them."""
    recipe = yaml.safe_load((STUDIES / f"{study}.yaml").read_text("utf-8"))
    settings = recipe["settings"]
    changes = {name: value for name, value in small.items() if name in settings}
    for number, (name, value) in enumerate(settings.items()):
        if str(value).startswith("irds:beir/"):
            changes[name] = str(config.data / SETS[number % len(SETS)])
        elif str(value).startswith("runs/"):
            changes[name] = str(config.work / Path(value).relative_to("runs"))
    label = f"LLaMA of {config.layers} layers, {config.hidden} dimensions, random weights tuned on SciFact"
    recipe["settings"] = settings | changes | ({"label": label} if "label" in settings else {})
    recipe["steps"]["table"]["label"] = label
    return recipe


def run(config: Config) -> None:
    """Run all five, and publish what they print."""
    under = conditions(None)
    small, sections = prepare(config), []
    for study in ("table1-passage", "table2-beir", "table3-document", "table4-full-or-lora", "figure2-lengths"):
        start = time.perf_counter()
        path = STUDIES / f"{study}.yaml"
        run_recipe(settings_of(study, small, config), config.work / study, where=str(path))
        took = duration(time.perf_counter() - start)
        say(f"{study}: {took}")
        table = (config.work / study / "table" / "table.md").read_text("utf-8").split("\n", 2)
        sections.append(f"## {path.name}: {table[0].removeprefix('# ')}\n\nIn {took}.\n{table[2].rstrip()}")
    publish(
        "The paper's studies, at a small size", under + "\n\n" + (__doc__ or "").split("\n\n")[2], sections, config.out
    )


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
