import json
from pathlib import Path

import pytest

from shortlist.data.exclusions import (
    Excluded,
    columns_without,
    find_excluded,
    judged_without,
    read_exclusions,
    with_chunks,
    without_excluded,
)
from shortlist.data.runs import run_columns
from shortlist.errors import UserError
from shortlist.records import Hit


def test_lines_and_records_of_bright_say_the_same(tmp_path: Path):
    expected = {"q1": frozenset({"a", "b"}), "q 2": frozenset({"c"})}
    (tmp_path / "list.tsv").write_text("query-id\tcorpus-id\nq1\ta\nq1 b\n\n")
    assert read_exclusions(tmp_path / "list.tsv") == {"q1": expected["q1"]}
    lines = ['{"id": "q1", "excluded_ids": ["a", "b"]}', '{"_id": "q 2", "excluded_ids": ["c", "N/A"]}']
    (tmp_path / "list.jsonl").write_text("\n".join([*lines, '{"id": "q3", "excluded_ids": ["N/A"]}']))
    assert read_exclusions(tmp_path / "list.jsonl") == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q1\n", "list:1: found 1 columns; expected 2, query and document"),
        ("q1 a\nq1 0 a 1\n", "list:2: found judgements"),
        ('{"id": "q1"}\n', "list:1: has id; expected an id, and excluded_ids"),
        ('{"id": "q1", "excluded_ids": "a"}\n', "expected an id, and excluded_ids: a list"),
    ],
)
def test_what_is_no_such_list_is_refused(tmp_path: Path, text: str, words: str):
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=words):
        read_exclusions(tmp_path / "list")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such file; expected lines"):
        read_exclusions(tmp_path / "list")


def test_a_collection_may_have_lists_of_its_own(tmp_path: Path):
    assert find_excluded(None, str(tmp_path), "test").inputs == {}
    (tmp_path / "exclude").mkdir()
    (tmp_path / "exclude" / "test.tsv").write_text("q1 a\n")
    own = find_excluded(None, str(tmp_path), "test")
    assert (own.by_query, own.source) == ({"q1": frozenset("a")}, str(tmp_path / "exclude" / "test.tsv"))
    assert own.inputs == {"exclude": own.identity}
    assert find_excluded(None, str(tmp_path), "dev") == find_excluded(None, "irds:x", "test") == Excluded()
    (tmp_path / "named.tsv").write_text("q1 b\n")
    assert find_excluded(tmp_path / "named.tsv", str(tmp_path), "test").by_query == {"q1": frozenset("b")}


def test_a_task_of_bright_has_lists(hub: Path):
    example = {"query": "why?", "id": "7", "gold_ids": ["a"]}
    for name, rows in {
        "examples": [example | {"excluded_ids": ["b", "c"]}, example | {"id": "8", "excluded_ids": ["N/A"]}],
        "documents": [{"id": name, "content": "text"} for name in "abc"],
    }.items():
        (hub / name).mkdir(parents=True)
        (hub / name / "pony.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    configs = [
        f"- config_name: {name}\n  data_files:\n  - {{split: pony, path: {name}/pony.jsonl}}"
        for name in ("examples", "documents")
    ]
    (hub / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    found = find_excluded(None, f"hf:{hub}/pony", "test")
    assert (found.by_query, found.source) == ({"7": frozenset("bc")}, f"hf:{hub}/pony")


def test_chunks_of_an_excluded_document_are_excluded_with_it():
    hits, excluded = [Hit("d#0", 3.0), Hit("d#1", 2.0), Hit("d", 1.5), Hit("e#0", 1.0)], {"q": frozenset({"d", "e#1"})}
    run, count = columns_without(run_columns({"q": hits}), excluded)
    assert (run.hits(0), count) == ([Hit("e#0", 1.0)], 3)
    assert judged_without({"q": {"d#2": 1, "e#0": 1, "e#1": 1}}, excluded) == {"q": {"e#0": 1}}
    assert judged_without({"q": {"d#2": {"a": 1}}}, excluded) == {}
    assert with_chunks(excluded, ["d#0", "d#1", "e#0", "f"]) == {"q": {"d", "d#0", "d#1", "e#1"}}
    assert with_chunks({}, ["d#0"]) == {}


def test_documents_leave_runs_and_judgements():
    hits = [Hit("a", 3.0), Hit("b", 2.0), Hit("c", 1.0)]
    excluded = {"q2": frozenset({"a", "c"}), "q3": frozenset({"a", "b", "c"}), "q9": frozenset({"a"})}
    run, count = columns_without(run_columns({"q1": hits, "q2": hits, "q3": hits, "q4": hits[:1]}), excluded)
    assert count == 5
    assert [[hit.doc_id for hit in run.hits(number)] for number in range(4)] == [["a", "b", "c"], ["b"], [], ["a"]]
    assert run.hits(1) == without_excluded(hits, excluded["q2"]) == [Hit("b", 2.0)]
    assert columns_without(run, {})[0] is run
    assert judged_without({"q1": {"a": 1}, "q2": {"a": 1, "b": 0}, "q3": {"a": 1}}, excluded) == {
        "q1": {"a": 1},
        "q2": {"b": 0},
    }
