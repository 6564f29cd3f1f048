"""The input contract of a checkpoint family: how text becomes token ids, and how the model's output is read.

A model trained on one form of input and run on another gives plausible, worse numbers. So both are data: an
`InputContract`, stored in every model folder as `contract.json`. Its `Form` is all that `text/inputs.py` needs, its
`Reading` all that a model needs.

A template is a tuple of pieces. A piece is a special token (`<bos>`, `<eos>`, `<cls>`, `<sep>`) or text with fields
({instruction}, {query}, {url}, {title}, {text}); each text piece is tokenised on its own, without special tokens. Too
long an input is cut at the end of the last piece that has a field, one of the document's if there is any, so that no
special token, no prompt and no query beside a document is ever lost.
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

SPECIAL = {"<bos>": "bos_token_id", "<eos>": "eos_token_id", "<cls>": "cls_token_id", "<sep>": "sep_token_id"}

TEMPLATES = ("query", "document", "pair")


@dataclass(frozen=True, kw_only=True)
class Form:
    """How texts become token ids.

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
    """Fields go in unstripped and even when empty, with hyphens in titles as spaces; then the whole is stripped."""
    instruction: str = ""
    """What {instruction} stands for."""

    def with_lengths(self, *, query: int | None = None, document: int | None = None) -> "Form":
        """The same form with other lengths; `document` bounds a document or, in a reranker, the whole pair.

        Raises:
            UserError: a length below 1.
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

    def with_instruction(self, instruction: str | None) -> "Form":
        """The same form with another instruction.

        Raises:
            UserError: its inputs have none.
        """
        if instruction is None:
            return self
        if not any("{instruction}" in piece for kind in TEMPLATES for piece in getattr(self, kind)):
            raise UserError("--instruction: the model's input contract has no place for one; leave it out.")
        return replace(self, instruction=instruction)

    def fitted(self, tokenizer: Any) -> "Form":
        """The same form without `<bos>`, where the tokenizer has none (Qwen's, whose models never saw one)."""
        if tokenizer.bos_token_id is not None:
            return self
        return replace(self, **{k: tuple(p for p in getattr(self, k) if p != "<bos>") for k in TEMPLATES})


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a model reads its tokens, and how its output becomes a vector or a score."""

    pooling: str = "last"
    """Which hidden state stands for the input: a name in math.pooling.POOLINGS."""
    normalize: bool = True
    """Vectors have length 1."""
    bidirectional: bool = False
    """Every token of a decoder sees those after it too, as an encoder's always do."""
    answer: tuple[str, ...] = ()
    """Tokens of a language model's answer that are a pair's score: the logit of one, or that of the first less that of
    the second. None: the checkpoint has a head for scores."""
    token_types: bool = False
    """A cross-encoder is told which tokens are the document's (type 1), where its model has token types."""


ORDER = (
    *TEMPLATES,
    *("query_length", "document_length", "pair_length", "pooling", "normalize", "bidirectional", "verbatim", "answer"),
    *("instruction", "token_types"),
)
"""The first settings of a contract.json, in its order; others stand behind them."""


@dataclass(frozen=True)
class InputContract:
    """The input form of one checkpoint family, and how its output is read."""

    form: Form = field(default_factory=Form)
    reading: Reading = field(default_factory=Reading)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, those of both parts side by side, for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self._settings().items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> "InputContract":
        """Back from JSON.

        Raises:
            UserError: a name that no contract has; `where` says which file.
        """
        parts = {kind: {field.name for field in fields(kind)} for kind in (Form, Reading)}
        known = set().union(*parts.values())
        for name in values.keys() - known:
            raise UserError(f"{where}: {unknown('contract setting', name, known)}")
        settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        form, reading = (
            kind(**{name: settings[name] for name in names & settings.keys()}) for kind, names in parts.items()
        )
        return cls(form, reading)

    def with_lengths(self, *, query: int | None = None, document: int | None = None) -> "InputContract":
        """The same contract with other lengths, as for `Form.with_lengths`."""
        return replace(self, form=self.form.with_lengths(query=query, document=document))

    def with_instruction(self, instruction: str | None) -> "InputContract":
        """The same contract with another instruction, as for `Form.with_instruction`."""
        return replace(self, form=self.form.with_instruction(instruction))

    def of_documents(self) -> str:
        """A hash of what a document's vector depends on: the contract but for queries and pairs."""
        return self._hash(query=(), query_length=0, pair=(), pair_length=0)

    def of_pairs(self) -> str:
        """A hash of what a pair's score depends on: the contract but for queries and documents alone."""
        return self._hash(query=(), query_length=0, document=(), document_length=0)

    def _settings(self) -> dict[str, Any]:
        values = asdict(self.form) | asdict(self.reading)
        return {name: values[name] for name in dict.fromkeys((*ORDER, *values))}

    def _hash(self, **form: Any) -> str:
        """A hash of what is not as by default, so that a setting that comes to exist changes no hash."""
        default, settings = InputContract()._settings(), replace(self, form=replace(self.form, **form))._settings()
        chosen = {name: value for name, value in sorted(settings.items()) if value != default[name]}
        return f"sha256:{sha256(repr(chosen).encode()).hexdigest()}"


Adjust = Callable[[InputContract], InputContract]
"""Makes the contract that is used of a model's own, such as one with other lengths."""


@cache
def presets() -> dict[str, Path]:
    """The file of each preset by its name: text/presets/NAME.yaml, with the settings that are not as by default."""
    folder = Path(str(files("shortlist.text"))) / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def named_contract(name: str) -> InputContract:
    """A preset by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in presets():
        raise unknown("contract", name, presets())
    return _read(presets()[name])


@cache
def _read(path: Path) -> InputContract:
    return InputContract.from_dict(yaml.safe_load(path.read_text("utf-8")), where=str(path))
