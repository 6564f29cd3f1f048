import json
from pathlib import Path

import pytest

from shortlist import mine
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.groups import read_groups
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.records import Document, Group, Hit, Query, Run

DOCUMENTS = [Document(f"d{i}", f"text number {i}") for i in range(30)] + [
    Document("twin", "  TEXT number\n0 ", title="Another title"),
    Document("title_only", "", title="A title"),
    Document("title_twin", "", title="a  TITLE"),
    Document("other_title", "", title="Other title"),
]
QRELS = {"q1": {"d0": 1, "d1": 2, "d2": 0}, "q2": {"title_only": 1}, "q3": {"d5": 0}, "q4": {"d6": 1}}
RANKED = {
    "q1": ["d0", "twin", "d2", "d1", *(f"d{i}" for i in range(3, 20))],
    "q2": ["title_twin", "d9", "d8"],
    "q3": ["d1"],
}


def as_run(ranked: dict[str, list[str]]) -> Run:
    return {
        query_id: [Hit(doc_id, -float(rank)) for rank, doc_id in enumerate(ids)] for query_id, ids in ranked.items()
    }


@pytest.fixture
def config(tmp_path: Path) -> mine.Config:
    folder = tmp_path / "collection"
    write_corpus(folder / "corpus.jsonl", DOCUMENTS)
    write_queries(folder / "queries.jsonl", [Query(query_id, f"query {query_id}") for query_id in QRELS])
    write_qrels(folder / "qrels" / "train.tsv", QRELS)
    write_run(tmp_path / "run.trec", as_run(RANKED))
    return mine.Config(
        runs=(tmp_path / "run.trec",), collection=str(folder), out=tmp_path / "groups.jsonl", negatives=8
    )


def changed(config: mine.Config, **change) -> mine.Config:
    return mine.Config(**(vars(config) | change))


def mined(config: mine.Config) -> dict[str, Group]:
    mine.run(config)
    return {group.query_id: group for group in read_groups(config.out)}


def test_negatives_are_ranked_documents_that_answer_nothing(config: mine.Config):
    groups = mined(config)
    assert groups["q1"].positives == ("d0", "d1")
    assert groups["q1"].grades == (1, 2, *[0] * 8)
    assert groups["q2"].grades == ()  # they would say no more than that title_only answers
    assert len(set(groups["q1"].negatives)) == 8
    assert set(groups["q1"].negatives) <= {"d2", *(f"d{i}" for i in range(3, 20))}


def test_documents_with_the_text_of_a_positive_are_no_negatives(config: mine.Config):
    groups = mined(changed(config, negatives=100, random_share=0.5))
    assert "twin" not in groups["q1"].negatives
    assert "title_twin" not in groups["q2"].negatives
    assert "other_title" in groups["q2"].negatives
    assert len(groups["q1"].negatives) == len(DOCUMENTS) - 3  # all but d0, d1 and twin


def test_a_query_that_is_a_document_is_no_negative_of_itself(config: mine.Config, tmp_path: Path):
    folder = Path(config.collection).rename(tmp_path / "arguana")
    write_corpus(folder / "corpus.jsonl", [*DOCUMENTS, Document("q1", "query q1")])
    write_run(config.runs[0], as_run(RANKED | {"q1": ["q1", *RANKED["q1"]]}))
    asked = changed(config, collection=str(folder), negatives=100, random_share=0.5)
    assert "q1" not in mined(asked)["q1"].negatives
    assert "q1" in mined(asked)["q2"].negatives
    with pytest.raises(UserError, match=r"another job .exclude_self: True there, False now"):
        mine.run(changed(asked, exclude_self=False))
    assert "q1" in mined(changed(asked, exclude_self=False, overwrite=True))["q1"].negatives


def test_only_the_first_ranks_are_drawn_from(config: mine.Config):
    assert set(mined(changed(config, depth=6))["q1"].negatives) == {"d2", "d3", "d4"}


def test_several_runs_are_blended_rank_by_rank(config: mine.Config, tmp_path: Path):
    write_run(tmp_path / "other.trec", as_run({"q1": ["d29", "d28", "d27", "d26"]}))
    groups = mined(changed(config, runs=(*config.runs, tmp_path / "other.trec"), depth=6))
    assert set(groups["q1"].negatives) == {"d29", "d28", "d27", "d2"}


def test_the_random_share_reaches_beyond_the_runs(config: mine.Config):
    groups = mined(changed(config, random_share=1.0))
    ranked = {doc_id for ids in RANKED.values() for doc_id in ids}
    assert set(groups["q1"].negatives) - ranked
    assert len(groups["q4"].negatives) == 8  # in no run at all


def test_what_was_left_out_is_counted(config: mine.Config, capsys: pytest.CaptureFixture[str]):
    groups = mined(config)
    assert groups.keys() == {"q1", "q2"}
    results = json.loads(config.out.with_name("groups.jsonl.manifest.json").read_text())["results"]
    expected = {
        "groups": 2,
        "queries": 4,
        "without_positives": 1,
        "without_candidates": 1,
        "with_fewer_negatives": 1,
        "excluded_equal_texts": 2,
    }
    assert {name: results[name] for name in expected} == expected
    assert "2 groups" in capsys.readouterr().err


def test_the_seed_alone_decides_the_draw(config: mine.Config, tmp_path: Path):
    first = mined(config)
    again = mined(changed(config, out=tmp_path / "again.jsonl"))
    other = mined(changed(config, out=tmp_path / "other.jsonl", seed=1))
    assert first == again
    assert first["q1"] != other["q1"]


def test_what_a_query_gets_does_not_depend_on_the_other_queries():
    corpus = [document.doc_id for document in DOCUMENTS]
    same_text = {doc_id: [doc_id] for doc_id in corpus}
    run = as_run(RANKED)
    every, _ = mine.mine([run], QRELS, corpus, same_text, depth=20, negatives=4)
    alone, _ = mine.mine([run], {"q2": QRELS["q2"]}, corpus, same_text, depth=20, negatives=4)
    assert alone == [group for group in every if group.query_id == "q2"]


def test_queries_with_the_same_candidates_draw_differently():
    corpus = [document.doc_id for document in DOCUMENTS]
    run = as_run({"q1": corpus, "q2": corpus})
    (first, second), _ = mine.mine(
        [run], {"q1": {"d0": 1}, "q2": {"d0": 1}}, corpus, {"d0": ["d0"]}, depth=30, negatives=9
    )
    assert first.negatives != second.negatives


def test_a_teachers_scores_stand_beside_the_documents_they_are_of(config: mine.Config, tmp_path: Path):
    taught = {"q1": [Hit("d4", 9.5), Hit("d1", 3.0), Hit("d7", -2.25)], "q4": [Hit("d1", 1.0)]}
    write_run(tmp_path / "teacher.trec", taught)
    groups = mined(changed(config, negatives=30, teacher=tmp_path / "teacher.trec"))
    assert groups.keys() == {"q1"}
    group = groups["q1"]
    scores = dict(zip(group.positives + group.negatives, group.scores, strict=True))
    assert (scores["d4"], scores["d1"], scores["d7"]) == (9.5, 3.0, -2.25)
    assert {scores[doc_id] for doc_id in scores.keys() - {"d4", "d1"}} == {-2.25}  # a positive among them: d0
    assert "d0" in scores


def test_a_teacher_changes_nothing_of_what_is_drawn(config: mine.Config, tmp_path: Path):
    write_run(tmp_path / "teacher.trec", as_run(RANKED))
    without, taught = mined(config), mined(changed(config, teacher=config.runs[0], out=tmp_path / "taught.jsonl"))
    assert {query_id: group._replace(scores=()) for query_id, group in taught.items()} == without
    assert all(len(group.scores) == len(group.positives + group.negatives) for group in taught.values())


def test_several_teachers_are_scaled_and_averaged(config: mine.Config, tmp_path: Path):
    """By hand: 2, 6 and 10 become 0, 0.5 and 1; a document that a teacher lacks has the lowest of its scores."""
    write_run(
        tmp_path / "pairs.trec",
        {"q2": [Hit("title_only", 10.0), Hit("d9", 6.0), Hit("d8", 2.0)], "q1": [Hit("d3", 1.0)]},
    )
    write_run(tmp_path / "dense.trec", {"q2": [Hit("d9", 0.75), Hit("d8", 0.5)]})
    teachers = {"teacher": tmp_path / "pairs.trec", "co_teachers": (tmp_path / "dense.trec",)}
    groups = mined(changed(config, **teachers))
    assert groups.keys() == {"q2"}  # the other teacher lacks q1
    group = groups["q2"]
    scores = dict(zip(group.positives + group.negatives, group.scores, strict=True))
    assert scores == {"title_only": 0.5, "d9": 0.75, "d8": 0.0}
    assert (read_manifest(config.out) or {})["results"]["without_teacher"] == 1
    with pytest.raises(UserError, match="--co-teachers: are beside --teacher, which is missing"):
        mine.run(changed(config, co_teachers=config.runs, out=tmp_path / "other.jsonl"))


def test_queries_that_the_teacher_lacks_get_no_group_and_are_counted(
    config: mine.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_run(tmp_path / "teacher.trec", as_run({"q2": ["d9"]}))
    assert mined(changed(config, teacher=tmp_path / "teacher.trec")).keys() == {"q2"}
    assert "1 without teacher" in capsys.readouterr().err
    write_run(tmp_path / "teacher.trec", as_run({"elsewhere": ["d9"]}))
    with pytest.raises(UserError, match="positive and a negative, and a hit of --teacher"):
        mine.run(changed(config, teacher=tmp_path / "teacher.trec", out=tmp_path / "other.jsonl"))


def test_candidates_that_score_too_near_the_positive_are_left_out(config: mine.Config, tmp_path: Path, capsys):
    """d0 has 10 and d1 has 8; d3 has 7.8, above 95% of 8, and d4 has 7.6, which is just as much."""
    scores = {"d0": 10.0, "d1": 8.0, "d3": 7.8, "d4": 7.6, "d5": 7.5, "d6": 1.0}
    write_run(tmp_path / "scored.trec", {"q1": [Hit(doc_id, score) for doc_id, score in scores.items()]})
    asked = changed(config, runs=(tmp_path / "scored.trec",))
    assert set(mined(asked)["q1"].negatives) == {"d3", "d4", "d5", "d6"}
    assert set(mined(changed(asked, max_score_ratio=0.95, overwrite=True))["q1"].negatives) == {"d4", "d5", "d6"}
    assert "1 excluded by score" in capsys.readouterr().err
    assert set(mined(changed(asked, max_score_margin=0.5, overwrite=True))["q1"].negatives) == {"d5", "d6"}
    taught = changed(config, teacher=tmp_path / "scored.trec", max_score_ratio=0.95, depth=8, overwrite=True)
    assert set(mined(taught)["q1"].negatives) == {"d2", "d4", "d5", "d6"}  # the teacher lacks d2


def test_a_positive_without_a_score_has_the_lowest(config: mine.Config, tmp_path: Path):
    write_run(tmp_path / "scored.trec", {"q1": [Hit("d0", 9.0), Hit("d3", 2.0), Hit("d4", 1.0)]})
    found = mined(changed(config, runs=(tmp_path / "scored.trec",), max_score_margin=0.0))
    assert found["q1"].negatives == ("d4",)


def test_every_third_of_the_candidates_that_are_left_is_drawn_from(config: mine.Config):
    """Ranked are d0, twin and d1, which count not, then d2, d3, ... to d9."""
    groups = mined(changed(config, depth=11, every=3))
    assert set(groups["q1"].negatives) == {"d2", "d5", "d8"}


def test_positives_may_be_those_of_a_higher_grade_and_the_others_keep_theirs(config: mine.Config):
    group = mined(changed(config, positives_from=2, negatives=100))["q1"]
    assert group.positives == ("d1",)
    grades = dict(zip(group.positives + group.negatives, group.grades, strict=True))
    assert (grades["d1"], grades["d0"], grades["d2"]) == (2, 1, 0)
    assert "twin" in grades  # of d0, which is no positive now


def test_another_teacher_is_another_job_and_without_one_it_is_what_it_always_was(config: mine.Config, tmp_path: Path):
    mine.run(config)
    manifest = read_manifest(config.out)
    assert manifest is not None
    assert "teacher" not in manifest["made_from"]
    with pytest.raises(UserError, match="holds another job"):
        mine.run(changed(config, teacher=config.runs[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": ()}, "--runs"),
        ({"positives_from": 0}, "--positives-from is 0, --every 1; expected 1 or more"),
        ({"every": 0}, "--positives-from is 1, --every 0; expected 1 or more"),
        ({"max_score_ratio": 0.0}, "--max-score-ratio is 0.0; expected more than 0 and at most 1"),
        ({"max_score_margin": -0.1}, "--max-score-margin is -0.1; expected 0 or more"),
        (
            {"max_score_ratio": 0.9, "runs": (Path("a"), Path("b"))},
            "--max-score-ratio: .* --runs names 2; add --teacher",
        ),
        ({"depth": 0}, "--depth is 0"),
        ({"negatives": 0}, "--negatives 0"),
        ({"random_share": 1.5}, "--random-share is 1.5"),
        ({"seed": -1}, "--seed is -1"),
        ({"split": "tran"}, "split 'tran'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: mine.Config, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        mine.run(changed(config, **change))


def test_a_run_of_another_collection_is_refused(config: mine.Config, tmp_path: Path):
    write_run(tmp_path / "other.trec", as_run({"q1": ["d3", "elsewhere"]}))
    with pytest.raises(UserError, match=r"'q1': document 'elsewhere' .* not in the collection"):
        mine.run(changed(config, runs=(tmp_path / "other.trec",)))
    assert not config.out.exists()


def test_judgements_of_documents_that_do_not_exist_are_refused(config: mine.Config):
    write_qrels(Path(config.collection) / "qrels" / "train.tsv", {"q1": {"gone": 1, "d1": 1}})
    with pytest.raises(UserError, match="1 of 2 relevant documents are not in the corpus, the first 'gone'"):
        mine.run(config)


def test_runs_without_a_single_group_are_refused(config: mine.Config, tmp_path: Path):
    write_run(tmp_path / "other.trec", as_run({"another_query": ["d3"]}))
    with pytest.raises(UserError, match="none of the 4 queries"):
        mine.run(changed(config, runs=(tmp_path / "other.trec",)))


def test_judged_documents_that_the_corpus_lacks_are_left_out_and_counted_if_asked(
    config: mine.Config, capsys: pytest.CaptureFixture[str]
):
    qrels = QRELS | {"q1": QRELS["q1"] | {"gone": 2}, "q2": {"lost": 1}}
    write_qrels(Path(config.collection) / "qrels" / "train.tsv", qrels)
    with pytest.raises(
        UserError, match=r"2 of 5 relevant documents are not in the corpus, .*leave such out with --skip"
    ):
        mine.run(config)
    groups = mined(changed(config, skip_missing=True))
    assert groups["q1"].positives == ("d0", "d1")
    assert set(groups) == {"q1"}
    assert "2 of 5 relevant documents are not in the corpus, the first 'gone': left out" in capsys.readouterr().err


def test_excluded_documents_are_neither_positives_nor_negatives(config: mine.Config, tmp_path: Path):
    (tmp_path / "list.tsv").write_text("q1\td0\nq1\td3\nq1\td4\n")
    group = mined(changed(config, exclude=tmp_path / "list.tsv", negatives=40, random_share=0.5))["q1"]
    assert group.positives == ("d1",)
    assert not {"d0", "d3", "d4"} & set(group.negatives)
    assert (read_manifest(config.out) or {})["results"]["excluded_by_list"] == 3


def test_chunks_of_an_excluded_document_are_not_drawn(config: mine.Config, tmp_path: Path):
    folder, run = Path(config.collection), tmp_path / "chunks.trec"
    ids = ["d0", *(f"long#{i}" for i in range(6)), "other#0"]
    write_corpus(folder / "corpus.jsonl", [Document(doc_id, f"text of {doc_id}") for doc_id in ids])
    write_qrels(folder / "qrels" / "train.tsv", {"q1": {"d0": 1}})
    write_run(run, as_run({"q1": ids}))
    (tmp_path / "list.tsv").write_text("q1\tlong\n")
    config = changed(config, runs=(run,), exclude=tmp_path / "list.tsv", negatives=7, random_share=0.5)
    assert mined(config)["q1"].negatives == ("other#0",)
    assert (read_manifest(config.out) or {})["results"]["excluded_by_list"] == 6
