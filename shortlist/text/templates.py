"""Text pieces of a template: literal text and fields in braces; doubled braces stand for themselves."""

from collections.abc import Iterable
from functools import cache
from string import Formatter
from typing import NamedTuple


class Part(NamedTuple):
    """A stretch of a piece: literal text, or the name of a field."""

    text: str
    is_field: bool = False


@cache
def parse(piece: str) -> tuple[Part, ...]:
    """Split a piece into its parts; neighbouring literal texts are one.

    Raises:
        ValueError: a single brace that belongs to no field.
    """
    parts: list[Part] = []
    for text, field, *_ in Formatter().parse(piece):
        parts += [Part(text)] if text else []
        parts += [Part(field, True)] if field is not None else []
    return tuple(_joined(parts))


def field_names(piece: str) -> frozenset[str]:
    """Return the names of the fields in a piece."""
    return frozenset(part.text for part in parse(piece) if part.is_field)


def prompt(piece: str) -> str:
    """Return the text before the first field."""
    first = next(iter(parse(piece)), Part(""))
    return "" if first.is_field else first.text


@cache
def without(piece: str, names: tuple[str, ...]) -> str:
    """Return a piece without some fields, each removed together with one space next to it."""
    parts = list(parse(piece))
    for name in names:
        while Part(name, True) in parts:
            place = parts.index(Part(name, True))
            before, after = parts[place - 1] if place else Part(""), [*parts, Part("")][place + 1]
            if not after.is_field and after.text.startswith(" "):
                parts[place + 1] = Part(after.text[1:])
            elif not before.is_field and before.text.endswith(" "):
                parts[place - 1] = Part(before.text[:-1])
            parts = _joined(part for number, part in enumerate(parts) if number != place)
    return _piece(parts)


def with_text(piece: str, name: str, text: str) -> str:
    """Return a piece with a text in place of a field."""
    return _piece(_joined(Part(text) if part == Part(name, True) else part for part in parse(piece)))


def literal(text: str) -> str:
    """Escape braces, so that a text stands for itself in a piece."""
    return text.replace("{", "{{").replace("}", "}}")


def unescaped(piece: str) -> str:
    """Return the text that a piece without fields stands for."""
    return piece.replace("{{", "{").replace("}}", "}")


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Join neighbouring literal texts, and leave out empty ones."""
    joined: list[Part] = []
    for part in parts:
        if part.is_field or not joined or joined[-1].is_field:
            joined += [part] if part.text else []
        else:
            joined[-1] = Part(joined[-1].text + part.text)
    return joined


def _piece(parts: Iterable[Part]) -> str:
    return "".join(f"{{{part.text}}}" if part.is_field else literal(part.text) for part in parts)
