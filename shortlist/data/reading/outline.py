"""Headings with levels to paths of titles."""

from collections.abc import Iterable, Iterator

from shortlist.text.chunks import Section


class Outline:
    """The headings above the place that is being read."""

    def __init__(self) -> None:
        self._levels: list[int] = []
        self._titles: list[str] = []

    def enter(self, level: int, title: str) -> tuple[str, ...]:
        """Go on under a heading; return the path of titles with it."""
        while self._levels and self._levels[-1] >= level:
            self._levels.pop()
            self._titles.pop()
        self._levels.append(level)
        self._titles.append(title)
        return tuple(self._titles)


def sections_of(parts: Iterable[tuple[int, str, str]]) -> Iterator[Section]:
    """Yield a section for each part that is not blank.

    Args:
        parts: level of the heading that the part begins with (0: none), that heading, and the text with the heading.
    """
    outline, titles = Outline(), ()
    for level, title, text in parts:
        if level:
            titles = outline.enter(level, title) if title else titles
        if text.strip():
            yield Section(text, titles)


def first_title(parts: Iterable[tuple[int, str, str]]) -> str:
    """Return the only heading of the first level, the document's title, or an empty text."""
    found = [title for level, title, _ in parts if level == 1]
    return found[0] if len(found) == 1 else ""
