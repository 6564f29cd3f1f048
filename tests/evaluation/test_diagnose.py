import json
from pathlib import Path

import pytest
from tiny import Tiny

from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.evaluation import diagnose
from shortlist.records import Document, Hit, Query, Run

TEXTS = {
    "a": "the apple has a colour",
    "b": "The  APPLE has a colour",  # a again, but for case and white space
    "c": "the boat has a weight and a price and an owner",
    "d": "the desk",
    "e": "an engine",
}
QRELS = {"q1": {"a": 2, "c": 1, "d": 0, "gone": 1}, "q2": {"c": 1, "e": 1}, "q3": {"a": 1}}


def run_of(**doc_ids: str) -> Run:
    return {query: [Hit(doc_id, -float(rank)) for rank, doc_id in enumerate(ids)] for query, ids in doc_ids.items()}


FIRST, RERANKED = run_of(q1="bdac", q2="dce"), run_of(q1="abdc", q2="dec")


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    folder = tmp_path / "collection"
    write_corpus(folder / "corpus.jsonl", [Document(doc_id, text) for doc_id, text in TEXTS.items()])
    write_queries(
        folder / "queries.jsonl", [Query("q1", "which apple"), Query("q2", "a boat or an engine"), Query("q3", "x")]
    )
    write_qrels(folder / "qrels" / "test.tsv", QRELS)
    write_run(tmp_path / "first.trec", FIRST)
    write_run(tmp_path / "reranked.trec", RERANKED)
    paths = {"run": tmp_path / "first.trec", "reranked": tmp_path / "reranked.trec"}
    return paths | {"collection": str(folder), "k": 2, "depth": 3}


def found(capsys: pytest.CaptureFixture[str], **settings) -> dict:
    diagnose.run(diagnose.Config(**settings, json=True))
    return json.loads(capsys.readouterr().out)


def test_relevant_documents_are_counted_by_their_outcomes(settings: dict, capsys):
    told = found(capsys, **settings)["fates"]
    expected = {
        "lifted by the reranker": 2,  # q1 a, 3 to 1; q2 e, 3 to 2
        "retrieved below the depth": 1,  # q1 c
        "never retrieved": 1,  # q1 gone
        "pushed down by the reranker": 1,  # q2 c, 2 to 3
    }
    assert told["all"]["all"] == expected
    assert (told["relevant"], told["not_in_the_collection"]) == (5, 1)


def test_documents_that_a_query_excludes_do_not_count(settings: dict, capsys):
    folder = Path(settings["collection"]) / "exclude"
    folder.mkdir()
    (folder / "test.tsv").write_text("q1 a\nq1 gone\nq2 e\n")
    told = found(capsys, **settings)["fates"]
    # What stands behind an excluded document moves up: q1 c is within the depth, q2 c stays second.
    assert told["all"]["all"] == {"not lifted into the top": 1, "kept in the top": 1}
    assert (told["relevant"], told["not_in_the_collection"]) == (2, 0)


def test_the_groups_of_a_kind_add_up_to_the_documents_that_can_be_read(settings: dict, capsys):
    told = found(capsys, **settings)["fates"]
    for kind in ("query length", "document length"):
        assert sum(sum(counts.values()) for counts in told[kind].values()) == 4
    assert told["query length"]["5-8"] == {"pushed down by the reranker": 1, "lifted by the reranker": 1}
    assert "document" not in told


def test_with_a_model_lengths_are_tokens_and_what_it_cuts_is_told(settings: dict, tiny: Tiny, capsys):
    told = found(capsys, **settings, model=str(tiny.reranker))
    assert told["unit"] == "tokens"
    assert sum(sum(counts.values()) for counts in told["fates"]["document"].values()) == 4
    assert set(told["fates"]["document"]) <= {"cut by the model", "read whole"}


def test_without_a_reranker_the_top_and_the_depth_are_told(settings: dict, capsys):
    told = found(capsys, **(settings | {"reranked": None}))
    assert told["fates"]["all"]["all"] == {
        "within the depth, not in the top": 2,
        "retrieved below the depth": 1,
        "never retrieved": 1,
        "in the top": 1,
    }
    assert [each["query_id"] for each in told["queries"]["lowest"]] == ["q1", "q2"]


def test_relevance_begins_at_the_level_given(settings: dict, capsys):
    assert found(capsys, **settings, relevance_level=2)["fates"]["relevant"] == 1


def test_candidates_with_the_same_text_are_found(settings: dict, capsys):
    told = found(capsys, **settings)["duplicates"]
    assert (told["duplicates"], told["queries_with_duplicates"], told["queries_read"]) == (1, 1, 2)
    assert told["examples"] == [{"query_id": "q1", "doc_id": "a", "same_as": "b"}]
    assert found(capsys, **settings, sample=1)["duplicates"]["queries_read"] == 1


def test_unjudged_documents_above_a_relevant_one_are_shown(settings: dict, capsys):
    told = found(capsys, **settings)["unjudged"]
    assert (told["shown"], told["unjudged"], told["above_a_relevant_one"]) == (4, 2, 1)
    assert told["examples"] == [
        {"query_id": "q2", "query": "a boat or an engine", "rank": 1, "doc_id": "d", "text": "the desk"}
    ]


def test_queries_won_and_lost_are_shown_with_their_texts(settings: dict, capsys):
    told = found(capsys, **settings, measure="RR@10")["queries"]
    assert (told["before"], told["after"], told["num_won"], told["num_lost"]) == (pytest.approx(5 / 12), 0.75, 1, 0)
    (won,) = told["won"]
    assert won["query"] == "which apple"
    assert won["before"] == {
        "value": pytest.approx(1 / 3),
        "first_relevant": 3,
        "first": {"doc_id": "b", "text": "The APPLE has a colour"},
    }
    assert won["after"]["first_relevant"] == 1


def test_the_order_of_the_queries_changes_nothing(settings: dict, tmp_path: Path, capsys):
    expected = found(capsys, **settings)
    write_run(tmp_path / "turned.trec", dict(reversed(FIRST.items())))
    told = found(capsys, **(settings | {"run": tmp_path / "turned.trec"}))
    assert {key: told[key] for key in ("fates", "queries", "unjudged")} == {
        key: expected[key] for key in ("fates", "queries", "unjudged")
    }


def test_what_is_found_is_printed_and_written(settings: dict, tmp_path: Path, capsys):
    expected = found(capsys, **settings, out=tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == expected
    diagnose.run(diagnose.Config(**settings, out=tmp_path / "out.json"))
    told = capsys.readouterr()
    assert "already done" in told.err
    for words in (
        "lifted by the",
        "a is b again",
        "2 of 4 (50.0%)",
        "which apple (q1)",
        "1 of them are not in the collection",
    ):
        assert words in told.out


def test_queries_that_are_not_in_every_run_are_left_out_and_said(settings: dict, capsys):
    diagnose.run(diagnose.Config(**settings))
    assert "1 of 3 judged queries are not in every run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "--depth is 0"),
        ({"k": 0}, "--k is 0"),
        ({"examples": -1}, "--examples is -1"),
        ({"measure": "nDGC@10"}, "unknown measure"),
        ({"split": "tset"}, "unknown split"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        diagnose.run(diagnose.Config(**(settings | change)))


def test_a_run_of_other_queries_is_refused(settings: dict, tmp_path: Path):
    write_run(tmp_path / "other.trec", run_of(z="ab"))
    with pytest.raises(UserError, match=r"'z'.*'q1'"):
        diagnose.run(diagnose.Config(**(settings | {"run": tmp_path / "other.trec"})))


def test_queries_look_hard_where_scores_hardly_differ(settings: dict, capsys):
    far = {"q1": [Hit("b", 9.0), Hit("a", 1.0)], "q2": [Hit("d", 5.0), Hit("c", 4.9)], "q3": [Hit("a", 3.0)]}
    write_run(settings["run"], far)
    told = found(capsys, **{name: value for name, value in settings.items() if name != "reranked"})["difficulty"]
    assert told["predictor"] == "deviation of the first 100 scores over their mean"
    assert [each["query_id"] for each in told["hardest"]] == ["q3", "q2", "q1"]
    assert told["hardest"][2]["spread"] == pytest.approx(4 / 5)
    assert told["hardest"][0]["value"] == 1.0
    assert told["tau"] == pytest.approx(-1 / 3)  # q3 is the best, and q1 is better than q2


def test_scores_below_0_are_not_divided_by_their_mean(settings: dict, capsys):
    assert found(capsys, **settings)["difficulty"]["predictor"] == "deviation of the first 100 scores"
