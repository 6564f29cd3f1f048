"""Drawings as SVG files: one look for all, text that stays text, and the same bytes for the same numbers."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from shortlist.data.files import atomic_write

STYLE = {"svg.hashsalt": "shortlist", "svg.fonttype": "none", "axes.spines.top": False, "font.size": 9}
"""A fixed salt and text as text: the same numbers give the same bytes."""

COLORS = ("#08519c", "#d94801", "#238b45", "#6a51a3", "#a50f15", "#525252")
"""Dark enough on white, and told apart by those who do not see every colour."""


def svg(draw: Callable[[Any], None], *, width: int = 700, height: int = 400) -> str:
    """The SVG of what `draw` puts on a matplotlib Figure of this many pixels."""
    from matplotlib.figure import Figure
    from matplotlib.style import context

    text = StringIO()
    with context(["default", STYLE]):  # whatever the user's own settings are
        figure = Figure(figsize=(width / 96, height / 96), layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def write_svg(path: Path, draw: Callable[[Any], None], *, width: int = 700, height: int = 400) -> None:
    """Write that SVG, whole or not at all."""
    drawing = svg(draw, width=width, height=height)
    with atomic_write(path) as file:
        file.write(drawing)
