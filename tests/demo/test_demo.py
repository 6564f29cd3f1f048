import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from shortlist.cli import main
from shortlist.data.files import read_json
from shortlist.data.manifest import identity, read_manifest
from shortlist.demo import functions, system
from shortlist.demo.functions.sources import build_test, find_sources
from shortlist.models.folder import open_folder
from shortlist.recipe import run_recipe

pytestmark = pytest.mark.slow

ROWS = ["BM25", "BM25 (identifiers split)", "RepLLaMA", "RepLLaMA + RankLLaMA", "RepLLaMA + RankLLaMA, "]
ROWS += ["Hybrid", "Hybrid + RankLLaMA", "Hybrid + RankLLaMA, "]
MEASURES = ["MRR@10", "nDCG@10", "R@10", "R@100"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SMALLER = {
    "test": {"dev": 6},
    "repllama": {"steps": 3, "batch_size": 8},
    "rankllama": {"steps": 2, "batch_size": 4},
}


BACKBONE = {"layers": 1, "hidden": 32, "heads": 2, "vocab_size": 400}


def write_library(folder: Path, verb: str) -> Path:
    """A module of 24 functions, no two of which look alike."""
    functions = []
    for i, one in enumerate(NUMBERS):
        for other in (NUMBERS[i - 1], NUMBERS[i - 2]):
            lines = "\n".join(f"    {verb}_{one}_{step} = {other}_{step}({one})" for step in "abcdef")
            doc = f'    """{verb.title()} {one} things with {other} others."""'
            functions.append(f"def {verb}_{one}_{other}({one}):\n{doc}\n{lines}\n    return {verb}_{one}_f\n")
    folder.mkdir()
    (folder / f"{verb}ing.py").write_text("\n\n".join(functions))
    return folder


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo of another, smaller Python."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, folder)
        write_library(folder / "standard", "fold")
        write_library(folder / "installed", "wrap")
        system.run(system.Config(out=folder / "out"))
    return folder


def shrink(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Another Python to read, and a recipe of two steps where there were hundreds."""

    def build_small_test(out: Path, **options: int) -> dict[str, int]:
        return build_test(out, sources=find_sources(folder / "standard"), num_queries=12, **options)

    def run_smaller(recipe: dict, out: Path, *, where: str) -> None:
        smaller = SMALLER | ({"backbone": BACKBONE} if "backbone" in recipe["steps"] else {})
        for name, change in smaller.items():
            assert recipe["steps"][name].keys() > change.keys()
            recipe["steps"][name] |= change
        run_recipe(recipe, out, where=where)

    patch.setattr(functions, "build_test", build_small_test)
    patch.setattr(functions, "installed_packages", lambda: find_sources(folder / "installed"))
    patch.setattr(system, "run_recipe", run_smaller)


def test_the_results_are_the_table_that_was_promised(once: Path):
    results = json.loads((once / "out" / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert all(name.startswith(row) for name, row in zip(names, ROWS, strict=True))
    assert re.fullmatch(r"Hybrid \+ RankLLaMA, [\d.]+ : [\d.]+", names[-1])
    for row in results["rows"]:
        assert all(0 <= row[measure] <= 1 for measure in MEASURES)
        assert row["queries"] == 12
        assert row["ms_per_query"] > 0
    assert results["rows"][0]["MRR@10"] > 0.3  # BM25 knows the words of a function it never saw
    assert all(set(row["difference"]) == set(MEASURES) for row in results["rows"][1:])


def test_nothing_is_trained_on_that_is_searched(once: Path):
    test, train = (read_manifest(once / "out" / name) for name in ("test", "train"))
    assert test is not None
    assert train is not None
    assert (test["results"]["queries"], test["results"]["dev"]) == (12, 6)
    assert train["results"]["pairs"] == 24
    assert train["made_from"]["apart_from"] == identity(once / "out" / "test")


def test_both_models_are_the_shipped_pair_tuned(once: Path):
    for step, name in (("repllama", "shortlist-mini"), ("rankllama", "shortlist-mini/reranker")):
        manifest = read_manifest(once / "out" / step)
        assert manifest is not None
        assert manifest["made_from"]["backbone"] == open_folder(name).identity


def test_a_reranked_row_is_compared_with_the_same_row_without_it(once: Path):
    for kind, first in (("repllama", "RepLLaMA"), ("hybrid", "Hybrid")):
        rows = json.loads((once / "out" / f"{kind}-results" / "results.json").read_text())["rows"]
        assert [row["name"].split(",")[0] for row in rows] == [first, "+ RankLLaMA", "+ RankLLaMA"]
        assert all("t_test" in row["difference"]["MRR@10"] for row in rows[1:])


def test_a_second_time_the_results_are_shown_and_nothing_is_trained(
    once: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def times() -> dict[str, int]:
        paths = [path for path in (once / "out").rglob("*") if path.is_file() and path.parent != once / "out"]
        return {str(path): path.stat().st_mtime_ns for path in paths}

    shrink(monkeypatch, once)
    before = times()
    system.run(system.Config(out=once / "out"))
    assert times() == before
    out, err = capsys.readouterr()
    steps = yaml.safe_load((once / "out" / "recipe.yaml").read_text())["steps"]
    assert err.count("already done") == len(steps)
    assert all(row in out for row in ROWS)
    assert "Searched: 24 functions of the standard library, 12 queries. Learnt from: 24 pairs" in out
    for example in system.EXAMPLES:
        assert f"\n> {example}\n" in out
    assert f'shortlist ask --demo "parse an ISO date" --demo-folder {once / "out"}' in out


def test_the_demo_can_be_searched_by_hand_from_anywhere(
    once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    command = ["ask", "--demo", "fold seven things", "--demo-folder", str(once / "out")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "10. folding.fold_" in out
    assert "seven" in out.splitlines()[0]
    assert main([*command, "--k", "2"]) == 0
    assert " 3. " not in capsys.readouterr().out


def test_without_a_demo_the_search_says_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["ask", "--demo", "x", "--demo-folder", str(tmp_path)]) == 1
    assert "run `shortlist demo` first" in capsys.readouterr().err


def test_the_precision_is_chosen_once(once: Path, monkeypatch: pytest.MonkeyPatch):
    chosen = system.make_recipe(system.Config(out=once / "out"))["settings"]["precision"]
    monkeypatch.setattr(system, "bf16_pays", lambda: chosen == "fp32")  # another choice would train again
    assert system.make_recipe(system.Config(out=once / "out"))["settings"]["precision"] == chosen
    assert system.make_recipe(system.Config(out=once / "new"))["settings"]["precision"] != chosen


def test_the_models_can_begin_with_random_weights(once: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(once / "out", once / "scratch")
    shrink(monkeypatch, once)
    system.run(system.Config(out=once / "scratch", from_scratch=True))
    manifest = read_manifest(once / "scratch" / "repllama")
    assert manifest is not None
    assert manifest["made_from"]["backbone"] == identity(once / "scratch" / "backbone")
    assert read_json(once / "scratch" / "repllama" / "config.json")["hidden_size"] == 32
    assert manifest["config"]["learning_rate"] == 0.0008
