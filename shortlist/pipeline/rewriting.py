"""Searches with queries that a language model's passages make longer or stand for."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np

from shortlist.data.allowed import Allowed
from shortlist.errors import UserError
from shortlist.index.protocols import EmbedsDocuments, FirstStage, StatesCosts
from shortlist.math.feedback import vector_average
from shortlist.models.files import Precision
from shortlist.pipeline.feedback import Revision, SearchedAgain, check_searched
from shortlist.pipeline.loading import Opener
from shortlist.records import Document, Hit, Query
from shortlist.text.prompts import named_prompt

REPEATED = 5
"""Times that a query is repeated before a passage, where words are counted."""

Write = Callable[[Sequence[Query]], list[str]]
"""Writes a passage that would answer each query."""
SearchWritten = Callable[[Revision, Sequence[str], int, Allowed | None], list[list[Hit]]]
"""Searches by queries and their passages, given how many documents to find, and among which."""


@final
class PassageWriter:
    """Has a language model write a passage for each query.

    Args:
        open_writer: loads the model when it is first asked, and returns a `shortening.Writer`.
    """

    def __init__(self, open_writer: Callable[[], Any]) -> None:
        self._open, self._lock, self._writer = open_writer, threading.Lock(), None

    def __call__(self, queries: Sequence[Query]) -> list[str]:
        """Write a passage for each query; it is empty where none can be read."""
        from shortlist.rerankers.asking import QUESTION

        asked = list(dict.fromkeys(query.text for query in queries if query.text.strip()))
        with self._lock:  # the model answers one caller at a time
            self._writer = self._writer or self._open()
            texts = self._writer([(QUESTION, [Document("", text)]) for text in asked]) if asked else []
        written = {text: passage or "" for text, passage in zip(asked, texts, strict=True)}
        return [written.get(query.text, "") for query in queries]

    def costs(self) -> dict[str, int]:
        """Return the calls, tokens and malformed answers so far, by the names of `data.manifest.stages`."""
        return dict(self._writer.model.costs) if self._writer else {}


class PassageSearch(NamedTuple):
    """A way to search by queries and their passages."""

    search: SearchWritten
    needs: Any
    """Protocol of the first stages that it can search."""
    expected: str
    """What these search by, in words."""


@final
@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """A search by what a language model writes about queries."""

    method: str
    how: PassageSearch
    write: Write
    docs: int = 0
    """Feedback documents that it reads."""
    reads_scores: bool = False
    """Whether the scores of these count."""

    def check(self, step: str, searched: SearchedAgain) -> None:
        """Refuse a first stage that this cannot search.

        Raises:
            UserError: it searches by something of another kind.
        """
        check_searched(f"step {step!r}: `rewrite: {self.method}`", searched, self.how.needs, self.how.expected)

    def __call__(self, revision: Revision, k: int, allowed: Allowed | None) -> list[list[Hit]]:
        """Find the k best documents for each query."""
        return self.how.search(revision, self.write(revision.queries), k, allowed)

    def costs(self) -> dict[str, int]:
        """Return what was asked to write the passages, by the names of `data.manifest.stages`."""
        return self.write.costs() if isinstance(self.write, StatesCosts) else {}


def by_passage_vectors(revision: Revision, passages: Sequence[str], k: int, allowed: Allowed | None) -> list[list[Hit]]:
    """Search by the mean of each query's vector and its passage's, read as a document.

    A query without a passage is searched as it is.

    https://arxiv.org/abs/2212.10496
    """
    stage: EmbedsDocuments = revision.searched.stage
    queries = np.array(stage.query_vectors(revision.queries), dtype=np.float32)
    written = [place for place, passage in enumerate(passages) if passage]
    found = stage.embed_documents([Document("", passages[place]) for place in written]) if written else []
    for place, vector in zip(written, found, strict=True):
        queries[place] = vector_average(queries[place], np.asarray(vector)[None])
    return _found(stage.find_by_vectors, queries, k, allowed)


def by_longer_texts(revision: Revision, passages: Sequence[str], k: int, allowed: Allowed | None) -> list[list[Hit]]:
    """Search by each query's text with its passage.

    A search by words gets the query five times before the passage, so that it still counts; a model reads the query,
    its separator and the passage.

    https://arxiv.org/abs/2303.07678
    """
    stage = revision.searched.stage
    join = _joined(getattr(stage, "retriever", None))
    queries = [
        Query(query.query_id, join(query.text, passage) if passage else query.text)
        for query, passage in zip(revision.queries, passages, strict=True)
    ]
    run = _found(stage.search, queries, k, allowed)
    return [run.get(query.query_id, []) for query in queries]


def _joined(model: Any) -> Callable[[str, str], str]:
    """Return how a query and a passage are joined, for a model or for words."""
    if model is None:
        return lambda query, passage: " ".join([query] * REPEATED + [passage])
    separator = getattr(getattr(getattr(model, "inputs", None), "tokenizer", None), "sep_token", None)
    return lambda query, passage: f"{query} {separator} {passage}" if separator else f"{query} {passage}"


def _found(search: Callable[..., Any], queries: Any, k: int, allowed: Allowed | None) -> Any:
    return search(queries, k) if allowed is None else search(queries, k, allowed=allowed)


PASSAGE_SEARCHES = {
    "hyde": PassageSearch(by_passage_vectors, EmbedsDocuments, "one vector of each document, as `find: dense` does"),
    "query2doc": PassageSearch(by_longer_texts, FirstStage, "queries"),
}
"""The ways to search by what a language model writes about a query."""


def open_rewriting(
    method: str,
    opener: Opener,
    *,
    model: str,
    model_name: str | None = None,
    prompt: str = "passage",
    max_length: int | None = None,
    precision: Precision = "fp32",
    token_budget: int | None = None,
) -> Rewriting:
    """Search by queries and by passages that a language model writes to answer them.

    Args:
        method: how queries and passages are searched by, a key of PASSAGE_SEARCHES.
        model: the language model: folder or hub name, or the address of an OpenAI-compatible server.
        model_name: the server's name of the model.
        prompt: name of the prompt, which asks for a passage.
        max_length: most tokens of a prompt with its answer.
        precision: number format of the model, and so is `token_budget` as for `rank: listwise`.

    Raises:
        UserError: there is no such model or prompt.
    """
    how: dict[str, Any] = {"max_length": max_length, "token_budget": token_budget, "precision": precision}
    write = _writer(opener, prompt, model, model_name, how)
    return Rewriting(method=method, how=PASSAGE_SEARCHES[method], write=write)


REWRITINGS: dict[str, Callable[..., Rewriting]] = {
    method: partial(open_rewriting, method) for method in PASSAGE_SEARCHES
}
"""The same, to be opened."""


def _writer(opener: Opener, prompt: str, model: str, model_name: str | None, how: Mapping[str, Any]) -> PassageWriter:
    """Make the writer of these settings, once for all steps that have them.

    The model's name is looked up now, and the model is loaded when it is first asked.
    """
    from shortlist.rerankers.language import how_to_open, is_server, language_model

    asks = named_prompt(prompt)
    if asks.asks != "text":
        raise UserError(f"prompt: {prompt!r} does not ask for a text; the prompt `passage` does.")
    settings = language_model(model, model_name=model_name, **how)
    if not is_server(model):
        settings["packed"] = opener.packed
    opened = how_to_open(settings)

    def open_now() -> Any:
        from shortlist.pipeline.shortening import open_writer

        return open_writer(asks, opened)

    return opener.once(("writer", prompt, *sorted(settings.items())), lambda: PassageWriter(open_now))
