import hashlib
import json
from pathlib import Path

import pytest

from shortlist.data.files import atomic_write
from shortlist.data.groups import (
    GroupSource,
    contents,
    graded,
    groups_from_qrels,
    open_groups,
    read_groups,
    read_passages,
    write_groups,
)
from shortlist.data.manifest import identity
from shortlist.errors import UserError
from shortlist.records import Document, Group, Query


def test_groups_survive_writing_and_reading(tmp_path):
    groups = [Group("q", ("a", "é"), ("b",)), Group("q", ("c",)), Group("r", ("a",), ("c", "d"))]
    write_groups(tmp_path / "groups.jsonl", groups)
    assert read_groups(tmp_path / "groups.jsonl") == groups
    first = (tmp_path / "groups.jsonl").read_text().split("\n")[0]
    assert json.loads(first) == {"query_id": "q", "positives": ["a", "é"], "negatives": ["b"]}


def test_grades_survive_writing_and_reading(tmp_path):
    groups = [
        Group("q", ("a", "b"), ("c",), (), (3, 1, 0)),
        Group("r", ("a",), ("c",), (1.0, 2.0), (2, 1)),
        Group("s", ("a",)),
    ]
    write_groups(tmp_path / "groups.jsonl", groups)
    assert read_groups(tmp_path / "groups.jsonl") == open_groups(str(tmp_path / "groups.jsonl")).groups == groups
    first, second, third = map(json.loads, (tmp_path / "groups.jsonl").read_text().splitlines())
    assert first["grades"] == [3, 1, 0]
    assert "scores" not in first
    assert second.keys() == {"query_id", "positives", "negatives", "scores", "grades"}
    assert third.keys() == {"query_id", "positives", "negatives"}


def test_scores_and_grades_are_told_apart_by_the_hash_and_their_absence_is_not_in_it():
    plain, scored = Group("q", ("a",), ("b",)), Group("q", ("a",), ("b",), (2, 1))  # type: ignore[arg-type]
    hashes = {contents([group], {}) for group in (plain, scored, Group("q", ("a",), ("b",), (), (2, 1)))}
    assert len(hashes) == 3
    expected = hashlib.sha256(repr(("q", ("a",), ("b",))).encode()).hexdigest()
    assert contents([plain], {}) == f"sha256:{expected}"


def test_a_teachers_scores_survive_writing_and_reading(tmp_path):
    groups = [Group("q", ("a", "b"), ("c",), (1.5, -2.0, 1 / 3)), Group("r", ("a",), ("c",))]
    write_groups(tmp_path / "groups.jsonl", groups)
    assert read_groups(tmp_path / "groups.jsonl") == open_groups(str(tmp_path / "groups.jsonl")).groups == groups
    first, second = map(json.loads, (tmp_path / "groups.jsonl").read_text().splitlines())
    assert first["scores"] == [1.5, -2.0, 1 / 3]
    assert "scores" not in second


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query_id": "q", "positives": [], "negatives": ["a"]}', "has no positive"),
        ('{"query_id": "q", "positives": ["a"], "negatives": ["b", "a"]}', "'a' is both positive and negative"),
        ('{"query_id": "q", "positives": ["a"], "negatives": ["b", "b"]}', "'b' occurs 2 times"),
        ('{"query_id": "q", "positives": "a", "negatives": []}', "positives is 'a'; expected a list"),
        ('{"query_id": "q", "positives": ["a"]}', "negatives is None; expected a list"),
        ('{"query_id": 3.5, "positives": ["a"], "negatives": []}', "query id is 3.5; expected a string"),
        ('{"positives": ["a"], "negatives": []}', "group has no 'query_id'"),
        (
            '{"query_id": "q", "positives": ["a"], "negatives": ["b"], "scores": [1]}',
            "1 scores for 1 positives and 1 neg",
        ),
        ('{"query_id": "q", "positives": ["a"], "negatives": [], "scores": ["1"]}', "scores is .*list of numbers"),
        ('{"query_id": "q", "positives": ["a"], "negatives": [], "scores": [NaN]}', "list of numbers"),
        ('{"query_id": "q", "positives": ["a"], "negatives": [], "scores": 1.0}', "scores is 1.0; expected a list"),
        ('{"query_id": "q", "positives": ["a"], "negatives": ["b"], "grades": [2]}', "1 grades for 1 positives and 1"),
        (
            '{"query_id": "q", "positives": ["a"], "negatives": [], "grades": [1.5]}',
            "grades is .*list of whole numbers",
        ),
        (
            '{"query_id": "q", "positives": ["a"], "negatives": ["b"], "grades": [1, -1]}',
            "list of whole numbers from 0",
        ),
        (
            '{"query_id": "q", "positives": ["a"], "negatives": ["b"], "grades": [1, 1]}',
            "positive of grade 1; expected",
        ),
        ('{"query_id": "q", "positives": ["a"], "negatives": [], "grades": [0]}', "positive of grade 0; expected more"),
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
    assert groups_from_qrels(qrels) == [Group("q", ("a", "b"), grades=(2, 1)), Group("s", ("d",))]
    assert groups_from_qrels(qrels, min_relevance=2) == [Group("q", ("a",), grades=(2,))]


def test_grades_are_kept_where_they_say_more_than_which_are_the_positives():
    group = Group("q", ("a", "b"), ("c", "d"))
    assert graded(group, {"a": 3, "b": 2, "c": 1, "d": -2}).grades == (3, 2, 1, 0)
    assert graded(group, {"a": 1, "b": 1, "c": 0}) == group


TEVATRON = {
    "query_id": "q1",
    "query": "which is one?",
    "positive_passages": [{"docid": "a", "title": "A", "text": "one"}],
    "negative_passages": [{"docid": "b", "title": "", "text": "two"}, {"docid": "c", "title": "", "text": "three"}],
}
BY_ID = {
    "query_id": "q2",
    "query_text": "which is two?",
    "positive_document_ids": ["b", "d"],
    "negative_document_ids": ["a"],
}
OURS = {"query_id": "q3", "positives": ["a"], "negatives": []}
GROUPS = [Group("q1", ("a",), ("b", "c")), Group("q2", ("b", "d"), ("a",)), Group("q3", ("a",))]
TEXTS = {"q1": Query("q1", "which is one?"), "q2": Query("q2", "which is two?")}


def write_lines(path: Path, *records: dict) -> Path:
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


@pytest.mark.parametrize("name", ["groups.jsonl", "groups.jsonl.gz"])
def test_groups_are_opened_in_every_layout_that_is_published(tmp_path, name):
    path = write_lines(tmp_path / name, TEVATRON, BY_ID, OURS)
    assert open_groups(str(path)) == GroupSource(GROUPS, TEXTS, identity(path))


def test_groups_of_our_own_are_opened_as_they_are_read(tmp_path):
    write_groups(tmp_path / "groups.jsonl", GROUPS)
    assert open_groups(str(tmp_path / "groups.jsonl")).groups == read_groups(tmp_path / "groups.jsonl") == GROUPS


def test_ids_that_repeat_in_published_groups_are_left_out_and_counted(tmp_path, capsys):
    again = [{"docid": doc_id} for doc_id in ("b", "a", "c", "b")]
    path = write_lines(tmp_path / "g.jsonl", TEVATRON | {"negative_passages": again}, BY_ID, BY_ID)
    assert open_groups(str(path)).groups == [GROUPS[0], GROUPS[1], GROUPS[1]]
    assert (
        capsys.readouterr().err == f"{path}: left out 2 ids of 1 groups: repeated, or positive and negative at once.\n"
    )
    open_groups(str(write_lines(path, BY_ID | {"positive_document_ids": ["b", "d", "b"]})))
    assert "left out 1 ids of 1 groups" in capsys.readouterr().err
    open_groups(str(write_lines(path, TEVATRON, BY_ID)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (TEVATRON | {"positive_passages": []}, "group of query 'q1' has no positive"),
        (TEVATRON | {"positive_passages": ["a"]}, "positive_passages is not a list of passages"),
        (TEVATRON | {"negative_passages": None}, "negative_passages is not a list of passages"),
        (TEVATRON | {"negative_passages": [{"text": "x"}]}, "docid in negative_passages is .None.; expected a list"),
        (TEVATRON | {"query_id": True}, "query id is True; expected a string"),
        (TEVATRON | {"query": " "}, "query 'q1' has no text"),
        (BY_ID | {"positive_document_ids": []}, "group of query 'q2' has no positive"),
        (
            BY_ID | {"negative_document_ids": [1.5] * 99},
            r"negative_document_ids is \[1.5, 1.5, 1.5, 1.5, 1.5, 1.5, ...\]; ex",
        ),
        (OURS | {"negatives": ["a"]}, "document 'a' is both positive and negative"),
        (
            {"query_id": "q", "text": "x"},
            r"group has no 'positives' field \(found: query_id, text\). Expected .*positive_passages",
        ),
    ],
)
def test_a_bad_record_is_named_by_its_source_number_and_fault(tmp_path, record, message):
    path = write_lines(tmp_path / "g.jsonl", OURS, record)
    with pytest.raises(UserError, match=f"g.jsonl:2: {message}"):
        open_groups(str(path))


def test_passages_are_the_documents_that_groups_carry(tmp_path, hub):
    path = write_lines(tmp_path / "g.jsonl", TEVATRON, BY_ID, TEVATRON)
    expected = 2 * [Document("a", "one", "A"), Document("b", "two"), Document("c", "three")]
    assert list(read_passages(str(path))) == expected
    write_lines(hub / "train.jsonl", TEVATRON, TEVATRON)
    assert list(read_passages(f"hf:{hub}")) == expected
    write_lines(path, TEVATRON, TEVATRON | {"negative_passages": [{"docid": "b"}]})
    with pytest.raises(UserError, match=r"g.jsonl:2: document has no 'text' field"):
        list(read_passages(str(path)))


def test_a_query_id_with_two_texts_is_refused(tmp_path):
    path = write_lines(tmp_path / "g.jsonl", BY_ID, TEVATRON | {"query_id": "q2"})
    with pytest.raises(UserError, match="query 'q2' has two different texts"):
        open_groups(str(path))


def test_each_id_is_in_memory_once(tmp_path):
    first, second = TEVATRON | {"negative_passages": [{"docid": "d-17"}]}, BY_ID | {"negative_document_ids": ["d-17"]}
    one, other = open_groups(str(write_lines(tmp_path / "g.jsonl", first, second))).groups
    assert one.negatives[0] is other.negatives[0]


@pytest.mark.parametrize("records", [[TEVATRON, TEVATRON | {"query_id": "q9"}], [BY_ID], [OURS]])
def test_groups_on_the_hub_are_those_of_the_same_file(hub, records):
    path = write_lines(hub / "train.jsonl", *records)
    on_hub, in_file = open_groups(f"hf:{hub}"), open_groups(str(path))
    assert on_hub[:2] == in_file[:2]


def test_the_split_train_is_read_and_another_only_if_it_is_alone(hub):
    write_lines(hub / "dev.jsonl", BY_ID)
    assert open_groups(f"hf:{hub}").groups == [GROUPS[1]]
    write_lines(hub / "train.jsonl", BY_ID | {"query_id": "q5"})
    assert [group.query_id for group in open_groups(f"hf:{hub}").groups] == ["q5"]
    (hub / "train.jsonl").rename(hub / "test.jsonl")
    with pytest.raises(UserError, match=r"unknown split of hf:.* 'train': .*test"):
        open_groups(f"hf:{hub}")


def test_the_identity_of_groups_on_the_hub_is_that_of_their_contents(hub):
    def now(*records: dict) -> str:
        write_lines(hub / "train.jsonl", *records)
        return open_groups(f"hf:{hub}").identity

    first = now(BY_ID)
    assert now(BY_ID) == first
    changed = [now(BY_ID | change) for change in ({"query_text": "else?"}, {"negative_document_ids": ["c"]})]
    assert len({first, *changed}) == 3
    assert len({now(OURS), now(OURS | {"scores": [1.0]}), now(OURS | {"scores": [3.0]})}) == 3


def test_what_the_hub_cannot_give_is_one_line_with_the_record(hub):
    write_lines(hub / "train.jsonl", BY_ID, BY_ID | {"positive_document_ids": []})
    with pytest.raises(UserError, match=r"^hf:.*hub: record 2: group of query 'q2' has no positive"):
        open_groups(f"hf:{hub}")
    with pytest.raises(UserError, match=r"hf:nobody/nothing: cannot be read .*check the id"):
        open_groups("hf:nobody/nothing")


def test_of_a_data_set_that_comes_as_a_program_the_hubs_own_tables_are_read(hub, monkeypatch):
    datasets = pytest.importorskip("datasets")
    write_lines(hub / "train.jsonl", BY_ID)
    tables = datasets.load_dataset(str(hub))

    def load_dataset(name, config=None, *, revision=None):
        if revision != "refs/convert/parquet":
            raise RuntimeError(f"Dataset scripts are no longer supported, but found {name}.py")
        return tables

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert open_groups("hf:Tevatron/msmarco-passage-aug").groups == [GROUPS[1]]


def test_whole_numbers_are_ids_and_grades_may_be_floats(tmp_path):
    ours = {"query_id": 7, "positives": [1, "a"], "negatives": [2], "grades": [2.0, 1, 0.0]}
    theirs = {"query_id": 8, "query": "x", "positive_passages": [{"docid": 1, "title": "", "text": "y"}]}
    path = write_lines(tmp_path / "g.jsonl", ours, theirs | {"negative_passages": []})
    assert open_groups(str(path)).groups == [Group("7", ("1", "a"), ("2",), (), (2, 1, 0)), Group("8", ("1",))]
