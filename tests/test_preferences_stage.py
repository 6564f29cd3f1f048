"""Preferences between summaries, mined by a command."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import Tiny

from shortlist import preferences
from shortlist.data.manifest import read_manifest
from shortlist.data.preferences import read_preferences
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.records import Hit, Query

QUERY_IDS = [f"q{i}" for i in range(8)]


@pytest.fixture
def config(tmp_path: Path, tiny: Tiny, language_model: Path) -> Any:
    """Make settings over a run that finds each query's document second, but not q7's, and for q6 nothing else."""
    hits = {f"q{i}": [Hit(f"d{(i + 1) % 12}", 2.0), Hit(f"d{i}", 1.0)] for i in range(6)}
    write_run(tmp_path / "run.trec", {**hits, "q6": [Hit("d6", 1.0)], "q7": [Hit("d0", 1.0), Hit("d1", 0.5)]})

    def make(**settings: Any) -> preferences.Config:
        given = {"run": tmp_path / "run.trec", "collection": str(tiny.collection), "words": 4, "samples": 3}
        given |= {"writer": str(language_model), "reranker": str(tiny.reranker), "out": tmp_path / "pairs.jsonl"}
        return preferences.Config(**given | settings)

    return make


def results_of(path: Path) -> dict[str, Any]:
    return (read_manifest(path) or {})["results"]


def test_the_first_relevant_candidate_is_the_one_to_shorten():
    run = {"a": [Hit("x", 3.0), Hit("y", 2.0), Hit("z", 1.0)], "b": [Hit("x", 1.0)]}
    queries, qrels = [Query("a", ""), Query("b", ""), Query("c", "")], {"a": {"y": 1, "z": 2}, "b": {"y": 1}}
    assert preferences.find_candidates(queries, run, qrels, depth=10) == ({"a": (["x", "y", "z"], 1)}, 2)
    assert preferences.find_candidates(queries, run, qrels, depth=3, least=2)[0] == {"a": (["x", "y", "z"], 2)}
    assert preferences.find_candidates(queries, run, qrels, depth=1)[1] == 3


def test_pairs_are_mined_with_the_reasons_why_queries_gave_none(config: Any, tmp_path: Path, capsys: Any):
    preferences.run(config())
    err = capsys.readouterr().err
    assert "1: no relevant document is among the candidates; 1: there is no other candidate" in err
    found = read_preferences(tmp_path / "pairs.jsonl")
    assert found.asked == ("summary", 4)
    results = results_of(tmp_path / "pairs.jsonl")
    reasons = sum(results.get(name, 0) for name in preferences.WITHOUT_PAIR)
    assert results["pairs"] == len(found.preferences) == len(QUERY_IDS) - reasons > 0
    assert (results["no_candidate"], results["alone"]) == (1, 1)
    assert results["answer_tokens"] > 0
    for query, document, chosen, _ in found.preferences:
        assert query.query_id[1:] == document.doc_id[1:]
        assert len(chosen) < len(document.text)


def test_after_an_interruption_nothing_is_asked_or_judged_again(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    preferences.run(config(out=tmp_path / "whole.jsonl"))
    assert not (tmp_path / "pairs.jsonl").exists()
    preferences.run(config(max_calls=2))
    said = capsys.readouterr().err
    assert f"preferences: {tmp_path / 'pairs.jsonl'} is not finished\n" in said
    assert "4 documents are left; the same command goes on" in said
    preferences.run(config(max_calls=4))
    whole, pairs = (tmp_path / name for name in ("whole.jsonl", "pairs.jsonl"))
    assert pairs.read_bytes() == whole.read_bytes()
    assert len(results_of(pairs)) > 5

    def refuse(*_: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr("shortlist.pipeline.preferences.Samples.replies", lambda self, asked: refuse() if asked else ())
    monkeypatch.setattr("shortlist.pipeline.preferences.ranks_of", refuse)
    pairs.unlink()
    preferences.run(config())
    assert pairs.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "--samples is 1; expected at least 2"),
        ({"depth": 1}, "--depth is 1; expected at least 2"),
        ({"top": 10}, "--top is 10 and --depth 10; expected more candidates"),
        ({"temperature": 0.0}, "--temperature is 0; expected more than 0"),
        ({"writer": "http://localhost:1"}, "--writer: is a server, and samples are drawn from a model here"),
        ({"prompt": "first"}, "--prompt: 'first' asks for all documents in order; expected one that asks for a text"),
        ({"split": "test", "words": 64}, "no query has a document to shorten .*document is short enough"),
    ],
)
def test_what_cannot_be_mined_is_refused(config: Any, settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        preferences.run(config(**settings))


def test_a_sample_of_the_queries_is_asked_about(config: Any, tmp_path: Path):
    preferences.run(config(most_queries=5))
    results = results_of(tmp_path / "pairs.jsonl")
    assert sum(results.get(name, 0) for name in ("pairs", *preferences.WITHOUT_PAIR)) == 5
    assert len({json.loads(line)["query_id"] for line in (tmp_path / "pairs.jsonl").open()}) == results["pairs"]
