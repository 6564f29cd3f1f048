"""The log of answers: nothing that was added is lost, and nothing else is a log."""

import sqlite3
from pathlib import Path

import pytest
from processes import Started

from shortlist.data import answers
from shortlist.data.answers import AnswerLog, answer_keys
from shortlist.errors import UserError


def test_answers_are_found_by_another_log_while_the_first_is_open(tmp_path: Path):
    log = AnswerLog(tmp_path / "new" / "log")
    log.add({"a": "text [1]\n", "b": [0.5, float("nan")]})
    found = AnswerLog(tmp_path / "new" / "log").find(["b", "a", "unknown"])
    assert found["a"] == "text [1]\n"
    assert found["b"][0] == 0.5
    assert found["b"][1] != found["b"][1]
    assert set(found) == {"a", "b"}


def test_more_keys_than_one_query_takes_are_looked_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "AT_ONCE", 2)
    log = AnswerLog(None)
    log.add({str(number): number for number in range(7)})
    assert log.find([*map(str, range(8))]) == {str(number): number for number in range(7)}


def test_answers_in_memory_do_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(answers, "MOST_IN_MEMORY", 5)
    in_memory, in_file = AnswerLog(None), AnswerLog(tmp_path / "log")
    for log in (in_memory, in_file):
        for number in range(12):
            log.add({str(number): number})
    assert len(in_memory) <= 5
    assert in_memory.find(["11"]) == {"11": 11}
    assert len(in_file) == 12


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"{}\n"])
def test_a_file_that_is_no_log_is_refused_in_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(UserError, match=r"log: not a log of answers \(file is not a database\); move it away\.$"):
        AnswerLog(tmp_path / "log")
    assert (tmp_path / "log").read_bytes() == content


def test_a_log_that_breaks_in_use_is_one_line(tmp_path: Path):
    log = AnswerLog(tmp_path / "log")
    log.add({"a": 1})
    with sqlite3.connect(tmp_path / "log") as other:
        other.execute("drop table answers")
    with pytest.raises(UserError, match=r"log: the log of answers cannot be used \(no such table: answers\)"):
        log.find(["a"])
    with pytest.raises(UserError, match=r"cannot be used .*; make room or move it away, then go on\.$"):
        log.add({"b": 1})


def test_keys_are_equal_only_if_all_that_an_answer_depends_on_is():
    shared, asked = {"model": "m", "prompt": "p"}, [[[1, 2], 5], [[1, 2, 3], 5]]
    keys = answer_keys(shared, asked)
    assert keys == answer_keys({"prompt": "p", "model": "m"}, asked)
    others = [answer_keys({**shared, "model": "n"}, asked), answer_keys(shared, [[[1, 2], 6], [[1, 2, 3, 5]]])]
    assert len({*keys, *(key for other in others for key in other)}) == 6


def add_many(path: str, name: str) -> None:
    log = AnswerLog(Path(path))
    for number in range(60):
        log.add({f"{name}{number}": name, "both": name})
        log.find(["both"])


@pytest.mark.slow
def test_two_processes_that_write_one_log_at_once_lose_nothing(tmp_path: Path):
    processes = [Started(add_many, str(tmp_path / "log"), name) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    log = AnswerLog(tmp_path / "log")
    assert len(log) == 121
    assert log.find(["both"])["both"] in "ab"
