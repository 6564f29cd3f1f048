"""Stage `ask`: ask a pipeline one question and print the documents it finds."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tyro.conf import Positional

from shortlist.config import refuse_idle
from shortlist.errors import UserError
from shortlist.index.protocols import WeightedTerms
from shortlist.pipeline import Answer, Pipeline, Ranked, Result
from shortlist.pipeline.budget import Budget, with_budget
from shortlist.pipeline.flags import Sources, from_file_or_flags
from shortlist.pipeline.spec import Description
from shortlist.pipeline.terms import term_matches, without_terms
from shortlist.pipeline.wholes import AnswerUnit
from shortlist.progress import say
from shortlist.records import Query

DEMO_FOLDER = Path("shortlist-demo")
SNIPPET = 300
"""Most characters of a document to print."""
LINES = 6
TERMS = 30
"""Most terms to print, the heaviest."""


@dataclass(frozen=True, kw_only=True)
class Config(Sources):
    question: Positional[str]
    """Question to search with."""
    collection: str | None = None
    """Collection with the documents: folder, `irds:` or `hf:` name."""
    pipeline: Path | None = None
    """YAML file that describes all steps, in place of flags (docs/pipelines.md)."""
    demo: bool = False
    """Ask the pipeline that `shortlist demo` has trained."""
    demo_folder: Path = DEMO_FOLDER
    """With --demo: folder of `shortlist demo`."""
    reranker: str | None = None
    """Reranker to order the first --depth documents: folder or hub name."""
    reranker_contract: str | None = None
    """With --reranker: its input contract by name, for a folder without one."""
    depth: int | None = None
    """With --reranker: number of documents it reads (None: 100)."""
    reranker_share: float = 1.0
    """With --reranker: weight of its scores, 0 to 1; the first stage's scores have the rest."""
    budget_ms: float | None = None
    """With --costs: most milliseconds that the search is expected to take; the pipeline gets the best numbers
    within."""
    target_quality: float | None = None
    """With --costs, in place of --budget-ms: least quality, in the measure of `shortlist tune`; the pipeline gets the
    cheapest numbers that reached it."""
    costs: Path | None = None
    """With --budget-ms or --target-quality: costs.json of `shortlist tune` for this pipeline."""
    k: int = 10
    """Documents to print."""
    where: str | None = None
    """Filter over the documents' metadata, such as "year >= 2020 and lang = 'de'" (docs/guide.md)."""
    answer: AnswerUnit = "chunks"
    """`documents`: print whole documents, each with its best chunk, where the collection's entries are chunks (d#0)."""
    explain: bool = False
    """Print the question's weighted terms and those that each document has, where a sparse model searches."""
    json: bool = False
    """Print one JSON object: the results with their rank and score by step, and the milliseconds of each step."""


def run(config: Config) -> None:
    """Answer one question."""
    if not config.question.strip():
        raise UserError("the question is empty; expected at least one word.")
    if config.k < 1:
        raise UserError(f"--k is {config.k}; expected at least 1.")
    description = asked_pipeline(config)
    if description.collection is None:
        raise UserError("--collection is missing: it says where the documents are.")
    pipeline = Pipeline.open(description)
    [answer] = pipeline.answer([config.question], config.k, where=config.where, answer=config.answer)
    silent = [step for step in pipeline.steps if not any(step.name in result.places for result in answer.results)]
    for step in silent:
        if without_terms(step, [Query("", config.question)]):
            say(f"ask: the question has no term that {step.name} could search by, so it found nothing.")
    matches = term_matches(pipeline.steps, config.question, answer) if config.explain else None
    if config.explain and matches is None:
        say("ask: --explain shows the terms of sparse models, and none searches here.")
    if config.json:
        terms = {} if matches is None else {"terms": dict(matches.query), "matched": matches.matched}
        print(json.dumps({**as_json(config.question, answer), **terms}, ensure_ascii=False))
        return
    if matches is not None:
        print(f"terms: {listed_terms(matches.query)}")
    show(answer, {} if matches is None else matches.matched)
    say("ask: " + ", ".join(f"{step} {milliseconds:.1f} ms" for step, milliseconds in answer.milliseconds.items()))


def asked_pipeline(config: Config) -> Description:
    """Describe the pipeline that a Config asks for.

    Raises:
        UserError: the Config asks for no pipeline, or for more than one.
    """
    if config.demo and config.pipeline:
        raise UserError("--demo and --pipeline each say what is searched; give one of them.")
    if not config.demo:
        refuse_idle(config, ("demo_folder",), "is for --demo")
    pipeline = demo_pipeline(config.demo_folder) if config.demo else config.pipeline
    names = ("reranker", "reranker_contract", "depth", "reranker_share")
    second = {name: getattr(config, name) for name in names}
    description = from_file_or_flags(pipeline, config, collection=config.collection, **second)
    return with_budget(description, Budget(config.budget_ms, config.target_quality, config.costs))


def demo_pipeline(folder: Path) -> Path:
    """Find the pipeline's description in the folder of `shortlist demo`.

    Raises:
        UserError: the folder has no description.
    """
    path = folder / "pipeline.yaml"
    if not path.exists():
        raise UserError(f"{folder}: holds no finished demo; run `shortlist demo` first (`make demo`).")
    return path


def listed_terms(terms: WeightedTerms) -> str:
    """List terms with their weights."""
    return ", ".join(f"{name} {weight:.2f}" for name, weight in terms[:TERMS]) or "none"


def show(answer: Answer, matched: Mapping[str, WeightedTerms] = MappingProxyType({})) -> None:
    """Print the documents of an answer.

    Each has its rank, score, id, the beginning of its text, and its rank and score at each step.

    Args:
        matched: the terms that documents share with the question, with their weights.
    """
    for rank, result in enumerate(answer.results, start=1):
        document = result.document
        words = f"{document.title}\n{document.text}".strip()
        snippet = words if len(words) <= SNIPPET else words[:SNIPPET].rstrip() + " ..."
        lines = snippet.splitlines()[:LINES]
        lines += place_lines(result)
        if (terms := matched.get(result.chunk or document.doc_id)) is not None:
            lines.append(f"has {listed_terms(terms)}")
        if len(answer.milliseconds.keys() - {"documents"}) > 1:
            lines.append("; ".join(placed(step, place) for step, place in result.places.items()))
        print(f"{rank:2}. {document.doc_id}  ({result.score:.4f})", *lines, sep="\n      ")
    if not answer.results:
        print("nothing found", file=sys.stderr)


def place_lines(result: Result) -> list[str]:
    """Say where in its document a chunk stands, if its metadata tell."""
    metadata = result.document.metadata
    parts = [str(metadata["document"])] if "document" in metadata else []
    parts += [f"page {metadata['page']}"] if "page" in metadata else []
    if {"begin", "end"} <= metadata.keys():
        parts.append(f"characters {metadata['begin']} to {metadata['end']}")
    return [f"({', '.join(parts)})"] if parts else []


def placed(step: str, place: Ranked) -> str:
    """Describe a document's rank and score at a step, and how far it has moved."""
    text = f"{step} #{place.rank} ({place.score:.4f})"
    if not place.moved:
        return text
    return f"{text}, {'up' if place.moved > 0 else 'down'} {abs(place.moved)}"


def as_json(question: str, answer: Answer) -> Mapping[str, Any]:
    """Convert an answer to plain values, in the server's format."""
    results = [_result(rank, result) for rank, result in enumerate(answer.results, start=1)]
    return {"query": question, "results": results, "milliseconds": answer.milliseconds}


def _result(rank: int, result: Result) -> dict[str, Any]:
    stages = {step: place._asdict() for step, place in result.places.items()}
    chunk = {} if result.chunk is None else {"chunk": result.chunk}
    return {"rank": rank, "score": result.score, **result.document._asdict(), **chunk, "stages": stages}
