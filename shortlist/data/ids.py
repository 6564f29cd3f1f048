"""Document ids that stay on disk as bytes until they are asked for.

A million ids cost no Python objects.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib import import_module
from itertools import accumulate
from typing import TYPE_CHECKING, Any, final, overload

import numpy as np
from jaxtyping import Float, Int, UInt8

from shortlist.records import Hit

if TYPE_CHECKING:
    import pyarrow as pa

LINE_END = 10
IDS_READ_AT_ONCE = 10_000
"""Ids to read at a time when all are asked for."""


@final
class DocIds(Sequence[str]):
    """Document ids by position.

    Args:
        parts: UTF-8 text with one id per line, one part per file.
        counts: number of ids in each part.
        lines: the line that holds each position's id, where positions are not lines.
    """

    def __init__(
        self,
        parts: Sequence[UInt8[np.ndarray, "_"]],
        counts: Sequence[int],
        lines: Int[np.ndarray, " ids"] | None = None,
    ) -> None:
        self._parts, self._lines = parts, lines
        self._starts = [0, *accumulate(counts)]
        self._ends: dict[int, Int[np.ndarray, " lines"]] = {}

    def __len__(self) -> int:
        return self._starts[-1] if self._lines is None else len(self._lines)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        line = position % len(self) if self._lines is None else int(self._lines[position])
        part = bisect_right(self._starts, line) - 1
        ends, place = self._line_ends(part), line - self._starts[part]
        start = int(ends[place - 1]) + 1 if place else 0
        return self._parts[part][start : int(ends[place])].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        if self._lines is not None:
            for start in range(0, len(self), IDS_READ_AT_ONCE):
                yield from self.take(np.arange(start, min(start + IDS_READ_AT_ONCE, len(self))))
            return
        for part in self._parts:
            yield from part.tobytes().decode().split("\n")[:-1]

    def take(self, positions: Int[np.ndarray, " ids"]) -> list[str]:
        """Return the ids at these positions, faster than asking for one at a time.

        The positions must not be negative.
        """
        lines = positions if self._lines is None else self._lines[positions]
        parts = np.searchsorted(self._starts, lines, side="right") - 1
        found = [""] * len(lines)
        for part in np.unique(parts).tolist():
            asked = np.flatnonzero(parts == part)
            ends, places = self._line_ends(part), lines[asked] - self._starts[part]
            starts = np.where(places > 0, ends[places - 1] + 1, 0)
            text = _joined(self._parts[part], starts, ends[places] + 1)
            for i, doc_id in zip(asked.tolist(), text.split("\n")[:-1], strict=True):
                found[i] = doc_id
        return found

    def to_arrow(self) -> "pa.Array":
        """Return all ids as an array of Arrow, without a Python step per id."""
        import pyarrow as pa

        texts = []
        for part, text in enumerate(self._parts):
            ends = self._line_ends(part)
            starts = np.concatenate([[0], ends - np.arange(len(ends))]).astype(np.int64)
            buffers = [None, pa.py_buffer(starts), pa.py_buffer(text[text != LINE_END])]
            texts.append(pa.Array.from_buffers(pa.large_string(), len(ends), buffers))
        found = pa.concat_arrays(texts)
        return found if self._lines is None else found.take(pa.array(self._lines))

    def places_of(self, doc_ids: Iterable[str]) -> dict[str, int]:
        """Find the positions of some documents; those that are not there are left out."""
        import pyarrow as pa

        pc: Any = import_module("pyarrow.compute")  # whose functions no type checker knows
        there = pc.is_in(self._arrow, pa.array(list(doc_ids), pa.large_string()))
        positions = np.flatnonzero(there.to_numpy(zero_copy_only=False))
        return dict(zip(self.take(positions), positions.tolist(), strict=True)) if len(positions) else {}

    @cached_property
    def _arrow(self) -> "pa.Array":
        return self.to_arrow()

    def hits(self, scores: Float[np.ndarray, "queries k"], positions: Int[np.ndarray, "queries k"]) -> list[list[Hit]]:
        """Turn the scores and positions of a search into hits; negative positions are skipped."""
        found = positions >= 0
        names = iter(self.take(positions[found]))
        return [
            [Hit(next(names), score) for score, there in zip(*row, strict=True) if there]
            for row in zip(scores.tolist(), found.tolist(), strict=True)
        ]

    def _line_ends(self, part: int) -> Int[np.ndarray, " lines"]:
        if part not in self._ends:
            self._ends[part] = np.flatnonzero(self._parts[part] == LINE_END)
        return self._ends[part]


def _joined(text: UInt8[np.ndarray, "_"], starts: Int[np.ndarray, " spans"], ends: Int[np.ndarray, " spans"]) -> str:
    """Join spans of UTF-8 text, without a Python step per span."""
    lengths = ends - starts
    stops = np.cumsum(lengths)
    return text[np.arange(stops[-1]) + np.repeat(starts - stops + lengths, lengths)].tobytes().decode()
