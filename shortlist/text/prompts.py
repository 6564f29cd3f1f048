"""Prompts that ask a language model about documents, as versioned data.

A model that was trained on one prompt answers another one worse, and nobody sees why. So a prompt is a file in
text/prompts/, called as the prompt is, with every setting that is not at its default: turns of a conversation, the
piece that stands for a document, labels, limits, and what may be answered. `text/rendering.py` makes token ids of it,
and `text/answers.py` reads answers.

Fields of turns are {query}, {documents}, {num}, {labels}, {most} and {instruction}. A document's piece, and the turns
under `each`, which are repeated for every document, have {document} and {label}.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from shortlist.errors import UserError, unknown
from shortlist.text.answers import PARSES, Choices, Parsed
from shortlist.text.templates import field_names

Asks = Literal[
    "order", "top", "best", "worst", "pair", "grades", "grade", "states", "queries", "attention", "blocks",
    "likelihood", "text",
]  # fmt: skip
"""What is wanted of the documents: all of them in order, the best few in order, the best one, the worst one, the
better one of two, a grade for each, a grade for the only one, nothing but hidden states at marked tokens, queries
that the only one answers, nothing but attention, the relevant ones of documents that do not see one another, how
likely the query is behind the only one, or a text of the model's own about them."""
Answers = Literal["text", "logits", "likelihood"]
"""How an answer is had: generated and parsed, read from the labels' logits at one position, or from the log-probability
of each label."""

UNITS = ("words", "tokens", "characters")

ONLY = {"pair": 2, "grade": 1, "queries": 1, "likelihood": 1}
"""The only number of documents that these prompts can show."""
UNPARSED = ("states", "queries", "attention", "likelihood", "text")
"""What needs no function to read scores from an answer."""

TURN_FIELDS = {"query", "documents", "num", "labels", "most", "instruction"}
PIECE_FIELDS = {"document", "label"}
ROLES_OF_TURNS = ("system", "user", "assistant")

LETTERS = 26
"""The number of labels that a prompt with letters has."""


class Turn(NamedTuple):
    """A turn of the conversation before the answer."""

    role: str
    text: str
    each: bool = False
    """Whether it is repeated, with its neighbours that are too, for each document."""


class Limit(NamedTuple):
    """The most that is kept of a text before it is put into the prompt."""

    most: int
    unit: str


TOKENS_A_WORD = 3
"""Tokens that a model may write for each word it is asked for."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt: what is asked, in which words, and how the answer is read."""

    name: str
    asks: Asks
    """What is wanted of the documents."""
    turns: tuple[Turn, ...]
    """The conversation before the answer."""
    document: str = "{document}"
    """The piece that stands for a document in {documents}."""
    between: str = ""
    """The text between two documents' pieces."""
    content: str = "{title} {text}"
    """A document's text; an empty field is removed together with one space next to it."""
    replace: tuple[tuple[str, str], ...] = ()
    """Regular expressions and their replacements in documents, before they are cut."""
    replace_query: tuple[tuple[str, str], ...] = ()
    """Regular expressions and their replacements in queries."""
    limit: Limit | None = None
    """The most that is kept of a document."""
    query_limit: Limit | None = None
    """The most that is kept of a query."""
    labels: str = "{number}"
    """A document's label: its place among those shown as {number} (from 1), {zero} (from 0) or {letter}."""
    most_labels: int | None = None
    """The largest number of documents in a prompt, where the model or the method has a limit."""
    most: int | None = None
    """The number of documents to choose or of queries to write, if nobody says another one (None: half of those
    shown)."""
    window: int = 20
    """The number of documents to show at once, if nobody says another one."""
    stride: int = 10
    """The number of documents from one window to the next, if nobody says another one."""
    instruction: str = ""
    """The value of {instruction}."""
    chat: str | tuple[tuple[str, str], ...] = "tokenizer"
    """The conversation's form: that of the tokenizer's chat template, "none" (the bare texts), or the prompt's own,
    with texts for `start`, each role and `end`, and the fields {text}, {bos} and {eos}."""
    thinking: bool | None = None
    """The value of `enable_thinking` for the tokenizer's chat template; None: it is not told."""
    begins: str = ""
    """The text with which the answer begins, given to the model."""
    answer: str = "{label}"
    """A label in the answer, behind `begins`; where likelihood is asked for, the query in place of a label."""
    answers_between: str = ""
    """The text between two labels of an order in the answer."""
    answer_whole: str = "{answers}"
    """A whole answer that is an order."""
    parse: str = ""
    """Function that reads the answer: a name in PARSES."""
    grades: tuple[int, ...] = ()
    """The grades that may be given, from low to high."""
    most_tokens: int | Literal["full"] = "full"
    """The most tokens of an answer; "full": as many as an answer with all labels has."""
    certain: bool = False
    """Whether a generated grade is multiplied by its probability: that of its tokens, after what was written before."""
    reads: Answers = "text"
    """How the answer is had, if nobody says otherwise."""
    likelihood: Literal["mean", "sum"] = "mean"
    """Whether a query's likelihood is the mean or the sum of its tokens' log-probabilities."""
    whole: bool = False
    """Whether documents are never shortened for the model's sake: a prompt that is too long is refused."""
    marks: tuple[str, ...] = ()
    """Tokens whose hidden states are read: that of each document, then that of the query."""
    asking: Literal["end", "query"] = "end"
    """The tokens whose attention is read begin behind the documents, and end with the prompt, or with the token behind
    the query."""
    encoder: bool = False
    """Whether an encoder reads the prompt, and a decoder, which gets `begins`, writes the answer."""
    apart: bool = False
    """Whether each document's piece is an input of its own, for an encoder."""
    input_length: int | None = None
    """The most tokens of such an input, whose end is cut away."""

    def label(self, place: int) -> str:
        """Return the label of the document at this place among those shown, counted from 0."""
        return self.labels.format(number=place + 1, zero=place, letter=chr(ord("A") + place % LETTERS))

    def most_documents(self) -> int | None:
        """Return the largest number of documents that a prompt may show (None: any number)."""
        known = [LETTERS if "letter" in field_names(self.labels) else None, self.most_labels]
        known += [ONLY.get(self.asks)]
        return min((count for count in known if count is not None), default=None)

    def choices(self, count: int, most: int | None = None) -> Choices:
        """List the labels and grades that an answer about `count` documents may hold.

        Args:
            most: the number of documents to choose, for prompts that have some chosen.
        """
        labels = tuple(map(str, self.grades)) if self.asks == "grade" else tuple(map(self.label, range(count)))
        return Choices(labels, self.grades, self.most_to_choose(count, most) if self.asks == "top" else None)

    def most_to_choose(self, count: int, most: int | None = None) -> int:
        """Return the number to choose: as said, as the prompt says, or half."""
        return most or self.most or max(1, count // 2)

    def parsed(self, answer: str, count: int, most: int | None = None) -> Parsed:
        """Read the answer about `count` documents; `most` is the number of documents to choose."""
        return PARSES[self.parse](answer, self.choices(count, most))

    def continuations(self, count: int) -> list[str]:
        """Return, for each label, the answer that begins with it, without `begins`."""
        return [self.answer.format(label=label) for label in self.choices(count).labels]

    def full_answer(self, count: int) -> str:
        """Return an answer with all labels, whose length is the most that an answer needs."""
        parts = self.continuations(count)
        if self.asks in ("order", "top"):
            return self.answer_whole.format(answers=self.answers_between.join(parts))
        return max(parts, key=len, default="")

    def right_answer(self, order: Sequence[int]) -> str:
        """Return the answer, without `begins`, that is right if documents belong in this order.

        Args:
            order: the places of the documents among those shown, from best to worst.
        """
        parts = self.continuations(len(order))
        named = [parts[place] for place in order]
        if self.asks == "top":
            named = named[: self.most_to_choose(len(order))]
        if self.asks in ("order", "top"):
            return self.answer_whole.format(answers=self.answers_between.join(named))
        return named[-1 if self.asks == "worst" else 0]

    def of_words(self, most: int) -> "Prompt":
        """Return the prompt that asks for a text of at most this many words."""
        return replace(self, most=most, most_tokens=TOKENS_A_WORD * most)

    def shown_at_once(self) -> int:
        """Return the number of documents to show at once, if nobody says another one."""
        return min(self.window, self.most_documents() or self.window)

    def cut_at(self, tokens: int) -> "Prompt":
        """Return the prompt with documents cut at this many tokens."""
        return replace(self, limit=Limit(tokens, "tokens"))

    def digest(self) -> str:
        """Hash all settings but the name; equal prompts have equal digests."""
        settings = {name: value for name, value in asdict(self).items() if name != "name"}
        return f"sha256:{sha256(repr(sorted(settings.items())).encode()).hexdigest()}"


@cache
def prompts() -> dict[str, Path]:
    """Find the file of each prompt, by the prompt's name."""
    folder = Path(str(files("shortlist.text"))) / "prompts"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@cache
def named_prompt(name: str) -> Prompt:
    """Read a prompt by its name.

    Raises:
        UserError: no prompt has this name.
    """
    if name not in prompts():
        raise UserError(f"--prompt: {unknown('prompt', name, prompts())}")
    path = prompts()[name]
    return prompt_from(yaml.safe_load(path.read_text("utf-8")), name=name, where=str(path))


def prompt_from(values: Mapping[str, Any], *, name: str, where: str) -> Prompt:
    """Make a prompt of the values of a YAML file.

    Args:
        where: the file's name in errors.

    Raises:
        UserError: a setting is unknown, missing or does not fit the others.
    """
    known = {field.name for field in fields(Prompt)} - {"name"}
    for key in values.keys() - known:
        raise UserError(f"{where}: {unknown('prompt setting', key, known)}")
    for key in {"asks", "turns"} - values.keys():
        raise UserError(f"{where}: has no `{key}`; a prompt needs asks and turns.")
    if values["asks"] not in get_args(Asks):
        raise UserError(f"{where}: {unknown('question', str(values['asks']), get_args(Asks))}")
    read: dict[str, Callable[[Any], Any]] = {
        "turns": lambda value: _turns(value, where),
        "limit": lambda value: _limit(value, where),
        "query_limit": lambda value: _limit(value, where),
        "chat": lambda value: tuple(value.items()) if isinstance(value, dict) else value,
        "grades": tuple,
        "marks": tuple,
        "replace": lambda value: tuple(map(tuple, value)),
        "replace_query": lambda value: tuple(map(tuple, value)),
    }
    settings = {key: read.get(key, lambda value: value)(value) for key, value in values.items()}
    prompt = Prompt(name=name, **settings)
    _check(prompt, where)
    return prompt


def _turns(listed: list[dict[str, Any]], where: str) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for item in listed:
        for role, text in item.items():
            turns += [Turn(*part, each=True) for part in text.items()] if role == "each" else [Turn(role, text)]
    for turn in turns:
        if turn.role not in ROLES_OF_TURNS:
            raise UserError(f"{where}: {unknown('role of a turn', turn.role, (*ROLES_OF_TURNS, 'each'))}")
    return tuple(turns)


def _limit(said: str, where: str) -> Limit:
    count, _, unit = said.partition(" ")
    if not count.isdecimal() or int(count) < 1 or unit not in UNITS:
        raise UserError(
            f"{where}: a limit is {said!r}; expected a number and a unit, such as '300 words' or '128 tokens'."
        )
    return Limit(int(count), unit)


def _check(prompt: Prompt, where: str) -> None:
    """Refuse unknown fields, documents that are shown nowhere, and answers that nobody reads."""
    texts = [(turn.text, TURN_FIELDS | (PIECE_FIELDS if turn.each else set())) for turn in prompt.turns]
    for text, known in [
        *texts,
        (prompt.document, TURN_FIELDS | PIECE_FIELDS),
        (prompt.labels, {"number", "zero", "letter"}),
    ]:
        for name in field_names(text) - known:
            raise UserError(f"{where}: {unknown('field', name, known)}")
    if prompt.asks in ("grade", "grades") and not prompt.grades:
        raise UserError(f"{where}: asks for grades and names none; list them from low to high: `grades: [0, 1, 2, 3]`.")
    if prompt.certain and (prompt.asks, prompt.parse, prompt.encoder) != ("grade", "grade", False):
        raise UserError(f"{where}: `certain` is for one grade of a decoder, read by `parse: grade`; leave it out.")
    shown = [turn for turn in prompt.turns if field_names(turn.text) & {"documents", "document"}]
    if len(shown) != 1:
        raise UserError(f"{where}: documents are shown in {len(shown)} turns; expected one, with {{documents}}.")
    if prompt.asks not in UNPARSED and prompt.parse not in PARSES:
        raise UserError(f"{where}: {unknown('parse', prompt.parse, PARSES)}")
