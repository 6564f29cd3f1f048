"""Does it help to tune a pair on queries that a machine has made? Functions without docstrings, asked about by people.

    python benchmarks/own_functions.py --cosqa ../shared/data/cosqa --minilm MINILM --work work/own \
        --out benchmarks/own_functions.md

`recipes/own-collection.yaml` tunes shortlist-mini for the functions of the standard library and for those of CoSQA,
both without their docstrings, with queries by shortlist-mini/language-model. No query of a person and no docstring is
learned from. It is measured on CoSQA's web questions, which people asked, and on the demo's test split, where a
function's own docstring asks. What is done is not done again: an interrupted run goes on.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from measuring import ROOT, conditions, publish, quiet, table

from shortlist.data.formats import read_corpus, write_corpus
from shortlist.data.manifest import read_manifest
from shortlist.recipe import run_recipe

DOCSTRING = re.compile(r"\A(.*?:[^\n]*\n\s*?)[ \t]*[rRuU]?(\"\"\".*?\"\"\"|\'\'\'.*?\'\'\')[ \t]*\n", re.DOTALL)
"""A function's head, then its docstring; CoSQA's functions do not all parse."""
RUNS = ("words", "dense", "tuned", "before", "after", "before-reranked", "after-reranked")
NAMES = (
    "BM25 (identifiers split)",
    "shortlist-mini",
    "shortlist-mini, tuned",
    "BM25 and shortlist-mini",
    "BM25 and shortlist-mini, tuned",
    "BM25 and shortlist-mini + reranker",
    "BM25 and shortlist-mini + reranker, both tuned",
)
PAIRS = (("dense", "tuned"), ("before", "after"), ("before-reranked", "after-reranked"))
"""What is compared: the same system before and after."""


@dataclass(frozen=True, kw_only=True)
class Config:
    cosqa: Path
    """CoSQA in BEIR's layout."""
    minilm: str
    """Folder of all-MiniLM-L6-v2."""
    work: Path
    """Folder for everything that is made."""
    writer: str = "shortlist-mini/language-model"
    """Language model that writes the queries."""
    documents: int = 2500
    """Functions of each collection that get queries."""
    per_document: int = 1
    """Queries for each function."""
    out: Path | None = None
    """Markdown file to write too."""


def without_docstring(text: str) -> str:
    """Return a function's source without its docstring."""
    return DOCSTRING.sub(r"\1", text)


def bare(cosqa: Path, folder: Path) -> Path:
    """Write CoSQA's functions without docstrings, beside its own questions and judgements."""
    if not (folder / "corpus.jsonl").exists():
        documents = read_corpus(cosqa / "corpus.jsonl")
        write_corpus(folder / "corpus.jsonl", (one._replace(text=without_docstring(one.text)) for one in documents))
        for name in ("queries.jsonl", "qrels/test.tsv", "qrels/dev.tsv"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes((cosqa / name).read_bytes())
    return folder


def steps_for(config: Config, collection: str) -> dict[str, Any]:
    """Tune for a collection, and measure before and after on its test split."""
    searched = {"stage": "search", "collection": collection, "split": "test", "k": 100}
    compared = {"stage": "evaluate", "collection": collection, "split": "test", "measures": ["nDCG@10", "MRR@10"]}
    system = {
        "recipe": str(ROOT / "recipes" / "own-collection.yaml"),
        "collection": collection,
        "language": "code",
        "writer": config.writer,
        "documents": config.documents,
        "per_document": config.per_document,
        "retriever": "shortlist-mini",
        "reranker": "shortlist-mini",
        "teacher": "shortlist-mini",
        "judged": collection,
        "judged_split": "test",
    }
    steps: dict[str, Any] = {
        "system": system,
        "minilm-vectors": {"stage": "encode", "model": config.minilm, "collection": collection},
        "minilm": {**searched, "model": config.minilm, "vectors": "$minilm-vectors"},
        "all": {
            **compared,
            "runs": ["$minilm", *(f"$system/on-judged-{run}" for run in RUNS)],
            "names": ["all-MiniLM-L6-v2", *NAMES],
        },
    }
    for before, after in PAIRS:
        runs = [f"$system/on-judged-{before}", f"$system/on-judged-{after}"]
        steps[f"{before}-{after}"] = {**compared, "runs": runs}
    return steps


def section(title: str, folder: Path) -> str:
    """The table of one collection; p compares each system with itself before it was tuned."""
    results = json.loads((folder / "all" / "results.json").read_text("utf-8"))
    chance: dict[str, float] = {}
    for before, after in PAIRS:
        compared = json.loads((folder / f"{before}-{after}" / "results.json").read_text("utf-8"))
        chance[after] = compared["rows"][1]["difference"]["nDCG@10"]["t_test"]
    rows = []
    for row, run in zip(results["rows"], ("minilm", *RUNS), strict=True):
        p = f"{chance[run]:.3f}" if run in chance else ""
        rows.append([row["name"], f"{row['nDCG@10']:.4f}", f"{row['MRR@10']:.4f}", p])
    made = (read_manifest(folder / "system" / "made") or {})["results"]
    counts = (
        f"{made['documents']:,} functions; {made['kept']:,} queries kept, {made['not_found']:,} did not find theirs"
    )
    columns = ["", "nDCG@10", "MRR@10", "p, before and after"]
    return (
        f"## {title}\n\n{results['queries']} queries. {counts}, {made['alike']:,} were alike.\n\n{table(columns, rows)}"
    )


def main(config: Config) -> None:
    quiet()
    under, start = conditions(None), time.perf_counter()
    library = {"library": {"stage": "functions", "sources": "standard-library"}}
    run_recipe({"steps": library | steps_for(config, "$library")}, config.work / "library", where="library")
    cosqa = bare(config.cosqa, config.work / "cosqa-bare")
    run_recipe({"steps": steps_for(config, str(cosqa))}, config.work / "cosqa", where="cosqa")
    minutes = (time.perf_counter() - start) / 60
    sections = [
        section("CoSQA: web questions of people", config.work / "cosqa"),
        section("The demo's test split: docstrings", config.work / "library"),
        f"{minutes:.0f} minutes, with what was done before not counted.",
    ]
    publish("A pair tuned on queries that a machine made", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
