"""Pieces of an HTML page: all text is escaped, and nothing is fetched."""

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The page may load nothing, run nothing and send nothing."""

BEGINNING = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
BEGINNING += '<meta http-equiv="Content-Security-Policy" content="'
"""The first characters of every page, by which one is known."""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a whole page.

    Args:
        sections: heading and HTML of each section.
    """
    links = "".join(f'<a href="#{_anchor(heading)}">{escape(heading)}</a>' for heading, _ in sections)
    bodies = "".join(
        f'<section id="{_anchor(heading)}"><h2>{escape(heading)}</h2>\n{body}</section>\n' for heading, body in sections
    )
    style = files("shortlist.evaluation.report").joinpath("page.css").read_text("utf-8")
    return (
        f'{BEGINNING}{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n<nav>{links}</nav>\n{bodies}</body></html>\n"
    )


def _anchor(heading: str) -> str:
    return re.sub("[^a-z]+", "-", heading.lower())


def heading(text: str) -> str:
    """Return a heading inside a section."""
    return f"<h3>{escape(text)}</h3>\n"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", text: Iterable[int] = ()
) -> str:
    """Return a table.

    Further lines of a cell are shown small, and a row of one cell divides the table.

    Args:
        text: columns that hold text, besides the first; all others hold numbers.
    """
    words = set(text)
    mark = ['<th scope="col" class="text">' if place in words else '<th scope="col">' for place in range(len(headings))]
    head = "".join(f"{mark[place]}{escape(name)}</th>" for place, name in enumerate(headings))
    body = "".join(f"<tr{_part(row, headings)}>{_cells(row, headings, words)}</tr>\n" for row in rows)
    under = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{under}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def _part(row: Sequence[str], headings: Sequence[str]) -> str:
    return ' class="part"' if len(row) == 1 < len(headings) else ""


def _cells(row: Sequence[str], headings: Sequence[str], words: set[int]) -> str:
    if len(row) == 1 < len(headings):
        return f'<td colspan="{len(headings)}">{escape(row[0])}</td>'
    cells = []
    for place, cell in enumerate(row):
        first, *more = cell.split("\n")
        small = "".join(f"<small>{escape(line)}</small>" for line in more)
        opening = '<td class="text">' if place in words else "<td>"
        cells.append(f"{opening}{escape(first)}{small}</td>")
    return "".join(cells)


def drawing(svg: str, caption: str) -> str:
    """Return an SVG file as a picture in which a browser runs nothing."""
    content = b64encode(svg.encode()).decode()
    picture = f'<img src="data:image/svg+xml;base64,{content}" alt="{escape(caption)}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>\n"


def folded(summary: str, text: str) -> str:
    """Return text that is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>\n"
