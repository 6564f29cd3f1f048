"""A log of a language model's answers that survives a crash.

Nothing that it knows is asked twice.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from shortlist.errors import UserError

AT_ONCE = 500
"""Keys that are looked up in one query."""
NO_TOKENS: Mapping[str, tuple[int, int]] = MappingProxyType({})
MOST_IN_MEMORY = 10_000
"""Answers that are kept without a file, as where a model is asked for weeks."""

ANSWERS = "answers.sqlite"
"""The file with a language model's answers, in the output of a stage that is a folder."""


@final
class AnswerLog:
    """Answers by the key of what was asked.

    Several processes may use one file at the same time. What `add` has written is there even if the process is killed.

    Args:
        path: the file, made if it is not there (None: answers are kept in memory only).

    Raises:
        UserError: the file is not a log of answers.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = sqlite3.connect(path or ":memory:", timeout=60, check_same_thread=False)
            with self._file:
                columns = "key text primary key, answer text, prompt_tokens integer, answer_tokens integer"
                self._file.execute(f"create table if not exists answers ({columns}) without rowid")
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: not a log of answers ({error}); move it away.") from None

    def find(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the answers that are known, by their keys.

        Raises:
            UserError: the file cannot be read.
        """
        found: dict[str, Any] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            with self._usable():
                rows = self._file.execute(f"select key, answer from answers where key in ({marks})", some).fetchall()
            found |= {key: json.loads(answer) for key, answer in rows}
        return found

    def add(self, answers: Mapping[str, Any], tokens: Mapping[str, tuple[int, int]] = NO_TOKENS) -> None:
        """Keep answers, which JSON can hold.

        Args:
            tokens: how many tokens a prompt and its answer had, by the answer's key.

        Raises:
            UserError: the file cannot be written.
        """
        rows = [(key, json.dumps(answer), *tokens.get(key, (0, 0))) for key, answer in answers.items()]
        with self._usable(), self._file:
            if self.path is None and len(self) >= MOST_IN_MEMORY:
                self._file.execute("delete from answers")
            self._file.executemany("insert or replace into answers values (?, ?, ?, ?)", rows)

    def forget(self) -> None:
        """Delete all answers."""
        with self._file:
            self._file.execute("delete from answers")

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path}: the log of answers cannot be used ({error}); make room or move it away, then go on."
            ) from None

    def num_tokens(self) -> tuple[int, int]:
        """Count the tokens of all prompts, and of all answers."""
        with self._usable():
            sums = "coalesce(sum(prompt_tokens), 0), coalesce(sum(answer_tokens), 0)"
            return self._file.execute(f"select {sums} from answers").fetchone()

    def __len__(self) -> int:
        return self._file.execute("select count(*) from answers").fetchone()[0]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def answer_keys(shared: Any, each: Iterable[Any]) -> list[str]:
    """Hash what answers depend on: what they share, and what is asked in each case."""
    begun = sha256(json.dumps(shared, sort_keys=True).encode())
    keys = []
    for asked in each:
        whole = begun.copy()
        whole.update(json.dumps(asked, sort_keys=True).encode())
        keys.append(whole.hexdigest()[:40])
    return keys
