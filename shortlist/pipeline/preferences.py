"""Preferences between summaries, by whether a relevant document is still ranked first."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, final

import numpy as np

from shortlist.data.preferences import Preference
from shortlist.models.generator import Generator
from shortlist.rerankers import Candidates, Ranker
from shortlist.rerankers.lists import score_lists
from shortlist.rerankers.models import TOKENS_AT_ONCE, LocalModel, RawAnswer
from shortlist.text.answers import text_in
from shortlist.text.batching import batches_by_size
from shortlist.text.rendering import QueryAndShown

SAMPLED_AT_ONCE = 64
"""Most prompts whose samples are in memory at a time: what an interruption loses."""


@final
class Samples:
    """A language model in this process that answers each question several times.

    What is drawn for a question depends on the seed and the prompt, not on other questions.

    Args:
        model: the language model, which is read as text.
        samples: answers to each question.
        temperature: divides the logits; the higher it is, the more answers differ.
    """

    def __init__(self, model: LocalModel, *, samples: int, temperature: float = 1.0, seed: int = 0) -> None:
        self.model, self.samples, self.temperature, self.seed = model, samples, temperature, seed

    def keys(self, asked: Sequence[QueryAndShown]) -> list[Any]:
        """Return what answers depend on besides the model."""
        return [[key, self.samples, self.temperature, self.seed] for key in self.model.keys(asked)]

    def replies(self, asked: Sequence[QueryAndShown]) -> Iterator[dict[int, RawAnswer]]:
        """Yield the samples of different questions as they come, each question's as one answer."""
        generator, renderer = self.model.generator, self.model.renderer
        assert isinstance(generator, Generator)  # as `open_language_model` checks for prompts that ask for a text
        rendered = renderer.render_many(asked)
        sizes = [len(one.ids) + self.samples * one.answer_tokens for one in rendered]
        for places in batches_by_size(range(len(asked)), sizes, most=TOKENS_AT_ONCE, count=SAMPLED_AT_ONCE):
            some = [rendered[place] for place in places]
            found = generator.generate(
                [one.ids for one in some],
                most=max(one.answer_tokens for one in some),
                stop=self.model.stop,
                samples=self.samples,
                temperature=self.temperature,
                seed=self.seed,
                numbers=[_number(one.ids) for one in some],
            )
            texts = [[renderer.tokenizer.decode(ids, skip_special_tokens=True) for ids in each] for each in found]
            yield {
                place: RawAnswer({"samples": written}, len(one.ids), sum(map(len, answers)))
                for place, one, written, answers in zip(places, some, texts, found, strict=True)
            }


def _number(ids: Sequence[int]) -> int:
    return int.from_bytes(sha256(repr(list(ids)).encode()).digest()[:7])


class Sampled(NamedTuple):
    """Different summaries of one of a query's candidates."""

    candidates: Candidates
    place: int
    """The place of the document among the candidates."""
    texts: list[str]


def read_samples(answer: Mapping[str, Any]) -> list[str]:
    """Return the different texts among an answer's samples, as `compress: summary` would read them."""
    return [text for text in dict.fromkeys(map(text_in, answer["samples"])) if text is not None]


def ranks_of(ranker: Ranker, sampled: Sequence[Sampled]) -> list[list[int]]:
    """Count for each summary how many candidates score above the document that it stands for.

    A document that the reranker does not look at has all others above it.
    """
    shown, sizes = [], []
    for (query, documents), place, texts in sampled:
        for text in texts:
            stands_for = documents[place]._replace(text=text)
            shown.append(Candidates(query, [*documents[:place], stands_for, *documents[place + 1 :]]))
            sizes.append(len(documents))
    flat = np.full(sum(sizes), np.nan)
    for part in score_lists(ranker, shown):
        flat[part.numbers] = part.scores
    lists = iter(np.split(flat, np.cumsum(sizes)[:-1]) if sizes else [])
    return [[_rank(next(lists), place) for _ in texts] for _, place, texts in sampled]


def _rank(scores: np.ndarray, place: int) -> int:
    return len(scores) - 1 if np.isnan(scores[place]) else int((scores > scores[place]).sum())


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


def preferred(sampled: Sampled, ranks: Sequence[int], *, top: int = 1) -> Preference | str:
    """Choose which of a document's summaries to prefer.

    A summary is right if it is shorter than the document, and the reranker puts the document, with the summary as its
    text, among the first `top` of the query's candidates.

    Args:
        ranks: what `ranks_of` counted for each summary.

    Returns:
        The preference, or the reason that there is none: `unread`, `no_right` or `equal`.
    """
    (query, documents), place, texts = sampled
    document = documents[place]
    if not texts:
        return "unread"
    lengths = list(map(len, texts))
    is_right = [r < top and length < len(document.text) for r, length in zip(ranks, lengths, strict=True)]
    pair = choose_pair(lengths, is_right)
    if pair is None:
        return "equal" if any(is_right) else "no_right"
    return Preference(query, document, texts[pair[0]], texts[pair[1]])
