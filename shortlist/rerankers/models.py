"""Language models as rerankers ask them: questions about documents in, raw answers out."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

from shortlist.errors import UserError
from shortlist.models.encoder_decoder import EncoderDecoder
from shortlist.models.generator import Generator
from shortlist.models.outputs import split
from shortlist.models.remote import Remote
from shortlist.models.replies import ServerAnswer
from shortlist.records import Document, Query
from shortlist.text.answers import grade_place
from shortlist.text.batching import batches_by_size
from shortlist.text.rendering import QueryAndShown, Rendered, Renderer

CALLS_AT_ONCE = 1024
"""Prompts that are rendered, and in memory, at a time."""
TOKENS_AT_ONCE = 2**18
"""Tokens of prompts that a model here answers before their answers are kept: what an interruption loses."""


class RawAnswer(NamedTuple):
    """A model's answer to one prompt."""

    answer: str | list[float] | dict[str, Any]
    """Text, or a number for each label: its logit or log-probability, NaN if it is not known. Where likelihood is asked
    for, the log-probability of each of the query's tokens; where a prompt is `certain`, the `text` and the
    `probability` of its grade."""
    prompt_tokens: int
    answer_tokens: int


@runtime_checkable
class AnswersQuestions(Protocol):
    """A model that answers questions about documents."""

    def keys(self, asked: Sequence[QueryAndShown]) -> list[Any]:
        """Return what each answer depends on besides the model, as JSON can hold it."""
        ...

    def replies(self, asked: Sequence[QueryAndShown]) -> Iterator[dict[int, RawAnswer]]:
        """Yield answers as they come, by the place of the question."""
        ...


@runtime_checkable
class ReadsDocuments(AnswersQuestions, Protocol):
    """A model that answers questions, and knows which documents it would cut."""

    def cut(self, asked: Sequence[QueryAndShown]) -> list[bool]:
        """Say for each question whether one of its documents is cut."""
        ...


@final
class LocalModel:
    """A language model in this process.

    Args:
        generator: the model; an encoder-decoder for prompts that an encoder reads.
        renderer: makes token ids of the prompt.
        stop: ids that end an answer.
    """

    def __init__(self, generator: Generator | EncoderDecoder, renderer: Renderer, *, stop: Sequence[int]) -> None:
        self.generator, self.renderer, self.stop = generator, renderer, tuple(stop)
        self._last: dict[tuple[Query, tuple[Document, ...]], Rendered] = {}

    def keys(self, asked: Sequence[QueryAndShown]) -> list[Any]:
        """Return the ids of each prompt, and of its labels."""
        rendered = self.renderer.render_many(asked)
        self._last = {(query, (*shown,)): one for (query, shown), one in zip(asked, rendered, strict=True)}
        return [[one.ids, one.labels, one.answer_tokens, one.decoder_ids] for one in rendered]

    def replies(self, asked: Sequence[QueryAndShown]) -> Iterator[dict[int, RawAnswer]]:
        """Yield answers that are computed together."""
        rendered = self._rendered(asked)
        answer = {"logits": self._logits, "likelihood": self._log_probs, "text": self._texts}[self.renderer.reads]
        sizes = [len(one.ids) + one.answer_tokens for one in rendered]
        for places in batches_by_size(range(len(asked)), sizes, most=TOKENS_AT_ONCE, count=CALLS_AT_ONCE):
            replies = answer([asked[place] for place in places], [rendered[place] for place in places])
            yield {places[number]: reply for number, reply in replies.items()}

    def cut(self, asked: Sequence[QueryAndShown]) -> list[bool]:
        """Say for each question whether one of its documents is cut."""
        rendered = self._rendered(asked)
        pairs = zip(rendered, asked, strict=True)
        return [one.is_shortened or self.renderer.cuts(documents) for one, (_, documents) in pairs]

    def _rendered(self, asked: Sequence[QueryAndShown]) -> list[Rendered]:
        """Return the prompts whose keys were asked for last, or render them."""
        known = [one for query, shown in asked if (one := self._last.get((query, (*shown,))))]
        return known if len(known) == len(asked) else self.renderer.render_many(asked)

    def _logits(self, asked: Sequence[QueryAndShown], rendered: list[Rendered]) -> dict[int, RawAnswer]:
        labels = [
            self.renderer.label_ids(one, len(documents)) for one, (_, documents) in zip(rendered, asked, strict=True)
        ]
        tokens = sorted(set().union(*labels))
        columns = {token: column for column, token in enumerate(tokens)}
        if isinstance(self.generator, EncoderDecoder):
            begun = [one.decoder_ids for one in rendered]
            rows = self.generator.logits(encoder_inputs(rendered), begun, tokens=tokens).tolist()
        else:
            rows = self.generator.logits([one.ids for one in rendered], tokens=tokens).tolist()
        return {
            place: RawAnswer([row[columns[token]] for token in ids], len(one.ids), 0)
            for place, (row, ids, one) in enumerate(zip(rows, labels, rendered, strict=True))
        }

    def _log_probs(self, asked: Sequence[QueryAndShown], rendered: list[Rendered]) -> dict[int, RawAnswer]:
        """Compute the log-probability of each label, or of each token of the only one."""
        owners = [place for place, one in enumerate(rendered) for _ in one.labels]
        labels = [label for one in rendered for label in one.labels]
        if isinstance(self.generator, EncoderDecoder):
            inputs, begun = encoder_inputs(rendered), [rendered[place].decoder_ids for place in owners]
            rows = self.generator.log_probs([inputs[place] for place in owners], begun, labels)
        else:
            rows = self.generator.log_probs([rendered[place].ids for place in owners], labels)
        numbers: list[list[float]] = [[] for _ in rendered]
        for place, told in zip(owners, split(rows), strict=True):
            numbers[place] += told.tolist() if self.renderer.prompt.asks == "likelihood" else [told.sum().item()]
        read = [len(one.ids) + sum(map(len, one.labels)) for one in rendered]
        return {place: RawAnswer(numbers[place], read[place], 0) for place in range(len(rendered))}

    def _texts(self, asked: Sequence[QueryAndShown], rendered: list[Rendered]) -> dict[int, RawAnswer]:
        most = max(one.answer_tokens for one in rendered)
        if isinstance(self.generator, EncoderDecoder):
            begun = [one.decoder_ids for one in rendered]
            answers = [
                [ids] for ids in self.generator.generate(encoder_inputs(rendered), begun, most=most, stop=self.stop)
            ]
        else:
            answers = self.generator.generate([one.ids for one in rendered], most=most, stop=self.stop)
        texts: list[Any] = [one.begins + self._decoded(ids) for one, [ids] in zip(rendered, answers, strict=True)]
        if self.renderer.prompt.certain:
            texts = self._with_probabilities(texts, rendered, [ids for [ids] in answers])
        return {
            place: RawAnswer(text, len(one.ids), len(ids))
            for place, (text, one, [ids]) in enumerate(zip(texts, rendered, answers, strict=True))
        }

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.renderer.tokenizer.decode(ids, skip_special_tokens=True)

    def _with_probabilities(
        self, texts: Sequence[str], rendered: Sequence[Rendered], answers: Sequence[Sequence[int]]
    ) -> list[dict[str, Any]]:
        """Add to each answer the probability of the tokens that its grade is in."""
        asked: list[tuple[list[int], list[int]]] = []
        for text, one, ids in zip(texts, rendered, answers, strict=True):
            place = grade_place(text) or slice(0, 0)
            start, stop = place.start - len(one.begins), place.stop - len(one.begins)
            ends = range(1, len(ids) + 1)  # of its first tokens, whose texts grow
            first = bisect_right(ends, start, key=lambda end, ids=ids: len(self._decoded(ids[:end])))
            last = 1 + bisect_left(ends, stop, key=lambda end, ids=ids: len(self._decoded(ids[:end])))
            asked.append(([*one.ids, *ids[:first]], [*ids[first:last]] if stop > start else []))
        assert isinstance(
            self.generator, Generator
        )  # prompts of encoder-decoders are not certain; for the type checker
        logs = self.generator.log_probs(*zip(*asked, strict=True))
        assert logs.counts is not None
        sums = [part.sum().item() for part in logs.values.split(logs.counts.tolist())]
        return [{"text": text, "probability": math.exp(total)} for text, total in zip(texts, sums, strict=True)]


def encoder_inputs(rendered: Sequence[Rendered]) -> list[list[list[int]]]:
    """Return the inputs of each prompt: its documents apart, or all in one."""
    return [[one.ids[span] for span in one.inputs] or [one.ids] for one in rendered]


@final
class RemoteModel:
    """A language model on a server.

    Args:
        remote: the server's model.
        renderer: fills the prompt's turns, without a tokenizer.
        most: returns the most tokens of an answer about this many documents.
    """

    def __init__(self, remote: Remote, renderer: Renderer, *, most: Callable[[int], int]) -> None:
        self.remote, self.renderer, self.most = remote, renderer, most

    def keys(self, asked: Sequence[QueryAndShown]) -> list[Any]:
        """Return the messages of each prompt."""
        return [[self.renderer.messages(*one), self.most(len(one[1]))] for one in asked]

    def replies(self, asked: Sequence[QueryAndShown]) -> Iterator[dict[int, RawAnswer]]:
        """Yield each answer when it comes."""
        messages = [self.renderer.messages(*one) for one in asked]
        used = (self.remote.num_prompt_tokens, self.remote.num_answer_tokens)
        for place, answer in self._stream(messages, asked):
            now = (self.remote.num_prompt_tokens, self.remote.num_answer_tokens)
            yield {place: RawAnswer(answer, now[0] - used[0], now[1] - used[1])}
            used = now

    def cut(self, asked: Sequence[QueryAndShown]) -> list[bool]:
        """Say for each question whether the prompt cuts one of its documents."""
        return [self.renderer.cuts(documents) for _, documents in asked]

    def _stream(self, messages: list[Any], asked: Sequence[QueryAndShown]) -> Iterator[tuple[int, Any]]:
        for count in sorted({len(documents) for _, documents in asked}):
            places = [place for place, (_, documents) in enumerate(asked) if len(documents) == count]
            some = [messages[place] for place in places]
            if self.renderer.reads == "logits":
                labels = list(self.renderer.prompt.choices(count).labels)
                for number, row in self.remote.label_log_probs_stream(some, labels):
                    yield places[number], row.tolist()
            else:
                certain = self.renderer.prompt.certain
                for number, [answer] in self.remote.generate_stream(some, most=self.most(count), log_probs=certain):
                    yield places[number], _with_probability(answer) if certain else answer.text

    def check(self) -> None:
        """Refuse to read log-probabilities from a server that gives none.

        Raises:
            UserError: it gives none.
        """
        prompt = self.renderer.prompt
        if (self.renderer.reads == "text" and not prompt.certain) or self.remote.gives_log_probs:
            return
        found = f"{self.remote.url}: the server gives no log-probabilities, from which the prompt {prompt.name!r}"
        if self.renderer.reads == "logits":
            raise UserError(f"{found} is read; have the answers generated with --answers text.")
        raise UserError(
            f"{found} learns how sure a grade is; choose another prompt, such as graded, or another server."
        )


def _with_probability(answer: ServerAnswer) -> dict[str, Any]:
    """Return an answer's text and the probability of the tokens that its grade is in."""
    place = grade_place("".join(token for token, _ in answer.tokens)) or slice(0, 0)
    end, total = 0, 0.0
    for token, log_prob in answer.tokens:
        start, end = end, end + len(token)
        total += log_prob if start < place.stop and end > place.start else 0.0
    return {"text": answer.text, "probability": math.exp(total) if answer.tokens else math.nan}
