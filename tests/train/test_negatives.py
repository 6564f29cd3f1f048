from dataclasses import replace
from pathlib import Path

import pytest
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist import train
from shortlist.data.collections import open_collection
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.groups import GroupSource, write_groups
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.records import Document, Group
from shortlist.train.build import collect_parts
from shortlist.train.negatives import MINED_NEGATIVES, with_negatives

BARE = [Group(f"q{i}", (f"d{i}",)) for i in range(4)]
SOURCE = GroupSource(BARE, {query.query_id: query for query in QUERIES}, "")


@pytest.mark.parametrize("origin", ["random", "bm25"])
def test_groups_without_negatives_get_them_and_others_stay(tiny: Tiny, origin):
    given = SOURCE._replace(groups=[BARE[0], Group("q1", ("d1",), ("d5",))], judged={"q0": frozenset({"d7"})})
    collection = open_collection(str(tiny.collection))
    first, second = with_negatives(given, collection, origin, negatives=None, seed=0).groups
    assert second == given.groups[1]
    assert 0 < len(first.negatives) <= MINED_NEGATIVES
    assert not {"d0", "d7"} & {*first.negatives}
    assert with_negatives(given, collection, origin, negatives=None, seed=0).groups[0] == first
    if origin == "random":
        assert {*first.negatives} == {f"d{i}" for i in range(12)} - {"d0", "d7"}


def test_a_query_that_bm25_finds_nothing_for_gets_negatives_from_the_corpus(tiny: Tiny):
    given = SOURCE._replace(groups=BARE[:1], queries={"q0": QUERIES[0]._replace(text="zebra")})
    [group] = with_negatives(given, open_collection(str(tiny.collection)), "bm25", negatives=None, seed=0).groups
    assert len(group.negatives) == 11


def test_an_equal_text_becomes_no_negative_and_grades_stay_with_their_documents(tmp_path: Path):
    write_corpus(tmp_path / "corpus.jsonl", [*DOCUMENTS[:3], Document("twin", DOCUMENTS[0].text)])
    write_queries(tmp_path / "queries.jsonl", QUERIES[:1])
    given = SOURCE._replace(groups=[Group("q0", ("d0",), (), (), (2,))])
    [group] = with_negatives(given, open_collection(str(tmp_path)), "random", negatives=None, seed=0).groups
    assert {*group.negatives} == {"d1", "d2"}
    assert group.grades == (2, 0, 0)


def settings(tiny: Tiny, out: Path, **change) -> train.Config:
    values = {"kind": "reranker", "backbone": str(tiny.llama), "collection": str(tiny.collection), "out": out}
    return train.Config(**(values | {"batch_size": 4, "steps": 1} | change))


def test_a_reranker_is_trained_from_judgements_alone(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train.run(settings(tiny, tmp_path / "m"))
    assert "8 of 8 groups had no negatives and get them from bm25" in capsys.readouterr().err
    manifest = read_manifest(tmp_path / "m")
    assert manifest
    assert manifest["made_from"]["negatives_from"] == "bm25"
    assert manifest["results"]["loss"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": 0}, "--negatives is 0, but a reranker"),
        ({"groups": True}, "1 of 2 groups have no negatives, the first that of query 'q1'.*--negatives-from bm25"),
        ({"kind": "retriever", "batch_size": 1}, "a step has one query.*raise --batch-size, or add --negatives-from"),
    ],
)
def test_training_that_could_learn_nothing_is_refused(tiny: Tiny, tmp_path: Path, change, message: str):
    if change.get("groups"):
        write_groups(tmp_path / "groups.jsonl", [Group("q0", ("d0",), ("d1",)), Group("q1", ("d1",))])
        change = {"groups": str(tmp_path / "groups.jsonl")}
    with pytest.raises(UserError, match=message):
        train.run(settings(tiny, tmp_path / "m", **change))
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_judgements_beside_groups_name_more_positives_and_are_part_of_the_job(tiny: Tiny, tmp_path: Path):
    write_groups(tmp_path / "groups.jsonl", [Group("q0", ("d0",), ("d1",)), Group("q1", ("d1",), ("d2",))])
    config = settings(tiny, tmp_path / "m", kind="retriever", groups=str(tmp_path / "groups.jsonl"))
    assert collect_parts(config)[0].source.judged == {}
    folder = tmp_path / "collection"
    write_corpus(folder / "corpus.jsonl", DOCUMENTS)
    write_queries(folder / "queries.jsonl", QUERIES)
    write_qrels(folder / "qrels" / "train.tsv", {"q0": {"d0": 1, "d5": 2, "d6": 0}, "q1": {"d1": 1}})
    beside = replace(config, collection=str(folder))
    assert collect_parts(beside)[0].source.judged == {"q0": frozenset({"d5"})}
    for collection, named in ((tiny.collection, False), (folder, True)):
        train.run(
            settings(tiny, tmp_path / f"m{named}", kind="retriever", groups=config.groups, collection=str(collection))
        )
        manifest = read_manifest(tmp_path / f"m{named}")
        assert manifest
        assert ("judgements" in manifest["made_from"]) == named


def test_what_is_cut_and_a_held_out_split_that_is_trained_on_are_told(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = settings(tiny, tmp_path / "m", kind="retriever", max_length=8, heldout_split="test")
    train.run(config)
    told = capsys.readouterr().err
    assert "train: 8 of 12 queries of --heldout-split test are trained on, too" in told
    assert "train: of 4 documents read, 4 were cut at 8 tokens." in told
    assert "queries read" not in told
