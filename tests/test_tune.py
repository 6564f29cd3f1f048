"""The stage `tune`, and the budgets that it makes possible."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import Tiny

from shortlist import ask, convert, index, search, tune
from shortlist.data.formats import read_qrels, write_qrels
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.evaluation.measure import per_query
from shortlist.pipeline.known import PairScores
from shortlist.pipeline.numbers import with_numbers
from shortlist.pipeline.spec import read_description
from shortlist.tune import Tried, greatest, report

QUICK: dict[str, Any] = {"split": "test", "timed_queries": 2, "folds": 3}


@pytest.fixture(scope="module")
def tuned(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of words and a reranker, tuned on judgements by which that reranker is right."""
    folder = tmp_path_factory.mktemp("tune")
    index.run(index.Config(collection=str(tiny.collection), out=folder / "words"))
    steps = {
        "words": {"find": "bm25", "index": str(folder / "words")},
        "near": {"rank": "pointwise", "model": str(tiny.reranker), "depth": 8},
    }
    description = {"collection": str(tiny.collection), "steps": steps}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    search.run(search.Config(pipeline=folder / "pipeline.yaml", out=folder / "run.trec", k=8))
    first = {query_id: {hits[0].doc_id: 1} for query_id, hits in read_run(folder / "run.trec").items()}
    write_qrels(folder / "qrels.tsv", first)
    tune.run(config_of(folder))
    return folder


def config_of(folder: Path) -> tune.Config:
    return tune.Config(pipeline=folder / "pipeline.yaml", qrels=folder / "qrels.tsv", out=folder / "tuned", **QUICK)


def costs_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tuned" / "costs.json").read_text())


def test_the_front_is_written_with_what_each_step_costs(tuned: Path):
    costs = costs_of(tuned)
    assert costs["steps"].keys() == {"words", "near", "documents"}
    assert costs["steps"]["near"]["fixed_ms"] + costs["steps"]["near"]["ms_per_document"] > 0
    assert costs["settings"] == 1 + 1 + 2 * 5 * 3  # as described, without the reranker; depths 5, 8, shares, drops
    assert costs["pairs_scored"] == costs["queries"] * 8 < costs["pairs_asked"]
    assert costs["front"][0]["numbers"] == {"near.depth": 0}
    assert (costs["front"][0]["pairs"], costs["front"][-1]["pairs"]) == (0, 8)
    for one, other in zip(costs["front"], costs["front"][1:], strict=False):
        assert one["ms"] < other["ms"]
        assert one["value"] < other["value"]


def test_the_chosen_pipeline_finds_what_was_promised(tuned: Path, tmp_path: Path):
    chosen = costs_of(tuned)["chosen"]
    described = read_description(tuned / "pipeline.yaml")
    assert read_description(tuned / "tuned" / "pipeline.yaml") == with_numbers(described, chosen["numbers"])
    run = tmp_path / "run.trec"
    search.run(search.Config(pipeline=tuned / "tuned" / "pipeline.yaml", out=run, k=10))
    values = per_query(read_run(run), read_qrels(tuned / "qrels.tsv"), "nDCG@10")["nDCG@10"]
    assert np.mean(list(values.values())) == pytest.approx(chosen["value"], abs=1e-4)


def test_a_second_run_finds_the_work_done(tuned: Path, capsys):
    before = (tuned / "tuned" / "costs.json").stat().st_mtime_ns
    tune.run(config_of(tuned))
    assert (tuned / "tuned" / "costs.json").stat().st_mtime_ns == before
    said = capsys.readouterr().out
    assert "of queries that had no part in the choice (3 folds)" in said
    assert "plain: as described" in said


def test_search_and_ask_take_a_budget(tuned: Path, tmp_path: Path, capsys):
    costs = tuned / "tuned" / "costs.json"
    least = costs_of(tuned)["front"][0]["ms"]
    run = tmp_path / "run.trec"
    words = search.Config(pipeline=tuned / "pipeline.yaml", out=run, k=10, budget_ms=least, costs=costs)
    search.run(words)
    assert [stage["stage"] for stage in (read_manifest(run) or {})["results"]["stages"]] == ["search"]
    dear = search.Config(pipeline=tuned / "pipeline.yaml", out=run, k=10, budget_ms=1e6, costs=costs)
    with pytest.raises(UserError, match="another job"):  # another pipeline, so another run
        search.run(dear)
    ask.run(ask.Config(question="what", pipeline=tuned / "pipeline.yaml", budget_ms=1e6, costs=costs))
    assert "of 1e+06 ms expected" in capsys.readouterr().err
    with pytest.raises(UserError, match="the least that is reachable is"):
        ask.run(ask.Config(question="what", pipeline=tuned / "pipeline.yaml", budget_ms=least / 2, costs=costs))


def test_what_people_copied_is_judgements_to_tune_on(tuned: Path, tiny: Tiny, tmp_path: Path):
    lists = [
        {"query": query, "shown": ["d1", "d2", "d3"], "signal": "copy", "copied": [f"d{place}"]}
        for place, query in enumerate(["otters", "rivers", "stones"], start=1)
    ]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lists))
    made, out = tmp_path / "made", tmp_path / "out"
    convert.run(
        convert.Config(
            sources=(str(tmp_path / "log.jsonl"),), as_="feedback", collection=str(tiny.collection), out=made
        )
    )
    few: dict[str, Any] = {"pipeline": tuned / "pipeline.yaml", "timed_queries": 1, "folds": 3}
    tune.run(tune.Config(**few, collection=str(made), out=out))
    tune.run(
        tune.Config(**few, queries=made / "queries.jsonl", qrels=made / "qrels" / "train.tsv", out=tmp_path / "same")
    )
    [one, other] = [json.loads((folder / "costs.json").read_text()) for folder in (out, tmp_path / "same")]
    assert one["queries"] == other["queries"] == 3
    assert one["plain"]["value"] == other["plain"]["value"]  # the same documents, which keep their indexes


def interrupted(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt


def test_a_run_that_was_interrupted_goes_on_with_its_times_and_scores(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counted: list[tuple[str, str]] = []
    add = PairScores._read

    def count(self: PairScores, inputs: Any) -> None:
        counted.extend((query.query_id, document.doc_id) for query, [document] in inputs)
        add(self, inputs)

    monkeypatch.setattr(PairScores, "_read", count)
    config = replace(config_of(tuned), out=tmp_path / "tuned")
    tell = tune.report
    monkeypatch.setattr(tune, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune.run(config)
    begun = read_manifest(tmp_path / "tuned") or {}
    assert (begun["complete"], (tmp_path / "tuned" / "known.sqlite").exists()) == (False, True)
    with pytest.raises(UserError, match="holds another job"):  # whose scores nobody deletes unasked
        tune.run(replace(config, split="train", k=9, measure="nDCG@9"))
    monkeypatch.setattr(tune, "report", tell)
    first = list(counted)
    tune.run(config)
    assert sorted(counted) == sorted(set(first))  # no pair was scored again
    costs = json.loads((tmp_path / "tuned" / "costs.json").read_text())
    assert costs["pairs_scored"] == len(counted)
    assert costs["steps"] == begun["decided"]["timed"]["steps"]
    assert not list((tmp_path / "tuned").glob("known*"))
    assert [point["value"] for point in costs["front"]]


def test_a_pipeline_that_searches_again_is_tuned(tuned: Path, tiny: Tiny, tmp_path: Path):
    steps = {
        "words": {"find": "bm25", "index": str(tuned / "words"), "depth": 8},
        "again": {"feedback": "rm3", "docs": 2, "depth": 8},
        "short": {"compress": "extract", "words": 8, "depth": 6},
        "near": {"rank": "pointwise", "model": str(tiny.reranker), "depth": 4},
    }
    (tmp_path / "pipeline.yaml").write_text(
        yaml.safe_dump({"collection": str(tiny.collection), "steps": steps}, sort_keys=False)
    )
    out, vary = tmp_path / "out", ("again.weight=0.5,0.9", "short.depth=3,6", "near.depth=0,4")
    tune.run(tune.Config(pipeline=tmp_path / "pipeline.yaml", qrels=tuned / "qrels.tsv", out=out, vary=vary, **QUICK))
    costs = json.loads((out / "costs.json").read_text())
    assert costs["steps"].keys() == {"words", "again", "short", "near", "documents"}
    assert costs["steps"]["again"].keys() == {"fixed_ms"}
    assert costs["steps"]["short"].keys() == costs["steps"]["near"].keys() == {"fixed_ms", "ms_per_document"}
    assert costs["plain"]["pairs"] == 4  # what is shortened is no pair
    assert read_description(out / "pipeline.yaml").steps[1].method == "rm3"


def tried(values: list[list[float]], ms: list[float]) -> Tried:
    return Tried(
        [{"a.depth": place} for place in range(len(ms))], np.array(values), [{"a": 1.0}] * len(ms), np.array(ms)
    )


def test_a_report_counts_queries_that_gain_and_lose():
    told = report(tried([[0.5] * 4, [1.0, 1.0, 0.9, 0.2]], [1.0, 2.0]), folds=4)
    assert told["chosen"]["numbers"] == {"a.depth": 1}
    assert (told["chosen"]["better"], told["chosen"]["worse"]) == (3, 1)
    assert told["chosen"]["difference"] == pytest.approx(0.275)
    assert [point["ms"] for point in told["front"]] == [1.0, 2.0]


def test_what_is_on_the_front_is_beaten_by_nothing():
    told = report(tried([[0.4, 0.4], [0.3, 0.3], [0.6, 0.6], [0.6, 0.6]], [1.0, 2.0, 3.0, 4.0]), folds=2)
    assert [point["numbers"]["a.depth"] for point in told["front"]] == [0, 2]


def test_a_budget_bounds_what_is_chosen():
    some = tried([[0.4, 0.4], [0.5, 0.5], [0.6, 0.6]], [1.005, 2.0, 3.0])
    assert report(some, folds=2, budget_ms=2.5)["chosen"]["numbers"] == {"a.depth": 1}
    with pytest.raises(UserError, match=r"--budget-ms 0.5: .* the least that is reachable is 1.01 ms"):
        report(some, folds=2, budget_ms=0.5)


def test_a_target_gives_the_cheapest_point_of_the_front_that_reaches_it():
    some = tried([[0.4, 0.4], [0.5, 0.5], [0.6, 0.6]], [1.0, 2.0, 3.0])
    assert report(some, folds=2, target_quality=0.45)["chosen"]["numbers"] == {"a.depth": 1}
    assert report(some, folds=2, target_quality=0.5)["chosen"]["held_out"] == 0.5
    with pytest.raises(UserError, match=r"--target-quality 0.7: .* the best that was reached is nDCG 0.6000, in 3 ms"):
        report(some, folds=2, measure="nDCG", target_quality=0.7)


def test_a_target_counts_on_queries_that_had_no_part_in_the_choice():
    values = [[0.5] * 4, [1.0, 1.0, 0.1, 0.1], [0.1, 0.1, 1.0, 1.0], [0.9] * 4]  # two that only seem good
    told = report(tried(values, [1.0, 2.0, 2.0, 4.0]), folds=4, target_quality=0.52)
    assert told["chosen"]["ms"] == 4.0
    assert [point["value"] for point in told["front"]] == pytest.approx([0.5, 0.55, 0.9])


def test_what_each_depth_loses_is_told_with_the_other_numbers_as_chosen(tuned: Path, capsys):
    costs = costs_of(tuned)
    told = costs["depths"]["near.depth"]
    assert [point["depth"] for point in told] == [0, 5, 8]
    assert min(point["lost"] for point in told) == 0
    assert told[0]["ms"] < told[1]["ms"] <= told[2]["ms"]
    for point in costs["front"]:
        if point["numbers"].get("near.depth") == 0:
            assert told[0]["value"] == pytest.approx(point["value"])
    chosen = costs["chosen"]
    [same] = [point for point in told if point["depth"] == chosen["numbers"].get("near.depth", 8)]
    assert (same["value"], same["ms"]) == pytest.approx((chosen["value"], chosen["ms"]))
    tune.run(config_of(tuned))
    assert "what each depth loses" in capsys.readouterr().out


def test_the_greatest_depths_come_first():
    assert greatest([{}, {"a.depth": 3, "a.share": 0.5}, {"a.depth": 9, "b.depth": 1}]) == {"a.depth": 9, "b.depth": 1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"folds": 1}, "--folds is 1; expected 2 or more"),
        ({"errors": -1.0}, "--errors is -1; expected 0 or more"),
        ({"settings": 1}, "--settings is 1; expected 2 or more"),
        ({"k": 5}, "--measure nDCG@10 reads 10 documents, and --k is 5"),
        ({"measure": "nDCG@ten"}, "unknown measure|measure 'nDCG@ten'"),
        ({"vary": ("near.model=3",)}, "--vary: unknown number 'near.model'"),
        ({"vary": ("near.share=3",)}, "share is 3.0; expected 0 to 1"),
        ({"budget_ms": -1.0}, "--budget-ms is -1; expected more than 0"),
        ({"budget_ms": 1.0, "target_quality": 0.5}, "--budget-ms with --target-quality"),
        ({"errors": 0.0, "target_quality": 0.5}, "--errors with --target-quality"),
        ({"target_quality": 1.5}, r"--target-quality is 1.5; nDCG@10 is never above 1"),
        ({"qrels": Path("none.tsv")}, r"--qrels none.tsv: no such file; expected judgements"),
        ({"queries": Path("q.jsonl")}, "--queries without --qrels"),
        ({"folds": 100}, "expected at least --folds 100"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tuned: Path, tmp_path: Path, settings: dict[str, Any], words: str):
    given = QUICK | settings
    with pytest.raises(UserError, match=words):
        tune.run(tune.Config(pipeline=tuned / "pipeline.yaml", out=tmp_path / "out", **given))


def test_a_pipeline_without_free_numbers_is_refused(tiny: Tiny, tmp_path: Path):
    (tmp_path / "pipeline.yaml").write_text(f"collection: {tiny.collection}\nsteps:\n  words: {{find: bm25}}\n")
    with pytest.raises(UserError, match="has no free number"):
        tune.run(tune.Config(pipeline=tmp_path / "pipeline.yaml", out=tmp_path / "out", **QUICK))


def test_a_pipeline_with_a_budget_is_refused(tiny: Tiny, tmp_path: Path):
    (tmp_path / "pipeline.yaml").write_text(
        f"collection: {tiny.collection}\nbudget_ms: 3\nsteps: {{w: {{find: bm25}}}}"
    )
    with pytest.raises(UserError, match="has a budget"):
        tune.run(tune.Config(pipeline=tmp_path / "pipeline.yaml", out=tmp_path / "out", **QUICK))
