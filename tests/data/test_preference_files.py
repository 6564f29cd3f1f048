"""Files of preferences."""

import json
from pathlib import Path

import pytest

from shortlist.data.preferences import Preference, Wording, read_preferences, write_preferences
from shortlist.errors import UserError
from shortlist.records import Document, Query

PAIRS = [
    Preference(Query("q1", "otters"), Document("d1", "Otters live in rivers.", "Otters"), "in rivers", "Otters live"),
    Preference(Query("q2", ""), Document("d2", "Goats"), "goat", "g\u00f6at"),
]
LINE = {"query": "otters", "text": "Otters live in rivers.", "chosen": "in rivers", "rejected": "otters"}


def test_what_is_written_is_read_again(tmp_path: Path):
    assert write_preferences(tmp_path / "pairs.jsonl", PAIRS, Wording("summary", 8)) == 2
    found = read_preferences(tmp_path / "pairs.jsonl")
    assert (found.preferences, found.lines, found.asked) == (PAIRS, [1, 2], Wording("summary", 8))
    assert json.loads((tmp_path / "pairs.jsonl").read_text("utf-8").splitlines()[0])["words"] == 8


def test_ids_and_how_it_was_asked_need_not_be_there(tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text(f"\n{json.dumps(LINE)}\n")
    found = read_preferences(tmp_path / "pairs.jsonl")
    assert (found.lines, found.asked) == ([2], Wording())
    assert found.preferences[0].query == Query("", "otters")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "pairs.jsonl: holds no preferences; expected at least one line"),
        ([LINE, "{"], "pairs.jsonl:2: not JSON"),
        ([LINE, {"query": "x"}], "pairs.jsonl:2: text is None; expected a text. A line has query, text, chosen"),
        ([LINE | {"chosen": " "}], "pairs.jsonl:1: chosen is ' '; expected a text"),
        ([LINE | {"rejected": LINE["chosen"]}], "pairs.jsonl:1: chosen and rejected are the same text"),
        ([LINE | {"query": 3}], "pairs.jsonl:1: query is 3; expected a string"),
        ([LINE | {"words": 0}], "pairs.jsonl:1: words is 0; expected a whole number from 1"),
        ([LINE | {"prompt": 1}], "pairs.jsonl:1: prompt is 1; expected the name of a prompt"),
        (
            [LINE | {"prompt": "summary", "words": 5}, LINE],
            "pairs.jsonl:2: was asked for with no prompt and the words it says, line 1 with the prompt 'summary' and 5",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lines: list, message: str):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_preferences(tmp_path / "pairs.jsonl")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such file; expected preferences, such as `shortlist preferences` writes"):
        read_preferences(tmp_path / "nothing.jsonl")
