"""Input contract of a checkpoint family: text -> token ids, output -> vector or score.

A model trained on one form of input and run on another gives plausible but worse numbers. So the form of the input and
the reading of the output are data: an `InputContract`, stored in every model folder as `contract.json`. Its `Form` is
all that `text/inputs.py` needs, and its `Reading` is all that a model needs.

A template is a tuple of pieces. A piece is a special token (`<bos>`, `<eos>`, `<cls>`, `<sep>`, `<mask>`), a token by
its name (`<token:[unused0]>`), or text with fields ({instruction}, {query}, {url}, {title}, {text}). Each text piece is
tokenised separately, without special tokens. An input that is too long is cut at the end of the last piece with a
field, if possible a field of the document. So special tokens, prompts, and the query of a pair are never lost.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from shortlist.errors import UserError, unknown
from shortlist.text.templates import before_field, field_names, literal, prompt, token_name

SPECIAL = {f"<{name}>": f"{name}_token_id" for name in ("bos", "eos", "cls", "sep", "mask")}
"""Special tokens: the piece, and the attribute of a tokenizer with its id."""

PER_TOKEN = "tokens"
"""The pooling of late interaction, which keeps a vector for each token."""

TERMS_MAX, TERMS_SUM = "terms-max", "terms-sum"
"""The poolings of learned sparse retrieval: a term's weight is its greatest over the tokens, or their sum."""
SPARSE = (TERMS_MAX, TERMS_SUM)

TEMPLATES = ("query", "document", "pair")

DOCUMENT_FIELDS = ("url", "title", "text")

UNCUT = 10**9
"""A length that no text has."""


def is_token(piece: str) -> bool:
    """Whether a piece of a template is one token, instead of text."""
    return piece in SPECIAL or token_name(piece) is not None


@dataclass(frozen=True, kw_only=True)
class Form:
    """Templates and lengths that turn texts into token ids.

    A retriever has `query` and `document` templates, a reranker has `pair`.
    """

    query: tuple[str, ...] = ()
    """Template of a query."""
    document: tuple[str, ...] = ()
    """Template of a document."""
    pair: tuple[str, ...] = ()
    """Template of a query with a document."""
    query_length: int = 32
    """Most tokens of a query, special tokens included."""
    document_length: int = 196
    """Most tokens of a document, special tokens included."""
    pair_length: int = 196
    """Most tokens of a pair, special tokens included; only the document is ever cut."""
    verbatim: bool = False
    """Whether fields are filled in unstripped and even if empty, with hyphens in titles replaced by spaces; the filled
    text is then stripped."""
    instruction: str = ""
    """Value of {instruction}."""
    prompts: tuple[tuple[str, str], ...] = ()
    """Further prompts, each with its name; one of them may replace the prompt of queries or of documents."""
    lower_case: bool = False
    """Whether texts are lower-cased before they are tokenised."""
    expansion: str = ""
    """Late interaction: the token that queries are filled up with, as a piece such as <mask> (empty: none)."""
    expansion_length: int = 0
    """The number of tokens that queries are filled up to (0: query_length)."""
    expansion_read: bool = False
    """Whether a query's tokens attend to those that fill it up."""
    skipped: tuple[str, ...] = ()
    """Late interaction and sparse: names of tokens that give no vector, or no weights, in documents, such as
    punctuation; names that the vocabulary lacks change nothing."""
    skipped_in_queries: bool = False
    """Whether these tokens give no vector in queries, either."""
    feedback: tuple[str, ...] = ()
    """Template of each document that a query is read with, behind the query's text; empty for models that read queries
    alone."""
    feedback_docs: int = 0
    """The most documents that a query was read with in training."""
    queries_marked: bool = False
    """Sparse: whether a query's ids are marked, for models that encode queries in another way than documents."""
    echo: bool = False
    """Sparse: whether texts are read twice, and only the second copy gives weights, so that a decoder's tokens have
    seen the whole text; a length is that of both copies."""

    def with_lengths(self, *, query: int | None = None, document: int | None = None) -> "Form":
        """Return the same form with other lengths.

        Args:
            query: most tokens of a query.
            document: most tokens of a document or, for a reranker, of the whole pair.

        Raises:
            UserError: a length is below 1.
        """
        for flag, length in (("query-length", query), ("max-length", document)):
            if length is not None and length < 1:
                raise UserError(f"--{flag} is {length}; expected at least 1.")
        return replace(
            self,
            query_length=query or self.query_length,
            document_length=document or self.document_length,
            pair_length=document or self.pair_length,
        )

    def within(self, longest: int | None) -> "Form":
        """Return the same form with no length above `longest`."""
        lengths = {f"{kind}_length": getattr(self, f"{kind}_length") for kind in TEMPLATES if getattr(self, kind)}
        too_long = {name: longest for name, length in lengths.items() if longest is not None and length > longest}
        return replace(self, **too_long) if too_long else self

    def with_feedback(self, docs: int, *, separator: bool) -> "Form":
        """Return the same form for queries that are read with documents.

        Args:
            docs: the most documents of a query (0: queries are read alone).
            separator: whether the tokenizer has a separator token. Otherwise a line that says `Document:` begins each
                document.
        """
        template = ("<sep>", "{title} {text}") if separator else ("\nDocument: {title} {text}",)
        return replace(self, feedback=template if docs else (), feedback_docs=docs)

    def check_feedback(self, name: str) -> None:
        """Refuse a model that reads queries alone.

        Raises:
            UserError: the form has no place for documents.
        """
        if not self.feedback:
            raise UserError(
                f"{name}: reads queries alone; expected a feedback encoder, such as `shortlist train retriever "
                "--feedback RUN` makes."
            )

    def with_instruction(self, instruction: str | None) -> "Form":
        """Return the same form with another instruction.

        Raises:
            UserError: no template has an instruction.
        """
        if instruction is None:
            return self
        if not any("instruction" in field_names(piece) for kind in TEMPLATES for piece in getattr(self, kind)):
            raise UserError("--instruction: the model's input contract has no place for one; leave it out.")
        return replace(self, instruction=instruction)

    def with_prompts(self, *, query: str = "", document: str = "") -> "Form":
        """Return the same form with a text in front of queries and of documents.

        It is as if each query, and each document's title or text, began with it.
        """
        prompts = {("query",): query, DOCUMENT_FIELDS: document}

        def prompted(template: tuple[str, ...]) -> tuple[str, ...]:
            for names, text in prompts.items():
                place = next((i for i, piece in enumerate(template) if field_names(piece) & set(names)), None)
                if text and place is not None:
                    template = (*template[:place], before_field(template[place], names, text), *template[place + 1 :])
            return template

        return replace(self, **{kind: prompted(getattr(self, kind)) for kind in TEMPLATES})

    def with_prompt(self, kind: str, name: str | None) -> "Form":
        """Return the same form with another prompt.

        It replaces the text before the first field.

        Args:
            kind: `query` or `document`.
            name: the name of the prompt (None: keep the template's own).

        Raises:
            UserError: there is no such prompt.
        """
        if name is None:
            return self
        known = dict(self.prompts)
        if not known:
            raise UserError(f"--prompt {name}: the model's input contract names no prompts; leave it out.")
        if name not in known:
            raise UserError(f"--prompt: {unknown('prompt of the input contract', name, known)}")
        pieces = list(getattr(self, kind))
        place = next(i for i, piece in enumerate(pieces) if field_names(piece))
        pieces[place] = literal(known[name]) + pieces[place].removeprefix(literal(prompt(pieces[place])))
        return replace(self, **{kind: tuple(pieces)})

    def fitted(self, tokenizer: Any) -> "Form":
        """Return the same form, without `<bos>` and `<mask>` if the tokenizer has no such token.

        Qwen's tokenizer has none, and its models have never seen one.
        """
        form = self
        if self.expansion == "<mask>" and tokenizer.mask_token_id is None:
            form = replace(form, expansion="", expansion_length=0, expansion_read=False)
        if tokenizer.bos_token_id is not None:
            return form
        return replace(form, **{k: tuple(p for p in getattr(self, k) if p != "<bos>") for k in TEMPLATES})

    def uncut(self) -> "Form":
        """Return the same form without limits; queries are filled up as before."""
        filled = {"expansion_length": self.expansion_length or self.query_length} if self.expansion else {}
        return replace(self.with_lengths(query=UNCUT, document=UNCUT), **filled)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The way a model reads tokens and turns its output into a vector or score."""

    pooling: str = "last"
    """Hidden state that represents the input: a name in math.pooling.POOLINGS; or all of them, for late interaction
    (tokens); or how a term's weights at all tokens become one, for learned sparse retrieval (terms-max, terms-sum)."""
    normalize: bool = True
    """Whether vectors are scaled to length 1."""
    cut: int = 0
    """The number of a vector's first numbers that are kept (0: all); they are scaled after that, if at all."""
    dims: tuple[int, ...] = ()
    """Dimensions that vectors may be cut to, as the model was trained for (Matryoshka)."""
    bidirectional: bool = False
    """Whether every token of a decoder also sees later tokens, as in an encoder."""
    answer: tuple[str, ...] = ()
    """Tokens of a language model's answer that give a pair's score: the logit of one token, or the first token's logit
    minus the second's. Empty if the checkpoint has a head for scores."""
    token_types: bool = False
    """Whether a cross-encoder gets token types (1 for the document's tokens), if its model has them."""
    weighing: str = "vocabulary"
    """Sparse: what gets a weight from each token: all terms, by the logits of a language-model head (vocabulary), or
    the token itself, by a linear layer (tokens)."""
    queries: str = ""
    """Sparse: how queries are encoded: as documents are (empty), by weights of their own tokens (tokens), or by a list
    of weights, without a model (lookup)."""
    logs: int = 1
    """Sparse: how often log(1 + x) is applied to a logit above 0."""
    logit_scale: float = 1.0
    """Sparse: what multiplies the logits."""
    keep_terms: int = 0
    """Sparse: the number of terms of a document that are kept, those of the greatest weights (0: all)."""
    keep_query_terms: int = 0
    """Sparse: the number of terms of a query that are kept (0: all)."""
    left_out: tuple[str, ...] = ()
    """Sparse: names of terms that get no weight, such as special tokens."""


ORDER = (
    *TEMPLATES,
    *("query_length", "document_length", "pair_length", "pooling", "normalize", "bidirectional", "verbatim", "answer"),
    *("instruction", "token_types"),
)
"""The settings of every contract.json, in their order there; others follow where they are not at their defaults."""

OF_QUERIES: dict[str, Any] = {"query": (), "query_length": 0, "prompts": ()}
OF_QUERIES |= {"expansion": "", "expansion_length": 0, "expansion_read": False, "skipped_in_queries": False}
OF_QUERIES |= {"queries_marked": False, "feedback": (), "feedback_docs": 0}
"""The settings of queries alone, with values that stand for none."""
READING_OF_QUERIES: dict[str, Any] = {"queries": "", "keep_query_terms": 0}
"""Those of a reading."""


@dataclass(frozen=True)
class InputContract:
    """The input form of a checkpoint family, and the reading of its output."""

    form: Form = field(default_factory=Form)
    reading: Reading = field(default_factory=Reading)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings of form and reading in one dict of plain values, for JSON.

        Settings that are not in ORDER are left out at their defaults, so a new one leaves existing files unchanged.
        """
        default, settings = InputContract()._settings(), self._settings()
        said = {name: value for name, value in settings.items() if name in ORDER or value != default[name]}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}
        return plain | ({"prompts": dict(self.form.prompts)} if self.form.prompts else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> "InputContract":
        """Read a contract from the values of a JSON file.

        Args:
            where: the file's name in errors.

        Raises:
            UserError: an unknown setting.
        """
        of_form, of_reading = ({field.name for field in fields(part)} for part in (Form, Reading))
        known = of_form | of_reading
        for name in values.keys() - known:
            raise UserError(f"{where}: {unknown('contract setting', name, known)}")
        settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        if "prompts" in settings:
            settings["prompts"] = tuple(settings["prompts"].items())
        return cls(
            Form(**{name: settings[name] for name in of_form & settings.keys()}),
            Reading(**{name: settings[name] for name in of_reading & settings.keys()}),
        )

    def with_lengths(self, *, query: int | None = None, document: int | None = None) -> "InputContract":
        """Return the same contract with other lengths, as for `Form.with_lengths`."""
        return replace(self, form=self.form.with_lengths(query=query, document=document))

    def with_instruction(self, instruction: str | None) -> "InputContract":
        """Return the same contract with another instruction, as for `Form.with_instruction`."""
        return replace(self, form=self.form.with_instruction(instruction))

    def with_prompt(self, kind: str, name: str | None) -> "InputContract":
        """Return the same contract with another prompt, as for `Form.with_prompt`."""
        return replace(self, form=self.form.with_prompt(kind, name))

    def with_dims(self, dims: int | None) -> "InputContract":
        """Return the same contract with vectors cut to their first numbers.

        Args:
            dims: how many numbers are kept (None: as many as before).

        Raises:
            UserError: `dims` is below 1.
        """
        if dims is None:
            return self
        if dims < 1:
            raise UserError(f"--dims is {dims}; expected at least 1.")
        return replace(self, reading=replace(self.reading, cut=dims))

    def of_documents(self) -> str:
        """Hash the settings that a document's vector depends on.

        These are all but those of queries and pairs.
        """
        return self._hash(pair=(), pair_length=0, **OF_QUERIES)

    def of_pairs(self) -> str:
        """Hash the settings that a pair's score depends on.

        These are all but those of queries alone and documents alone.
        """
        return self._hash(document=(), document_length=0, **OF_QUERIES)

    def _settings(self) -> dict[str, Any]:
        values = asdict(self.form) | asdict(self.reading)
        return {name: values[name] for name in dict.fromkeys((*ORDER, *values))}

    def _hash(self, **form: Any) -> str:
        """Hash the settings that differ from their defaults.

        So a new setting leaves existing hashes unchanged.
        """
        asked = InputContract(replace(self.form, **form), replace(self.reading, **READING_OF_QUERIES))
        default, settings = InputContract()._settings(), asked._settings()
        chosen = {name: value for name, value in sorted(settings.items()) if value != default[name]}
        return f"sha256:{sha256(repr(chosen).encode()).hexdigest()}"


Adjust = Callable[[InputContract], InputContract]
"""Turns a model's contract into the one to use, for example with other lengths."""


@cache
def presets() -> dict[str, Path]:
    """Find the file of each preset, by the preset's name.

    The file is text/presets/NAME.yaml, and has the settings that differ from their defaults.
    """
    folder = Path(str(files("shortlist.text"))) / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def named_contract(name: str) -> InputContract:
    """Read a preset by its name.

    Raises:
        UserError: no preset has this name.
    """
    if name not in presets():
        raise unknown("contract", name, presets())
    return _read(presets()[name])


@cache
def _read(path: Path) -> InputContract:
    return InputContract.from_dict(yaml.safe_load(path.read_text("utf-8")), where=str(path))
