"""How text becomes token ids, for one checkpoint family: templates, special tokens, lengths, pooling.

A model trained on one form of input and run on another gives plausible, worse numbers. So the form is data: an
`InputContract`, stored in every model folder, and `Inputs`, the only code that turns text into ids.

A template is a tuple of pieces. A piece is a special token (`<bos>`, `<eos>`, `<cls>`, `<sep>`) or text with fields
({instruction}, {query}, {url}, {title}, {text}); each text piece is tokenised on its own, without special tokens. Too
long an input is cut at the end of the last piece that has a field, one of the document's if there is any, so that no
special token, no prompt and no query beside a document is ever lost.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from typing import Any, Protocol

from shortlist.errors import UserError, unknown
from shortlist.records import Document, Query

TEXTS_AT_ONCE = 1024
"""Texts per call of the tokenizer, which keeps a hundred bytes per token until it returns."""

SPECIAL = {"<bos>": "bos_token_id", "<eos>": "eos_token_id", "<cls>": "cls_token_id", "<sep>": "sep_token_id"}

KINDS = ("query", "document", "pair")

NO_TEXT = {"query": "", "url": "", "title": "", "text": ""}
FIELDS = ("instruction", *NO_TEXT)
DOCUMENT_FIELDS = ("url", "title", "text")


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """The input form of one checkpoint family.

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
    pooling: str = "last"
    """Which hidden state stands for the input: a name in math.pooling.POOLINGS."""
    normalize: bool = True
    """Vectors have length 1."""
    bidirectional: bool = False
    """Every token of a decoder sees those after it too, as an encoder's always do."""
    verbatim: bool = False
    """Fields go in unstripped and even when empty, with hyphens in titles as spaces; then the whole is stripped."""
    answer: tuple[str, ...] = ()
    """Tokens of a language model's answer that are a pair's score: the logit of one, or that of the first less that of
    the second. None: the checkpoint has a head for scores."""
    instruction: str = ""
    """What {instruction} stands for."""
    token_types: bool = False
    """A cross-encoder is told which tokens are the document's (type 1), where its model has token types."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, where: str) -> "InputContract":
        """Back from JSON.

        Raises:
            UserError: a name that no contract has; `where` says which file.
        """
        known = {field.name for field in fields(cls)}
        for name in values.keys() - known:
            raise UserError(f"{where}: {unknown('contract setting', name, known)}")
        settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**settings)

    def with_lengths(self, *, query: int | None = None, document: int | None = None) -> "InputContract":
        """The same contract with other lengths; `document` bounds a document or, in a reranker, the whole pair.

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

    def with_instruction(self, instruction: str | None) -> "InputContract":
        """The same contract with another instruction.

        Raises:
            UserError: its inputs have none.
        """
        if instruction is None:
            return self
        if not any("{instruction}" in piece for kind in KINDS for piece in getattr(self, kind)):
            raise UserError("--instruction: the model's input contract has no place for one; leave it out.")
        return replace(self, instruction=instruction)

    def of_documents(self) -> str:
        """A hash of what a document's vector depends on: the contract but for queries and pairs."""
        return replace(self, query=(), query_length=0, pair=(), pair_length=0)._hash()

    def of_pairs(self) -> str:
        """A hash of what a pair's score depends on: the contract but for queries and documents alone."""
        return replace(self, query=(), query_length=0, document=(), document_length=0)._hash()

    def _hash(self) -> str:
        """Of what is not as by default, so that a setting that comes to exist changes no hash."""
        default = type(self)()
        chosen = {name: value for name, value in sorted(asdict(self).items()) if value != getattr(default, name)}
        return f"sha256:{sha256(repr(chosen).encode()).hexdigest()}"

    def fitted(self, tokenizer: Any) -> "InputContract":
        """The same contract without `<bos>`, where the tokenizer has none (Qwen's, whose models never saw one)."""
        if tokenizer.bos_token_id is not None:
            return self
        return replace(self, **{k: tuple(p for p in getattr(self, k) if p != "<bos>") for k in KINDS})


_REPLLAMA = InputContract(
    query=("<bos>", "query: {query}", "<eos>"), document=("<bos>", "passage: {title} {text}", "<eos>")
)
_RANKLLAMA = InputContract(
    pair=("<bos>", "query: {query} document: {title} {text}", "<eos>"), normalize=False, pooling="last"
)
_RANKLLAMA_V1 = replace(_RANKLLAMA, pair=("<bos>", "query: {query}", "<bos>", "document: {title} {text}"))
_BERT = InputContract(
    query=("<cls>", "{query}", "<sep>"),
    document=("<cls>", "{title} {text}", "<sep>"),
    query_length=64,
    document_length=256,
    pooling="mean",
)
_CROSS_ENCODER = InputContract(
    pair=("<cls>", "{query}", "<sep>", "{title} {text}", "<sep>"),
    pair_length=512,
    pooling="cls",
    normalize=False,
    token_types=True,
)
_T5 = InputContract(pair_length=512, pooling="cls", normalize=False)
_T5_PAIR = "Query: {query} Document: {title} {text}"

CONTRACTS = {
    "repllama": _REPLLAMA,
    "repllama-document": replace(
        _REPLLAMA, document=("<bos>", "passage: {url} {title} {text}", "<eos>"), document_length=2048
    ),
    "rankllama": _RANKLLAMA,
    "rankllama-document": replace(
        _RANKLLAMA, pair=("<bos>", "query: {query} document: {url} {title} {text}", "<eos>"), pair_length=2048
    ),
    "rankllama-v1": _RANKLLAMA_V1,
    "rankllama-v1-document": replace(
        _RANKLLAMA_V1, pair=(*_RANKLLAMA_V1.pair[:-1], "document: {url} {title} {text}"), pair_length=2048
    ),
    "rankllama-v2": replace(_RANKLLAMA, pair=("<bos>", "query:  {query} document:  {title} {text}"), verbatim=True),
    "bert": _BERT,
    "bert-cls": replace(_BERT, pooling="cls"),
    "e5": replace(
        _BERT,
        query=("<cls>", "query: {query}", "<sep>"),
        document=("<cls>", "passage: {title} {text}", "<sep>"),
        query_length=512,
        document_length=512,
    ),
    "bge": replace(
        _BERT,
        query=("<cls>", "Represent this sentence for searching relevant passages: {query}", "<sep>"),
        query_length=512,
        document_length=512,
        pooling="cls",
    ),
    "bert-pair": replace(_CROSS_ENCODER, pair_length=256, token_types=False),
    "cross-encoder": _CROSS_ENCODER,
    "cross-encoder-roberta": replace(
        _CROSS_ENCODER, pair=("<cls>", "{query}", "<sep>", "<sep>", "{title} {text}", "<sep>"), token_types=False
    ),
    "monot5": replace(_T5, pair=(_T5_PAIR, "Relevant:", "<eos>"), answer=("▁true", "▁false")),
    "rankt5": replace(_T5, pair=(_T5_PAIR, "<eos>"), answer=("<extra_id_10>",)),
    "qwen3-reranker": InputContract(
        pair=(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
            "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {title} {text}",
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        pair_length=2048,
        normalize=False,
        answer=("yes", "no"),
        instruction="Given a web search query, retrieve relevant passages that answer the query",
    ),
}
"""Presets by name. The LLaMA ones are those of https://arxiv.org/abs/2310.08319 and of its released checkpoints. `e5`:
https://arxiv.org/abs/2212.03533, `bge`: https://arxiv.org/abs/2309.07597, `monot5`: https://arxiv.org/abs/2003.06713,
`rankt5`: https://arxiv.org/abs/2210.10634, `qwen3-reranker`: https://arxiv.org/abs/2506.05176."""


def named_contract(name: str) -> InputContract:
    """A preset by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in CONTRACTS:
        raise unknown("contract", name, CONTRACTS)
    return CONTRACTS[name]


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    name_or_path: str
    eos_token_id: int | None

    def __call__(self, text: list[str], /, **options: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: list[int], /) -> list[str]: ...


class Inputs:
    """Turns queries, documents and pairs into token ids by a contract, which may be replaced.

    Raises:
        UserError: the tokenizer lacks a special token that the contract needs, or a length leaves no room for text.
    """

    def __init__(self, contract: InputContract, tokenizer: Any) -> None:
        self.tokenizer: Tokenizer = tokenizer
        self.pad_id: int = tokenizer.pad_token_id or 0
        if self.pad_id == tokenizer.eos_token_id:  # what pads is masked everywhere, so any other token will do
            self.pad_id = int(tokenizer.eos_token_id == 0)
        self.contract = contract

    @property
    def contract(self) -> InputContract:
        """The form that texts are put into."""
        return self._contract

    @contract.setter
    def contract(self, contract: InputContract) -> None:
        self._contract = contract
        self._special: dict[str, int] = {}
        for piece in {*contract.query, *contract.document, *contract.pair} & SPECIAL.keys():
            token_id = getattr(self.tokenizer, SPECIAL[piece])
            if token_id is None:
                raise UserError(
                    f"{self.tokenizer.name_or_path}: the tokenizer has no {piece} token, which the input contract "
                    "needs; choose another --contract or a tokenizer that has one."
                )
            self._special[piece] = token_id
        for kind in KINDS:
            if getattr(contract, kind):
                self._check_room(kind)

    def _check_room(self, kind: str) -> None:
        length = getattr(self.contract, f"{kind}_length")
        [bare] = self._ids(self._template(kind), [NO_TEXT], None)
        least = len(bare) + (2 if kind == "pair" else 1)
        if length < least:
            flag = "--query-length" if kind == "query" else "--max-length"
            raise UserError(
                f"{kind}_length is {length}, but prompt and special tokens alone take {len(bare)}, which leaves no "
                f"room for text; expected at least {least} ({flag})."
            )

    def special_id(self, piece: str) -> int:
        """The id of a special token that the contract uses, such as `<sep>`."""
        return self._special[piece]

    def query_ids(self, queries: Sequence[Query], *, cut: bool = True) -> list[list[int]]:
        """Token ids of each query; uncut ones may be of any length."""
        rows = [{"query": q.text} for q in queries]
        return self._ids(self._template("query"), rows, self.contract.query_length if cut else None)

    def document_ids(self, documents: Sequence[Document], *, cut: bool = True) -> list[list[int]]:
        """Token ids of each document; uncut ones may be of any length."""
        rows = [self._fields(d) for d in documents]
        return self._ids(self._template("document"), rows, self.contract.document_length if cut else None)

    def pair_ids(
        self, pairs: Sequence[tuple[Query, Document]], *, cut: bool = True, turned: bool = False
    ) -> list[list[int]]:
        """Token ids of each query with its document; only the document is cut.

        Args:
            turned: put the document before the query, where the template has the query first.

        Raises:
            UserError: a query leaves no room for its document.
        """
        template, length = self._template("pair"), self.contract.pair_length
        template = turn(template) if turned else template
        rows = [{"query": q.text} | self._fields(d) for q, d in pairs]
        ids = self._ids(template, rows, length if cut else None)
        self.check_queries(dict.fromkeys(pairs[i][0] for i, row in enumerate(ids) if len(row) >= length))
        return ids

    def check_queries(self, queries: Iterable[Query]) -> None:
        """Refuse a query that leaves no room in a pair for its document."""
        queries, length = list(queries), self.contract.pair_length
        bare = self._ids(self._template("pair"), [NO_TEXT | {"query": query.text} for query in queries], None)
        for query, row in zip(queries, bare, strict=True):
            if len(row) >= length:
                raise UserError(
                    f"query {query.query_id!r}: takes {len(row)} tokens with its prompt, and a whole pair may have "
                    f"{length}; raise --max-length or shorten the query."
                )

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The first character and the end of each token of each text by itself."""
        if not texts:
            return []
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return self.tokenizer(list(texts), return_offsets_mapping=True, **options)["offset_mapping"]

    def _template(self, kind: str) -> tuple[str, ...]:
        template = getattr(self.contract, kind)
        if not template:
            raise UserError(
                f"{self.tokenizer.name_or_path}: the model's contract has no {kind} input; wrong kind of model."
            )
        return template

    def _fields(self, document: Document) -> dict[str, str]:
        url, title, text = document.url, document.title, document.text
        if self.contract.verbatim:
            return {"url": url, "title": title.replace("-", " ").strip(), "text": text}
        return {"url": url.strip(), "title": title.strip(), "text": text.strip()}

    def _ids(self, template: tuple[str, ...], rows: Sequence[dict[str, str]], length: int | None) -> list[list[int]]:
        """Token ids of each row of fields, cut to `length` at the end of the last piece that has one."""
        if not rows:
            return []
        columns = [
            [[self._special[piece]]] * len(rows) if piece in SPECIAL else self._tokenize(piece, rows)
            for piece in template
        ]
        last = max(
            range(len(template)), key=lambda i: (_has(template[i], DOCUMENT_FIELDS), _has(template[i], FIELDS), i)
        )
        ids = []
        for row in zip(*columns, strict=True):
            parts = list(row)
            if length is not None:
                others = sum(map(len, parts)) - len(parts[last])
                parts[last] = parts[last][: max(0, length - others)]
            ids.append([token for part in parts for token in part])
        return ids

    def _tokenize(self, piece: str, rows: Sequence[dict[str, str]]) -> list[list[int]]:
        verbatim = self.contract.verbatim
        piece = piece.replace("{instruction}", self.contract.instruction.replace("{", "{{").replace("}", "}}"))
        texts = [piece.format_map(row).strip() if verbatim else fill(piece, row) for row in rows]
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        starts = range(0, len(texts), TEXTS_AT_ONCE)
        return [ids for i in starts for ids in self.tokenizer(texts[i : i + TEXTS_AT_ONCE], **options)["input_ids"]]


def turn(pair: tuple[str, ...]) -> tuple[str, ...]:
    """The template of a pair with its document before its query, each with its own prompt."""
    pieces = [part for piece in pair for part in re.split(r"(?<=\{query\})\s+", piece)]
    query, text = (next(i for i, piece in enumerate(pieces) if field in piece) for field in ("{query}", "{text}"))
    pieces[query], pieces[text] = pieces[text], pieces[query]
    return tuple(pieces)


def _has(piece: str, names: Iterable[str]) -> bool:
    return any(f"{{{name}}}" in piece for name in names)


def fill(piece: str, values: dict[str, str]) -> str:
    """Put values into a text piece; a field that is empty takes one space with it (no title -> just the text)."""
    for name, value in values.items():
        if not value:
            for field in (f"{{{name}}} ", f" {{{name}}}", f"{{{name}}}"):
                piece = piece.replace(field, "")
    return piece.format_map(values)
