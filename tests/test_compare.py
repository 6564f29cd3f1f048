import csv
import json
from pathlib import Path

import pytest

from shortlist import compare
from shortlist.compare import costs, stages
from shortlist.data.formats import write_qrels
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.records import Hit

QRELS = {"q1": {"a": 1}, "q2": {"b": 1}}
GOOD = {"q1": [Hit("a", 2.0), Hit("b", 1.0)], "q2": [Hit("b", 1.0)]}
BAD = {"q1": [Hit("b", 2.0), Hit("a", 1.0)], "q2": [Hit("a", 2.0), Hit("b", 1.0)]}
SEARCHED = {"ms_per_query": 10.0, "stage_ms": 10.0, "index_bytes": 2**20, "num_parameters": 1_000_000, "peak_bytes": 5}
RERANKED = {"ms_per_query": 110.0, "stage_ms": 100.0, "tokens_per_second": 7.0, "num_parameters": 2, "peak_bytes": 9}


def put(path: Path, hits: dict, stage: str = "", results: dict | None = None, **config) -> Path:
    write_run(path, hits)
    if stage:
        manifest = {"job": "x", "complete": True, "stage": stage, "config": config, "results": results or {}}
        path.with_name(path.name + ".manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    first = put(tmp_path / "first.trec", BAD, "search", SEARCHED, model="retriever")
    second = put(tmp_path / "second.trec", GOOD, "rerank", RERANKED, model="reranker", run=str(first))
    write_qrels(tmp_path / "qrels.tsv", QRELS)
    return {
        "runs": (first, second),
        "qrels": tmp_path / "qrels.tsv",
        "names": ("first", "second"),
        "measures": ("RR@10",),
    }


def printed(capsys: pytest.CaptureFixture[str], **settings) -> list[dict]:
    compare.run(compare.Config(**settings, json=True))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_stages_of_a_run_are_those_of_its_manifests_first_to_last(settings: dict, tmp_path: Path):
    first, second = settings["runs"]
    fused = put(
        tmp_path / "fused.trec", GOOD, "fuse", {"ms_per_query": 121.0, "stage_ms": 1.0}, runs=[str(first), str(second)]
    )
    assert [stage["stage"] for stage in stages(second)] == ["search", "rerank"]
    assert [stage["stage"] for stage in stages(fused)] == ["search", "search", "rerank", "fuse"]
    assert stages(put(tmp_path / "other.trec", GOOD)) == []


def test_costs_are_added_up_over_the_stages_and_a_model_counts_once(settings: dict):
    made_by = stages(settings["runs"][1])
    assert costs(made_by) == {
        "ms_per_query": 110.0,
        "tokens_per_second": 7.0,
        "index_bytes": 2**20,
        "peak_bytes": 9,
        "num_parameters": 1_000_002,
    }
    assert costs([*made_by[:1], *made_by])["num_parameters"] == 1_000_002
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
    (row,) = printed(capsys, **(settings | {"runs": (other,), "names": None}), out=tmp_path / "out")
    assert row["RR@10"] == 1.0
    assert "ms_per_query" not in row
    assert not (tmp_path / "out" / "pareto.svg").exists()
    assert f"{other}: no manifest of ours" in (err := printed_err(capsys, settings, other)), err


def printed_err(capsys, settings: dict, other: Path) -> str:
    compare.run(compare.Config(**(settings | {"runs": (other,), "names": None})))
    return capsys.readouterr().err


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
