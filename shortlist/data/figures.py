"""Drawings as SVG files, all in one style.

Text stays text, and the same numbers give the same bytes.
"""

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from shortlist.data.files import atomic_write

STYLE = {"svg.hashsalt": "shortlist", "svg.fonttype": "none", "axes.spines.top": False, "font.size": 9}
"""A fixed salt, so that the same numbers give the same bytes; and text kept as text."""

COLORS = ("#08519c", "#d94801", "#238b45", "#6a51a3", "#a50f15", "#525252")
"""Colours that are dark enough on white, and that colour-blind readers can distinguish."""


def svg(draw: Callable[[Any], None], *, width: int = 700, height: int = 400) -> str:
    """Call `draw` with a matplotlib Figure of this many pixels; return its SVG."""
    from matplotlib.figure import Figure
    from matplotlib.style import context

    text = StringIO()
    with context(["default", STYLE]):  # independent of the user's matplotlib settings
        figure = Figure(figsize=(width / 96, height / 96), layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def write_svg(path: Path, draw: Callable[[Any], None], *, width: int = 700, height: int = 400) -> None:
    """Draw as `svg` does and write the file, whole or not at all."""
    drawing = svg(draw, width=width, height=height)
    with atomic_write(path) as file:
        file.write(drawing)
