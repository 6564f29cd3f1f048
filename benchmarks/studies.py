"""The paper's studies at a small size: the recipes of recipes/studies as they are, on real text with tiny models.

    python benchmarks/wikiqa.py --pairs ../shared/data/wikiqa --out work/wikiqa
    python benchmarks/studies.py --wikiqa work/wikiqa --adi ../shared/data/adi --work work/studies

A new LLaMA of random weights is made for each size, so the numbers show that the studies run and what they print,
not how good such models can be: an epoch is 7 steps here, and the recipes warm up for 100. WikiQA stands for MS MARCO
passages and documents, its dev split for dev, DL19 and DL20 alike; ADI stands for each of BEIR's 13 sets. Groups are
BM25's mistakes on the training questions. What is done is not done again: an interrupted run goes on.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml
from measuring import ROOT, conditions, publish

from shortlist.progress import duration, say
from shortlist.recipe import run_recipe

STUDIES = ROOT / "recipes" / "studies"


@dataclass(frozen=True, kw_only=True)
class Config:
    wikiqa: Path
    """Collection with the splits train and dev."""
    adi: Path
    """Collection with the split test."""
    work: Path
    """Folder for everything that is made."""
    layers: int = 1
    """Of the 7B model's stand-in; the 13B model's has one more."""
    hidden: int = 32
    """Length of its hidden state."""
    out: Path | None = None
    """Markdown file to write too."""


def prepare(config: Config) -> dict[str, Any]:
    """Two backbones, and groups of the training questions."""
    wikiqa, work = str(config.wikiqa), config.work / "prepared"
    shape = {"stage": "init", "collection": wikiqa, "hidden": config.hidden, "heads": 2, "vocab_size": 4096}
    steps = {
        "backbone": {**shape, "layers": config.layers},
        "backbone-13b": {**shape, "layers": config.layers + 1},
        "bm25": {"stage": "index", "collection": wikiqa},
        "train-run": {"stage": "search", "index": "$bm25", "collection": wikiqa, "split": "train", "k": 100},
        "groups": {"stage": "mine", "runs": ["$train-run"], "collection": wikiqa, "split": "train", "negatives": 15},
    }
    run_recipe({"steps": steps}, work, where="the preparation")
    splits = dict.fromkeys(("dev", "dl19", "dl20"), "dev")
    made = {name: str(work / name) for name in ("backbone", "backbone-13b")}
    return {"collection": wikiqa, "groups": str(work / "groups" / "groups.jsonl"), **splits, **made}


def settings_of(study: str, small: dict[str, Any], config: Config) -> dict[str, Any]:
    """The study's own settings, with small models and data for those that name them."""
    recipe = yaml.safe_load((STUDIES / f"{study}.yaml").read_text("utf-8"))
    settings = recipe["settings"]
    changes = {name: value for name, value in small.items() if name in settings}
    for name, value in settings.items():
        if str(value).startswith("irds:beir/"):
            changes[name] = str(config.adi)
        elif str(value).startswith("runs/"):
            changes[name] = str(config.work / Path(value).relative_to("runs"))
    label = f"random LLaMA of {config.layers} layer, {config.hidden} dimensions, tuned on WikiQA"
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
        sections.append(f"## {path.name}: {table[0].removeprefix('# ')}\n\nIn {took}.\n\n{table[2].strip()}")
    publish(
        "The paper's studies, at a small size",
        under + "\n\n" + (__doc__ or "").split("\n\n")[2].strip(),
        sections,
        config.out,
    )


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
