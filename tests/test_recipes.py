"""The project's recipes: what their headers promise, and that they run from end to end on something tiny."""

import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from named import load_reranker, load_retriever
from tiny import DOCUMENTS, QUERIES, Tiny, write_embedder, write_layerwise, write_projecting
from wheel import module, pin, write_wheel

import shortlist.demo.functions
import shortlist.recipe
from shortlist.cli import main
from shortlist.config import parse
from shortlist.data.collections import open_collection
from shortlist.data.files import atomic_write
from shortlist.data.manifest import read_manifest
from shortlist.demo.functions.sources import build_test, find_sources
from shortlist.models.folder import open_folder
from shortlist.recipe import OUTPUTS, Stage, plan, run_recipe
from shortlist.rerankers.kinds import prepare
from shortlist.rerankers.models import RawAnswer

ROOT = Path(__file__).parents[1]
RECIPES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "recipes").rglob("*.yaml"))}
PAIRS = ("shortlist-mini", "library", "comparison", "language-model", "asking", "blocks", "listwise")
"""Those of the pair that comes with the package, which have tests of their own."""
WRITTEN = ("own-collection", "own-documents")
"""Those that have queries written, which a tiny language model cannot."""
OURS = [name for name in RECIPES if Path(name).stem not in ("scifact", "reranker", *PAIRS, *WRITTEN)]
"""Those that need neither a real model nor a real text."""


def header(name: str) -> str:
    """The comment on top of a recipe, continuation lines joined."""
    lines = RECIPES[name].read_text("utf-8").split("\n")
    count = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:count]).replace("\\\n", " ")


def said(name: str, label: str) -> str | None:
    """What the header says under a label."""
    match = re.search(rf"\b{label}: *(.*?)(?=\n|  +\w+:|$)", header(name))
    return match[1] if match else None


@cache
def command(name: str) -> shortlist.recipe.Config:
    """What the header's command asks for."""
    program, stage, *flags = shlex.split(said(name, "command") or "")
    assert (program, stage) == ("shortlist", "run")
    return parse(shortlist.recipe.Config, flags, prog="shortlist run")


def out_of(name: str) -> Path:
    return command(name).out


@cache
def steps_of(name: str) -> list[Stage]:
    return plan(yaml.safe_load(RECIPES[name].read_text("utf-8")), out_of(name), where=name)


def settings_of(name: str) -> dict:
    return yaml.safe_load(RECIPES[name].read_text("utf-8"))["settings"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_how_it_is_run_and_what_to_expect(name: str):
    assert (command(name).recipe, out_of(name)) == (Path(name), Path("runs", Path(name).stem))
    assert all(said(name, label) for label in ("hardware", "time", "scores"))
    assert steps_of(name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_in_one_process_for_each_gpu_that_it_names(name: str):
    gpus = re.match(r"(\d+) GPUs", said(name, "hardware") or "")
    assert (command(name).processes or 1) == (int(gpus[1]) if gpus else 1)


@pytest.mark.parametrize("name", OURS)
def test_what_a_recipe_takes_over_another_one_makes(name: str):
    made = {str(out_of(r) / step.name / OUTPUTS[step.stage]) for r in RECIPES for step in steps_of(r)}
    taken = {value for value in settings_of(name).values() if str(value).startswith("runs/")}
    assert taken <= made
    before = said(name, "after")
    assert all(value.startswith(f"{out_of(before)}/") for value in taken) if before else not taken


@pytest.mark.parametrize("name", OURS)
@pytest.mark.skipif(not importlib.util.find_spec("ir_datasets"), reason="needs ir_datasets")
def test_a_recipe_names_splits_that_its_collection_has(name: str):
    reads_queries = [step.config for step in steps_of(name) if hasattr(step.config, "split") and step.stage != "index"]
    named = {(config.collection, config.split) for config in reads_queries if config.collection}
    published = {(collection, split) for collection, split in named if collection.startswith("irds:")}
    assert all(split in open_collection(collection).splits() for collection, split in published)


@pytest.fixture(scope="module")
def ran(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run a recipe as its header says, but in one process, after those before it, on the tiny collection."""
    folder = tmp_path_factory.mktemp("recipes")
    groups = write_groups(folder / "groups.jsonl.gz")
    given = {"dev": "test", "dl19": "test", "dl20": "test", "wikiqa-split": "test", "steps": "2"}
    given |= {"dims": "[32, 8]", "dims_weights": "[1, 0.5]", "short": "8", "lists": "train", "margin": "0"}
    given |= {"few": "2", "many": "3", "train": "train", "words": "4", "queries": "8"}
    given |= {"max_malformed": "1", "negatives": "2", "depth": "3", "max_length": "1000", "top": "2", "offset": "near"}
    smaller = {"irds:": tiny.collection, "meta-llama/": tiny.llama, "Qwen/": tiny.llama, "hf:": groups}
    smaller |= {"data/": tiny.collection, "sentence-transformers/": tiny.retriever, "BAAI/": tiny.retriever}
    smaller |= {"google-bert/": tiny.bert}
    smaller |= {"HuggingFaceH4/": tiny.speaker, "Qwen/Qwen3": tiny.speaker, "cross-encoder/": tiny.reranker}
    embedder = write_embedder(folder / "embedder")
    smaller |= {"Qwen/Qwen3-Embedding": embedder, "Alibaba-NLP/": embedder}
    smaller |= {"jinaai/jina-reranker": write_projecting(folder / "projecting")}
    smaller |= {"BAAI/bge-reranker-v2-minicpm": write_layerwise(folder / "layerwise")}
    smaller |= {"Qwen/Qwen2.5": tiny.speaker}

    @cache
    def run(name: str) -> Path:
        if before := said(name, "after"):
            run(before)
        changes = {setting: value for setting, value in given.items() if setting in settings_of(name)}
        for start, small in smaller.items():
            changes |= {setting: small for setting, value in settings_of(name).items() if str(value).startswith(start)}
        if "reward" in settings_of(name):  # of answers, which are shorter here
            changes["reward"] = re.sub(r",tokens=\d+|$", ",tokens=4", settings_of(name)["reward"], count=1)
        words = [f"{setting}={value}" for setting, value in changes.items()]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert main(["run", str(RECIPES[name]), "--out", str(out_of(name)), "--set", *words]) == 0
        return folder / out_of(name)

    return run


def write_groups(path: Path) -> Path:
    """Groups of the tiny collection's training queries, as Tevatron publishes them."""

    def passages(*numbers: int) -> list[dict[str, str]]:
        return [{"docid": DOCUMENTS[i].doc_id, "title": "", "text": DOCUMENTS[i].text} for i in numbers]

    with atomic_write(path) as file:
        for i, query in enumerate(QUERIES[:8]):
            parts = {"positive_passages": passages(i), "negative_passages": passages(i + 1, i + 2, i + 4)}
            file.write(json.dumps({"query_id": query.query_id, "query": query.text, **parts}) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OURS if Path(name).stem != "beir-set"])  # a part of table2-beir
def test_a_recipe_runs_from_end_to_end(name: str, ran: Callable[[str], Path]):
    out = ran(name)
    for step in steps_of(name):
        manifest = read_manifest(out / step.name / OUTPUTS[step.stage])
        assert manifest is not None
        assert manifest["complete"]
        if step.stage == "evaluate":
            rows = json.loads((out / step.name / "results.json").read_text())["rows"]
            assert len(rows) == len(step.config.runs) == len(step.config.names)
            assert all(set(step.config.measures) <= row.keys() for row in rows)
        if step.stage == "table":
            assert manifest["results"]["not_run"] == []


@pytest.mark.slow
def test_the_first_steps_of_the_shipped_pairs_recipe_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(shortlist.demo.functions, "build_test", small_library)
    wheels = [write_wheel(tmp_path / "index", f"{verb}s", core=module(verb, 12)) for verb in ("fold", "wrap")]
    (tmp_path / "packages.txt").write_text("".join(map(pin, wheels)))
    recipe = yaml.safe_load(RECIPES["recipes/shortlist-mini/shortlist-mini.yaml"].read_text("utf-8"))
    recipe["settings"]["sources"] = str(tmp_path / "packages.txt")
    recipe["steps"]["text"] |= {"dev": 0}
    recipe["steps"]["init"] |= {"layers": 1, "hidden": 32, "heads": 2, "vocab_size": 300}
    for step in recipe["steps"].values():
        if step["stage"] == "train":
            step |= {"steps": 2, "batch_size": 4}
    run_recipe(recipe, tmp_path / "out", where="here")
    for kind, load in (("retriever", load_retriever), ("reranker", load_reranker)):
        assert load(str(tmp_path / "out" / kind)).contract
        assert len((tmp_path / "out" / kind / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_the_language_models_recipe_runs_on_something_tiny(tiny: Tiny, tmp_path: Path):
    recipe = yaml.safe_load(RECIPES["recipes/shortlist-mini/language-model.yaml"].read_text("utf-8"))
    recipe["settings"] |= {"text": str(tiny.collection), "start": str(tiny.speaker)}
    for step in recipe["steps"].values():
        if "split" in step:
            step["split"] = "train"
    for step in (recipe["steps"][f"{name}training"] for name in ("first-", "", "last-")):
        step |= {"steps": 4, "batch_size": 2}
        for source in step["sources"].values():
            source["split"] = "train"
    run_recipe(recipe, tmp_path / "out", where="here")
    folder = open_folder(str(tmp_path / "out" / "language-model"), wanted="language-model")
    reranker = prepare("setwise", {"model": folder}).open()
    assert len(reranker.score(QUERIES[0], DOCUMENTS[:5])) == 5
    card = (tmp_path / "out" / "language-model" / "README.md").read_text("utf-8")
    assert "Data: the sources `prp`, `setwise`, `first`, `queries`." in card
    assert "- language-model\n" in card


@pytest.mark.slow
def test_a_collection_without_queries_is_tuned_for_and_measured(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = {document.text: query.text for document, query in zip(DOCUMENTS, QUERIES, strict=True)}

    class Writer:
        def keys(self, questions):
            return [document.text for _, [document] in questions]

        def replies(self, questions):
            yield {
                place: RawAnswer(f"{asked[document.text]}\nwhat is the {document.text.split()[1]}", 9, 9)
                for place, (_, [document]) in enumerate(questions)
            }

    monkeypatch.setattr("shortlist.rerankers.opening.open_language_model", lambda **_: (Writer(), "a writer"))
    recipe = yaml.safe_load(RECIPES["recipes/own-collection.yaml"].read_text("utf-8"))
    models = {"writer": tiny.speaker, "retriever": tiny.retriever, "reranker": tiny.reranker, "teacher": tiny.reranker}
    recipe["settings"] |= {"collection": str(tiny.collection), **{name: str(path) for name, path in models.items()}}
    recipe["steps"]["made"] |= {"min_words": 3, "split": ["train=.4", "dev=.3", "test=.3"]}
    for step in recipe["steps"].values():
        step |= {"steps": 2} if step["stage"] == "train" else {}
    run_recipe(recipe, tmp_path / "out", where="here")
    for step, judged in (("on-made", "test"), ("on-judged", "dev")):
        results = json.loads((tmp_path / "out" / step / "results.json").read_text())
        assert len(results["rows"]) == 7
        assert results["machine_made"]
        assert results["queries"] == len(open_collection(tmp_path / "out" / "made").qrels(judged))
    page = (tmp_path / "out" / "report" / "report.html").read_text("utf-8")
    assert "on-made/results.json" in page
    assert "made by a machine" in page


@pytest.mark.slow
def test_the_shipped_pair_is_measured_on_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shortlist.demo.functions, "build_test", small_library)
    recipe = yaml.safe_load(RECIPES["recipes/shortlist-mini/library.yaml"].read_text("utf-8"))
    run_recipe(recipe, tmp_path / "out", where="here")
    for step in ("dense-results", "hybrid-results"):
        rows = json.loads((tmp_path / "out" / step / "results.json").read_text())["rows"]
        assert [len(recipe["steps"][step]["names"]), 2] == [len(rows), rows[0]["queries"]]
        assert re.search(r"[\d.]+ : [\d.]+$", rows[-1]["name"])


@pytest.mark.slow
def test_the_shipped_language_model_is_asked_about_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shortlist.demo.functions, "build_test", small_library)
    recipe = yaml.safe_load(RECIPES["recipes/shortlist-mini/asking.yaml"].read_text("utf-8"))
    recipe["settings"]["precision"] = "fp32"
    run_recipe(recipe, tmp_path / "out", where="here")
    rows = json.loads((tmp_path / "out" / "results" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == recipe["steps"]["results"]["names"]
    assert all(row["calls"] > 0 for row in rows[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blocks", "listwise"])
def test_the_shipped_pair_learns_to_rerank(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(shortlist.demo.functions, "build_test", small_library)
    wheels = [write_wheel(tmp_path / "index", f"{verb}s", core=module(verb, 12)) for verb in ("fold", "wrap")]
    (tmp_path / "packages.txt").write_text("".join(map(pin, wheels)))
    recipe = yaml.safe_load(RECIPES[f"recipes/shortlist-mini/{name}.yaml"].read_text("utf-8"))
    recipe["steps"]["text"]["sources"] = str(tmp_path / "packages.txt")
    recipe["settings"]["steps"] = 2
    run_recipe(recipe, tmp_path / "out", where="here")
    rows = json.loads((tmp_path / "out" / "results" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == recipe["steps"]["results"]["names"]


def small_library(out: Path, **options: Any) -> dict[str, int]:
    return build_test(out, **options | {"num_queries": 2, "sources": find_sources(write_module(out.parent / "std"))})


def write_module(folder: Path) -> Path:
    folder.mkdir()
    (folder / "sorts.py").write_text(module("sort", 6))
    return folder
