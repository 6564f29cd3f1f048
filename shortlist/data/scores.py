"""A log of scores that survives a crash, so that nothing is scored twice."""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32
from pyarrow import csv

from shortlist.data.runs import RunColumns
from shortlist.errors import UserError
from shortlist.progress import say

SCORES_FORMAT = 2
COLUMNS = {"query_id": pa.string(), "doc_id": pa.string(), "score": pa.float32()}


@final
class ScoreLog:
    """A file of scores that is only ever appended to.

    A line is `query id, document id, score, checksum`, tab-separated. The first line says, as JSON, what the scores
    depend on. Where a score depends on the whole list of candidates, a line is `query id, key of the list, scores in
    the order of the list, checksum`. A last line that a crash cut off is dropped, and so is every line that is not as
    it was written. Logs of format 1 have no checksums.

    Args:
        path: the file, made if it is not there.
        made_from: what the scores depend on, by name.
        overwrite: begin again where a log holds scores that depend on other things; one without scores does anyway.

    Raises:
        UserError: the log holds such scores and `overwrite` is off (the message names the differences), or the file is
            not a log of scores.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self._header = json.dumps({"format": SCORES_FORMAT, **made_from}, sort_keys=True) + "\n"
        self._checked = True
        if not path.exists() or not _whole_lines(path) or not self._goes_on(overwrite):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._header, "utf-8")
        self._file = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 (open as long as the log)

    def _goes_on(self, overwrite: bool) -> bool:
        """Whether the log's scores depend on the same things."""
        with open(self.path, "rb") as file:
            found, is_empty = file.readline(), not file.readline()
        if found == self._header.encode():
            return True
        expected = json.loads(self._header)
        try:
            there = dict(json.loads(found))
        except (ValueError, TypeError):
            raise UserError(f"{self.path}: not a log of scores; move it away.") from None
        if there == expected | {"format": 1}:
            self._checked = False
            return True
        if overwrite or is_empty:  # a run that failed before its first score binds nobody
            return False
        other = sorted(name for name in expected.keys() | there.keys() if there.get(name) != expected.get(name))
        raise UserError(
            f"{self.path}: holds scores made with another {', '.join(other)}; choose another --out, or --overwrite."
        )

    def read(self, run: RunColumns) -> Float32[np.ndarray, " hits"]:
        """Return the scores of a run's hits, NaN where the log has none."""
        scores = np.full(len(run.doc_ids), np.nan, dtype=np.float32)
        if not (lines := self._lines()):
            return scores
        try:
            known = csv.read_csv(
                io.BytesIO(b"\n".join(lines)),
                read_options=csv.ReadOptions(column_names=list(COLUMNS)),
                parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
                convert_options=csv.ConvertOptions(column_types=COLUMNS, null_values=[]),
            )
        except pa.ArrowInvalid as error:
            raise self._unreadable(error) from None
        places = np.arange(len(scores))
        query_ids = pa.array(run.query_ids).take(run.queries_of(places))
        asked = pa.table({"query_id": query_ids, "doc_id": run.doc_ids, "place": places})
        found = asked.join(known, keys=["query_id", "doc_id"], join_type="inner")
        scores[found["place"].to_numpy()] = found["score"].to_numpy()
        return scores

    def append(self, pairs: Sequence[tuple[str, str]], scores: Float[np.ndarray, " pairs"]) -> None:
        """Add the scores of some pairs of query id and document id.

        They are there even if this process is killed.
        """
        texts = scores.astype(np.float32).astype(str).tolist()
        for (query, doc), text in zip(pairs, texts, strict=True):
            self._write(f"{query}\t{doc}\t{text}")
        self._file.flush()

    def read_lists(self) -> dict[str, Float32[np.ndarray, " docs"]]:
        """Return the scores of every list, by its key."""
        try:
            lines = [line.decode().split("\t") for line in self._lines()]
            return {key: np.array(scores.split(" "), dtype=np.float32) for _, key, scores in lines}
        except ValueError as error:
            raise self._unreadable(error) from None

    def append_list(self, query_id: str, key: str, scores: Float[np.ndarray, " docs"]) -> None:
        """Add the scores of a list, NaN for documents that were not scored.

        The list is as safe as in `append`, and is never stored in part.
        """
        self._write(f"{query_id}\t{key}\t{' '.join(scores.astype(np.float32).astype(str).tolist())}")
        self._file.flush()

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\t{zlib.crc32(line.encode()):08x}\n" if self._checked else f"{line}\n")

    def _lines(self) -> list[bytes]:
        """Read the lines that are as they were written, without their checksums."""
        with open(self.path, "rb") as file:
            file.readline()
            lines = file.read().split(b"\n")[:-1]
        if not self._checked:
            return lines
        parts = [line.rpartition(b"\t") for line in lines]
        sound = [line for line, _, checksum in parts if checksum == b"%08x" % zlib.crc32(line)]
        if len(sound) < len(lines):
            say(f"{self.path}: {len(lines) - len(sound):,} lines are not as they were written and do not count.")
        return sound

    def _unreadable(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())
        return UserError(f"{self.path}: not a log of scores as it was written ({reason}); move it away.")

    def clear(self) -> None:
        """Remove all scores."""
        self._file.truncate(0)
        self._file.write(self._header)
        self._file.flush()

    def close(self) -> None:
        """Wait until everything is on disk, then close the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def list_key(query_id: str, doc_ids: Sequence[str]) -> str:
    """Return the key of scores that depend on their list.

    It is a hash of the query and its candidates in their order.
    """
    return hashlib.sha256(json.dumps([query_id, *doc_ids]).encode()).hexdigest()[:32]


def _whole_lines(path: Path) -> bool:
    """Cut off an incomplete last line; return whether anything is left."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            file.seek(start)
            if (place := file.read(end - start).rfind(b"\n")) >= 0:
                file.truncate(start + place + 1)
                return True
            end = start
    return False
