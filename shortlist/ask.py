"""Stage `ask`: one question to a pipeline, what it finds printed."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from shortlist.errors import UserError
from shortlist.pipeline import Answer, Pipeline, Ranked, Result
from shortlist.pipeline.spec import Description, Sources, from_file_or_flags
from shortlist.progress import say

DEMO_FOLDER = Path("shortlist-demo")
SNIPPET = 300
"""Characters of a document that are printed."""
LINES = 6


@dataclass(frozen=True, kw_only=True)
class Config(Sources):
    question: Positional[str]
    """What to search for."""
    collection: str | None = None
    """The documents: folder, `irds:` or `hf:` name."""
    pipeline: Path | None = None
    """YAML file that describes all steps, in place of flags (docs/pipelines.md)."""
    demo: bool = False
    """Ask the pipeline that `shortlist demo` has trained."""
    demo_folder: Path = DEMO_FOLDER
    """With --demo: where `shortlist demo` has worked."""
    reranker: str | None = None
    """Reranker, folder or hub name, that puts the first --depth documents in order."""
    depth: int | None = None
    """With --reranker: how many documents it reads (None: 100)."""
    reranker_share: float = 1.0
    """With --reranker: how much its scores count, 0 to 1, the first stage's being the rest."""
    k: int = 10
    """Documents to print."""
    json: bool = False
    """Print one JSON object: the results with their places by step, and the milliseconds of each step."""


def run(config: Config) -> None:
    """Answer one question."""
    if config.k < 1:
        raise UserError(f"--k is {config.k}; expected at least 1.")
    description = describe(config)
    if description.collection is None:
        raise UserError("--collection is missing: it says where the documents are.")
    [answer] = Pipeline.open(description).answer([config.question], config.k)
    if config.json:
        print(json.dumps(as_json(config.question, answer), ensure_ascii=False))
        return
    show(answer)
    say("ask: " + ", ".join(f"{step} {milliseconds:.1f} ms" for step, milliseconds in answer.milliseconds.items()))


def describe(config: Config) -> Description:
    """The pipeline that a Config asks for.

    Raises:
        UserError: none, or more than one.
    """
    if config.demo and config.pipeline:
        raise UserError("--demo and --pipeline each say what is searched; give one of them.")
    pipeline = demo_pipeline(config.demo_folder) if config.demo else config.pipeline
    second = {"reranker": config.reranker, "depth": config.depth, "reranker_share": config.reranker_share}
    return from_file_or_flags(pipeline, config, collection=config.collection, **second)


def demo_pipeline(folder: Path) -> Path:
    """The description that `shortlist demo` leaves in its folder.

    Raises:
        UserError: there is none.
    """
    path = folder / "pipeline.yaml"
    if not path.exists():
        raise UserError(f"{folder}: holds no finished demo; run `shortlist demo` first (`make demo`).")
    return path


def show(answer: Answer) -> None:
    """Print documents: rank, score, id, the beginning of the text, and where each step has put it."""
    for rank, result in enumerate(answer.results, start=1):
        document = result.document
        words = f"{document.title}\n{document.text}".strip()
        snippet = words if len(words) <= SNIPPET else words[:SNIPPET].rstrip() + " ..."
        lines = snippet.splitlines()[:LINES]
        if len(answer.milliseconds.keys() - {"documents"}) > 1:
            lines.append("; ".join(placed(step, place) for step, place in result.places.items()))
        print(f"{rank:2}. {document.doc_id}  ({result.score:.4f})", *lines, sep="\n      ")
    if not answer.results:
        print("nothing found", file=sys.stderr)


def placed(step: str, place: Ranked) -> str:
    """Where a step has put a document, and how far from where it was before."""
    told = f"{step} #{place.rank} ({place.score:.4f})"
    if not place.moved:
        return told
    return f"{told}, {'up' if place.moved > 0 else 'down'} {abs(place.moved)}"


def as_json(question: str, answer: Answer) -> Mapping[str, Any]:
    """An answer as the server gives it."""
    results = [_result(rank, result) for rank, result in enumerate(answer.results, start=1)]
    return {"query": question, "results": results, "milliseconds": answer.milliseconds}


def _result(rank: int, result: Result) -> dict[str, Any]:
    stages = {step: place._asdict() for step, place in result.places.items()}
    return {"rank": rank, "score": result.score, **result.document._asdict(), "stages": stages}
