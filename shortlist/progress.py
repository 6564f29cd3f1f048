"""Progress on stderr: a bar on a terminal, otherwise a plain line now and then."""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Advance(Protocol):
    """Function to call with the units done since the last call.

    It may also get a short note on how the work goes.
    """

    def __call__(self, amount: int | float = 1, note: str = "") -> None: ...


PLAIN_SECONDS = 20.0
NOTEBOOK_SECONDS = 0.5


@contextmanager
def progress(
    description: str, total: int | float | None, unit: str = "", *, done: int | float = 0
) -> Iterator[Advance]:
    """Show progress towards `total` units on stderr; yields the function to advance it.

    `done` units were finished before.
    """
    if sys.stderr.isatty() and leads():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total, completed=int(done), note="")

            def advance_bar(amount: int | float = 1, note: str = "") -> None:
                fields: dict[str, Any] = {"note": note} if note else {}
                bar.update(task, advance=amount, **fields)

            yield advance_bar
        return

    start = last = time.monotonic()
    before, show = done, _notebook_line()

    def advance(amount: int | float = 1, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= (PLAIN_SECONDS if show is say else NOTEBOOK_SECONDS):
            last = now
            left = f", {(now - start) / (done - before) * (total - done):.0f} s left" if total and done > before else ""
            show(f"{description}: {done:,.0f}{f'/{total:,.0f}' if total else ''} {unit}{left} {note}".rstrip())

    yield advance


def _notebook_line() -> Callable[[str], None]:
    """Return the function that shows progress.

    In a notebook it renews one line; elsewhere it is `say`.
    """
    if "ipykernel" not in sys.modules:
        return say
    display = import_module("IPython.display").display
    line: Any = None

    def show(text: str) -> None:
        nonlocal line
        shown = {"text/plain": text}
        if line is None:
            line = display(shown, raw=True, display_id=True)
        else:
            line.update(shown, raw=True)

    return show


def paced(advance: Advance, unit: str) -> Callable[[int, int], None]:
    """Make a function that advances by texts and shows the speed.

    It is called with the numbers of texts and of tokens, and shows how many of both are done per second.
    """
    start, texts, tokens = time.monotonic(), 0, 0

    def done(num_texts: int, num_tokens: int) -> None:
        nonlocal texts, tokens
        texts, tokens = texts + num_texts, tokens + num_tokens
        seconds = max(time.monotonic() - start, 1e-9)
        advance(num_texts, note=f"({texts / seconds:,.0f} {unit}/s, {tokens / seconds:,.0f} tokens/s)")

    return done


def duration(seconds: float) -> str:
    """Format a duration for people: 42 s, 3 min 20 s, 3 d 4 h."""
    for size, unit, small_size, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // small_size)} {small}"
    return f"{seconds:.0f} s"


def size(num_bytes: int | float) -> str:
    """Format a number of bytes in GiB or MiB."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def forget_peak() -> None:
    """Reset the peak that `peak_bytes` returns, if the system supports it."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_bytes() -> int:
    """Return the peak memory of this process, since `forget_peak` if it was called."""
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Return the memory that this process holds now; 0 if unknown."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def track(items: Iterable[T], description: str, total: int | float | None = None, unit: str = "") -> Iterator[T]:
    """Yield the items, and show how many were yielded."""
    with progress(description, total, unit) as advance:
        for item in items:
            yield item
            advance()


def say(message: str) -> None:
    """Print a line to stderr, where it cannot mix with results.

    Of several processes that train together, only the first one prints.
    """
    if leads():
        print(message, file=sys.stderr, flush=True)


def leads() -> bool:
    """Whether this is the first or only process of those that train together."""
    return os.environ.get("RANK", "0") == "0"
