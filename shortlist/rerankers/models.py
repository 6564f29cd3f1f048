"""Language models as rerankers ask them: questions about documents in, raw answers out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

from shortlist.errors import UserError
from shortlist.models.encoder_decoder import EncoderDecoder
from shortlist.models.generator import Generator
from shortlist.models.outputs import split
from shortlist.models.remote import Remote
from shortlist.records import Document, Query
from shortlist.text.batching import batches_by_size
from shortlist.text.rendering import QueryAndShown, Rendered, Renderer

CALLS_AT_ONCE = 1024
"""Prompts that are rendered, and in memory, at a time."""
TOKENS_AT_ONCE = 2**18
"""Tokens of prompts that a model here answers before their answers are kept: what an interruption loses."""


class RawAnswer(NamedTuple):
    """A model's answer to one prompt."""

    answer: str | list[float]
    """Text, or a number for each label: its logit or log-probability, NaN if it is not known. Where likelihood is asked
    for, the log-probability of each of the query's tokens."""
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
        decode = self.renderer.tokenizer.decode
        return {
            place: RawAnswer(one.begins + decode(ids, skip_special_tokens=True), len(one.ids), len(ids))
            for place, (one, [ids]) in enumerate(zip(rendered, answers, strict=True))
        }


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

    def _stream(self, messages: list[Any], asked: Sequence[QueryAndShown]) -> Iterator[tuple[int, str | list[float]]]:
        for count in sorted({len(documents) for _, documents in asked}):
            places = [place for place, (_, documents) in enumerate(asked) if len(documents) == count]
            some = [messages[place] for place in places]
            if self.renderer.reads == "logits":
                labels = list(self.renderer.prompt.choices(count).labels)
                for number, row in self.remote.label_log_probs_stream(some, labels):
                    yield places[number], row.tolist()
            else:
                for number, [answer] in self.remote.generate_stream(some, most=self.most(count)):
                    yield places[number], answer.text

    def check(self) -> None:
        """Refuse to read log-probabilities from a server that gives none.

        Raises:
            UserError: it gives none.
        """
        if self.renderer.reads == "logits" and not self.remote.gives_log_probs:
            raise UserError(
                f"{self.remote.url}: the server gives no log-probabilities, from which the prompt "
                f"{self.renderer.prompt.name!r} is read; have the answers generated with --answers text."
            )
