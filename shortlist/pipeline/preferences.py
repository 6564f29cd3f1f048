"""Preferences between summaries, by whether a relevant document is still ranked first."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shortlist.data.files import atomic_write
from shortlist.models.generator import Generator
from shortlist.records import Document, Query
from shortlist.rerankers import Candidates, Ranker
from shortlist.rerankers.lists import score_lists
from shortlist.rerankers.models import LocalModel
from shortlist.text.answers import said
from shortlist.text.rendering import QueryAndShown

WriteSamples = Callable[[Sequence[QueryAndShown]], list[list[str]]]
"""Writes several summaries of each document for its query."""


class Preference(NamedTuple):
    """Two summaries of a document, and which one is better for a query."""

    query: Query
    document: Document
    chosen: str
    rejected: str


def choose_pair(lengths: Sequence[int], is_right: Sequence[bool]) -> tuple[int, int] | None:
    """Choose the shortest right summary, and the longest wrong one.

    Where none is wrong, the longest right one is rejected if it is longer. Of equally long ones the first counts.

    Args:
        lengths: length of each summary.
        is_right: whether retrieval stays correct with each.

    Returns:
        Their places; None where there is nothing to prefer.

    https://arxiv.org/abs/2412.18232
    """
    right = [place for place, good in enumerate(is_right) if good]
    wrong = [place for place, good in enumerate(is_right) if not good]
    if not right:
        return None
    chosen = min(right, key=lambda place: lengths[place])
    rejected = max(wrong or right, key=lambda place: lengths[place])
    return (chosen, rejected) if wrong or lengths[rejected] > lengths[chosen] else None


def mine_preferences(
    lists: Iterable[tuple[Candidates, int]], write: WriteSamples, ranker: Ranker, *, top: int = 1
) -> Iterator[Preference]:
    """Yield preferences between summaries of relevant documents.

    A summary is right if the reranker puts the document, with the summary as its text, among the first `top` of the
    query's candidates.

    Args:
        lists: candidates, with the place of the relevant one among them.
        write: writes the summaries to compare; empty and equal ones count once.
    """
    for (query, documents), place in lists:
        document = documents[place]
        [samples] = write([(query, [document])])
        texts = [text for text in dict.fromkeys(map(str.strip, samples)) if text]
        if not texts:
            continue
        shown = [
            Candidates(query, [*documents[:place], document._replace(text=text), *documents[place + 1 :]])
            for text in texts
        ]
        scores = np.full((len(texts), len(documents)), np.nan)
        for part in score_lists(ranker, shown):
            scores.flat[part.numbers] = part.scores
        ranks = (scores > scores[:, place : place + 1]).sum(1)
        pair = choose_pair(list(map(len, texts)), (ranks < top).tolist())
        if pair is not None:
            yield Preference(query, document, texts[pair[0]], texts[pair[1]])


def sampled_by(model: LocalModel, *, samples: int, temperature: float = 1.0, seed: int = 0) -> WriteSamples:
    """Sample summaries from a language model in this process."""

    generator = model.generator
    assert isinstance(generator, Generator)  # as `open_language_model` checks for prompts that ask for a text

    def write(asked: Sequence[QueryAndShown]) -> list[list[str]]:
        rendered = model.renderer.render_many(asked)
        found = generator.generate(
            [one.ids for one in rendered],
            most=max(one.answer_tokens for one in rendered),
            stop=model.stop,
            samples=samples,
            temperature=temperature,
            seed=seed,
        )
        decode = model.renderer.tokenizer.decode
        return [[said(decode(ids, skip_special_tokens=True)) for ids in answers] for answers in found]

    return write


def write_preferences(path: Path, preferences: Iterable[Preference]) -> int:
    """Write preferences as JSON lines, and count them."""
    count = 0
    with atomic_write(path) as file:
        for query, document, chosen, rejected in preferences:
            line = {"query_id": query.query_id, "query": query.text, "doc_id": document.doc_id}
            line |= {"title": document.title, "text": document.text, "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count
