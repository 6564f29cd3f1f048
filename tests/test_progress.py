import sys
from types import ModuleType, SimpleNamespace

import pytest

from shortlist import progress as module
from shortlist.progress import progress, say, track


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_what_is_said_goes_to_stderr(capsys: pytest.CaptureFixture[str]):
    say("one line")
    assert capsys.readouterr() == ("", "one line\n")


def test_a_short_wait_prints_nothing(capsys: pytest.CaptureFixture[str]):
    assert list(track(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_a_long_wait_says_now_and_then_how_far_it_is_and_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], clock: Clock
):
    with progress("training", 4000, "steps") as advance:
        for _ in range(10):
            clock.now += 6
            advance(250, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 1,000/4,000 steps, 72 s left loss 0.5",
        "training: 2,000/4,000 steps, 48 s left loss 0.5",
    ]


def test_without_a_total_there_is_no_time_left_to_say(capsys: pytest.CaptureFixture[str], clock: Clock):
    with progress("reading", None, "documents") as advance:
        clock.now += 30
        advance(1234)
    assert capsys.readouterr().err == "reading: 1,234 documents\n"


def test_a_terminal_shows_a_bar_and_is_left_clean(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("training", 3, "steps") as advance:
        advance(1, "loss 0.5")
        advance()
    assert list(track([1, 2], "counting", 2)) == [1, 2]
    assert capsys.readouterr().out == ""


def test_an_error_inside_goes_through():
    def fail() -> None:
        with progress("training", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()


def test_a_notebook_shows_one_line_that_is_renewed(monkeypatch: pytest.MonkeyPatch, clock: Clock):
    shown: list[str] = []

    class Line:
        def update(self, text: dict[str, str], *, raw: bool) -> None:
            shown.append(text["text/plain"])

    def display(text: dict[str, str], *, raw: bool, display_id: bool) -> Line:
        shown.append(text["text/plain"])
        return Line()

    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr(module, "import_module", lambda name: SimpleNamespace(display=display))
    with progress("training", 40, "steps") as advance:
        for _ in range(2):
            clock.now += 1
            advance(10)
    assert [line.partition(",")[0] for line in shown] == ["training: 10/40 steps", "training: 20/40 steps"]
