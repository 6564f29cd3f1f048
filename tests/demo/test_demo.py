import json
from pathlib import Path

import pytest
import yaml

from shortlist import demo
from shortlist.cli import main
from shortlist.functions.sources import build_test, build_train, find_sources
from shortlist.recipe import run_recipe

ROWS = ["BM25", "RepLLaMA", "Hybrid", "RepLLaMA + RankLLaMA", "Hybrid + RankLLaMA"]
MEASURES = ["MRR@10", "nDCG@10", "R@10", "R@100"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SMALLER = {
    "backbone": {"layers": 1, "hidden": 32, "heads": 2, "vocab_size": 400},
    "repllama": {"steps": 3, "batch_size": 8},
    "rankllama-random": {"steps": 2, "batch_size": 4},
    "rankllama": {"steps": 2, "batch_size": 4},
}


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
        demo.run(demo.Config(out=folder / "out"))
    return folder


def shrink(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Another Python to read, and a recipe of two steps where there were hundreds."""

    def build_small_test(out: Path) -> dict[str, int]:
        return build_test(out, sources=find_sources(folder / "standard"), num_queries=12)

    def build_small_train(out: Path, *, test: Path) -> dict[str, int]:
        return build_train(out, test=test, sources=find_sources(folder / "installed"))

    def run_smaller(recipe: dict, out: Path, *, where: str) -> None:
        for name, change in SMALLER.items():
            assert recipe["steps"][name].keys() > change.keys()
            recipe["steps"][name] |= change
        run_recipe(recipe, out, where=where)

    patch.setattr(demo, "build_test", build_small_test)
    patch.setattr(demo, "build_train", build_small_train)
    patch.setattr(demo, "run_recipe", run_smaller)


def test_the_results_are_the_table_that_was_promised(once: Path):
    results = json.loads((once / "out" / "results.json").read_text())
    assert [row["name"] for row in results["rows"]][:5] == ROWS
    for row in results["rows"]:
        assert all(0 <= row[measure] <= 1 for measure in MEASURES)
        assert row["queries"] == 12
        assert row["ms_per_query"] > 0
    assert results["rows"][0]["MRR@10"] > 0.3  # BM25 knows the words of a function it never saw
    assert all(set(row["difference"]) == set(MEASURES) for row in results["rows"][1:])


def test_nothing_is_trained_on_that_is_searched(once: Path):
    manifest = json.loads((once / "out" / "collections" / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["results"]["train"]["pairs"] == 24
    assert manifest["results"]["test"]["queries"] == 12


def test_a_second_time_the_results_are_shown_and_nothing_is_trained(
    once: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def times() -> dict[str, int]:
        paths = [path for path in (once / "out").rglob("*") if path.is_file() and path.parent != once / "out"]
        return {str(path): path.stat().st_mtime_ns for path in paths}

    shrink(monkeypatch, once)
    before = times()
    demo.run(demo.Config(out=once / "out"))
    assert times() == before
    out, err = capsys.readouterr()
    steps = yaml.safe_load((once / "out" / "recipe.yaml").read_text())["steps"]
    assert err.count("already done") == len(steps) + 1
    assert all(row in out for row in ROWS)
    assert "RankLLaMA adds" in out or "RankLLaMA takes away" in out
    for example in demo.EXAMPLES:
        assert f"\n> {example}\n" in out
    assert f'shortlist search --demo "parse an ISO date" --demo-folder {once / "out"}' in out


def test_the_demo_can_be_searched_by_hand_from_anywhere(
    once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    command = ["search", "--demo", "fold seven things", "--demo-folder", str(once / "out")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "10. folding.fold_" in out
    assert "seven" in out.splitlines()[0]
    assert main([*command, "--k", "2"]) == 0
    assert " 3. " not in capsys.readouterr().out


def test_without_a_demo_the_search_says_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["search", "--demo", "x", "--demo-folder", str(tmp_path)]) == 1
    assert "run `shortlist demo` first" in capsys.readouterr().err


def test_another_set_of_packages_makes_other_collections(
    once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shrink(monkeypatch, once)
    monkeypatch.setattr(demo, "bf16_pays", lambda: True)
    assert demo.build_collections(tmp_path / "collections") == "bf16"
    assert "24 functions to search, 12 queries; 24 pairs to learn from" in capsys.readouterr().err
    monkeypatch.setattr(demo, "bf16_pays", lambda: False)  # chosen once: another choice would train again
    assert demo.build_collections(tmp_path / "collections") == "bf16"
    assert "already done" in capsys.readouterr().err
    monkeypatch.setattr(demo, "distributions", list)
    demo.build_collections(tmp_path / "collections")
    assert "24 functions to search" in capsys.readouterr().err
