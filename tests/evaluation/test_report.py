import json
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from tiny import Tiny

from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.evaluation import diagnose, evaluate, lengths, report, table
from shortlist.evaluation.report import find_outputs
from shortlist.evaluation.report.html import drawing
from shortlist.evaluation.report.html import page as html_page
from shortlist.evaluation.report.html import table as html_table
from shortlist.records import Hit
from shortlist.train.log import LOG, draw_loss

CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output of every kind that a report shows."""
    out = tmp_path_factory.mktemp("outputs")
    costs = {"ms_per_query": 2.0, "stages": [{"stage": "search", "ms": 2.0, "index_bytes": 9}]}
    runs = put_run(out, "first", range(12), costs), put_run(out, "second", [*range(3, 12), 0, 1, 2], costs)
    where = {"collection": str(tiny.collection), "split": "test"}
    measuring = {"runs": runs, "names": ("<first>", "second"), **where, "measures": ("MRR@10",)}
    evaluate.run(evaluate.Config(**measuring, out=out / "results" / "results.json"))
    evaluate.run(evaluate.Config(**measuring, costs=True, out=out / "compared" / "results.json"))
    diagnose.run(diagnose.Config(run=runs[0], reranked=runs[1], **where, out=out / "diagnosis" / "diagnosis.json"))
    lengths.run(lengths.Config(collection=str(tiny.collection), model=str(tiny.llama), out=out / "lengths"))
    results = (out / "results" / "results.json",)
    table.run(table.Config(published="passage", results=results, sets=("dev",), rows=("second",), out=out / "table"))
    put_training(out / "retriever")
    return out


def put_run(out: Path, name: str, order, results: dict) -> Path:
    path = out / name / "run.trec"
    write_run(
        path, {f"q{query}": [Hit(f"d{doc}", -float(rank)) for rank, doc in enumerate(order)] for query in range(12)}
    )
    manifest = {"job": "x", "complete": True, "stage": "search", "config": {}, "results": results}
    path.with_name("run.trec.manifest.json").write_text(json.dumps(manifest))
    return path


def put_training(path: Path) -> None:
    path.mkdir()
    (path / LOG).write_text("".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 9)))
    draw_loss(path)
    manifest = {"job": "x", "complete": True, "stage": "train", "config": {}, "results": {"steps": 8}}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.run(report.Config(folders=(folder,), out=path, title="A <tiny> pair"))
    return path


class Links(HTMLParser):
    """What a page refers to, and its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data"):
                self.targets.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_the_page_shows_every_kind_of_output(page: Path):
    text = page.read_text()
    text += "".join(b64decode(picture).decode() for picture in re.findall(r"svg\+xml;base64,([^\"]+)", text))
    for words in (
        *("Published tables", "not run", "RankGPT-4", "Results", "95% bootstrap", "holes"),
        *("ms/query by stage", "no other is better and faster", "Failures", "pushed down by the reranker"),
        *("Lengths", "tokens of the documents", "Training", "training loss", "Manifests", "which colour has the apple"),
    ):
        assert words in text, words


def test_the_page_holds_all_that_it_shows_and_escapes_it(page: Path):
    links = Links()
    links.feed(page.read_text())
    assert links.targets
    inside = [target for target in links.targets if not target.startswith("data:image/svg+xml;base64,")]
    assert len(inside) < len(links.targets)
    assert all(target.startswith("#") for target in inside)
    assert {target[1:] for target in inside} <= set(links.ids)
    assert len(links.ids) == len(set(links.ids))
    assert "<tiny>" not in page.read_text()
    assert "<first>" not in page.read_text()
    assert not re.search(r"url\((?!#)|@import", page.read_text())


def test_outputs_are_found_in_folders_and_beside_files(folder: Path):
    found = {output.name: output.manifest["stage"] for output in find_outputs(folder)}
    assert found["first/run.trec"] == "search"
    assert found["results/results.json"] == "evaluate"
    assert found["retriever"] == "train"
    assert len(found) == 8
    assert [output.name for output in find_outputs(folder / "retriever")] == ["retriever"]


def test_an_output_that_is_not_finished_is_only_listed(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "lengths", tmp_path / "in" / "lengths")
    path = tmp_path / "in" / "lengths" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    report.run(report.Config(folders=(tmp_path / "in",), out=tmp_path / "report.html"))
    text = (tmp_path / "report.html").read_text()
    assert "not finished" in text
    assert "tokens of the documents" not in text


def test_a_report_is_not_overwritten_unasked(folder: Path, tmp_path: Path):
    config = report.Config(folders=(folder,), out=tmp_path / "report.html", overwrite=True)
    config.out.write_text("<!doctype html>\nmine")
    with pytest.raises(UserError, match="is no page of `shortlist report`"):
        report.run(config)
    config.out.unlink()
    report.run(config)
    with pytest.raises(UserError, match="exists; choose another name or --overwrite"):
        report.run(replace(config, overwrite=False))
    report.run(replace(config, title="Another"))
    assert "<h1>Another</h1>" in config.out.read_text()


def test_results_are_not_overwritten_by_a_report_of_them(folder: Path):
    results = folder / "results" / "results.json"
    before = results.read_bytes()
    with pytest.raises(UserError, match="is no page"):
        report.run(report.Config(folders=(folder,), out=results, overwrite=True))
    assert results.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "no such folder"), ("", "no output of `shortlist` is there")]
)
def test_folders_without_outputs_are_refused(tmp_path: Path, name: str, message: str):
    with pytest.raises(UserError, match=message):
        report.run(report.Config(folders=(tmp_path / name,), out=tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_a_drawing_is_a_picture_that_can_do_nothing():
    svg = '<svg></svg><meta http-equiv="refresh" content="0;url=http://a"><form action="http://a"><script>b</script>'
    text = drawing(svg, 'One "&" two')
    assert text.count("<") == 5
    assert text.startswith('<figure><img src="data:image/svg+xml;base64,')
    assert 'alt="One &quot;&amp;&quot; two"' in text
    assert b64decode(text.partition("base64,")[2].partition('"')[0]).decode() == svg
    assert "form-action 'none'" in html_page("any", [])


def test_a_table_marks_text_small_lines_and_parts():
    text = html_table(["run", "value"], [["part"], ["a & b", "1\nmore"]], text=(1,))
    assert '<tr class="part"><td colspan="2">part</td></tr>' in text
    assert '<td>a &amp; b</td><td class="text">1<small>more</small></td>' in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_page_light_dark_and_printed(page: Path, tmp_path: Path):
    def shot(name: str, *flags: str) -> Path:
        out = tmp_path / name
        flags += (f"--{'print-to-pdf' if out.suffix == '.pdf' else 'screenshot'}={out}",)
        command = [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return out

    light = imread(shot("light.png", "--window-size=1000,1500"))
    dark = imread(shot("dark.png", "--window-size=1000,1500", "--blink-settings=preferredColorScheme=0"))
    assert light.shape[:2] == dark.shape[:2] == (1500, 1000)
    assert light[..., :3].std() > 0.05  # something is drawn
    assert light[5, 5, :3].min() > 0.95 > 0.2 > dark[5, 5, :3].max()
    assert shot("page.pdf", "--no-pdf-header-footer").read_bytes().startswith(b"%PDF")
