"""Language models as rerankers ask them: questions about documents in, raw answers out."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, final

from shortlist.errors import UserError
from shortlist.models.generator import Generator
from shortlist.models.remote import Remote
from shortlist.records import Document, Query
from shortlist.text.rendering import Rendered, Renderer

Asked = tuple[Query, Sequence[Document]]
"""A query, and the documents to show with it."""

CALLS_AT_ONCE = 1024
"""Prompts that are rendered, and in memory, at a time."""


class Reply(NamedTuple):
    """A model's answer to one prompt."""

    answer: str | list[float]
    """Text, or a number for each label: its logit or log-probability, NaN if it is not known."""
    prompt_tokens: int
    answer_tokens: int


class AnswersQuestions(Protocol):
    """A model that answers questions about documents."""

    def keys(self, asked: Sequence[Asked]) -> list[Any]:
        """Return what each answer depends on besides the model, as JSON can hold it."""
        ...

    def replies(self, asked: Sequence[Asked]) -> Iterator[dict[int, Reply]]:
        """Yield answers as they come, by the place of the question."""
        ...


@final
class LocalModel:
    """A language model in this process.

    Args:
        generator: the model.
        renderer: makes token ids of the prompt.
        stop: ids that end an answer.
    """

    def __init__(self, generator: Generator, renderer: Renderer, *, stop: Sequence[int]) -> None:
        self.generator, self.renderer, self.stop = generator, renderer, tuple(stop)

    def keys(self, asked: Sequence[Asked]) -> list[Any]:
        """Return the ids of each prompt, and of its labels."""
        return [[one.ids, one.labels, one.answer_tokens] for one in self._rendered(asked)]

    def replies(self, asked: Sequence[Asked]) -> Iterator[dict[int, Reply]]:
        """Yield all answers together, which are computed together."""
        rendered = self._rendered(asked)
        yield (self._logits if self.renderer.reads == "logits" else self._texts)(asked, rendered)

    def _rendered(self, asked: Sequence[Asked]) -> list[Rendered]:
        return self.renderer.render_many(asked, spans=False)

    def _logits(self, asked: Sequence[Asked], rendered: list[Rendered]) -> dict[int, Reply]:
        labels = [
            self.renderer.label_ids(one, len(documents)) for one, (_, documents) in zip(rendered, asked, strict=True)
        ]
        tokens = sorted(set().union(*labels))
        columns = {token: column for column, token in enumerate(tokens)}
        rows = self.generator.logits([one.ids for one in rendered], tokens=tokens).tolist()
        return {
            place: Reply([row[columns[token]] for token in ids], len(one.ids), 0)
            for place, (row, ids, one) in enumerate(zip(rows, labels, rendered, strict=True))
        }

    def _texts(self, asked: Sequence[Asked], rendered: list[Rendered]) -> dict[int, Reply]:
        most = max(one.answer_tokens for one in rendered)
        answers = self.generator.generate([one.ids for one in rendered], most=most, stop=self.stop)
        decode = self.renderer.tokenizer.decode
        return {
            place: Reply(one.begins + decode(ids, skip_special_tokens=True), len(one.ids), len(ids))
            for place, (one, [ids]) in enumerate(zip(rendered, answers, strict=True))
        }


@final
class RemoteModel:
    """A language model on a server.

    Args:
        remote: the server's model.
        renderer: fills the prompt's turns, without a tokenizer.
        most: most tokens of an answer.
    """

    def __init__(self, remote: Remote, renderer: Renderer, *, most: int) -> None:
        self.remote, self.renderer, self.most = remote, renderer, most

    def keys(self, asked: Sequence[Asked]) -> list[Any]:
        """Return the messages of each prompt."""
        return [[self.renderer.messages(*one), self.most] for one in asked]

    def replies(self, asked: Sequence[Asked]) -> Iterator[dict[int, Reply]]:
        """Yield each answer when it comes."""
        messages = [self.renderer.messages(*one) for one in asked]
        used = (self.remote.num_prompt_tokens, self.remote.num_answer_tokens)
        for place, answer in self._stream(messages, asked):
            now = (self.remote.num_prompt_tokens, self.remote.num_answer_tokens)
            yield {place: Reply(answer, now[0] - used[0], now[1] - used[1])}
            used = now

    def _stream(self, messages: list[Any], asked: Sequence[Asked]) -> Iterator[tuple[int, str | list[float]]]:
        if self.renderer.reads != "logits":
            for place, [answer] in self.remote.generate_stream(messages, most=self.most):
                yield place, answer.text
            return
        prompt = self.renderer.prompt
        for count in {len(documents) for _, documents in asked}:
            places = [place for place, (_, documents) in enumerate(asked) if len(documents) == count]
            labels = list(prompt.choices(count).labels)
            for number, row in self.remote.label_log_probs_stream([messages[place] for place in places], labels):
                yield places[number], row.tolist()

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
