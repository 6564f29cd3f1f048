import csv
import json
from pathlib import Path

import pytest

from shortlist.cli import main
from shortlist.data.formats import write_qrels
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.evaluation import evaluate
from shortlist.evaluation.costs import cost_cells, cost_columns, cost_headings, costs
from shortlist.recipe import plan
from shortlist.records import Hit

QRELS = {"q1": {"a": 1}, "q2": {"b": 1}}
GOOD = {"q1": [Hit("a", 2.0), Hit("b", 1.0)], "q2": [Hit("b", 1.0)]}
BAD = {"q1": [Hit("b", 2.0), Hit("a", 1.0)], "q2": [Hit("a", 2.0), Hit("b", 1.0)]}
SEARCH = {"stage": "search", "ms": 10.0, "model": "A", "index_bytes": 2**20, "num_parameters": 10**6, "peak_bytes": 5}
TRAINED = {"stage": "search", "model": "C", "training_seconds": 75.5, "training_bytes": 2**30}
RERANK = {"stage": "rerank", "ms": 100.0, "model": "B", "tokens_per_second": 7.0, "num_parameters": 2, "peak_bytes": 9}


def put(path: Path, hits: dict, *made_by: dict) -> Path:
    write_run(path, hits)
    if made_by:
        manifest = {"job": "x", "complete": True, "stage": "search", "results": {"stages": made_by}}
        path.with_name(path.name + ".manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    runs = put(tmp_path / "first.trec", BAD, SEARCH), put(tmp_path / "second.trec", GOOD, SEARCH, RERANK)
    write_qrels(tmp_path / "qrels.tsv", QRELS)
    return {"runs": runs, "qrels": tmp_path / "qrels.tsv", "names": ("first", "second"), "measures": ("RR@10",)}


def printed(capsys: pytest.CaptureFixture[str], **settings) -> list[dict]:
    evaluate.run(evaluate.Config(**settings, costs=True, json=True))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_costs_are_added_up_over_the_stages_and_a_model_counts_once():
    assert costs([SEARCH, SEARCH, RERANK]) == {
        "ms_per_query": 120.0,
        "tokens_per_second": 7.0,
        "index_bytes": 2**21,
        "peak_bytes": 9,
        "num_parameters": 1_000_002,
    }
    assert costs([]) == {}
    trained = {"ms_per_query": 1.0, "training_seconds": 75.5, "training_bytes": 2**30}
    assert costs([TRAINED | {"ms": 0.5}, TRAINED | {"ms": 0.5}]) == trained


def test_quality_and_costs_stand_side_by_side(settings: dict, capsys: pytest.CaptureFixture[str]):
    first, second = printed(capsys, **settings)
    assert (first["RR@10"], second["RR@10"]) == (0.5, 1.0)
    assert (first["ms_per_query"], second["ms_per_query"], second["queries"]) == (10.0, 110.0, 2)
    evaluate.run(evaluate.Config(**settings, costs=True))
    out = capsys.readouterr().out
    assert all(words in out for words in ("search 10.0", "rerank 100.0", "110.0", "1.0 MiB", "1.0M", "0.5000"))
    evaluate.run(evaluate.Config(**settings))
    assert "search 10.0" not in capsys.readouterr().out


def test_beside_the_results_are_a_table_and_a_figure(
    settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out" / "results.json"
    rows = printed(capsys, **settings, out=out)
    assert [{"run": row["run"]} | row for row in json.loads(out.read_text())["rows"]] == rows
    with open(out.with_suffix(".csv"), newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["name"], float(row["RR@10"])) for row in table] == [("first", 0.5), ("second", 1.0)]
    assert [row["ms_per_query"] for row in table] == ["10.0", "110.0"]
    figure = out.with_suffix(".svg").read_text()
    assert all(words in figure for words in ("first", "second", "RR@10", "milliseconds per query"))
    assert printed(capsys, **settings, out=out) == rows
    with pytest.raises(UserError, match="is for the results as JSON"):
        printed(capsys, **settings, out=tmp_path / "results.svg")


def test_a_run_that_became_cheaper_is_told_again(settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "results.json"
    assert printed(capsys, **settings, out=out)[0]["ms_per_query"] == 10.0
    put(settings["runs"][0], BAD, SEARCH | {"ms": 5.0})
    assert printed(capsys, **settings, out=out, overwrite=True)[0]["ms_per_query"] == 5.0


def test_a_run_of_others_is_told_by_quality_alone(settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other, out = put(tmp_path / "other.trec", GOOD), tmp_path / "out.json"
    evaluate.run(evaluate.Config(**(settings | {"runs": (other,), "names": None}), costs=True, json=True, out=out))
    said = capsys.readouterr()
    assert json.loads(said.out)["RR@10"] == 1.0
    assert "ms_per_query" not in json.loads(said.out)
    assert not out.with_suffix(".svg").exists()
    assert f"{other}: no manifest beside it says what it cost" in said.err


def test_the_command_that_did_this_says_what_does_it_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", "--runs", "a.trec"]) == 2
    assert "`compare` is now `shortlist evaluate --costs`" in capsys.readouterr().err
    recipe = {"steps": {"compared": {"stage": "compare"}}}
    with pytest.raises(UserError, match="stage `compare` is now `shortlist evaluate --costs`"):
        plan(recipe, tmp_path, where="r.yaml")


def test_what_asking_cost_has_columns_only_where_a_model_was_asked():
    plain = {"stages": [], **costs([{"stage": "search", "ms": 1.0}])}
    asked = {"stages": [], **costs([{"stage": "rerank", "ms": 2.0, "calls": 1200, "prompt_tokens": 9, "malformed": 3}])}
    assert "calls" not in cost_columns([plain])
    columns = cost_columns([plain, asked])
    assert cost_headings(columns)[-4:] == ["calls", "tokens read", "generated", "malformed"]
    assert cost_cells(asked, columns)[-4:] == ["1,200", "9", "0", "3"]
    assert cost_cells(plain, columns)[-4:] == ["-"] * 4
