from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from shortlist.data.figures import svg, write_svg


def draw(values: list[float], figure: Any) -> None:
    figure.add_subplot(xlabel="length (tokens)").plot(values)


def test_the_same_numbers_give_the_same_bytes_whatever_the_users_settings_are():
    first = svg(partial(draw, [1.0, 3.0, 2.0]))
    with mpl.rc_context({"lines.linewidth": 9, "svg.fonttype": "path"}):
        assert svg(partial(draw, [1.0, 3.0, 2.0])) == first
    assert svg(partial(draw, [1.0, 3.0, 4.0])) != first


def test_words_stay_words():
    assert "length (tokens)" in svg(partial(draw, [1.0, 2.0]))


def test_a_drawing_that_fails_leaves_the_old_file(tmp_path: Path):
    write_svg(tmp_path / "a.svg", partial(draw, [1.0, 2.0]))
    before = (tmp_path / "a.svg").read_bytes()
    with pytest.raises(ValueError, match="cast"):
        write_svg(tmp_path / "a.svg", partial(draw, [1.0, [3.0, 2.0]]))
    assert (tmp_path / "a.svg").read_bytes() == before
