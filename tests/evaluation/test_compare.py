import csv
import json
from pathlib import Path

import pytest

from shortlist.data.formats import write_qrels
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.evaluation import compare
from shortlist.evaluation.compare import costs
from shortlist.records import Hit

QRELS = {"q1": {"a": 1}, "q2": {"b": 1}}
GOOD = {"q1": [Hit("a", 2.0), Hit("b", 1.0)], "q2": [Hit("b", 1.0)]}
BAD = {"q1": [Hit("b", 2.0), Hit("a", 1.0)], "q2": [Hit("a", 2.0), Hit("b", 1.0)]}
SEARCH = {"stage": "search", "ms": 10.0, "model": "A", "index_bytes": 2**20, "num_parameters": 10**6, "peak_bytes": 5}
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
    compare.run(compare.Config(**settings, json=True))
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


def test_quality_and_costs_stand_side_by_side(settings: dict, capsys):
    first, second = printed(capsys, **settings)
    assert (first["RR@10"], second["RR@10"]) == (0.5, 1.0)
    assert (first["ms_per_query"], second["ms_per_query"], second["queries"]) == (10.0, 110.0, 2)
    compare.run(compare.Config(**settings))
    out = capsys.readouterr().out
    assert all(words in out for words in ("search 10.0", "rerank 100.0", "110.0", "1.0 MiB", "1.0M", "0.5000"))


def test_the_folder_holds_the_table_twice_and_the_figure(settings: dict, tmp_path: Path, capsys):
    rows = printed(capsys, **settings, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == rows
    with open(tmp_path / "out" / "compare.csv", newline="") as file:
        assert [(row["name"], float(row["RR@10"])) for row in csv.DictReader(file)] == [("first", 0.5), ("second", 1.0)]
    figure = (tmp_path / "out" / "pareto.svg").read_text()
    assert all(words in figure for words in ("first", "second", "RR@10", "milliseconds per query"))
    assert printed(capsys, **settings, out=tmp_path / "out") == rows


def test_a_run_of_others_is_compared_by_quality_alone(settings: dict, tmp_path: Path, capsys):
    other = put(tmp_path / "other.trec", GOOD)
    compare.run(compare.Config(**(settings | {"runs": (other,), "names": None}), json=True, out=tmp_path / "out"))
    told = capsys.readouterr()
    assert json.loads(told.out)["RR@10"] == 1.0
    assert "ms_per_query" not in json.loads(told.out)
    assert not (tmp_path / "out" / "pareto.svg").exists()
    assert f"{other}: no manifest beside it says what it cost" in told.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": ()}, "2 names for 0 runs"),
        ({"measures": ()}, "--measures"),
        ({"qrels": None}, "either --qrels"),
        ({"measures": ("nDGC@10",)}, "unknown measure"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        compare.run(compare.Config(**(settings | change)))


def test_a_run_of_other_queries_is_refused(settings: dict, tmp_path: Path):
    put(tmp_path / "other.trec", {"z": [Hit("a", 1.0)]})
    with pytest.raises(UserError, match="none of its queries is judged"):
        compare.run(compare.Config(**(settings | {"runs": (tmp_path / "other.trec",), "names": None})))
