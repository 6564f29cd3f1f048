import json
from pathlib import Path

import numpy as np
import pytest

from shortlist import diversify
from shortlist.data.groups import groups_from_run
from shortlist.data.headers import read_run_header
from shortlist.data.manifest import read_manifest, stages
from shortlist.data.runs import open_run, read_run, write_run
from shortlist.data.stores.vectors import VectorWriter
from shortlist.errors import UserError
from shortlist.math.aspects import alpha_ndcg
from shortlist.records import Hit

HITS = [Hit("a", 9.0), Hit("twin", 8.5), Hit("b", 8.0), Hit("c", 5.0), Hit("d", 1.0)]
VECTORS = {"a": [2, 0, 0], "twin": [2, 0, 0], "b": [0, 3, 0], "c": [0, 0, 1], "d": [1, 1, 0]}


@pytest.fixture
def files(tmp_path: Path) -> dict:
    write_run(tmp_path / "run.trec", {"q1": HITS, "q2": HITS[:2]})
    vectors = np.array(list(VECTORS.values()), dtype=np.float32)
    VectorWriter(tmp_path / "vectors", 3).write_shard(0, list(VECTORS), vectors)
    found = {"q1#x": [Hit("a", 2.0), Hit("twin", 1.9), Hit("b", 0.0)], "q1#y": [Hit("c", 7.0), Hit("d", 6.0)]}
    write_run(tmp_path / "aspects.trec", found)
    return {"run": tmp_path / "run.trec", "out": tmp_path / "varied.trec"}


def order(files: dict, tmp_path: Path, **settings) -> str:
    diversify.run(diversify.Config(**files, **settings))
    run = read_run(tmp_path / "varied.trec")
    scores = [hit.score for hit in run["q1"]]
    assert scores == sorted(set(scores), reverse=True)
    assert scores[-1] > 0
    return " ".join(hit.doc_id for hit in run["q1"])


def test_a_near_copy_moves_down_and_nothing_is_lost(files: dict, tmp_path: Path, capsys):
    how = {"vectors": tmp_path / "vectors", "overwrite": True}
    assert order(files, tmp_path, k=3, lambda_=0.5, **how) == "a b c twin d"
    assert order(files, tmp_path, k=1, lambda_=0.5, **how) == "a twin b c d"
    assert order(files, tmp_path, k=5, lambda_=1.0, **how) == "a twin b c d"
    assert order(files, tmp_path, k=5, depth=3, lambda_=0.5, **how) == "a b twin c d"
    assert "chose 3 of the first 3 documents of 2 queries" in capsys.readouterr().out


def test_coverage_answers_each_sub_query_first(files: dict, tmp_path: Path, capsys):
    how = {"method": "coverage", "aspects": tmp_path / "aspects.trec", "overwrite": True, "json": True}
    assert order(files, tmp_path, k=2, lambda_=0.1, **how) == "a c twin b d"
    assert json.loads(capsys.readouterr().out) == {"num_queries": 2, "without_aspects": 1, "without_hits": 0}
    assert order(files, tmp_path, k=5, lambda_=0.0, alpha=1.0, **how) == "a c twin b d"


def test_ideal_lists_are_a_teacher_of_listwise_rankers(files: dict, tmp_path: Path):
    found = order(files, tmp_path, method="ideal", aspects=tmp_path / "aspects.trec", k=4)
    assert found == "a c twin b d"  # b and d answer nothing: their sub-queries' scores are scaled to 0
    [first, second] = groups_from_run(open_run(tmp_path / "varied.trec"), 3)
    assert (first.negatives, first.scores) == (("a", "c", "twin"), (5.0, 4.0, 3.0))
    assert second.negatives == ("a", "twin")


def test_a_query_without_hits_may_have_sub_queries(files: dict, tmp_path: Path, capsys):
    write_run(tmp_path / "aspects.trec", {"q1#x": HITS, "q9#x": HITS})
    order(files, tmp_path, method="coverage", aspects=tmp_path / "aspects.trec")
    assert "1 queries have sub-queries and no hits in the run" in capsys.readouterr().out


def test_a_list_without_any_vector_stays_as_it_is(files: dict, tmp_path: Path, capsys):
    write_run(files["run"], {"q0": HITS, "q1": [Hit("newer", 2.0), Hit("new", 1.0)]})
    assert order(files, tmp_path, vectors=tmp_path / "vectors") == "newer new"
    assert "2 documents have no vector" in capsys.readouterr().out


def test_more_aspects_are_covered_early_at_the_price_of_relevance(files: dict, tmp_path: Path):
    about = {"a": [1, 0, 0], "twin": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1], "d": [1, 0, 0]}
    values = []
    for share in (1.0, 0.5):
        found = order(files, tmp_path, vectors=tmp_path / "vectors", lambda_=share, overwrite=True).split()
        judged = np.array(list(about.values()), dtype=bool)
        values.append(alpha_ndcg(np.array([about[doc_id] for doc_id in found], dtype=bool), judged, cutoff=3))
    assert values[1] == 1.0 > values[0]


def test_what_a_run_cost_is_carried_on_and_a_second_time_nothing_is_done(files: dict, tmp_path: Path, capsys):
    settings = diversify.Config(**files, vectors=tmp_path / "vectors")
    diversify.run(settings)
    assert [stage["stage"] for stage in stages(tmp_path / "varied.trec")] == ["diversify"]
    assert (read_manifest(tmp_path / "varied.trec") or {})["results"]["num_queries"] == 2
    diversify.run(settings)
    assert "already done" in capsys.readouterr().err


def test_documents_without_a_vector_stay_behind_and_are_counted(files: dict, tmp_path: Path, capsys):
    write_run(files["run"], {"q1": [Hit("new", 10.0), *HITS]})
    assert order(files, tmp_path, k=2, lambda_=0.5, vectors=tmp_path / "vectors") == "a b new twin c d"
    assert "1 documents have no vector and were not chosen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--vectors is missing: --method mmr reads it"),
        ({"method": "coverage"}, "--aspects is missing: --method coverage reads it"),
        ({"vectors": "vectors", "method": "coverage"}, "--vectors is for --method mmr, not for coverage"),
        ({"vectors": "vectors", "alpha": 1.0}, "--alpha is for --method coverage"),
        ({"method": "ideal"}, "--aspects is missing: --method ideal reads it"),
        ({"method": "ideal", "aspects": "aspects.trec", "lambda_": 0.5}, "--lambda is for --method mmr and coverage"),
        ({"aspects": "aspects.trec"}, "--aspects is for --method coverage and ideal, not for mmr"),
        ({"vectors": "vectors", "lambda_": 1.5}, "--lambda is 1.5; expected a number from 0 to 1"),
        ({"vectors": "vectors", "k": 0}, "--k is 0; expected at least 1"),
        ({"vectors": "others"}, "others: has no vector of any document of .*first 'a'.*of the same collection"),
        ({"vectors": "nowhere"}, "nowhere: no such file or folder"),
        ({"method": "coverage", "aspects": "run.trec"}, "no query id .first 'q1'. is a query of .*such as 'q1#1'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(files: dict, tmp_path: Path, settings: dict, message: str):
    VectorWriter(tmp_path / "others", 2).write_shard(0, ["x"], np.ones((1, 2), dtype=np.float32))
    settings = {name: tmp_path / value if name in ("vectors", "aspects") else value for name, value in settings.items()}
    with pytest.raises(UserError, match=message):
        diversify.run(diversify.Config(**files, **settings))


def test_a_finished_run_without_a_header_is_not_taken_for_one_with(files: dict, tmp_path: Path):
    how = {**files, "vectors": tmp_path / "vectors"}
    diversify.run(diversify.Config(**how))
    with pytest.raises(UserError, match=r"holds another job .header: False there, True now"):
        diversify.run(diversify.Config(**how, header=True))
    diversify.run(diversify.Config(**how, header=True, overwrite=True))
    assert read_run_header(tmp_path / "varied.trec") is not None
