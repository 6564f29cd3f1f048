"""Queries, documents and pairs -> token ids; no other code does this."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.batching import batches_by_size
from shortlist.text.contract import DOCUMENT_FIELDS, SPECIAL, TEMPLATES, Form, is_token
from shortlist.text.marks import NO_VECTOR, OF_QUERY, UNREAD
from shortlist.text.templates import field_names, token_name, with_text, without

TEXTS_A_CALL = 1024
"""Texts per call of the tokenizer, which needs a hundred bytes per token until it returns."""
CHARACTERS_A_CALL = 1 << 21
"""Characters of a call's texts together, which one text alone may exceed."""

NO_TEXT = {"query": "", "url": "", "title": "", "text": ""}
FIELDS = ("instruction", *NO_TEXT)
FIELDS_OF = {"query": ("query",), "document": DOCUMENT_FIELDS, "pair": tuple(NO_TEXT), "feedback": DOCUMENT_FIELDS}
"""Fields of each template, besides {instruction}."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    name_or_path: str
    eos_token_id: int | None

    def __call__(self, text: list[str], /, **options: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: list[int], /) -> list[str]: ...


OnCut = Callable[[str, int, int], None]
"""Called with the kind of input, the number of texts that were too long and were cut, and the number of all."""


class Inputs:
    """Turns queries, documents and pairs into token ids, in one form and with one tokenizer.

    Raises:
        UserError: the tokenizer lacks a special token that the form needs, or a length leaves no room for text.
    """

    def __init__(self, form: Form, tokenizer: Any) -> None:
        self.tokenizer: Tokenizer = tokenizer
        self.pad_id: int = tokenizer.pad_token_id or 0
        if self.pad_id == tokenizer.eos_token_id:  # padding is masked everywhere, so any other token will do
            self.pad_id = int(tokenizer.eos_token_id == 0)
        self.on_cut: OnCut | None = None
        """Told of all texts that may be cut; for one thread alone."""
        self._form = form
        self._special: dict[str, int] = {}
        if form.expansion and not is_token(form.expansion):
            raise UserError(
                f"expansion of the input contract: {form.expansion!r} is no token; expected <mask> or <token:NAME>."
            )
        for piece in filter(is_token, {*form.query, *form.document, *form.pair, *form.feedback, form.expansion}):
            name = token_name(piece)
            token_id = getattr(tokenizer, SPECIAL[piece]) if name is None else find_id(tokenizer, name)
            if token_id is None:
                raise UserError(
                    f"{tokenizer.name_or_path}: the tokenizer has no {piece if name is None else repr(name)} token, "
                    "which the input contract needs; choose another --contract or a tokenizer that has one."
                )
            self._special[piece] = token_id
        found = (find_id(tokenizer, name) for name in form.skipped)
        self._skipped = {token_id: token_id | NO_VECTOR for token_id in found if token_id is not None}
        for kind in TEMPLATES:
            if getattr(form, kind):
                self._check_fields(kind)
                self._check_room(kind)
        if form.feedback:
            self._check_fields("feedback")
            self.check_feedback(form.feedback_docs)

    @property
    def form(self) -> Form:
        """The form that texts are put into.

        It is fixed; for another form, make and prove new inputs.
        """
        return self._form

    def _check_fields(self, kind: str) -> None:
        for piece in getattr(self.form, kind):
            try:
                unknown = () if is_token(piece) else field_names(piece) - {"instruction", *FIELDS_OF[kind]}
            except ValueError:
                unknown = ("",)
            if unknown:
                expected = ", ".join(f"{{{name}}}" for name in FIELDS_OF[kind])
                raise UserError(
                    f"{kind} of the input contract: {piece!r} has another field than {expected} or {{instruction}}; "
                    "write {{ and }} for braces that stand for themselves."
                )

    def _check_room(self, kind: str) -> None:
        length = getattr(self.form, f"{kind}_length")
        [bare] = self._ids(self._template(kind), [NO_TEXT], None)
        least = len(bare) + (2 if kind == "pair" else 1)
        if length < least:
            flag = "--query-length" if kind == "query" else "--max-length"
            raise UserError(
                f"{kind}_length is {length}, but prompt and special tokens alone take {len(bare)}, which leaves no "
                f"room for text; expected at least {least} ({flag})."
            )

    def special_id(self, piece: str) -> int:
        """Return the id of a special token that the form uses, such as `<sep>`."""
        return self._special[piece]

    @property
    def skipped(self) -> dict[int, int]:
        """The ids of tokens that give no vector in documents, each with its marked id."""
        return self._skipped

    def query_ids(self, queries: Sequence[Query], *, cut: bool = True) -> list[list[int]]:
        """Tokenise queries; without `cut`, ids may be of any length.

        The ids of late interaction and of sparse models may have marks (`text.marks`).
        """
        form, rows = self.form, [{"query": q.text} for q in queries]
        length = (form.query_length // (1 + form.echo)) if cut else None
        ids = self._ids(self._template("query"), rows, length, kind="queries")
        if form.expansion:
            filler = self._special[form.expansion] | (0 if form.expansion_read else UNREAD)
            length = min(form.expansion_length or form.query_length, form.query_length)
            ids = [row + [filler] * (length - len(row)) for row in ids]
        ids = self._marked(ids, skipping=form.skipped_in_queries)
        return [[token | OF_QUERY for token in row] for row in ids] if form.queries_marked else ids

    def feedback_ids(self, queries: Sequence[tuple[Query, Sequence[Document]]], *, cut: bool = True) -> list[list[int]]:
        """Tokenise queries, each with its feedback documents behind its text.

        Documents share the tokens that the query leaves, so that none is lost; of a query at least as much is kept as
        fits into half of the room. With `cut=False`, ids may be of any length.
        """
        form, length = self.form, self.form.query_length if cut else None
        of_query, of_document = _last(self._template("query")), _last(form.feedback)
        rows = [{"query": query.text} for query, _ in queries]
        shown = [self._fields(document) for _, documents in queries for document in documents]
        texts = zip(*self._columns(form.query, rows, of_query, length), strict=True) if rows else ()
        documents = zip(*self._columns(form.feedback, shown, of_document, length), strict=True) if shown else iter(())
        ids, num_cut = [], [0, 0]
        for (_, group), columns in zip(queries, texts, strict=True):
            query, others = list(columns), [list(next(documents)) for _ in group]
            if length is not None:
                parts = [query[of_query], *(pieces[of_document] for pieces in others)]
                room = length - sum(map(len, query)) - sum(len(p) for pieces in others for p in pieces)
                kept = _shares([len(part) for part in parts], max(0, room + sum(map(len, parts))))
                query[of_query] = parts[0][: kept[0]]
                num_cut[0] += kept[0] < len(parts[0])
                for pieces, part, most in zip(others, parts[1:], kept[1:], strict=True):
                    pieces[of_document] = part[:most]
                    num_cut[1] += most < len(part)
            behind = [piece for pieces in others for piece in pieces]
            ordered = [*query[: of_query + 1], *behind, *query[of_query + 1 :]]
            ids.append([token for piece in ordered for token in piece])
        if length is not None and self.on_cut:
            self.on_cut("queries", num_cut[0], len(rows))
            self.on_cut("feedback documents", num_cut[1], len(shown))
        return ids

    def check_feedback(self, docs: int) -> None:
        """Refuse more documents than a query leaves tokens for.

        Raises:
            UserError: a document would have no token.
        """
        empty = (Query("", ""), [Document("", "")] * docs)
        [bare] = self.feedback_ids([empty], cut=False)
        if self.form.query_length < (least := len(bare) + 2 * docs):
            raise UserError(
                f"query_length is {self.form.query_length}, but prompt and special tokens take {len(bare)}, which "
                f"leaves no room for a query and {docs} documents; expected at least {least} (--query-length)."
            )

    def document_ids(self, documents: Sequence[Document], *, cut: bool = True) -> list[list[int]]:
        """Tokenise documents; without `cut`, ids may be of any length.

        The ids of late interaction and of sparse models may have marks (`text.marks`).
        """
        rows = [self._fields(d) for d in documents]
        length = (self.form.document_length // (1 + self.form.echo)) if cut else None
        return self._marked(self._ids(self._template("document"), rows, length, kind="documents"))

    def _marked(self, ids: list[list[int]], *, skipping: bool = True) -> list[list[int]]:
        """Mark tokens that give no vector, and double texts that are read twice."""
        skipped = self._skipped if skipping else {}
        marked = [[skipped.get(token, token) for token in row] for row in ids] if skipped else ids
        if not self.form.echo:
            return marked
        return [[token | NO_VECTOR for token in row] + again for row, again in zip(ids, marked, strict=True)]

    def pair_ids(
        self, pairs: Sequence[tuple[Query, Document]], *, cut: bool = True, turned: bool = False
    ) -> list[list[int]]:
        """Tokenise each query with its document; only the document is cut.

        Args:
            cut: cut the documents to fit; otherwise ids may be of any length.
            turned: swap query and document in the template, so that the document comes first.

        Raises:
            UserError: a query leaves no room for its document.
        """
        template, length = self._template("pair"), self.form.pair_length
        template = turn(template) if turned else template
        rows = [{"query": q.text} | self._fields(d) for q, d in pairs]
        ids = self._ids(template, rows, length if cut else None, kind="pairs")
        self.check_queries(dict.fromkeys(pairs[i][0] for i, row in enumerate(ids) if len(row) >= length))
        return ids

    def check_queries(self, queries: Iterable[Query]) -> None:
        """Refuse a query that leaves no room in a pair for its document."""
        if found := self.long_queries(queries):
            query, tokens = next(iter(found.items()))
            raise UserError(
                f"query {query.query_id!r}: takes {tokens} tokens with its prompt, and a whole pair may have "
                f"{self.form.pair_length}; shorten it, raise --max-length, or take `rerank --long-queries cut` or skip."
            )

    def long_queries(self, queries: Iterable[Query]) -> dict[Query, int]:
        """Find the queries that leave no room in a pair for a document.

        Returns how many tokens each of them takes with the prompt.
        """
        queries, length = list(queries), self.form.pair_length
        bare = self._ids(self._template("pair"), [NO_TEXT | {"query": query.text} for query in queries], None)
        return {query: len(row) for query, row in zip(queries, bare, strict=True) if len(row) >= length}

    def cut_queries(self, queries: Iterable[Query]) -> dict[Query, Query]:
        """Cut the queries that leave no room for a document.

        At least half of a pair is then left for it.
        """
        found = self.long_queries(queries)
        [bare] = self._ids(self._template("pair"), [NO_TEXT], None)
        room = max(1, (self.form.pair_length - len(bare)) // 2 - 1)  # text may take one token more after a prompt
        spans = self.token_spans([query.text for query in found])
        return {q: q._replace(text=q.text[: places[:room][-1][1]]) for q, places in zip(found, spans, strict=True)}

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Find the first character and the end of each token, with each text tokenised alone."""
        if not texts:
            return []
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return self.tokenizer(list(texts), return_offsets_mapping=True, **options)["offset_mapping"]

    def _template(self, kind: str) -> tuple[str, ...]:
        template = getattr(self.form, kind)
        if not template:
            raise UserError(
                f"{self.tokenizer.name_or_path}: the model's contract has no {kind} input; wrong kind of model."
            )
        return template

    def _fields(self, document: Document) -> dict[str, str]:
        url, title, text = document.url, document.title, document.text
        if self.form.verbatim:
            return {"url": url, "title": title.replace("-", " ").strip(), "text": text}
        return {"url": url.strip(), "title": title.strip(), "text": text.strip()}

    def _ids(
        self, template: tuple[str, ...], rows: Sequence[dict[str, str]], length: int | None, *, kind: str = ""
    ) -> list[list[int]]:
        """Tokenise each row of fields with a template.

        If `length` is given, ids are cut to it at the end of the last piece with a field, if possible one of the
        document, and `on_cut` is told.
        """
        if not rows:
            return []
        last = _last(template)
        columns = self._columns(template, rows, last, length)
        ids, num_cut = [], 0
        for row in zip(*columns, strict=True):
            parts = list(row)
            if length is not None:
                others = sum(map(len, parts)) - len(parts[last])
                num_cut += len(parts[last]) > length - others
                parts[last] = parts[last][: max(0, length - others)]
            ids.append([token for part in parts for token in part])
        if length is not None and self.on_cut:
            self.on_cut(kind, num_cut, len(rows))
        return ids

    def _columns(
        self, template: tuple[str, ...], rows: Sequence[dict[str, str]], last: int, length: int | None
    ) -> list[list[list[int]]]:
        """Tokenise each piece of a template with each row's fields.

        Args:
            last: the piece that may be cut.
            length: the tokens of it to keep, and one more, to know what is cut (None: all).
        """
        most = None if length is None else length + 1
        return [
            [[self._special[piece]]] * len(rows)
            if piece in self._special
            else self._tokenize(piece, rows, most if i == last else None)
            for i, piece in enumerate(template)
        ]

    def _tokenize(self, piece: str, rows: Sequence[dict[str, str]], most: int | None) -> list[list[int]]:
        """Tokenise a piece with each row's fields, and keep the first `most` ids."""
        verbatim = self.form.verbatim
        piece = with_text(piece, "instruction", self.form.instruction)
        texts = [piece.format_map(row).strip() if verbatim else filled(piece, row) for row in rows]
        texts = list(map(str.lower, texts)) if self.form.lower_case else texts
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return [
            ids[:most]
            for part in batches_by_size(texts, list(map(len, texts)), most=CHARACTERS_A_CALL, count=TEXTS_A_CALL)
            for ids in self.tokenizer(list(part), **options)["input_ids"]
        ]


def find_id(tokenizer: Any, name: str) -> int | None:
    """Find the id of a token by its name; None if the vocabulary lacks it."""
    token_id = tokenizer.convert_tokens_to_ids(name)
    return None if token_id == tokenizer.unk_token_id and name != tokenizer.unk_token else token_id


def turn(pair: tuple[str, ...]) -> tuple[str, ...]:
    """Swap the query and the document in a pair's template, with their prompts."""
    pieces, query, text = _apart(pair)
    pieces[query], pieces[text] = pieces[text], pieces[query]
    return tuple(pieces)


def with_stop(pair: tuple[str, ...]) -> tuple[str, ...]:
    """Put an end token between the query and the document of a pair's template.

    Raises:
        UserError: they are in one piece, with the document first.
    """
    pieces, query, text = _apart(pair)
    if query == text:
        raise UserError(f"pair of the input contract: {pair[0]!r} has no place between document and query.")
    second = max(query, text)
    return pair if "<eos>" in pieces[min(query, text) : second] else (*pieces[:second], "<eos>", *pieces[second:])


def query_is_first(pair: tuple[str, ...]) -> bool:
    """Whether a pair's template has the query before the document."""
    _, query, text = _apart(pair)
    return query < text


def _apart(pair: tuple[str, ...]) -> tuple[list[str], int, int]:
    """Split a pair's template behind the query.

    Returns the pieces, and which of them have the query and the document.
    """
    pieces = [part for piece in pair for part in re.split(r"(?<=\{query\})\s+", piece)]
    query, text = (next(i for i, piece in enumerate(pieces) if _has(piece, [field])) for field in ("query", "text"))
    return pieces, query, text


def _last(template: Sequence[str]) -> int:
    """Find the piece that is cut: the last with a field, preferably of the document."""
    return max(range(len(template)), key=lambda i: (_has(template[i], DOCUMENT_FIELDS), _has(template[i], FIELDS), i))


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """Divide room among a query, which comes first, and documents.

    The query may have half of it, and whatever the documents leave. These divide the rest evenly, and what a short one
    leaves goes to longer ones.
    """
    kept = [min(lengths[0], max(room // 2, room - sum(lengths[1:])))] + [0] * (len(lengths) - 1)
    left, others = room - kept[0], sorted(range(1, len(lengths)), key=lengths.__getitem__)
    for done, place in enumerate(others):
        kept[place] = min(lengths[place], left // (len(others) - done))
        left -= kept[place]
    return kept


def _has(piece: str, names: Iterable[str]) -> bool:
    return not field_names(piece).isdisjoint(names)


def filled(piece: str, values: dict[str, str]) -> str:
    """Put values into a text piece.

    An empty field is removed together with one space next to it, so without a title only the text is left.
    """
    return without(piece, tuple(name for name, value in values.items() if not value)).format_map(values)
