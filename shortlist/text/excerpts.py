"""Texts of documents and queries as a prompt shows them: replaced in, cut, and remembered."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from shortlist.records import Document, Query
from shortlist.text.batching import batches_by_size
from shortlist.text.inputs import CHARACTERS_A_CALL, TEXTS_A_CALL, filled
from shortlist.text.prompts import Limit, Prompt

WORDS_A_TOKEN = 0.75
"""Words for a token, where a limit in tokens meets a model whose tokenizer is not known."""
REMEMBERED = 20_000
"""Texts that are remembered; after that, all are forgotten."""


def encodings(tokenizer: Any, texts: Sequence[str]) -> Iterable[Any]:
    """Tokenise texts without adding special tokens, which a chat's text has already."""
    for part in batches_by_size(texts, list(map(len, texts)), most=CHARACTERS_A_CALL, count=TEXTS_A_CALL):
        yield from tokenizer(list(part), add_special_tokens=False, verbose=False).encodings or []


class Excerpts:
    """Makes the texts of documents and queries, each once.

    Special tokens are taken out of them: a document could otherwise end its turn and speak for the model.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any) -> None:
        self.prompt, self.tokenizer = prompt, tokenizer
        special = {*prompt.marks, *(tokenizer.all_special_tokens if tokenizer is not None else ())}
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if special else None
        self._whole: dict[tuple[str, str, str], str] = {}
        self._cut: dict[tuple[str, Limit | None], str] = {}

    def prepare(self, questions: Sequence[tuple[Query, Sequence[Document]]]) -> None:
        """Make the texts of many questions together, which is faster."""
        if len(self._whole) + len(self._cut) > REMEMBERED:
            self._whole.clear()
            self._cut.clear()
        documents = {self.whole(document) for _, documents in questions for document in documents}
        queries = {self._plain(query.text, self.prompt.replace_query) for query, _ in questions}
        for texts, limit in ((documents, self.prompt.limit), (queries, self.prompt.query_limit)):
            self._remember([text for text in texts if (text, limit) not in self._cut], limit)

    def document(self, document: Document, limit: Limit | None) -> str:
        """Return a document's text, cut to a limit."""
        return self._short(self.whole(document), limit)

    def cuts(self, document: Document, limit: Limit | None) -> bool:
        """Whether a limit takes more than white space from a document."""
        return "".join(self.document(document, limit).split()) != "".join(self.whole(document).split())

    def query(self, query: Query) -> str:
        """Return a query's text, cut to the prompt's limit."""
        return self._short(self._plain(query.text, self.prompt.replace_query), self.prompt.query_limit)

    def whole(self, document: Document) -> str:
        """Return a document's text before it is cut."""
        key = document.text, document.title, document.url
        if (text := self._whole.get(key)) is None:
            values = {"title": document.title.strip(), "text": document.text.strip(), "url": document.url.strip()}
            text = self._whole[key] = self._plain(filled(self.prompt.content, values), self.prompt.replace)
        return text

    def _plain(self, text: str, replace: Sequence[tuple[str, str]]) -> str:
        if self._special is not None:
            text = self._special.sub("", text)
        for pattern, by in replace:
            text = re.sub(pattern, by, text)
        return text.strip()

    def _short(self, text: str, limit: Limit | None) -> str:
        if (text, limit) not in self._cut:
            self._remember([text], limit)
        return self._cut[text, limit]

    def _remember(self, texts: Sequence[str], limit: Limit | None) -> None:
        if limit is None:
            cut: Iterable[str] = texts
        elif limit.unit == "words":
            cut = [" ".join(text.split()[: limit.most]) for text in texts]
        elif limit.unit == "characters":
            cut = [text[: limit.most] for text in texts]
        elif self.tokenizer is not None:
            cut = [_first_tokens(text, one, limit.most) for text, one in zip(texts, self._encoded(texts), strict=True)]
        else:
            words = re.compile(rf"(?:\s*\S+){{0,{max(1, int(limit.most * WORDS_A_TOKEN))}}}")
            cut = [words.match(text)[0] for text in texts]  # type: ignore[index]
        self._cut |= {(text, limit): shorter for text, shorter in zip(texts, cut, strict=True)}

    def _encoded(self, texts: Sequence[str]) -> Iterable[Any]:
        return encodings(self.tokenizer, texts)


def _first_tokens(text: str, encoding: Any, count: int) -> str:
    """Cut a text behind its first tokens, and never within a character."""
    if len(encoding.ids) <= count:
        return text
    (_, end), (start, _) = encoding.token_to_chars(count - 1), encoding.token_to_chars(count)
    return text[: min(start, end)].rstrip()
