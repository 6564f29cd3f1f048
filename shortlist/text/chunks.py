"""Sections of a document packed into chunks, which know their titles, page and place."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from shortlist.errors import UserError

By = Literal["headings", "sentences", "tokens", "none"]
"""Where chunks end: between sections if possible, between sentences, after any token, or at the document's end."""

TokenFinder = Callable[[Sequence[str]], Sequence[np.ndarray]]
"""Finds where each token of each text begins, in characters, in ascending order."""

SEPARATOR = "\n\n"
"""What stands between two sections in a document's text."""

PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*?(?=[^\S\n]*\S)")
SENTENCE = re.compile(rf"""[.!?…]["'”’)\]]*\s+(?![a-z])|[。！？]["'”’」』]*\s*|{PARAGRAPH.pattern}""")
LINE_ENDS = re.compile(r"\n+")
CUTS: dict[By, tuple[re.Pattern[str], ...]] = {
    "headings": (PARAGRAPH, SENTENCE, LINE_ENDS),
    "sentences": (SENTENCE, LINE_ENDS),
    "tokens": (),
}
"""Where a text that is too long is cut, the best places first; the last resort is any token."""

FEW = 8
"""A heading with less than this part of the size below it goes with the section under it, however long that is."""

LONGEST_WORD = 24
"""Characters of a run without spaces that count as one word; longer runs count as several."""


class Section(NamedTuple):
    """A part of a document under one heading, or on one page."""

    text: str
    titles: tuple[str, ...] = ()
    """Headings above it, outermost first."""
    page: int | None = None
    """Its page, from 1, where the document has pages."""


class TextChunk(NamedTuple):
    """A part of a document that is found by itself."""

    text: str
    titles: tuple[str, ...]
    """Headings that all of it stands under."""
    page: int | None
    """The page on which it begins."""
    begin: int
    end: int
    """Its place in `whole_text`, in characters."""


def check_sizes(size: int, overlap: int) -> None:
    """Refuse sizes that do not go together.

    Raises:
        UserError: a size below 1, or an overlap that is negative or more than half of the size.
    """
    if size < 1:
        raise UserError(f"--chunk-size is {size}; expected at least 1.")
    if not 0 <= overlap <= size // 2:
        raise UserError(f"--overlap is {overlap}; expected 0 to {size // 2}, half of --chunk-size.")


def whole_text(sections: Sequence[Section]) -> str:
    """Join the sections to the document's text, in which chunks have their places."""
    return SEPARATOR.join(section.text for section in sections)


def make_chunks(
    sections: Sequence[Section], begins: np.ndarray, *, by: By = "headings", size: int, overlap: int = 0
) -> list[TextChunk]:
    """Divide a document into chunks of at most `size` tokens.

    Together they cover all of its text but white space. `by="headings"` packs sections under the same headings
    together, and cuts those that are too long between paragraphs, sentences or lines.

    Args:
        begins: where each token of `whole_text` begins, such as `word_begins` says it.
        size: most tokens in a chunk. A character of more tokens is a chunk of its own.
        overlap: most tokens at the end of a chunk that the next one repeats, where a section is cut.
    """
    text = whole_text(sections)
    if by == "none":
        parts = [(0, len(text))]
    elif by == "headings":
        starts = _starts(sections)
        bounds = [starts[first] for first in _packed(sections, starts, begins, size)]
        ranges = pairwise([*bounds, len(text)])
        parts = [part for begin, end in ranges for part in _cut(text, begins, begin, end, CUTS[by], size, overlap)]
    else:
        parts = _cut(text, begins, 0, len(text), CUTS[by], size, overlap)
    return list(_described(sections, text, parts))


def _starts(sections: Sequence[Section]) -> list[int]:
    """Return where each section begins in the whole text."""
    starts, place = [], 0
    for section in sections:
        starts.append(place)
        place += len(section.text) + len(SEPARATOR)
    return starts


def _packed(sections: Sequence[Section], starts: Sequence[int], begins: np.ndarray, size: int) -> list[int]:
    """Return the first section of each run of sections that fit into a chunk together.

    Sections go together with those below or beside the first, never with those of another parent.
    """
    tokens = np.searchsorted(begins, [*starts, starts[-1] + len(sections[-1].text)] if starts else []).tolist()
    firsts: list[int] = []
    for i, section in enumerate(sections):
        if firsts:
            first = sections[firsts[-1]].titles
            parent = first[:-1]
            before = tokens[i] - tokens[firsts[-1]]
            fits = before + tokens[i + 1] - tokens[i] <= size and section.titles[: len(parent)] == parent
            if fits or (before * FEW < size and section.titles[: len(first)] == first):
                continue
        firsts.append(i)
    return firsts


def _cut(
    text: str,
    begins: np.ndarray,
    begin: int,
    end: int,
    cuts: Sequence[re.Pattern[str]],
    size: int,
    overlap: int,
) -> list[tuple[int, int]]:
    """Cut a part into parts of at most `size` tokens, at the best places."""
    first, last = np.searchsorted(begins, (begin, end)).tolist()
    if last - first <= size:
        return [(begin, end)]
    room = size - overlap
    pieces = [*_pieces(text, begins, (begin, end), cuts, room)]
    places = [begin, *(piece for piece in pieces if piece != begin), end]
    tokens = np.searchsorted(begins, places).tolist()
    bounds, start = [begin], tokens[0]
    for i in range(1, len(places) - 1):
        if tokens[i + 1] - start > room:
            bounds.append(places[i])
            start = tokens[i]
    bounds.append(end)
    repeated = (_repeated(text, begins, part, cuts, overlap) for part in pairwise(bounds[:-1]))
    return list(zip([begin, *repeated], bounds[1:], strict=True))


def _pieces(
    text: str, begins: np.ndarray, part: tuple[int, int], cuts: Sequence[re.Pattern[str]], room: int
) -> Iterator[int]:
    """Yield where pieces of at most `room` tokens begin, cut as coarsely as that allows."""
    begin, end = part
    places = [begin, end]
    if cuts:
        inner = (match.end() for match in cuts[0].finditer(text, begin, end))
        places = [begin, *(place for place in inner if begin < place < end), end]
    tokens = np.searchsorted(begins, places).tolist()
    for i, place in enumerate(places[:-1]):
        if tokens[i + 1] - tokens[i] <= room:
            yield place
        elif cuts:
            yield from _pieces(text, begins, (place, places[i + 1]), cuts[1:], room)
        else:
            yield from _windows(text, begins, (place, tokens[i], tokens[i + 1]), room)


def _windows(text: str, begins: np.ndarray, part: tuple[int, int, int], room: int) -> Iterator[int]:
    """Yield where windows of at most `room` tokens begin, between words if possible."""
    place, first, last = part
    yield place
    while last - first > room:
        after = first + room
        at = after
        while at > first + room // 2 and not _begins_a_word(text, int(begins[at])):
            at -= 1
        at = at if at > first + room // 2 else after
        at = int(np.searchsorted(begins, begins[at]))  # a character of several tokens stays whole
        if at == first:
            at = int(np.searchsorted(begins, begins[first], side="right"))
        if at >= last:
            return
        yield int(begins[at])
        first = at


def _begins_a_word(text: str, place: int) -> bool:
    return place == 0 or text[place].isspace() or text[place - 1].isspace()


def _repeated(
    text: str, begins: np.ndarray, part: tuple[int, int], cuts: Sequence[re.Pattern[str]], overlap: int
) -> int:
    """Find where a chunk begins that repeats up to `overlap` tokens of the last.

    It begins with a sentence, or with a word where no sentence begins there, and behind the begin of the last.
    """
    bound = part[1]
    first, token = np.searchsorted(begins, part).tolist()
    places = begins[max(first, token - overlap) : token].tolist()
    places = [place for place in places if place > begins[first]]
    if not places:
        return bound
    sentences = (match.end() for match in SENTENCE.finditer(text, places[0], bound)) if cuts else iter(())
    words = (place for place in places if _begins_a_word(text, place))
    return next((place for place in sentences if place < bound), next(words, bound))


def _described(sections: Sequence[Section], text: str, parts: Sequence[tuple[int, int]]) -> Iterator[TextChunk]:
    """Trim the parts, and yield each that has text with its titles and page."""
    starts = _starts(sections)
    for begin, end in parts:
        part = text[begin:end].rstrip()
        if not part:
            continue
        if part[0].isspace():  # of the white space before it, the indentation of code stays
            before = part.rfind("\n", 0, len(part) - len(part.lstrip())) + 1
            part, begin = part[before:], begin + before
        end = begin + len(part)
        first, last = bisect_right(starts, begin) - 1, bisect_left(starts, end)
        titles = sections[first].titles
        if last > first + 1:
            titles = _shared([section.titles for section in sections[first:last]])
        yield TextChunk(part, titles, sections[first].page, begin, end)


def _shared(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the longest path that all paths begin with."""
    least, most = min(paths), max(paths)  # what these two share, all between them share
    for i, title in enumerate(least):
        if most[i : i + 1] != (title,):
            return least[:i]
    return least


def word_begins(texts: Sequence[str]) -> list[np.ndarray]:
    """Find where words begin; each ideograph, kana or Thai letter pair counts as one.

    A run without spaces counts as one word per LONGEST_WORD characters, so that no data in it are a single huge word.
    """
    return [_word_begins(text) for text in texts]


def _spaces() -> np.ndarray:
    table = np.zeros(1 << 16, dtype=bool)
    table[[code for code in range(1 << 16) if chr(code).isspace()]] = True
    return table


def _unspaced() -> np.ndarray:
    """Return which characters belong to scripts without spaces between words."""
    table = np.zeros(1 << 16, dtype=bool)
    for first, last in ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF)):
        table[first : last + 1] = True
    return table


IS_SPACE, IS_UNSPACED = _spaces(), _unspaced()


def _word_begins(text: str) -> np.ndarray:
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        codes = np.minimum(codes, 0xFFFF)
    if not codes.size:
        return np.zeros(0, dtype=np.int64)
    space = IS_SPACE[codes]
    begins = ~space
    begins[1:] &= space[:-1]
    if not text.isascii():
        alone = IS_UNSPACED[codes]
        begins |= alone
        begins[1:] |= alone[:-1] & ~space[1:]
    found = np.flatnonzero(begins)
    lengths = np.diff(found, append=codes.size)
    if lengths.max(initial=0) <= LONGEST_WORD:
        return found
    ends = np.flatnonzero(space[1:] & ~space[:-1]) + 1
    ends = ends if space[-1] else np.append(ends, codes.size)
    rests = [
        np.arange(int(found[i]) + LONGEST_WORD, int(ends[np.searchsorted(ends, found[i], side="right")]), LONGEST_WORD)
        for i in np.flatnonzero(lengths > LONGEST_WORD)
    ]
    return np.unique(np.concatenate([found, *rests]))


def token_begins(tokenizer: Any) -> TokenFinder:
    """Make a function that finds where a tokenizer's tokens begin.

    Args:
        tokenizer: one of the package tokenizers, which reads whole texts without cutting them.
    """

    def begins(texts: Sequence[str]) -> list[np.ndarray]:
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array([begin for begin, _ in one.offsets], dtype=np.int64) for one in encoded]

    return begins
