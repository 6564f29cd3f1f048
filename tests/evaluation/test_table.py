import json
from pathlib import Path

import pytest
import yaml

from shortlist.data.beir import CQADUPSTACK
from shortlist.errors import UserError
from shortlist.evaluation import table
from shortlist.evaluation.table import Column, Table, markdown, our_rows, published_tables, read_table

SMALL = Table(
    "A table",
    "a paper",
    [Column("RR dev", "dev", "RR@10"), Column("nDCG DL19", "DL19", "nDCG@10"), Column("mean", mean=True)],
    {"theirs": [10.0, None, None]},
)
RESULTS = {
    "dev": [{"name": "A", "RR@10": 0.25}, {"name": "B", "RR@10": 0.5}],
    "DL19": [{"name": "A", "nDCG@10": 0.75}],
}


def put(path: Path, rows: list[dict]) -> Path:
    path.write_text(json.dumps({"rows": rows}))
    return path


@pytest.fixture
def settings(tmp_path: Path) -> dict:
    content = SMALL._asdict() | {"columns": [column._asdict() for column in SMALL.columns]}
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(content))
    files = tuple(put(tmp_path / f"{name}.json", rows) for name, rows in RESULTS.items())
    return {
        "published": str(tmp_path / "published.yaml"),
        "results": files,
        "sets": tuple(RESULTS),
        "rows": ("A", "B", "C"),
        "out": tmp_path / "out",
    }


def test_our_values_stand_in_their_columns_in_percent():
    assert our_rows(SMALL, RESULTS, ["A", "B"]) == {"A": [25.0, 75.0, 50.0], "B": [50.0, None, None]}


def test_a_row_that_was_not_run_is_printed_as_such_and_never_filled():
    lines = markdown(SMALL, our_rows(SMALL, RESULTS, ["A", "B", "C"]), "tiny").splitlines()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line
    }
    assert cells["theirs"] == ["10.0", "-", "-"]
    assert cells["A"] == ["25.0", "75.0", "50.0"]
    assert cells["B"] == ["50.0", "not run", "not run"]
    assert cells["C"] == ["not run"] * 3
    assert "**tiny**" in cells


def test_the_table_is_written_and_printed_and_once_only(settings: dict, capsys: pytest.CaptureFixture[str]):
    table.run(table.Config(**settings))
    out = capsys.readouterr().out
    assert out == (settings["out"] / "table.md").read_text()
    content = json.loads((settings["out"] / "table.json").read_text())
    assert content["ours"]["A"] == [25.0, 75.0, 50.0]
    assert content["columns"] == ["RR dev", "nDCG DL19", "mean"]
    assert not (settings["out"] / "table.svg").exists()
    table.run(table.Config(**settings, json=True))
    told = capsys.readouterr()
    assert json.loads(told.out) == content
    assert "already done" in told.err


def test_the_table_is_printed_for_a_spreadsheet_and_for_a_paper(settings: dict, capsys: pytest.CaptureFixture[str]):
    table.run(table.Config(**settings, csv=True))
    assert capsys.readouterr().out.splitlines() == [
        "rows,name,RR dev,nDCG DL19,mean",
        "published,theirs,10.0,,",
        "ours,A,25.0,75.0,50.0",
        "ours,B,50.0,,",
        "ours,C,,,",
    ]
    table.run(table.Config(**settings, latex=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [r"\begin{tabular}{lrrr}", r"\toprule", r" & RR dev & nDCG DL19 & mean \\"]
    assert lines[4:6] == [r"\multicolumn{4}{l}{\emph{published (a paper)}} \\", r"theirs & 10.0 & - & - \\"]
    assert r"B & 50.0 & not run & not run \\" in lines
    with pytest.raises(UserError, match="three ways to print"):
        table.run(table.Config(**settings, latex=True, csv=True))


def test_a_table_whose_columns_are_numbers_is_drawn(settings: dict, tmp_path: Path):
    put(tmp_path / "512.json", [{"name": "trained 512", "MRR@100": 0.4}])
    put(tmp_path / "1024.json", [{"name": "trained 512", "MRR@100": 0.5}])
    files = {"results": (tmp_path / "512.json", tmp_path / "1024.json"), "sets": ("512", "1024")}
    table.run(table.Config(**(settings | files | {"published": "lengths", "rows": ("trained 512",)})))
    drawing = (settings["out"] / "table.svg").read_text()
    assert all(words in drawing for words in ("trained 512 (ours)", "trained 2048 (published)", "tokens read"))


@pytest.mark.parametrize("name", published_tables())
def test_published_tables_are_whole_and_say_where_they_are_from(name: str):
    published = read_table(name)
    assert published.source.startswith("https://")
    assert all(0 < value < 100 for values in published.rows.values() for value in values if value is not None)
    assert all(column.mean or (column.set and column.measure) for column in published.columns)


def test_the_published_averages_are_those_of_their_rows():
    published = read_table("beir")
    for values in published.rows.values():
        assert sum(values[:-1]) / 13 == pytest.approx(values[-1], abs=0.06)


def test_cqadupstack_is_the_mean_of_its_twelve_parts():
    published = read_table("cqadupstack")
    assert [column.set for column in published.columns if not column.mean] == list(CQADUPSTACK)
    results = {part: [{"name": "ours", "nDCG@10": number / 100}] for number, part in enumerate(CQADUPSTACK)}
    assert our_rows(published, results, ["ours"])["ours"][-1] == pytest.approx(5.5)
    results.pop("wordpress")
    assert our_rows(published, results, ["ours"])["ours"][-1] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"published": "pasage"}, "unknown published table 'pasage': perhaps .*passage"),
        ({"sets": ("dev",)}, "1 names for 2 results"),
        ({"sets": ("dev", "DL91")}, "unknown set .*'DL91'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        table.run(table.Config(**(settings | change)))
    assert not settings["out"].exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title: a\n", "not a table .*expected title, source, columns and rows"),
        ("{title: a, source: b, columns: [{name: c}], rows: {d: [1, 2]}}", "row 'd' has 2 values for 1 columns"),
    ],
)
def test_a_file_that_is_no_table_is_refused(settings: dict, tmp_path: Path, content: str, message: str):
    (tmp_path / "published.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        table.run(table.Config(**settings))


def test_results_of_another_kind_are_refused(settings: dict, tmp_path: Path):
    (tmp_path / "dev.json").write_text('{"rows": 3}')
    with pytest.raises(UserError, match="expected the output of `shortlist evaluate`"):
        table.run(table.Config(**settings))
