import json

import pytest

from shortlist.data.groups import groups_from_qrels, read_groups, write_groups
from shortlist.errors import UserError
from shortlist.records import Group


def test_groups_survive_writing_and_reading(tmp_path):
    groups = [Group("q", ("a", "é"), ("b",)), Group("q", ("c",)), Group("r", ("a",), ("c", "d"))]
    write_groups(tmp_path / "groups.jsonl", groups)
    assert read_groups(tmp_path / "groups.jsonl") == groups
    first = (tmp_path / "groups.jsonl").read_text().split("\n")[0]
    assert json.loads(first) == {"query_id": "q", "positives": ["a", "é"], "negatives": ["b"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query_id": "q", "positives": [], "negatives": ["a"]}', "has no positive"),
        ('{"query_id": "q", "positives": ["a"], "negatives": ["b", "a"]}', "'a' is both positive and negative"),
        ('{"query_id": "q", "positives": ["a"], "negatives": ["b", "b"]}', "'b' occurs 2 times"),
        ('{"query_id": "q", "positives": "a", "negatives": []}', "positives is 'a'; expected a list"),
        ('{"query_id": "q", "positives": ["a"]}', "negatives is None; expected a list"),
        ('{"query_id": 3, "positives": ["a"], "negatives": []}', "query_id is 3; expected a string"),
        ('{"query_id": "q"', "not JSON"),
    ],
)
def test_a_bad_group_is_named_by_file_line_and_fault(tmp_path, line, message):
    path = tmp_path / "groups.jsonl"
    path.write_text('{"query_id": "q", "positives": ["a"], "negatives": []}\n' + line + "\n")
    with pytest.raises(UserError, match=f"groups.jsonl:2: .*{message}"):
        read_groups(path)


def test_a_file_without_groups_is_refused(tmp_path):
    (tmp_path / "groups.jsonl").touch()
    with pytest.raises(UserError, match="holds no groups"):
        read_groups(tmp_path / "groups.jsonl")


def test_judgements_become_groups_of_what_is_relevant_enough():
    qrels = {"q": {"a": 2, "b": 1, "c": 0}, "r": {"a": 0}, "s": {"d": 1}}
    assert groups_from_qrels(qrels) == [Group("q", ("a", "b")), Group("s", ("d",))]
    assert groups_from_qrels(qrels, min_relevance=2) == [Group("q", ("a",))]
