"""Compressors of documents: extracts, summaries by a language model, and their best facts."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Float

from shortlist.data.answers import AnswerLog
from shortlist.math.diversity import mmr, unit_rows
from shortlist.models.folder import ModelFolder
from shortlist.progress import say
from shortlist.records import Document, Query
from shortlist.rerankers import Candidates
from shortlist.rerankers.asking import QUESTION, ask_each
from shortlist.rerankers.models import AnswersQuestions, RawAnswer
from shortlist.rerankers.opening import open_language_model
from shortlist.text.answers import text_in
from shortlist.text.excerpts import encodings
from shortlist.text.extracts import DECAY, Span, extract, sentences, word_weights
from shortlist.text.prompts import Prompt
from shortlist.text.rendering import QueryAndShown

WORDS_OF_ONE_LETTER = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U00031fff"
ANY_WORD = re.compile(rf"[{WORDS_OF_ONE_LETTER}]|[^\s{WORDS_OF_ONE_LETTER}]+")
"""A word, of scripts without spaces a letter."""


def word_spans(text: str) -> list[Span]:
    """Find the beginning and end of each word."""
    return [found.span() for found in ANY_WORD.finditer(text)]


@final
class Extracts:
    """Keeps the sentences that hold most of a query's words.

    Args:
        room: most words of a text, or tokens if a model is given.
        folder: the model whose tokens count.
    """

    def __init__(self, *, room: int, decay: float = DECAY, folder: ModelFolder | None = None) -> None:
        self.room, self.decay = room, decay
        self.tokenizer = None if folder is None else folder.tokenizer

    def shorten(self, lists: Sequence[Candidates]) -> list[list[Document]]:
        """Shorten each document; a query's words are weighed by its own candidates."""
        return [self._shorter(query, documents) for query, documents in lists]

    def costs(self) -> dict[str, int]:
        """Return nothing, as no model is asked."""
        return {}

    def _shorter(self, query: Query, documents: Sequence[Document]) -> list[Document]:
        weights = word_weights(query.text, [f"{document.title} {document.text}" for document in documents])
        spans = self._spans([document.text for document in documents])
        return [
            document
            if len(places) <= self.room
            else document._replace(text=extract(document.text, places, weights, room=self.room, decay=self.decay))
            for document, places in zip(documents, spans, strict=True)
        ]

    def _spans(self, texts: Sequence[str]) -> list[list[Span]]:
        if self.tokenizer is None:
            return list(map(word_spans, texts))
        found = encodings(self.tokenizer, texts)
        return [[(start, end) for start, end in one.offsets if end > start] for one in found]


def open_extracts(*, room: int, decay: float, folder: ModelFolder | None) -> Extracts:
    """Load what makes extracts; arguments as for `Extracts`."""
    return Extracts(room=room, decay=decay, folder=folder)


@final
class Counted:
    """A language model whose calls and tokens are counted."""

    def __init__(self, model: AnswersQuestions) -> None:
        self.model = model
        self.costs = {"calls": 0, "prompt_tokens": 0, "answer_tokens": 0, "malformed": 0}

    def keys(self, asked: Sequence[QueryAndShown]) -> list[Any]:
        """Return what each answer depends on."""
        return self.model.keys(asked)

    def replies(self, asked: Sequence[QueryAndShown]) -> Iterator[dict[int, RawAnswer]]:
        """Yield answers as they come."""
        for replies in self.model.replies(asked):
            self.costs["calls"] += len(replies)
            self.costs["prompt_tokens"] += sum(reply.prompt_tokens for reply in replies.values())
            self.costs["answer_tokens"] += sum(reply.answer_tokens for reply in replies.values())
            yield replies


@final
class Writer:
    """Has a language model write texts, each once, and counts those that cannot be read.

    Args:
        model: the language model.
        shared: what all answers depend on, as JSON can hold it.
    """

    def __init__(self, model: AnswersQuestions, shared: Any) -> None:
        self.model, self.shared, self.log = Counted(model), shared, AnswerLog(None)
        self._has_warned = False

    def __call__(self, asked: Sequence[QueryAndShown]) -> list[str | None]:
        """Return the text about each question (None: nothing could be read)."""
        found: list[str | None] = [None] * len(asked)
        for place, answer in ask_each(self.model, asked, self.log, shared=self.shared):
            found[place] = text_in(answer)
        unread = found.count(None)
        self.model.costs["malformed"] += unread
        if unread and not self._has_warned:
            self._has_warned = True
            say("texts that a language model wrote could not be read (said once); what they are about stays.")
        return found


@final
class Summaries:
    """Keeps what a language model writes of each document.

    Args:
        writer: has the model write.
        most: words of a text that is short enough as it is.
    """

    def __init__(self, writer: Writer, *, most: int) -> None:
        self.writer, self.most = writer, most

    def shorten(self, lists: Sequence[Candidates]) -> list[list[Document]]:
        """Shorten each document.

        One whose summary cannot be read, or is no shorter, keeps its text.
        """
        flat = [(query, document) for query, documents in lists for document in documents]
        long = [place for place, (_, document) in enumerate(flat) if len(word_spans(document.text)) > self.most]
        texts = self.writer([(flat[place][0], [flat[place][1]]) for place in long])
        shorter = [document for _, document in flat]
        for place, text in zip(long, texts, strict=True):
            if text is not None and len(text) < len(shorter[place].text):
                shorter[place] = shorter[place]._replace(text=text)
        return in_lists(shorter, lists)

    def costs(self) -> dict[str, int]:
        """Return the calls, tokens and texts that could not be read so far."""
        return dict(self.writer.model.costs)


def in_lists(documents: Sequence[Document], lists: Sequence[Candidates]) -> list[list[Document]]:
    """Divide documents among the lists that they are from."""
    left = iter(documents)
    return [[next(left) for _ in listed] for _, listed in lists]


def open_writer(prompt: Prompt, how: Mapping[str, Any]) -> Writer:
    """Load a language model or reach its server, ready to write."""
    model, shared = open_language_model(prompt=prompt, reads="text", **how)
    return Writer(model, shared)


def open_summaries(*, prompt: Prompt, how: Mapping[str, Any]) -> Summaries:
    """Load what makes summaries; arguments as `pipeline.compressors.summary` resolves them."""
    return Summaries(open_writer(prompt, how), most=prompt.most_to_choose(1))


ScoreFacts = Callable[[Query, Sequence[str]], tuple[Float[np.ndarray, " facts"], Float[np.ndarray, "facts dim"] | None]]
"""Scores facts for a query, and gives their vectors of length 1 if they have any."""
FACT_SPLITS: dict[str, Callable[[str], list[str]]] = {
    "sentences": lambda text: [text[start:end].strip() for start, end in sentences(text)],
    "lines": str.splitlines,
}
"""What the facts of a text are."""
LONG = 50
"""Words of a text that is expected to hold several facts."""


@final
class Facts:
    """Keeps each document's best facts for the query and a drafted answer.

    Args:
        score: scores facts.
        split: makes facts of a text.
        between: stands between two facts that are kept.
        keep: most facts of a document.
        share: weight of relevance beside that of variety; 1 for relevance alone.
        writer: drafts an answer to a question (None: facts are compared with the query alone).
    """

    def __init__(
        self,
        score: ScoreFacts,
        *,
        split: Callable[[str], list[str]],
        between: str,
        keep: int,
        share: float = 1.0,
        writer: Writer | None = None,
    ) -> None:
        self.score, self.split, self.between, self.keep, self.share = score, split, between, keep, share
        self.writer = writer
        self._has_warned = False

    def shorten(self, lists: Sequence[Candidates]) -> list[list[Document]]:
        """Shorten each document to its best facts, in their order."""
        queries = self.expanded([query for query, _ in lists])
        return [self._best(query, documents) for query, (_, documents) in zip(queries, lists, strict=True)]

    def expanded(self, queries: Sequence[Query]) -> list[Query]:
        """Put a drafted answer behind each query; one without a readable answer stays."""
        if self.writer is None:
            return list(queries)
        texts = self.writer([(QUESTION, [Document("", query.text)]) for query in queries])
        return [
            query if text is None else query._replace(text=f"{query.text} {text}")
            for query, text in zip(queries, texts, strict=True)
        ]

    def costs(self) -> dict[str, int]:
        """Return the writer's calls and tokens so far."""
        return {} if self.writer is None else dict(self.writer.model.costs)

    def _best(self, query: Query, documents: Sequence[Document]) -> list[Document]:
        facts = [[fact for fact in self.split(document.text) if fact.strip()] for document in documents]
        many = [place for place, found in enumerate(facts) if len(found) > self.keep]
        shorter = list(documents)
        if not many:
            self._say_undivided(facts)
            return shorter
        scores, vectors = self.score(query, [fact for place in many for fact in facts[place]])
        start = 0
        for place in many:
            end = start + len(facts[place])
            kept = self._chosen(scores[start:end], None if vectors is None else vectors[start:end])
            shorter[place] = documents[place]._replace(text=self.between.join(facts[place][i] for i in sorted(kept)))
            start = end
        return shorter

    def _say_undivided(self, facts: Sequence[Sequence[str]]) -> None:
        """Say once that long texts are single facts, as without marks between sentences."""
        if self._has_warned or not facts or any(len(found) != 1 or len(found[0].split()) < LONG for found in facts):
            return
        self._has_warned = True
        count = len(facts)
        say(f"all {count} documents of a query are one fact each, so they stay as they are (said once); see `split`.")

    def _chosen(self, scores: Float[np.ndarray, " facts"], vectors: Float[np.ndarray, "facts dim"] | None) -> list[int]:
        """Choose the places of a document's best facts."""
        if vectors is None or self.share == 1:
            return np.argsort(-scores, kind="stable")[: self.keep].tolist()
        return mmr(scores, vectors, k=self.keep, share=self.share).tolist()


def by_vectors(retriever: Any) -> ScoreFacts:
    """Score facts by the cosine of their vectors with the query's."""

    def score(query: Query, facts: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
        vectors = unit_rows(retriever.encode_documents([Document("", fact) for fact in facts]))
        [asked] = unit_rows(retriever.encode_queries([query]))
        return vectors @ asked, vectors

    return score


def by_pairs(reranker: Any) -> ScoreFacts:
    """Score facts by a reranker that reads each beside the query."""
    return lambda query, facts: (reranker.score(query, [Document("", fact) for fact in facts]), None)


def open_facts(
    *,
    folder: ModelFolder,
    by: Literal["vectors", "pairs"],
    split: Literal["sentences", "lines"],
    keep: int,
    share: float,
    prompt: Prompt | None,
    how: Mapping[str, Any],
    packed: bool | None = None,
) -> Facts:
    """Load what chooses facts; arguments as `pipeline.compressors.facts` resolves them."""
    from shortlist.models.retriever import Retriever
    from shortlist.rerankers.pointwise import pointwise

    if by == "vectors":
        score = by_vectors(Retriever.load(folder, packed=packed))
    else:
        score = by_pairs(pointwise(model=folder, packed=packed, long_queries="cut").open())
    writer = None if prompt is None else open_writer(prompt, how)
    between = {"sentences": " ", "lines": "\n"}[split]
    return Facts(score, split=FACT_SPLITS[split], between=between, keep=keep, share=share, writer=writer)
