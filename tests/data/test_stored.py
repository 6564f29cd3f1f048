import json
import tracemalloc
from pathlib import Path

import pytest
from processes import Started
from tiny import Tiny

from shortlist import train
from shortlist.data import groups as groups_module
from shortlist.data.collections import FolderCollection, open_collection
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.groups import (
    GroupSource,
    asked_by,
    changed_groups,
    negative_counts,
    open_groups,
    query_text_hashes,
    regraded,
    without_query,
    write_groups,
)
from shortlist.data.stored import StoredGroups, StoredQueries, store_queries, store_relevant
from shortlist.errors import UserError
from shortlist.records import Document, Group, Query
from shortlist.train.build import collect_parts
from shortlist.train.examples import Relevant
from shortlist.train.mixture import Mixture

OURS = [
    Group("q0", ("d0", "d1"), ("d2",), (3.0, 2.0, 0.5), (2, 1, 0)),
    Group("q1", ("d1",)),
    Group("q0", ("d4",), ("d5", "d6")),
]


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "STORED_BYTES", 1)


def tevatron(path: Path, texts: dict[str, str]) -> Path:
    rows = [
        {
            "query_id": query_id,
            "query": text,
            "positive_passages": [{"docid": "d1"}],
            "negative_passages": [{"docid": f"n{i}"}],
        }
        for i, (query_id, text) in enumerate(texts.items())
    ]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\r\n")
    return path


def both(name: str, monkeypatch: pytest.MonkeyPatch, **options) -> tuple[GroupSource, GroupSource]:
    held = open_groups(name, **options)
    monkeypatch.setattr(groups_module, "STORED_BYTES", 1)
    stored = open_groups(name, **options)
    assert isinstance(stored.groups, StoredGroups)
    assert not isinstance(held.groups, StoredGroups)
    return held, stored


def test_groups_on_disk_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_groups(tmp_path / "g.jsonl", OURS)
    held, stored = both(str(tmp_path / "g.jsonl"), monkeypatch)
    assert list(stored.groups) == held.groups == OURS
    assert (stored.groups[-1], stored.groups[:2], len(stored.groups)) == (OURS[-1], OURS[:2], 3)
    assert stored.identity == held.identity
    assert stored.queries == {}
    known = {"q0": Query("q0", "zero")}
    for groups in (held.groups, stored.groups):
        assert negative_counts(groups).tolist() == [1, 0, 2]
        assert without_query(groups, known).tolist() == [1]
        assert asked_by(groups, ["q0", "q7"]) == {"q0"}
        assert list(changed_groups(groups, lambda group: group if group.negatives else None)) == [OURS[0], OURS[2]]


def test_grades_divide_groups_anew_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    write_groups(tmp_path / "g.jsonl", OURS)
    held, stored = both(str(tmp_path / "g.jsonl"), monkeypatch, least=2)
    assert list(stored.groups) == held.groups == [Group("q0", ("d0",), ("d1", "d2"), (3.0, 2.0, 0.5), (2, 1, 0))]
    assert negative_counts(stored.groups).tolist() == [2]
    assert "left out 2 of 3 groups, without a document of grade 2 or higher" in capsys.readouterr().err
    with pytest.raises(UserError, match="no group has a document of grade 3 or higher; lower --positives-from"):
        open_groups(str(tmp_path / "g.jsonl"), least=3)


def test_a_lower_grade_makes_positives_of_negatives_and_scores_go_along():
    group = Group("q", ("a",), ("b", "c"), (1.0, 2.0, 3.0), (3, 0, 2))
    assert regraded(group, 2) == Group("q", ("a", "c"), ("b",), (1.0, 3.0, 2.0), (3, 2, 0))
    assert regraded(Group("q", ("a",), ("b",)), 1) == Group("q", ("a",), ("b",))
    assert regraded(Group("q", ("a",), ("b",)), 2) is None


def test_queries_on_disk_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tevatron(tmp_path / "t.jsonl", {"q0": "first", "q1": "second", "q2": "FIRST "})
    held, stored = both(str(path), monkeypatch)
    assert isinstance(stored.queries, StoredQueries)
    assert dict(stored.queries) == held.queries
    assert len(stored.queries) == 3
    assert "q7" not in stored.queries
    assert list(stored.groups) == held.groups
    assert not len(without_query(stored.groups, stored.queries))
    hashes = [query_text_hashes(source.groups, source.queries).tolist() for source in (held, stored)]
    assert hashes[0] == hashes[1]
    assert hashes[0][0] == hashes[0][2] != hashes[0][1]


@pytest.mark.usefixtures("on_disk")
def test_a_query_with_two_texts_and_a_file_without_groups_are_refused(tmp_path: Path):
    path = tevatron(tmp_path / "t.jsonl", {"q0": "first"})
    path.write_text(path.read_text() + path.read_text().replace("first", "other").lstrip("\ufeff"))
    with pytest.raises(UserError, match="query 'q0' has two different texts"):
        open_groups(str(path))
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="holds no groups"):
        open_groups(str(tmp_path / "empty.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"query_id": "q", "positives": ["d"], "negatives": []}\n{"query_id": "q"}\n')
    with pytest.raises(UserError, match=r"bad.jsonl:2: group has no 'positives'"):
        open_groups(str(tmp_path / "bad.jsonl"))


@pytest.mark.usefixtures("on_disk")
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path):
    write_groups(tmp_path / "g.jsonl", OURS)
    groups = open_groups(str(tmp_path / "g.jsonl")).groups
    with open(tmp_path / "g.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"g.jsonl: was changed while it was read"):
        groups[0]


def test_queries_and_judgements_of_a_collection_stay_on_disk(tmp_path: Path):
    write_corpus(tmp_path / "corpus.jsonl", [Document("d0", "text")])
    write_queries(tmp_path / "queries.jsonl", [Query("q0", "zero"), Query("q1", "one")])
    judged = {"q0": {"d0": 2, "d1": 1, "d2": 0}, "q1": {"d3": 1}, "q2": {"d4": 0}}
    write_qrels(tmp_path / "qrels" / "train.tsv", judged)
    collection = open_collection(str(tmp_path))
    assert isinstance(collection, FolderCollection)
    queries = collection.stored_queries("train")
    assert dict(queries) == {query.query_id: query for query in collection.queries("train", lambda _: None)}
    assert dict(collection.stored_relevant("train", 1)) == {"q0": {"d0", "d1"}, "q1": {"d3"}}
    relevant = store_relevant(tmp_path / "qrels" / "train.tsv", 2)
    assert (dict(relevant), len(relevant), "q1" in relevant) == ({"q0": {"d0"}}, 1, False)
    write_queries(tmp_path / "twice.jsonl", [Query("q0", "zero"), Query("q0", "one")])
    with pytest.raises(UserError, match="1 query ids occur twice"):
        store_queries(tmp_path / "twice.jsonl")


def test_training_sees_the_same_batches_of_groups_on_disk(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    groups = [Group(f"q{i}", (f"d{i}",), tuple(f"d{(i + j) % 12}" for j in range(1, 5))) for i in range(8)]
    write_groups(tmp_path / "g.jsonl", [*groups, Group("q0", ("d9",), ("d3",))])
    values = {"kind": "retriever", "backbone": str(tiny.llama), "collection": str(tiny.collection), "batch_size": 4}
    config = train.Config(**values, out=tmp_path / "m", groups=str(tmp_path / "g.jsonl"), steps=5, negatives=2)
    held = list(Mixture(config, collect_parts(config)).batches(range(5)))
    monkeypatch.setattr(groups_module, "STORED_BYTES", 1)
    [part] = parts = collect_parts(config)
    assert isinstance(part.source.groups, StoredGroups)
    assert isinstance(part.source.queries, StoredQueries)
    assert list(Mixture(config, parts).batches(range(5))) == held


@pytest.mark.slow
def test_memory_grows_little_with_the_groups(tmp_path: Path):
    """All of it takes less than the file has bytes, while as objects in memory it would be twice as much."""
    write_corpus(tmp_path / "corpus.jsonl", [Document("d0", "text")])
    write_queries(tmp_path / "queries.jsonl", [Query("q0", "zero")])
    out = tmp_path / "peak"
    assert Started(measure_stored, tmp_path, out=out).wait() == 0  # there, types are not checked at each call
    peak, size = map(int, out.read_text().split())
    assert peak < size


def measure_stored(folder: Path) -> None:
    """Print the most memory that groups take which are kept on disk, and the size of their file."""
    groups_module.STORED_BYTES = 1
    read_groups(write_many(folder / "first.jsonl", 4000), folder)  # for what is made once
    path = write_many(folder / "second.jsonl", 8000)
    tracemalloc.start()
    read_groups(path, folder)
    print(tracemalloc.get_traced_memory()[1], path.stat().st_size)


def read_groups(path: Path, folder: Path) -> None:
    source = open_groups(str(path))
    relevant = Relevant(source.groups, source.queries, open_collection(str(folder)), {})
    assert relevant.doc_ids(source.groups[7]) == {"d7"}


def write_many(path: Path, count: int) -> Path:
    negatives = [{"docid": f"document-{i}"} for i in range(8)]
    with open(path, "w") as file:
        for i in range(count):
            row = {"query_id": f"q{i}", "query": f"query number {i}", "positive_passages": [{"docid": f"d{i}"}]}
            file.write(json.dumps(row | {"negative_passages": negatives}) + "\n")
    return path
