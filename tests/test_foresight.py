"""What `run --dry-run` foretells."""

from pathlib import Path

import pytest
import yaml

from shortlist.cli import main
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.foresight import named
from shortlist.recipe import plan

STEPS = """
settings: {data: DATA, k1: 0.9}
steps:
  bm25: {stage: index, collection: $data, k1: $k1}
  run: {stage: search, index: $bm25, collection: $data, k: 2}
  vectors: {stage: encode, model: me/none, collection: $data}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    write_corpus(data / "corpus.jsonl", ["a goat", "a boat"])
    write_queries(data / "queries.jsonl", ["goat"])
    write_qrels(data / "qrels/test.tsv", {"0": {"0": 1}})
    path = tmp_path / "recipe.yaml"
    path.write_text(STEPS.replace("DATA", str(data)))
    return path


def foreseen(recipe: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, str]:
    """What is printed of each step and of each name."""
    capsys.readouterr()
    assert main(["run", str(recipe), "--out", str(recipe.parent / "out"), "--dry-run", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    steps = {line.split()[0]: line[36:] for line in lines if not line.startswith(("needs ", "disk: "))}
    return steps | dict(line.removeprefix("needs ").split(": ", 1) for line in lines if line.startswith("needs "))


def test_a_dry_run_says_what_is_left_and_writes_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]):
    found = foreseen(recipe, capsys)
    assert found == {
        **dict.fromkeys(("bm25", "run", "vectors"), "to do"),
        str(recipe.parent / "data"): "here",
        "me/none": "to be fetched from the hub",
    }
    assert not (recipe.parent / "out").exists()


@pytest.mark.slow
def test_what_is_done_is_known_and_what_follows_from_a_change_too(recipe: Path, capsys: pytest.CaptureFixture[str]):
    whole = yaml.safe_load(recipe.read_text())
    less = recipe.with_name("less.yaml")
    less.write_text(
        yaml.safe_dump({**whole, "steps": {n: whole["steps"][n] for n in ("bm25", "run")}}, sort_keys=False)
    )
    assert main(["run", str(less), "--out", str(recipe.parent / "out")]) == 0
    found = foreseen(recipe, capsys)
    assert found["bm25"].startswith("done")
    assert (found["run"], found["vectors"]) == ("done", "to do")
    changed = foreseen(recipe, capsys, "--set", "k1=1.2")
    assert changed["bm25"] == "to do again: its settings changed"
    assert changed["run"] == "to do again: bm25 comes before it"


def test_the_collections_of_a_trainings_sources_are_named(tmp_path: Path):
    sources = {"a": {"collection": "nowhere"}, "b": {"collection": str(tmp_path)}}
    training = {"stage": "train", "kind": "retriever", "backbone": str(tmp_path), "sources": sources}
    steps = plan({"steps": {"m": training}}, tmp_path / "out", where="here")
    assert named(steps, set()) == {"nowhere": "missing: no such folder", str(tmp_path): "here"}
