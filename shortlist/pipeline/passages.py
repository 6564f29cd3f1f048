"""The passage of a document to show for a query, with the query's words marked."""

import re
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

import Stemmer

from shortlist.index.analysis import STOP_WORDS

LONGEST = 400
"""Most characters of a passage."""
SCANNED = 50_000
"""Characters of a document, from its beginning, in which passages are looked for."""
CUT = "..."
"""Stands for text that is left out."""
_ASIDE = STOP_WORDS.union(
    {"about", "any", "been", "being", "can", "could", "did", "do", "does", "from", "had", "has", "have", "he", "her"},
    {
        "his",
        "how",
        "i",
        "its",
        "may",
        "me",
        "my",
        "our",
        "over",
        "she",
        "should",
        "so",
        "some",
        "than",
        "them",
        "under",
    },
    {"us", "we", "what", "when", "where", "which", "who", "whom", "whose", "why", "would", "you", "your"},
)
"""Words of questions that say nothing of what is asked for."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


class Piece(NamedTuple):
    """A word of the query within a text, or what lies between two."""

    text: str
    found: bool = False


class _Word(NamedTuple):
    start: int
    end: int
    stem: str


def query_stems(query: str) -> set[str]:
    """Return the stems of a query's words, without stop words if others are there."""
    words = [match.group().lower() for match in _WORD.finditer(query)]
    return set(_stems([word for word in words if word not in _ASIDE] or words))


def mark(text: str, stems: set[str]) -> list[Piece]:
    """Split a text into pieces, and mark words that have one of the stems."""
    return _pieces(text, _found(text, stems), 0, len(text))


def find_passage(text: str, stems: set[str], *, longest: int = LONGEST) -> list[Piece]:
    """Return the first part of a text with the most different stems.

    A text that is short enough is returned whole.
    """
    text = re.sub(r"\s*\n\s*\n\s*", "\n", text.strip())
    if len(text) <= longest:
        return mark(text, stems)
    found = _found(text[:SCANNED], stems)
    start = _best_start(found, longest)
    start, end = _at_words(text, start, min(len(text), start + longest))
    inside = [word for word in found if start <= word.start and word.end <= end]
    before, after = ([Piece(f"{CUT} ")] if start else []), ([Piece(f" {CUT}")] if end < len(text) else [])
    return [*before, *_pieces(text, inside, start, end), *after]


def _best_start(found: Sequence[_Word], longest: int) -> int:
    """Find where a passage begins; it has what is found in its middle."""
    inside: deque[_Word] = deque()
    counts: Counter[str] = Counter()
    best, start = 0, 0
    for word in found:
        inside.append(word)
        counts[word.stem] += 1
        while word.end - inside[0].start > longest and len(inside) > 1:
            left = inside.popleft()
            counts[left.stem] -= 1
        different = sum(count > 0 for count in counts.values())
        if different > best:
            best = different
            start = inside[0].start - max(0, longest - (word.end - inside[0].start)) // 2 if word.end > longest else 0
    return max(0, start)


def _at_words(text: str, start: int, end: int) -> tuple[int, int]:
    """Move both ends inwards to white space, if there is some near."""
    if start and (space := re.search(r"\s", text[start : start + 40])):
        start += space.end()
    if end < len(text) and (space := re.search(r"\s\S*\Z", text[max(start, end - 40) : end])):
        end = max(start, end - 40) + space.start()
    return start, end


def _found(text: str, stems: set[str]) -> list[_Word]:
    spans = [match.span() for match in _WORD.finditer(text)]
    words = [text[start:end].lower() for start, end in spans]
    return [_Word(*span, stem) for span, stem in zip(spans, _stems(words), strict=True) if stem in stems]


def _stems(words: list[str]) -> list[str]:
    return Stemmer.Stemmer("english", 0).stemWords(words)  # one for each call, as threads cannot share it


def _pieces(text: str, found: Sequence[_Word], start: int, end: int) -> list[Piece]:
    pieces = []
    for word in found:
        pieces += [Piece(text[start : word.start]), Piece(text[word.start : word.end], True)]
        start = word.end
    return [piece for piece in [*pieces, Piece(text[start:end])] if piece.text]
