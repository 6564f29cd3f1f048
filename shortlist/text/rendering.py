"""Prompts -> text, token ids, and the place of each document in them.

The whole text is tokenised at once: tokens may join what stands next to each other, and a text that is tokenised by
itself begins with a space for some tokenizers. Where a document stands is known from putting the text together, never
from looking for it, so equal documents have places of their own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.batching import batches_by_size
from shortlist.text.conversations import Frame, applied, frame_of
from shortlist.text.inputs import CHARACTERS_A_CALL, TEXTS_A_CALL, filled
from shortlist.text.labels import Ending, ending, single_ids
from shortlist.text.prompts import Limit, Prompt
from shortlist.text.templates import PiecePart, parse_piece

FLOOR = {"words": 8, "tokens": 8, "characters": 32}
"""What is kept of every document, however short the model's context is."""
TAIL = 8
"""Tokens before the end of a prompt that have to be equal for labels to have equal ids."""
WORDS_A_TOKEN = 0.75
"""Words for a token, where a limit in tokens meets a model whose tokenizer is not known."""

MOST_REMEMBERED = 2**24
"""Characters of documents that are remembered, to be cut once for all prompts that show them."""

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
    inputs: list[slice] = field(default_factory=list)
    """For an encoder that reads documents apart, the ids of each input; otherwise empty."""
    decoder_ids: list[int] = field(default_factory=list)
    """For an encoder, the ids with which the decoder begins."""


class Content(NamedTuple):
    """The text of a turn, and where documents and queries stand in it."""

    text: str
    documents: list[tuple[int, int]]
    queries: list[tuple[int, int]]


class Renderer:
    """Renders one prompt for one model, and remembers what it has cut.

    Args:
        tokenizer: a fast tokenizer; None for a server whose tokenizer is not known, which is asked with `messages`.
        most_tokens: the model's context; prompts leave room for the answer in it, and documents are shortened for that.
            An answer gets at most half of it, unless it is a list of all labels.
        reads: "text" if the answer is generated, "logits" if it is read from the labels' logits (None: as the prompt
            says).

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
        self._contents: dict[Document, str] = {}
        self._cuts: dict[tuple[str, Limit | None], str] = {}
        self._answers: dict[int, int] = {}
        self._remembered = 0
        self._special = None
        if tokenizer is not None:
            if not getattr(tokenizer, "is_fast", False):
                raise UserError(
                    f"{tokenizer.name_or_path}: is a slow tokenizer, which cannot say where texts stand; save it as "
                    "tokenizer.json first."
                )
            tokens = sorted({*tokenizer.all_special_tokens, *prompt.marks}, key=len, reverse=True)
            self._special = re.compile("|".join(map(re.escape, tokens))) if tokens else None
            for mark in prompt.marks:
                if len(self._ids([mark])[0]) != 1:
                    raise UserError(
                        f"{tokenizer.name_or_path}: the tokenizer has no token {mark!r}, at which the prompt "
                        f"{prompt.name!r} is read; take the model that belongs to the prompt."
                    )

    def render(self, query: Query, documents: Sequence[Document], *, most: int | None = None) -> Rendered:
        """Render a prompt about these documents, as `render_many` does."""
        return self.render_many([(query, documents)], most=most)[0]

    def render_many(
        self, questions: Sequence[QueryAndShown], *, most: int | None = None, spans: bool = True
    ) -> list[Rendered]:
        """Render many prompts, which are tokenised together.

        Args:
            most: the number of documents to choose, for prompts that have them chosen.
            spans: whether to find the tokens of documents and queries, which takes a third of the time.

        Raises:
            UserError: a prompt has too many documents, cannot be made short enough, or its labels cannot be told apart.
        """
        for _, documents in questions:
            self._check_count(len(documents))
        self._forget()
        self._cut_first(questions)
        if self.prompt.apart:
            return [self._apart(query, documents) for query, documents in questions]
        limit = self.prompt.limit
        whole = [self._whole(query, documents, limit, most) for query, documents in questions]
        rendered = self._encoded(whole, questions, spans)
        for place, (query, documents) in enumerate(questions):
            if self._excess(rendered[place]) > 0:
                rendered[place] = self._shortened(query, documents, most, rendered[place])
        return rendered

    def messages(self, query: Query, documents: Sequence[Document], *, most: int | None = None) -> list[dict[str, str]]:
        """Return the turns of the conversation, for a server that knows its model's chat."""
        self._check_count(len(documents))
        self._forget()
        turns = self._turns(query, documents, self.prompt.limit, most)
        return [{"role": role, "content": content.text} for role, content in turns]

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
            expected = {"pair": "2", "grade": "1"}.get(self.prompt.asks) or (f"1 to {most}" if most else "at least 1")
            raise UserError(
                f"prompt {self.prompt.name!r}: {count} documents are to be shown at once; expected {expected} "
                "(--window)."
            )

    # Texts

    def _forget(self) -> None:
        """Forget texts before there are too many; queries to come have others."""
        if self._remembered > MOST_REMEMBERED:
            self._contents.clear()
            self._cuts.clear()
            self._endings.clear()
            self._remembered = 0

    def _content(self, document: Document) -> str:
        """Make a document's text: its fields, without special tokens, with the prompt's replacements."""
        if (text := self._contents.get(document)) is None:
            values = {"title": document.title.strip(), "text": document.text.strip(), "url": document.url.strip()}
            text = self._plain(filled(self.prompt.content, values), self.prompt.replace)
            self._contents[document] = text
            self._remembered += len(document.text) + len(text)
        return text

    def _plain(self, text: str, replace: Sequence[tuple[str, str]]) -> str:
        if self._special is not None:  # or a document could end its turn and speak for the model
            text = self._special.sub("", text)
        for pattern, by in replace:
            text = re.sub(pattern, by, text)
        return text.strip()

    def _cut_first(self, questions: Sequence[QueryAndShown]) -> None:
        """Cut all texts to the prompt's limits that were not cut before."""
        prompt = self.prompt
        documents = {self._content(document) for _, documents in questions for document in documents}
        queries = {self._plain(query.text, prompt.replace_query) for query, _ in questions}
        for texts, limit in ((documents, prompt.limit), (queries, prompt.query_limit)):
            self._cut_all([text for text in texts if (text, limit) not in self._cuts], limit)

    def _cut_all(self, texts: Sequence[str], limit: Limit | None) -> None:
        if limit is None:
            cut = list(texts)
        elif limit.unit == "words":
            cut = [" ".join(text.split()[: limit.count]) for text in texts]
        elif limit.unit == "characters":
            cut = [text[: limit.count] for text in texts]
        elif self.tokenizer is not None:
            cut = self._cut_tokens(texts, limit.count)
        else:
            words = re.compile(rf"(?:\s*\S+){{0,{max(1, int(limit.count * WORDS_A_TOKEN))}}}")
            cut = [words.match(text)[0] for text in texts]  # type: ignore[index]
        self._cuts |= {(text, limit): shorter for text, shorter in zip(texts, cut, strict=True)}
        self._remembered += sum(map(len, texts)) + sum(map(len, cut))

    def _cut_tokens(self, texts: Sequence[str], count: int) -> list[str]:
        """Cut texts behind their first tokens, and never within a character."""
        cut: list[str] = []
        for part in batches_by_size(texts, list(map(len, texts)), most=CHARACTERS_A_CALL, count=TEXTS_A_CALL):
            for text, encoding in zip(part, self._encodings(part), strict=True):
                offsets = encoding.offsets
                end = len(text) if len(offsets) <= count else min(offsets[count][0], offsets[count - 1][1])
                cut.append(text[:end].rstrip())
        return cut

    def _cut(self, text: str, limit: Limit | None) -> str:
        if (text, limit) not in self._cuts:
            self._cut_all([text], limit)
        return self._cuts[text, limit]

    # The conversation

    def _turns(
        self, query: Query, documents: Sequence[Document], limit: Limit | None, most: int | None
    ) -> list[tuple[str, Content]]:
        """Fill the turns of the conversation."""
        prompt = self.prompt
        texts = [self._cut(self._content(document), limit) for document in documents]
        labels = list(map(prompt.label, range(len(documents))))
        values = {
            "query": self._cut(self._plain(query.text, prompt.replace_query), prompt.query_limit),
            "num": str(len(documents)),
            "labels": prompt.answers_between.join(prompt.answer.format(label=label) for label in labels),
            "most": str(prompt.most_to_choose(len(documents), most)),
            "instruction": prompt.instruction,
        }
        pieces = _joined([self._piece(values, *shown) for shown in zip(labels, texts, strict=True)], prompt.between)
        repeated = [turn for turn in prompt.turns if turn.each]
        turns: list[tuple[str, Content]] = []
        for turn in prompt.turns:
            if not turn.each:
                turns.append((turn.role, _filled(turn.text, values, pieces)))
            elif turn is repeated[0]:
                turns += [
                    (each.role, _filled(each.text, values | {"label": label, "document": text}, pieces))
                    for label, text in zip(labels, texts, strict=True)
                    for each in repeated
                ]
        return turns

    def _piece(self, values: dict[str, str], label: str, text: str) -> Content:
        """Fill the piece of one document."""
        return _filled(self.prompt.document, values | {"label": label, "document": text}, Content("", [], []))

    def _whole(self, query: Query, documents: Sequence[Document], limit: Limit | None, most: int | None) -> Content:
        """Put the whole conversation together, up to where the answer begins."""
        turns = self._turns(query, documents, limit, most)
        roles = tuple(role for role, _ in turns)
        first = roles not in self._frames
        if first:
            self._frames[roles] = frame_of(self.prompt, self.tokenizer, roles)
        frame = self._frames[roles]
        contents = [content for _, content in turns]
        if frame.merged:
            contents = [_joined(contents[:2], "\n "), *contents[2:]]
        whole = _framed(frame, contents)
        if first and self.prompt.chat == "tokenizer":
            self._check_template(whole.text, roles[frame.merged :], contents)
        return whole

    def _check_template(self, text: str, roles: Sequence[str], contents: Sequence[Content]) -> None:
        messages = [{"role": role, "content": part.text} for role, part in zip(roles, contents, strict=True)]
        if applied(self.prompt, self.tokenizer, messages) != text:
            raise UserError(
                f"{self.tokenizer.name_or_path}: the chat template changes texts that are put into it, so it is not "
                "known what the model reads; take a model with another chat template."
            )

    # Token ids

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(encoding.ids) for encoding in self._encodings(texts)]

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        """Tokenise texts without adding special tokens, which a chat's text has already."""
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False).encodings or []

    def _encoded(self, whole: Sequence[Content], questions: Sequence[QueryAndShown], spans: bool) -> list[Rendered]:
        """Tokenise conversations, and find the places of documents, queries, marks and labels."""
        begins = "" if self.prompt.encoder else self.prompt.begins
        rendered = []
        texts = [content.text + begins for content in whole]
        for part in batches_by_size(
            range(len(texts)), list(map(len, texts)), most=CHARACTERS_A_CALL, count=TEXTS_A_CALL
        ):
            for place, encoding in zip(part, self._encodings([texts[i] for i in part]), strict=True):
                content = whole[place]
                one = Rendered(
                    list(encoding.ids),
                    texts[place],
                    [_tokens(encoding, *span) for span in content.documents] if spans else [],
                    [_tokens(encoding, *span) for span in content.queries] if spans else [],
                )
                self._end(one, len(questions[place][1]))
                rendered.append(one)
        return rendered

    def _end(self, one: Rendered, count: int) -> None:
        """Let the ids end where the answer begins, and say how it begins."""
        prompt = self.prompt
        one.answer_tokens = self._answer_tokens(count)
        if prompt.marks:
            marked = {self._ids([mark])[0][0] for mark in prompt.marks}
            one.marks = [place for place, token in enumerate(one.ids) if token in marked]
        if prompt.encoder:
            one.ids.append(self.tokenizer.eos_token_id)
            start = [self.tokenizer.pad_token_id]
            one.decoder_ids, one.begins = (
                start + self._ids([prompt.begins])[0] if prompt.begins else start,
                prompt.begins,
            )
            if self.reads == "logits":
                one.decoder_ids = start + self._told(one, prompt.begins, one.decoder_ids[1:], count)
        elif prompt.begins or self.reads == "logits":
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
        if self.reads != "logits":
            return kept
        one.labels = list(known.paths)[: len(self.prompt.choices(count).labels)]
        return [*kept, *known.add]

    def _answer_tokens(self, count: int) -> int:
        if self.reads == "logits" or self.prompt.asks == "states":
            return 0
        if isinstance(self.prompt.most_tokens, int):
            return min(self.prompt.most_tokens, (self.most_tokens or 10**9) // 2)
        if count not in self._answers:
            self._answers[count] = len(self._ids([self.prompt.full_answer(count)])[0])
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
        longest = max(len(self._content(document).split()) for document in documents)
        while (excess := self._excess(one)) > 0:
            step = max(1, excess // (len(documents) * (4 if limit.unit == "words" else 1)))
            limit = limit._replace(count=limit.count - step)
            if limit.count < FLOOR[limit.unit]:
                raise UserError(
                    f"query {query.query_id!r}: {len(documents)} documents, cut to {FLOOR[limit.unit]} {limit.unit} "
                    f"each, take {len(one.ids)} tokens with the prompt {self.prompt.name!r} and its answer takes "
                    f"{one.answer_tokens}, but the model reads {self.most_tokens}; show fewer at once (--window), or "
                    "shorten the query."
                )
            if limit.unit != "words" or limit.count < longest:
                [one] = self._encoded([self._whole(query, documents, limit, most)], [(query, documents)], True)
        return one

    # Encoders that read documents apart

    def _apart(self, query: Query, documents: Sequence[Document]) -> Rendered:
        """Make an input of each document, cut at its end."""
        [(_, content)] = self._turns(query, documents, self.prompt.limit, None)
        ends = [begin for begin, _ in content.documents[1:]] + [len(content.text)]
        starts = [0, *ends[:-1]]
        texts = [content.text[start:end] for start, end in zip(starts, ends, strict=True)]
        most, end_id = (self.prompt.input_length or 10**6) - 1, self.tokenizer.eos_token_id
        rows = [[*ids[:most], end_id] for ids in self._ids(texts)]
        edges = [0, *accumulate(map(len, rows))]
        inputs = [slice(start, end) for start, end in pairwise(edges)]
        one = Rendered([token for row in rows for token in row], content.text, list(inputs), [], inputs=inputs)
        one.decoder_ids = [self.tokenizer.pad_token_id]
        one.answer_tokens = self._answer_tokens(len(documents))
        return one


def _filled(piece: str, values: dict[str, str], pieces: Content) -> Content:
    """Fill the fields of a turn or of a document's piece.

    {documents} stands for the pieces of all documents. A document's place begins with its piece, so that even an empty
    one has its label.
    """
    parts: list[Content] = []
    size = 0
    for part in parse_piece(piece):
        text = values.get(part.text, "") if part.is_field else part.text
        content = Content(text, [], [(0, len(text))] if part == PiecePart("query", True) else [])
        if part == PiecePart("document", True):
            content.documents.append((-size, len(text)))
        parts.append(pieces if part == PiecePart("documents", True) else content)
        size += len(parts[-1].text)
    return _joined(parts, "")


def _joined(contents: Sequence[Content], between: str) -> Content:
    """Join the texts of several turns."""
    parts, size, shown, asked = [], 0, [], []
    for content in contents:
        shown += [(size + begin, size + end) for begin, end in content.documents]
        asked += [(size + begin, size + end) for begin, end in content.queries]
        parts.append(content.text)
        size += len(content.text) + len(between)
    return Content(between.join(parts), shown, asked)


def _framed(frame: Frame, contents: Sequence[Content]) -> Content:
    """Put the fixed texts of a chat around turns."""
    parts = [Content(frame.texts[0], [], [])]
    for (left, right), content, after in zip(frame.strips, contents, frame.texts[1:], strict=True):
        parts += [_stripped(content, left, right), Content(after, [], [])]
    return _joined(parts, "")


def _stripped(content: Content, left: bool, right: bool) -> Content:
    """Take white space away from the ends of a turn's text."""
    text = content.text.lstrip() if left else content.text
    gone = len(content.text) - len(text)
    text = text.rstrip() if right else text
    if len(text) == len(content.text):
        return content

    def moved(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(max(0, start - gone), min(len(text), max(0, end - gone))) for start, end in spans]

    return Content(text, moved(content.documents), moved(content.queries))


def _tokens(encoding: Any, start: int, end: int) -> slice:
    """Find the tokens of a stretch of text.

    An empty one has the token behind it, or the last one.
    """
    first = next((token for i in range(start, end) if (token := encoding.char_to_token(i)) is not None), None)
    if first is None:
        length = len(encoding.ids)
        limit = encoding.offsets[-1][1] if length else 0
        behind = (encoding.char_to_token(i) for i in range(end, limit))
        first = next((token for token in behind if token is not None), length - 1)
        return slice(first, first + 1)
    last = next(token for i in range(end - 1, start - 1, -1) if (token := encoding.char_to_token(i)) is not None)
    while (chars := encoding.token_to_chars(last + 1)) is not None and chars[0] < end:
        last += 1  # a character may take several tokens
    return slice(first, last + 1)
