"""Models and pipelines with the interfaces of other packages, one module per package."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shortlist.errors import UserError
from shortlist.pipeline import Result
from shortlist.records import Document, Query
from shortlist.rerankers import Ranker


def not_installed(error: ModuleNotFoundError, extra: str) -> UserError:
    """Make the error for a missing package that a module here needs."""
    package = (error.name or "").partition(".")[0]
    return UserError(
        f"{package} is not installed: shortlist.integrations needs it for {extra}; pip install 'shortlist[{extra}]'."
    )


class Passage(NamedTuple):
    """A text in another package's format."""

    text: str
    metadata: Mapping[str, Any]
    """Metadata, of which `title` and `url` are read if they are there."""


def best_first(reranker: Ranker, query: str, passages: Sequence[Passage], top_n: int | None) -> list[tuple[int, float]]:
    """Rerank passages and return the index and new score of the best.

    Passages with equal scores keep their order.

    Args:
        top_n: number of passages to return (None: all).
    """
    documents = [
        Document(
            str(place), passage.text, str(passage.metadata.get("title") or ""), str(passage.metadata.get("url") or "")
        )
        for place, passage in enumerate(passages)
    ]
    scores = reranker.score(Query("query", query), documents)
    return [(int(place), float(scores[place])) for place in np.argsort(-scores, kind="stable")[:top_n]]


def metadata_of(result: Result) -> dict[str, Any]:
    """Return a found document's metadata with what the pipeline knows of it."""
    document, places = result.document, {stage: place._asdict() for stage, place in result.places.items()}
    known = {"doc_id": document.doc_id, "title": document.title, "url": document.url, "places": places}
    return {**document.metadata, **known} | ({} if result.chunk is None else {"chunk": result.chunk})
