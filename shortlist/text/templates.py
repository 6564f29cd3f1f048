"""Text pieces of a template, with fields in braces.

Doubled braces stand for themselves.
"""

from collections.abc import Collection, Iterable
from functools import cache
from string import Formatter
from typing import NamedTuple

TOKEN_PIECE = "<token:"
"""Beginning of a piece that is one token of the vocabulary, by its name: `<token:[unused0]>`."""


class PiecePart(NamedTuple):
    """A stretch of a piece: literal text, or the name of a field."""

    text: str
    is_field: bool = False


@cache
def parse_piece(piece: str) -> tuple[PiecePart, ...]:
    """Split a piece into its parts; neighbouring literal texts are one.

    Raises:
        ValueError: a single brace that belongs to no field.
    """
    parts: list[PiecePart] = []
    for text, field, *_ in Formatter().parse(piece):
        parts += [PiecePart(text)] if text else []
        parts += [PiecePart(field, True)] if field is not None else []
    return tuple(_joined(parts))


def field_names(piece: str) -> frozenset[str]:
    """Return the names of the fields in a piece."""
    return frozenset(part.text for part in parse_piece(piece) if part.is_field)


def prompt(piece: str) -> str:
    """Return the text before the first field."""
    first = next(iter(parse_piece(piece)), PiecePart(""))
    return "" if first.is_field else first.text


@cache
def without(piece: str, names: tuple[str, ...]) -> str:
    """Return a piece without some fields, each removed together with one space next to it."""
    parts = list(parse_piece(piece))
    for name in names:
        while PiecePart(name, True) in parts:
            place = parts.index(PiecePart(name, True))
            before, after = parts[place - 1] if place else PiecePart(""), [*parts, PiecePart("")][place + 1]
            if not after.is_field and after.text.startswith(" "):
                parts[place + 1] = PiecePart(after.text[1:])
            elif not before.is_field and before.text.endswith(" "):
                parts[place - 1] = PiecePart(before.text[:-1])
            parts = _joined(part for number, part in enumerate(parts) if number != place)
    return _piece(parts)


def with_text(piece: str, name: str, text: str) -> str:
    """Return a piece with a text in place of a field."""
    return _piece(_joined(PiecePart(text) if part == PiecePart(name, True) else part for part in parse_piece(piece)))


def before_field(piece: str, names: Collection[str], text: str) -> str:
    """Return a piece with a text in front of the first of these fields.

    A piece without them stays as it is.
    """
    parts = list(parse_piece(piece))
    places = [place for place, part in enumerate(parts) if part.is_field and part.text in names]
    return _piece(_joined([*parts[: places[0]], PiecePart(text), *parts[places[0] :]])) if places else piece


def token_piece(name: str) -> str:
    """Return the piece that is the token with this name."""
    return f"{TOKEN_PIECE}{literal(name)}>"


def token_name(piece: str) -> str | None:
    """Return the name of the token that a piece is; None for any other piece."""
    return unescaped(piece[len(TOKEN_PIECE) : -1]) if piece.startswith(TOKEN_PIECE) and piece.endswith(">") else None


def literal(text: str) -> str:
    """Escape braces, so that a text stands for itself in a piece."""
    return text.replace("{", "{{").replace("}", "}}")


def unescaped(piece: str) -> str:
    """Return the text that a piece without fields stands for."""
    return piece.replace("{{", "{").replace("}}", "}")


def _joined(parts: Iterable[PiecePart]) -> list[PiecePart]:
    """Join neighbouring literal texts, and leave out empty ones."""
    joined: list[PiecePart] = []
    for part in parts:
        if part.is_field or not joined or joined[-1].is_field:
            joined += [part] if part.text or part.is_field else []
        else:
            joined[-1] = PiecePart(joined[-1].text + part.text)
    return joined


def _piece(parts: Iterable[PiecePart]) -> str:
    return "".join(f"{{{part.text}}}" if part.is_field else literal(part.text) for part in parts)
