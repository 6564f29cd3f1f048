"""Prompts -> text, token ids, and the place of each document in them.

The ids are those of the whole text: tokens may join what stands next to each other, and a text that is tokenised by
itself begins with a space for some tokenizers. Where a document stands is known from putting the text together, never
from looking for it, so equal documents have places of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.conversations import Frame, applied, frame_of
from shortlist.text.excerpts import Excerpts, encodings
from shortlist.text.joining import Joiner
from shortlist.text.labels import Ending, common_start, ending, single_ids
from shortlist.text.layout import NO_DOCUMENTS, Laid, framed, join_laid, laid_out
from shortlist.text.prompts import ONLY, Limit, Prompt

FLOOR = {"words": 8, "tokens": 8, "characters": 32}
"""What is kept of every document, however short the model's context is."""
TAIL = 8
"""Tokens before the end of a prompt that have to be equal for labels to have equal ids."""

QueryAndShown = tuple[Query, Sequence[Document]]
"""A query, and the documents to show with it."""


@dataclass
class Rendered:
    """A prompt about some documents."""

    ids: list[int]
    """Token ids up to where the answer begins."""
    text: str
    """The text of the prompt, with all that the answer is made to begin with."""
    spans: list[slice]
    """For each document, its tokens: from the beginning of its piece, label included, to the end of its text."""
    query_spans: list[slice]
    """The tokens of the query, wherever it stands."""
    labels: list[tuple[int, ...]] = field(default_factory=list)
    """For each label, the ids behind `ids` by which it is known; empty where an answer is generated."""
    begins: str = ""
    """The beginning of the answer that stands in the prompt already; it belongs before the text that is generated."""
    answer_tokens: int = 0
    """The most tokens of the answer."""
    marks: list[int] = field(default_factory=list)
    """Positions of the tokens whose hidden states are read: one for each document, then the query's."""
    asking: slice = field(default_factory=lambda: slice(0, 0))
    """The tokens whose attention is read, where a prompt wants nothing else."""
    inputs: list[slice] = field(default_factory=list)
    """For an encoder that reads documents apart, the ids of each input; otherwise empty."""
    decoder_ids: list[int] = field(default_factory=list)
    """For an encoder, the ids with which the decoder begins."""
    is_shortened: bool = False
    """Whether documents were shortened so that the prompt fits the model."""


class Renderer:
    """Renders one prompt for one model, and remembers what it has cut.

    Args:
        tokenizer: a fast tokenizer; None for a server whose tokenizer is not known, which is asked with `messages`.
        most_tokens: the model's context; prompts leave room for the answer in it, and documents are shortened for that.
        reads: a value of `prompts.Answers` (None: as the prompt says).

    Raises:
        UserError: the tokenizer does not suit the prompt.
    """

    def __init__(
        self, prompt: Prompt, tokenizer: Any, *, most_tokens: int | None = None, reads: str | None = None
    ) -> None:
        self.prompt, self.tokenizer, self.most_tokens = prompt, tokenizer, most_tokens
        self.reads = reads or prompt.reads
        self._frames: dict[tuple[str, ...], Frame] = {}
        self._endings: dict[tuple[int, tuple[int, ...]], Ending] = {}
        self._answers: dict[int, int] = {}
        if tokenizer is not None:
            self._check_tokenizer()
        self._excerpts = Excerpts(prompt, tokenizer)
        if tokenizer is not None:
            self._tokenised = Joiner(tokenizer)
            self._marks = {self._ids(mark)[0] for mark in prompt.marks}

    def _check_tokenizer(self) -> None:
        name = self.tokenizer.name_or_path
        if not getattr(self.tokenizer, "is_fast", False):
            raise UserError(
                f"{name}: is a slow tokenizer, which cannot say where texts stand; save it as tokenizer.json first."
            )
        for mark in self.prompt.marks:
            if len(self._ids(mark)) != 1:
                raise UserError(
                    f"{name}: the tokenizer has no token {mark!r}, at which the prompt {self.prompt.name!r} is read; "
                    "take the model that belongs to the prompt."
                )

    def render(self, query: Query, documents: Sequence[Document], *, most: int | None = None) -> Rendered:
        """Render a prompt about these documents, as `render_many` does."""
        return self.render_many([(query, documents)], most=most)[0]

    def render_many(self, questions: Sequence[QueryAndShown], *, most: int | None = None) -> list[Rendered]:
        """Render many prompts, which are tokenised together.

        Args:
            most: the number of documents to choose, for prompts that have some chosen.

        Raises:
            UserError: a prompt has too many documents, cannot be made short enough, or its chat cannot hold it.
        """
        for _, documents in questions:
            self._check_count(len(documents))
        self._excerpts.prepare(questions)
        if self.prompt.apart:
            return [self._apart(query, documents) for query, documents in questions]
        rendered = self._encoded([self._whole(*question, self.prompt.limit, most) for question in questions], questions)
        for place, (query, documents) in enumerate(questions):
            if self._excess(rendered[place]) > 0:
                rendered[place] = self._shortened(query, documents, most, rendered[place])
                rendered[place].is_shortened = True
        return rendered

    def cuts(self, documents: Sequence[Document]) -> bool:
        """Whether the prompt's own limit cuts one of these documents."""
        return any(self._excerpts.cuts(document, self.prompt.limit) for document in documents)

    def messages(self, query: Query, documents: Sequence[Document], *, most: int | None = None) -> list[dict[str, str]]:
        """Return the turns of the conversation, for a server that knows its model's chat."""
        self._check_count(len(documents))
        turns = self._turns(query, documents, self.prompt.limit, most)
        return [{"role": role, "content": content.text} for role, content in turns]

    def block_texts(self, query: Query, documents: Sequence[Document], labels: Sequence[str]) -> list[str]:
        """Return the texts before the documents, of each document's piece, and behind them.

        Args:
            labels: the label of each document.
        """
        self._excerpts.prepare([(query, documents)])
        whole = self._whole(query, documents, self.prompt.limit, None, labels)
        last = self._piece(
            self._values(query, labels, None), labels[-1], self._excerpts.document(documents[-1], self.prompt.limit)
        )
        starts = [start for start, _ in whole.documents]
        edges = [0, *starts, starts[-1] + len(last.text), len(whole.text)]
        *texts, behind = [whole.text[start:end] for start, end in pairwise(edges)]
        return [*texts, behind + self.prompt.begins]

    def label_ids(self, rendered: Rendered, count: int) -> list[int]:
        """Return the one id of each label.

        Raises:
            UserError: no single token tells them apart.
        """
        where = f"prompt {self.prompt.name!r} with the tokenizer of {self.tokenizer.name_or_path}"
        return single_ids(rendered.labels, self.prompt.choices(count).labels, where=where)

    def _check_count(self, count: int) -> None:
        most = self.prompt.most_documents()
        if count < 1 or (most is not None and count > most) or (self.prompt.asks == "pair" and count != 2):
            expected = ONLY.get(self.prompt.asks) or (f"1 to {most}" if most else "at least 1")
            raise UserError(
                f"prompt {self.prompt.name!r}: {count} documents are to be shown at once; expected {expected} "
                "(--window)."
            )

    # The conversation

    def _values(self, query: Query, labels: Sequence[str], most: int | None) -> dict[str, str]:
        """Return the values of the fields of turns."""
        prompt = self.prompt
        return {
            "query": self._excerpts.query(query),
            "num": str(len(labels)),
            "labels": prompt.answers_between.join(prompt.answer.format(label=label) for label in labels),
            "most": str(prompt.most_to_choose(len(labels), most)),
            "instruction": prompt.instruction,
        }

    def _turns(
        self,
        query: Query,
        documents: Sequence[Document],
        limit: Limit | None,
        most: int | None,
        labels: Sequence[str] | None = None,
    ) -> list[tuple[str, Laid]]:
        """Fill the turns of the conversation."""
        prompt = self.prompt
        texts = [self._excerpts.document(document, limit) for document in documents]
        labels = labels or list(map(prompt.label, range(len(documents))))
        values = self._values(query, labels, most)
        pieces = join_laid([self._piece(values, *shown) for shown in zip(labels, texts, strict=True)], prompt.between)
        repeated = [turn for turn in prompt.turns if turn.each]
        turns: list[tuple[str, Laid]] = []
        for turn in prompt.turns:
            if not turn.each:
                turns.append((turn.role, laid_out(turn.text, values, pieces)))
            elif turn is repeated[0]:
                turns += [
                    (each.role, laid_out(each.text, values | {"label": label, "document": text}, pieces))
                    for label, text in zip(labels, texts, strict=True)
                    for each in repeated
                ]
        return turns

    def _piece(self, values: dict[str, str], label: str, text: str) -> Laid:
        """Fill the piece of one document."""
        return laid_out(self.prompt.document, values | {"label": label, "document": text}, NO_DOCUMENTS)

    def _whole(
        self,
        query: Query,
        documents: Sequence[Document],
        limit: Limit | None,
        most: int | None,
        labels: Sequence[str] | None = None,
    ) -> Laid:
        """Put the whole conversation together, up to where the answer begins."""
        turns = self._turns(query, documents, limit, most, labels)
        roles = tuple(role for role, _ in turns)
        first = roles not in self._frames
        if first:
            self._frames[roles] = frame_of(self.prompt, self.tokenizer, roles)
        frame, texts = self._frames[roles], [laid for _, laid in turns]
        if frame.merged:
            texts = [join_laid(texts[:2], "\n "), *texts[2:]]
        whole = framed(frame, texts)
        if first and self.prompt.chat == "tokenizer":
            self._check_template(whole.text, roles[frame.merged :], texts)
        return whole

    def _check_template(self, text: str, roles: Sequence[str], turns: Sequence[Laid]) -> None:
        messages = [{"role": role, "content": turn.text} for role, turn in zip(roles, turns, strict=True)]
        if applied(self.prompt, self.tokenizer, messages) != text:
            raise UserError(
                f"{self.tokenizer.name_or_path}: the chat template changes texts that are put into it, so it is not "
                "known what the model reads; take a model with another chat template."
            )

    # Token ids

    def _ids(self, text: str) -> list[int]:
        [encoding] = encodings(self.tokenizer, [text])
        return list(encoding.ids)

    def _encoded(self, whole: Sequence[Laid], questions: Sequence[QueryAndShown]) -> list[Rendered]:
        """Tokenise conversations, and find the places of documents, queries, marks and labels."""
        begins = "" if self.prompt.encoder else self.prompt.begins
        texts = [laid._replace(text=laid.text + begins) for laid in whole]
        if self.prompt.asks == "attention":
            texts = [laid._replace(queries=[*laid.queries, _behind_documents(laid)]) for laid in texts]
        rendered = []
        for laid, found, (_, documents) in zip(texts, self._tokenised(texts), questions, strict=True):
            one = Rendered(found.ids, laid.text, found.documents, found.queries)
            if self.prompt.asks == "attention":
                one.asking = self._asking(one, one.query_spans.pop())
            self._end(one, len(documents))
            rendered.append(one)
        if self.prompt.asks == "likelihood":
            self._put_queries_behind(rendered, [query for query, _ in questions])
        return rendered

    def _put_queries_behind(self, rendered: Sequence[Rendered], queries: Sequence[Query]) -> None:
        """Let each query be the one label behind its prompt, tokenised together with it."""
        answers = [self.prompt.answer.format(label=self._excerpts.query(query)) for query in queries]
        if self.prompt.encoder:
            for one, found in zip(rendered, encodings(self.tokenizer, answers), strict=True):
                one.labels, one.answer_tokens = [tuple(found.ids)], len(found.ids)
            return
        wholes = [one.text + answer for one, answer in zip(rendered, answers, strict=True)]
        for one, found in zip(rendered, encodings(self.tokenizer, wholes), strict=True):
            kept = common_start([one.ids, found.ids])
            one.ids, one.labels = one.ids[:kept], [tuple(found.ids[kept:])]
            one.answer_tokens = len(found.ids) - kept

    @property
    def _reads_labels(self) -> bool:
        """Whether labels are read here; a query in place of one is put behind later."""
        return self.reads != "text" and self.prompt.asks != "likelihood"

    def _asking(self, one: Rendered, behind: slice) -> slice:
        """Find the tokens whose attention is read; `behind` are all those behind the documents."""
        end = len(one.ids) if self.prompt.asking == "end" else min(one.query_spans[-1].stop + 1, len(one.ids))
        return slice(behind.start, end)

    def _end(self, one: Rendered, count: int) -> None:
        """Let the ids end where the answer begins, and say how it begins."""
        prompt = self.prompt
        one.answer_tokens = self._answer_tokens(count)
        if prompt.marks:
            one.marks = [place for place, token in enumerate(one.ids) if token in self._marks]
        if prompt.encoder:
            one.ids.append(self.tokenizer.eos_token_id)
            start = [self.tokenizer.pad_token_id]
            one.decoder_ids, one.begins = start + (self._ids(prompt.begins) if prompt.begins else []), prompt.begins
            if self._reads_labels:
                one.decoder_ids = start + self._told(one, prompt.begins, one.decoder_ids[1:], count)
        elif prompt.begins or self._reads_labels:
            length = len(one.ids)
            one.ids = self._told(one, one.text, one.ids, count)
            one.begins = prompt.begins if len(one.ids) >= length else ""

    def _told(self, one: Rendered, text: str, ids: list[int], count: int) -> list[int]:
        """Return the ids before the labels, whose own are kept to be read.

        An answer that is generated may begin otherwise, so it has no more ids than `text`, but may have fewer: those
        that a label would change are the model's to write.
        """
        key = count, tuple(ids[-TAIL:])
        if key not in self._endings:
            self._endings[key] = ending(self.tokenizer, text, ids, self.prompt.continuations(max(count, 2)))
        known = self._endings[key]
        kept = ids[: len(ids) - known.drop]
        if not self._reads_labels:
            return kept
        one.labels = list(known.paths)[: len(self.prompt.choices(count).labels)]
        return [*kept, *known.add]

    def _answer_tokens(self, count: int) -> int:
        if self.reads != "text" or self.prompt.asks in ("states", "attention"):
            return 0
        if isinstance(self.prompt.most_tokens, int):
            return min(self.prompt.most_tokens, (self.most_tokens or 10**9) // 2)
        if count not in self._answers:
            self._answers[count] = len(self._ids(self.prompt.full_answer(count)))
        return self._answers[count]

    # Contexts that are too short

    def _excess(self, one: Rendered) -> int:
        """Count the tokens by which a prompt and its answer are too long."""
        return 0 if self.most_tokens is None else len(one.ids) + one.answer_tokens - self.most_tokens

    def _shortened(self, query: Query, documents: Sequence[Document], most: int | None, one: Rendered) -> Rendered:
        """Shorten all documents step by step until the prompt fits.

        A step takes a quarter of the excess from each document, counted in words, as RankZephyr does.
        """
        limit = self.prompt.limit or Limit(10**6, "words")
        longest = max(len(self._excerpts.whole(document).split()) for document in documents)
        while (excess := self._excess(one)) > 0:
            if self.prompt.whole:
                raise UserError(
                    f"query {query.query_id!r}: {len(documents)} whole documents take {len(one.ids):,} tokens with the "
                    f"prompt {self.prompt.name!r} and its answer {one.answer_tokens:,}, and the model reads "
                    f"{self.most_tokens:,}; show fewer (--depth), or shorten them first (`compress:` in a pipeline)."
                )
            step = max(1, excess // (len(documents) * (4 if limit.unit == "words" else 1)))
            limit = limit._replace(most=limit.most - step)
            if limit.most < FLOOR[limit.unit]:
                raise UserError(
                    f"query {query.query_id!r}: {len(documents)} documents, cut to {FLOOR[limit.unit]} {limit.unit} "
                    f"each, take {len(one.ids)} tokens with the prompt {self.prompt.name!r} and its answer takes "
                    f"{one.answer_tokens}, but the model reads {self.most_tokens}; show fewer at once (--window), or "
                    "shorten the query."
                )
            if limit.unit != "words" or limit.most < longest:
                [one] = self._encoded([self._whole(query, documents, limit, most)], [(query, documents)])
        return one

    # Encoders that read documents apart

    def _apart(self, query: Query, documents: Sequence[Document]) -> Rendered:
        """Make an input of each document, cut at its end."""
        [(_, laid)] = self._turns(query, documents, self.prompt.limit, None)
        starts = [start for start, _ in laid.documents]
        texts = [laid.text[start:end] for start, end in pairwise([*starts, len(laid.text)])]
        most, end_id = (self.prompt.input_length or 10**6) - 1, self.tokenizer.eos_token_id
        rows = [[*encoding.ids[:most], end_id] for encoding in encodings(self.tokenizer, texts)]
        edges = [0, *accumulate(map(len, rows))]
        inputs = [slice(start, end) for start, end in pairwise(edges)]
        one = Rendered([token for row in rows for token in row], laid.text, list(inputs), [], inputs=inputs)
        one.decoder_ids = [self.tokenizer.pad_token_id]
        one.answer_tokens = self._answer_tokens(len(documents))
        return one


def _behind_documents(laid: Laid) -> tuple[int, int]:
    """Find the text behind the documents, without the white space it begins with."""
    end = laid.documents[-1][1]
    return len(laid.text) - len(laid.text[end:].lstrip()), len(laid.text)
