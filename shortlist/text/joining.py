"""Token ids of texts that share long parts: each part is tokenised once.

A text may be taken apart behind a line break, before a letter or a bracket: no tokenizer that we know joins these. For
one that does, the first text of every call would show it, which is tokenised as a whole too; then all are.
"""

import re
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

from shortlist.text.excerpts import REMEMBERED, encodings
from shortlist.text.layout import Laid, Places

BREAK = re.compile(r"\n(?=[A-Za-z\[<#])")
LINE = "\n"


class Tokenised(NamedTuple):
    """A text's ids, and the tokens of documents and queries."""

    ids: list[int]
    documents: list[slice]
    queries: list[slice]


class Stretch(NamedTuple):
    """A part of a text, with the places that lie in it."""

    text: str
    first: bool
    """Whether nothing stands before it."""
    behind: str
    """The first character behind it."""
    documents: tuple[tuple[int, int], ...]
    queries: tuple[tuple[int, int], ...]


class Joiner:
    """Tokenises texts by their parts, as if each were tokenised as a whole."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.joins = True
        """Whether joined ids have always been those of whole texts."""
        self._known: dict[Stretch, Tokenised | None] = {}

    def __call__(self, texts: Sequence[Laid]) -> list[Tokenised]:
        """Tokenise texts."""
        if self.joins and len(texts) > 1:
            split = [stretches_of(text) for text in texts]
            self._learn(list(dict.fromkeys(chain.from_iterable(split))))
            if all(self._known[part] is not None for parts in split for part in parts):
                [first] = self.whole(texts[:1])
                if self._joined(split[0]) == first:
                    return [self._joined(parts) for parts in split]
            self.joins = False
        return self.whole(texts)

    def whole(self, texts: Sequence[Laid]) -> list[Tokenised]:
        """Tokenise each text as a whole."""
        found = zip(texts, encodings(self.tokenizer, [text.text for text in texts]), strict=True)
        return [
            Tokenised(list(one.ids), _all_tokens(one, text.documents), _all_tokens(one, text.queries))
            for text, one in found
        ]

    def _learn(self, parts: list[Stretch]) -> None:
        """Tokenise parts that are new, each between the characters that stand around it."""
        if len(self._known) > REMEMBERED:
            self._known.clear()
        new = [part for part in parts if part not in self._known]
        texts = [(LINE, "")[part.first] + part.text + part.behind for part in new]
        for part, one in zip(new, encodings(self.tokenizer, texts), strict=True):
            self._known[part] = _cut_out(part, one)

    def _joined(self, parts: Sequence[Stretch]) -> Tokenised:
        whole = Tokenised([], [], [])
        for part in parts:
            known = self._known[part]
            assert known is not None
            size = len(whole.ids)
            whole.documents.extend(slice(size + span.start, size + span.stop) for span in known.documents)
            whole.queries.extend(slice(size + span.start, size + span.stop) for span in known.queries)
            whole.ids.extend(known.ids)
        return whole


def stretches_of(text: Laid) -> list[Stretch]:
    """Take a text apart before each document, and behind the last one."""
    if not text.text:
        return [Stretch("", True, "", tuple(text.documents), tuple(text.queries))]
    cuts = [start for start, _ in text.documents if start and BREAK.match(text.text, start - 1)]
    end = text.documents[-1][1] if text.documents else 0
    behind = BREAK.search(text.text, end)
    edges = [0, *cuts, *([behind.end()] if behind else []), len(text.text)]
    if any(start < edge < end for edge in edges for start, end in chain(text.documents, text.queries)):
        edges = [0, len(text.text)]
    return [
        Stretch(
            text.text[start:stop],
            start == 0,
            text.text[stop : stop + 1],
            tuple((a - start, b - start) for a, b in text.documents if start <= a < stop),
            tuple((a - start, b - start) for a, b in text.queries if start <= a < stop),
        )
        for start, stop in pairwise(edges)
        if start < stop
    ]


def _cut_out(part: Stretch, one: Any) -> Tokenised | None:
    """Cut a part's ids out of the ids of it and its surroundings.

    The result is None if a token reaches across an edge.
    """
    start = 0 if part.first else len(LINE)
    end = start + len(part.text)
    first = one.char_to_token(start) if start else 0
    last = one.char_to_token(end) if part.behind else len(one.ids)
    if first is None or last is None or (start and one.token_to_chars(first)[0] != start):
        return None
    if part.behind and one.token_to_chars(last)[0] != end:
        return None

    def moved(places: Sequence[tuple[int, int]]) -> list[slice]:
        found = _all_tokens(one, [(start + a, start + b) for a, b in places])
        return [slice(span.start - first, span.stop - first) for span in found]

    return Tokenised(list(one.ids[first:last]), moved(part.documents), moved(part.queries))


def _all_tokens(encoding: Any, places: Places) -> list[slice]:
    return [_tokens(encoding, *place) for place in places]


def _tokens(encoding: Any, start: int, end: int) -> slice:
    """Find the tokens of a stretch of text.

    An empty one has the token behind it, or the last one.
    """
    if not encoding.ids:
        return slice(0, 0)
    first = next((token for i in range(start, end) if (token := encoding.char_to_token(i)) is not None), None)
    if first is None:
        length = len(encoding.ids)
        limit = encoding.token_to_chars(length - 1)[1] if length else 0
        behind = (encoding.char_to_token(i) for i in range(end, limit))
        first = next((token for token in behind if token is not None), length - 1)
        return slice(first, first + 1)
    last = next(token for i in range(end - 1, start - 1, -1) if (token := encoding.char_to_token(i)) is not None)
    while (chars := encoding.token_to_chars(last + 1)) is not None and chars[0] < end:
        last += 1  # a character may take several tokens
    return slice(first, last + 1)
