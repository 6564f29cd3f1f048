"""A language model that knows the grades of documents, and answers in any prompt's words or logits."""

import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tiny import DOCUMENTS, QUERIES

from shortlist.data.runs import write_run
from shortlist.math.permutation import Plan
from shortlist.records import Document, Hit, Query
from shortlist.rerankers import opening
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.asking import Questions
from shortlist.rerankers.limits import CallLimits
from shortlist.rerankers.models import RawAnswer
from shortlist.text.prompts import Prompt
from shortlist.text.rendering import QueryAndShown

SERVER = ["--model", "http://127.0.0.1:1/v1", "--model-name", "oracle"]
"""Flags of a model that is asked for and never reached, because the oracle answers in its place."""

Spoil = Callable[[int, str], str]
"""Makes an answer of a perfect one, given the number of the call."""


def grade(query: Query, document: Document) -> int:
    """How well a document answers a query, from 0 to 10 million; no two documents of a test are equal."""
    return int(sha256(f"{query.query_id} {document.doc_id}".encode()).hexdigest()[:8], 16) % 10**7


def coarse(query: Query, document: Document, grades: Sequence[int]) -> int:
    """The grade on a prompt's scale."""
    return grades[grade(query, document) * len(grades) // 10**7]


def best_first(query: Query, documents: Sequence[Document]) -> list[str]:
    """The ids of documents in the right order."""
    return [d.doc_id for d in sorted(documents, key=lambda document: -grade(query, document))]


def perfect(_: int, answer: str) -> str:
    """Spoil nothing."""
    return answer


class Oracle:
    """Answers questions about documents, and remembers what it was asked.

    Args:
        prompt: the prompt whose form answers have.
        reads: "text" or "logits".
        spoil: makes the answer of a perfect one.
    """

    def __init__(self, prompt: Prompt, reads: str = "text", spoil: Spoil = perfect) -> None:
        self.prompt, self.reads, self.spoil = prompt, reads, spoil
        self.asked: list[Any] = []
        self.rounds = 0

    def keys(self, asked: Sequence[QueryAndShown]) -> list[Any]:
        return [[query.query_id, *(document.doc_id for document in documents)] for query, documents in asked]

    def replies(self, asked: Sequence[QueryAndShown]) -> Iterator[dict[int, RawAnswer]]:
        self.rounds += 1
        told: dict[int, RawAnswer] = {}
        for place, (key, (query, documents)) in enumerate(zip(self.keys(asked), asked, strict=True)):
            self.asked.append(key)
            answer: Any = self.logits(query, documents) if self.reads == "logits" else self.text(query, documents)
            if isinstance(answer, str):
                answer = self.spoil(len(self.asked) - 1, answer)
            told[place] = RawAnswer(answer, 10 * len(documents), len(answer) if isinstance(answer, str) else 0)
            if self.spoil is not perfect:  # which may end it all
                yield told
                told = {}
        yield told

    def logits(self, query: Query, documents: Sequence[Document]) -> list[float]:
        if self.prompt.asks == "grade":
            chosen = coarse(query, documents[0], self.prompt.grades)
            return [20.0 if one == chosen else 0.0 for one in self.prompt.grades]
        sign = -1 if self.prompt.asks == "worst" else 1
        return [sign * grade(query, document) / 1e6 for document in documents]

    def text(self, query: Query, documents: Sequence[Document]) -> str:
        prompt, labels = self.prompt, [self.prompt.label(place) for place in range(len(documents))]
        order = sorted(range(len(documents)), key=lambda place: -grade(query, documents[place]))
        said = [prompt.answer.format(label=labels[place]) for place in order]
        if prompt.asks == "grades":
            grades = {f"[{x}]": coarse(query, d, prompt.grades) for x, d in zip(labels, documents, strict=True)}
            return f"<answer>{json.dumps(grades)}</answer>"
        if prompt.asks == "grade":
            return str(coarse(query, documents[0], prompt.grades))
        if prompt.asks == "worst":
            return f"</think><answer>{labels[order[-1]]}</answer>"
        if prompt.parse == "tagged":
            return f"<think>so</think> <answer>{said[0]}</answer>"
        if prompt.asks in ("best", "pair"):
            return said[0]
        kept = said[: prompt.most_to_choose(len(said))] if prompt.asks == "top" else said
        return prompt.begins + prompt.answer_whole.format(answers=prompt.answers_between.join(kept))


class Oracles:
    """Stands in for the opening of language models, and keeps the oracles that it has opened."""

    def __init__(self) -> None:
        self.opened: list[Oracle] = []
        self.questions: list[Questions] = []
        self.spoil: Spoil = perfect

    def __call__(
        self, *, prompt: Prompt, reads: str, plan: Callable[[int], Plan], limits: CallLimits | None = None, **model: Any
    ) -> AskingReranker:
        oracle = Oracle(prompt, reads, self.spoil)
        self.opened.append(oracle)
        shared = [prompt.digest(), reads, model.get("model_name")]
        self.questions.append(Questions(oracle, prompt, shared, limits=limits))
        return AskingReranker(self.questions[-1], plan)

    @property
    def asked(self) -> list[Any]:
        """All questions, in their order."""
        return [key for oracle in self.opened for key in oracle.asked]


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> Oracles:
    """Let oracles answer wherever a language model would."""
    oracles = Oracles()
    monkeypatch.setattr(opening, "open_asking", oracles)
    return oracles


RUN = {
    query.query_id: [Hit(d.doc_id, 20.0 - rank) for rank, d in enumerate(DOCUMENTS[place:] + DOCUMENTS[:place])]
    for place, query in enumerate(QUERIES[:6])
}
"""Six queries with all twelve documents, each in another order."""


def write_candidates(folder: Path) -> Path:
    """A run file of RUN."""
    write_run(folder / "run.trec", RUN)
    return folder / "run.trec"


def candidates_of(query_id: str) -> tuple[Query, list[Document]]:
    """A query of RUN with its documents in first-stage order."""
    by_id = {document.doc_id: document for document in DOCUMENTS}
    return next(q for q in QUERIES if q.query_id == query_id), [by_id[hit.doc_id] for hit in RUN[query_id]]
