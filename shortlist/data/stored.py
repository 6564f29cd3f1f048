"""Groups, queries and judgements of large files, read from disk when they are asked for.

What is in memory is where each line begins, and 64-bit hashes of ids: about 50 bytes for a group with its query,
however long lines are. Two of 10 million ids have the same hash with a chance of 3 in a million.
"""

import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import final, overload

import numpy as np
from jaxtyping import Int, UInt64

from shortlist.data.formats import located_judgements, query_parser, to_relevant
from shortlist.data.lines import OnBad, parse_lines
from shortlist.errors import UserError
from shortlist.records import Group, Query
from shortlist.text.hashes import text_hash


def to_numpy(values: array) -> Int[np.ndarray, " values"]:
    """Return the numbers of an array, of 32 or 64 bits, without a copy."""
    dtype = {"i": np.int32, "q": np.int64}[values.typecode]
    return np.frombuffer(values, dtype=dtype) if values else np.zeros(0, dtype=dtype)


def id_hashes(ids: Iterable[str]) -> Int[np.ndarray, " ids"]:
    """Hash ids to 64 bits, by a hash of this process alone."""
    return np.fromiter(map(hash, ids), dtype=np.int64)


@final
class StoredLines:
    """Lines of a file that stays open, by the byte at which each starts.

    Args:
        path: a plain file.
        starts: the first byte of each line that counts, in order.
    """

    def __init__(self, path: Path, starts: Int[np.ndarray, " lines"]) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._now()
        self._starts = np.append(starts, self._state[0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> str:
        """Read a line.

        Raises:
            UserError: the file has changed since it was opened.
        """
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        line = os.pread(self._descriptor, end - start, start)
        if self._now() != self._state:
            raise UserError(f"{self.path}: was changed while it was read; start the command again.")
        return line.split(b"\n", 1)[0].decode().rstrip("\r")

    def some(self, numbers: Int[np.ndarray, " some"]) -> "StoredLines":
        """Return some of the lines, in their order."""
        return self if len(numbers) == len(self) else StoredLines(self.path, self._starts[:-1][numbers])

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns


@final
class StoredGroups(Sequence[Group]):
    """Groups by number, each parsed when asked for.

    Attributes:
        query_hashes: hash of each group's query id.
        negative_counts: number of each group's negatives.

    Args:
        lines: the lines that hold groups.
        numbers: the line of each group.
        parse: makes a group of a line; it may return None for lines that no group is on.
    """

    def __init__(
        self,
        lines: StoredLines,
        numbers: Int[np.ndarray, " groups"],
        parse: Callable[[str], Group | None],
        *,
        query_hashes: Int[np.ndarray, " groups"],
        negative_counts: Int[np.ndarray, " groups"],
    ) -> None:
        self._lines, self._numbers, self._parse = lines, numbers, parse
        self.query_hashes, self.negative_counts = query_hashes, negative_counts

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> Group: ...
    @overload
    def __getitem__(self, number: slice) -> list[Group]: ...
    def __getitem__(self, number: int | slice) -> Group | list[Group]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        group = self._parse(self._lines[int(self._numbers[number])])
        assert group is not None  # or `numbers` would not name its line
        return group

    def changed(self, change: Callable[[Group], Group | None]) -> "StoredGroups":
        """Return the groups with each changed when it is read, without those that become None."""
        parse = self._parse

        def parse_changed(line: str) -> Group | None:
            group = parse(line)
            return None if group is None else change(group)

        kept, counts = array("q"), array("i")
        for number, group in enumerate(self):
            new = change(group)
            if new is not None:
                kept.append(number)
                counts.append(len(new.negatives))
        places = to_numpy(kept)
        return StoredGroups(
            self._lines,
            self._numbers[places],
            parse_changed,
            query_hashes=self.query_hashes[places],
            negative_counts=to_numpy(counts),
        )


@final
class StoredQueries(Mapping[str, Query]):
    """Queries by id, each parsed when asked for.

    Args:
        lines: the lines that hold queries.
        parse: makes a query of a line.
        hashes: hash of the query id on each line; of several lines with one id the first counts.
    """

    def __init__(self, lines: StoredLines, parse: Callable[[str], Query], hashes: Int[np.ndarray, " lines"]) -> None:
        self._lines, self._parse = lines, parse
        self.hashes, numbers = np.unique(hashes, return_index=True)
        self._numbers = numbers.astype(np.int32)

    def __len__(self) -> int:
        return len(self.hashes)

    def __iter__(self) -> Iterator[str]:
        return (self._parse(self._lines[number]).query_id for number in np.sort(self._numbers).tolist())

    def __getitem__(self, query_id: str) -> Query:
        place = int(np.searchsorted(self.hashes, hash(query_id)))
        if place < len(self.hashes) and self.hashes[place] == hash(query_id):
            query = self._parse(self._lines[int(self._numbers[place])])
            if query.query_id == query_id:
                return query
        raise KeyError(query_id)

    def text_hashes(self, query_hashes: Int[np.ndarray, " asked"]) -> UInt64[np.ndarray, " asked"]:
        """Return the hash of each query's text, for hashes of query ids."""
        texts = np.zeros(len(self.hashes), dtype=np.uint64)
        for place in np.argsort(self._numbers).tolist():
            texts[place] = text_hash(self._parse(self._lines[int(self._numbers[place])]).text)
        return texts[np.searchsorted(self.hashes, query_hashes)]


def store_queries(path: Path, on_bad: OnBad | None = None) -> StoredQueries:
    """Note where the queries of a file are.

    Args:
        on_bad: as for `read_queries`.

    Raises:
        UserError: as for `read_queries`.
    """
    starts, hashes, parse = array("q"), array("q"), query_parser(path)
    for _, start, query in parse_lines(path, parse, on_bad):
        starts.append(start)
        hashes.append(hash(query.query_id))
    queries = StoredQueries(StoredLines(path, to_numpy(starts)), parse, to_numpy(hashes))
    if len(queries) < len(starts):
        raise UserError(f"{path}: {len(starts) - len(queries)} query ids occur twice; every id must occur once.")
    return queries


def store_relevant(path: Path, least: int) -> "StoredJudgements":
    """Note where the documents judged `least` or higher are in a file of judgements.

    Raises:
        UserError: a malformed line.
    """
    starts, hashes = array("q"), array("q")
    for start, (query_id, _, grade) in located_judgements(path):
        if grade >= least:
            starts.append(start)
            hashes.append(hash(query_id))
    return StoredJudgements(StoredLines(path, to_numpy(starts)), to_relevant, to_numpy(hashes))


@final
class StoredJudgements(Mapping[str, frozenset[str]]):
    """The relevant documents of each query, parsed when asked for.

    Args:
        lines: the lines that hold judgements of relevant documents.
        parse: makes a query id and a document id of a line.
        hashes: hash of the query id on each line.
    """

    def __init__(
        self, lines: StoredLines, parse: Callable[[str], tuple[str, str]], hashes: Int[np.ndarray, " lines"]
    ) -> None:
        self._lines, self._parse = lines, parse
        self._numbers = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._numbers]

    def __len__(self) -> int:
        return len(np.unique(self._hashes))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self._parse(self._lines[number])[0] for number in range(len(self._lines))))

    def __getitem__(self, query_id: str) -> frozenset[str]:
        first, end = (int(np.searchsorted(self._hashes, hash(query_id), side)) for side in ("left", "right"))
        judged = (self._parse(self._lines[int(number)]) for number in self._numbers[first:end])
        if doc_ids := frozenset(doc_id for judged_id, doc_id in judged if judged_id == query_id):
            return doc_ids
        raise KeyError(query_id)
