"""Counters and histograms, in the text format that Prometheus reads."""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from shortlist.data.files import read_json, write_json

BARS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper ends of a histogram's buckets, in seconds."""

HELP = {
    "shortlist_requests_total": ("counter", "Requests by path and status."),
    "shortlist_request_seconds": ("histogram", "Time from the first byte to the answer, by path."),
    "shortlist_stage_seconds": ("histogram", "Time of each stage of a search."),
    "shortlist_batch_seconds": ("histogram", "Time of each forward pass, by model."),
    "shortlist_batch_texts_total": ("counter", "Texts that went through a model."),
    "shortlist_tokens_total": ("counter", "Tokens that went through a model, padding not counted."),
    "shortlist_cancelled_total": ("counter", "Requests whose client left before the answer."),
    "shortlist_queue_requests": ("gauge", "Requests accepted and not yet answered."),
    "shortlist_queue_tokens": ("gauge", "Tokens of the requests accepted and not yet answered."),
}
"""Type and meaning of everything that is counted."""

Labels = Mapping[str, str]


@final
class Metrics:
    """Counts of everything since the start; any thread may count.

    Args:
        gauges: functions that return a current value, by name.
    """

    def __init__(self, **gauges: Callable[[], int]) -> None:
        self._values: dict[str, int | float] = {}
        self._gauges = gauges
        self._folder: Path | None = None
        self._lock = threading.Lock()

    def count(self, name: str, amount: int | float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._add(_series(name, labels), amount)

    def _add(self, series: str, amount: int | float) -> None:
        self._values[series] = self._values.get(series, 0) + amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add one duration to a histogram."""
        with self._lock:
            for end in (*BARS, float("inf")):
                bound = "+Inf" if end == float("inf") else str(end)
                self._add(_series(f"{name}_bucket", {**labels, "le": bound}), seconds <= end)
            self._add(_series(f"{name}_sum", labels), seconds)
            self._add(_series(f"{name}_count", labels), 1)

    def values(self) -> dict[str, int | float]:
        """Return every series of this process with its value."""
        with self._lock:
            return self._values | {name: now() for name, now in self._gauges.items()}

    def share(self, folder: Path) -> None:
        """Share counts with other processes that `publish` into the same folder."""
        self._folder = folder

    def publish(self) -> None:
        """Write this process's counts for the other processes, if there are any."""
        if self._folder:
            write_json(self._folder / f"{os.getpid()}.json", self.values())

    def together(self) -> dict[str, int | float]:
        """Add up the series of all processes, as last published.

        Processes that have ended still count in counters and histograms, but not in gauges.
        """
        self.publish()
        total = self.values()
        for path in self._folder.glob("*.json") if self._folder else ():
            if (pid := int(path.stem)) != os.getpid():
                left_out = () if _runs(pid) else self._gauges
                for series, value in read_json(path).items():
                    total[series] = total.get(series, 0) + (0 if series in left_out else value)
        return total


def render(values: Mapping[str, int | float]) -> str:
    """Write values as text for Prometheus."""
    lines = []
    for name, (kind, meaning) in HELP.items():
        ends = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        for part in [name + end for end in ends]:
            lines += [f"{series} {value:.12g}" for series, value in values.items() if series.partition("{")[0] == part]
    return "\n".join(lines) + "\n"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _series(name: str, labels: Labels) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{inside}}}" if inside else name
