"""What a person sees while waiting: a bar with the time left on a terminal, a plain line now and then elsewhere."""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Advance(Protocol):
    """Call with the number of units done since the last call, and a few words on how it goes."""

    def __call__(self, amount: int | float = 1, note: str = "") -> None: ...


PLAIN_SECONDS = 20.0


@contextmanager
def progress(
    description: str, total: int | float | None, unit: str = "", *, done: int | float = 0
) -> Iterator[Advance]:
    """Show progress on stderr towards `total` units, `done` of them before; yields the function that advances it."""
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
    before = done

    def advance(amount: int | float = 1, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS:
            last = now
            left = f", {(now - start) / (done - before) * (total - done):.0f} s left" if total and done > before else ""
            say(f"{description}: {done:,.0f}{f'/{total:,.0f}' if total else ''} {unit}{left} {note}".rstrip())

    yield advance


def paced(advance: Advance, unit: str) -> Callable[[int, int], None]:
    """A function that advances by texts, told their tokens too, and notes how many of both a second takes."""
    start, texts, tokens = time.monotonic(), 0, 0

    def done(num_texts: int, num_tokens: int) -> None:
        nonlocal texts, tokens
        texts, tokens = texts + num_texts, tokens + num_tokens
        seconds = max(time.monotonic() - start, 1e-9)
        advance(num_texts, note=f"({texts / seconds:,.0f} {unit}/s, {tokens / seconds:,.0f} tokens/s)")

    return done


def duration(seconds: float) -> str:
    """A length of time as a person says it: 42 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
    for size, unit, small_size, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // small_size)} {small}"
    return f"{seconds:.0f} s"


def size(num_bytes: int | float) -> str:
    """A number of bytes as a person says it."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def forget_peak() -> None:
    """Let `peak_bytes` count from now on, where the system can do that."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_bytes() -> int:
    """The most memory that this process has held, since `forget_peak` where that was called."""
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The memory that this process holds now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def track(items: Iterable[T], description: str, total: int | float | None = None, unit: str = "") -> Iterator[T]:
    """Yield the items, showing how many have gone by."""
    with progress(description, total, unit) as advance:
        for item in items:
            yield item
            advance()


def say(message: str) -> None:
    """One line to stderr, where it cannot mix with results; of processes that do the same, the first one speaks."""
    if leads():
        print(message, file=sys.stderr, flush=True)


def leads() -> bool:
    """Whether this is the first, or only, process of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
