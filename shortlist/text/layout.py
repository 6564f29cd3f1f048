"""Texts that are put together, with the places of documents and queries in them."""

from collections.abc import Sequence
from typing import NamedTuple

from shortlist.text.conversations import Frame
from shortlist.text.templates import PiecePart, parse_piece

Places = list[tuple[int, int]]
"""First character and end of several stretches of a text."""


class Laid(NamedTuple):
    """A text, and where documents and queries stand in it."""

    text: str
    documents: Places
    queries: Places


NO_DOCUMENTS = Laid("", [], [])


def laid_out(piece: str, values: dict[str, str], documents: Laid) -> Laid:
    """Fill the fields of a turn or of a document's piece.

    {documents} stands for the pieces of all documents. A document's place begins with its piece, so that even an empty
    one has its label.
    """
    parts: list[Laid] = []
    size = 0
    for part in parse_piece(piece):
        if part == PiecePart("documents", True):
            parts.append(documents)
        else:
            text = values.get(part.text, "") if part.is_field else part.text
            here = [(0, len(text))] if part == PiecePart("query", True) else []
            parts.append(Laid(text, [(-size, len(text))] if part == PiecePart("document", True) else [], here))
        size += len(parts[-1].text)
    return join_laid(parts, "")


def join_laid(parts: Sequence[Laid], between: str) -> Laid:
    """Join texts."""
    size = 0
    documents: Places = []
    queries: Places = []
    for part in parts:
        documents += [(size + start, size + end) for start, end in part.documents]
        queries += [(size + start, size + end) for start, end in part.queries]
        size += len(part.text) + len(between)
    return Laid(between.join([part.text for part in parts]), documents, queries)


def framed(frame: Frame, turns: Sequence[Laid]) -> Laid:
    """Put the fixed texts of a chat around turns."""
    parts = [Laid(frame.texts[0], [], [])]
    for strips, turn, after in zip(frame.strips, turns, frame.texts[1:], strict=True):
        parts += [_stripped(turn, *strips), Laid(after, [], [])]
    return join_laid(parts, "")


def _stripped(turn: Laid, left: bool, right: bool) -> Laid:
    """Take white space away from the ends of a turn's text."""
    text = turn.text.lstrip() if left else turn.text
    gone = len(turn.text) - len(text)
    text = text.rstrip() if right else text
    if len(text) == len(turn.text):
        return turn

    def moved(places: Places) -> Places:
        return [(max(0, start - gone), min(len(text), max(0, end - gone))) for start, end in places]

    return Laid(text, moved(turn.documents), moved(turn.queries))
