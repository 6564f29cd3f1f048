"""Models and pipelines as what other packages call theirs: one module for each package, which it imports."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shortlist.errors import UserError
from shortlist.pipeline import Result
from shortlist.records import Document, Query
from shortlist.rerankers import Ranker


def not_installed(error: ModuleNotFoundError, extra: str) -> UserError:
    """The error for a package that a module here cannot be imported without."""
    package = (error.name or "").partition(".")[0]
    return UserError(
        f"{package} is not installed: shortlist.integrations needs it for {extra}; pip install 'shortlist[{extra}]'."
    )


class Passage(NamedTuple):
    """A text of another package."""

    text: str
    metadata: Mapping[str, Any]
    """Its `title` and `url`, if there are any, are read."""


def best_first(reranker: Ranker, query: str, passages: Sequence[Passage], top_n: int | None) -> list[tuple[int, float]]:
    """Place and new score of the best passages, equal ones in their old order.

    Args:
        top_n: how many (None: all).
    """
    documents = [
        Document(str(place), each.text, str(each.metadata.get("title") or ""), str(each.metadata.get("url") or ""))
        for place, each in enumerate(passages)
    ]
    scores = reranker.score(Query("query", query), documents)
    return [(int(place), float(scores[place])) for place in np.argsort(-scores, kind="stable")[:top_n]]


def metadata_of(result: Result) -> dict[str, Any]:
    """What a pipeline says of a document that it has found, in plain values."""
    document, places = result.document, {stage: place._asdict() for stage, place in result.places.items()}
    return {"doc_id": document.doc_id, "title": document.title, "url": document.url, "places": places}
