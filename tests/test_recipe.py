import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny import write_collection, write_speaker
from wheel import module, pin, write_wheel

import shortlist.recipe
from shortlist import encode
from shortlist.data.formats import write_qrels
from shortlist.data.manifest import read_manifest, stages
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.recipe import OUTPUTS, plan, run_recipe, written_by

pytestmark = pytest.mark.slow

RECIPE = """
settings:
  data: {data}
  keep: 12
  depth: 12
  reranker_seed: 0
  start: $retriever
steps:
  index: {{stage: index, collection: $data}}
  bm25: {{stage: search, index: $index, collection: $data, k: 12}}
  backbone: {{stage: init, collection: $data, layers: 1, hidden: 32, heads: 2, vocab_size: 300}}
  retriever: {{stage: train, kind: retriever, backbone: $backbone, collection: $data, batch_size: 4, steps: 2}}
  vectors: {{stage: encode, model: $retriever, collection: $data}}
  exported: {{stage: export, model: $retriever, to: merged}}
  averaged: {{stage: average, models: [$retriever, $exported]}}
  dense: {{stage: search, model: $retriever, vectors: $vectors, collection: $data, k: 12}}
  hybrid: {{stage: fuse, runs: [$bm25, $dense], k: $keep}}
  tuned: {{stage: tune, pipeline: {data}/pipeline.yaml, collection: $data, split: test, folds: 2, timed_queries: 1}}
  varied: {{stage: diversify, run: $dense, vectors: $vectors, k: 3}}
  for-mining: {{stage: search, index: $index, collection: $data, split: train, k: 12}}
  groups: {{stage: mine, runs: [$for-mining], collection: $data, depth: 12, negatives: 2, random_share: 0.5}}
  passages: {{stage: convert, sources: [$groups], collection: $data, to: tevatron-old}}
  reranker:
    {{stage: train, kind: reranker, backbone: $start, collection: $data, groups: $groups, steps: 2, batch_size: 4,
      max_length: 64, seed: $reranker_seed}}
  reranked: {{stage: rerank, model: $reranker, run: $hybrid, collection: $data, depth: $depth}}
  results: {{stage: evaluate, runs: [$bm25, $reranked], collection: $data, measures: [MRR@10]}}
  functions: {{stage: functions, sources: {data}/packages.txt, cache: {data}/../wheels}}
  selected: {{stage: select, pool: $data, like: $data, size: 3}}
  fewer: {{stage: prune, groups: $groups, collection: $data, model: $retriever, size: 2}}
  lengths: {{stage: lengths, collection: $data, model: $backbone}}
  diagnosis: {{stage: diagnose, run: $hybrid, reranked: $reranked, collection: $data}}
  pool: {{stage: pool, runs: [$bm25, $dense], collection: $data, depth: 3}}
  rule: {{stage: cut, action: calibrate, run: $for-mining, collection: $data, recall: 0.5}}
  short: {{stage: cut, run: $bm25, rule: $rule}}
  judged: {{stage: judge, model: {data}/../speaker, runs: [$bm25], collection: $data, depth: 2}}
  agreement: {{stage: agree, judgements: [{data}/qrels/test.tsv, {data}/qrels/train.tsv]}}
  table: {{stage: table, published: lengths, results: [$results], sets: ["512"], rows: [BM25]}}
  compared: {{stage: evaluate, costs: true, runs: [$bm25, $hybrid, $reranked], collection: $data, measures: [MRR@10]}}
"""


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a collection, a recipe and everything that it makes."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_collection(folder / "collection")
    write_speaker(folder / "speaker")
    (folder / "collection" / "packages.txt").write_text(
        pin(write_wheel(folder / "wheels" / "folds-1.0", "folds", folds=module("fold", 4)))
    )
    near = "steps: {words: {find: bm25}, near: {rank: pointwise, model: shortlist-mini/reranker, depth: 3}}"
    (folder / "collection" / "pipeline.yaml").write_text(near)
    (folder / "recipe.yaml").write_text(RECIPE.format(data=folder / "collection"))
    shortlist.recipe.run(shortlist.recipe.Config(recipe=folder / "recipe.yaml", out=folder / "out"))
    return folder


@pytest.fixture
def done(once: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    shutil.copytree(once, tmp_path / "copy")
    (tmp_path / "copy" / "recipe.yaml").write_text(RECIPE.format(data=tmp_path / "copy" / "collection"))
    return tmp_path / "copy"


def again(folder: Path, *settings: str, processes: int = 1) -> set[str]:
    """Run the recipe once more; the names of the steps in whose folders anything was written."""

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.is_file()}

    before = times()
    recipe, out = folder / "recipe.yaml", folder / "out"
    shortlist.recipe.run(shortlist.recipe.Config(recipe=recipe, out=out, set=settings, processes=processes))
    changed = {path for path, time in times().items() if before.get(path) != time}
    return {path.relative_to(folder / "out").parts[0] for path in changed} - {"recipe.yaml"}


def test_a_recipe_runs_from_texts_to_results(once: Path):
    steps = yaml.safe_load((once / "recipe.yaml").read_text())["steps"]
    tested_elsewhere = {
        "queries",
        "aspects",
        "preferences",
        "heads",
        "report",
        "follow",
        "mix",
    }  # four need a language model, one writes its page anew each time, one needs metadata, one absolute paths
    assert {step["stage"] for step in steps.values()} == OUTPUTS.keys() - tested_elsewhere
    for name, step in steps.items():
        assert (once / "out" / name / written_by(step["stage"], step)).exists()
    assert len(read_run(once / "out" / "reranked" / "run.trec")) == 12
    results = yaml.safe_load((once / "out" / "results" / "results.json").read_text())
    assert results["rows"][0]["MRR@10"] == 1.0
    assert yaml.safe_load((once / "out" / "recipe.yaml").read_text()) == yaml.safe_load(
        (once / "recipe.yaml").read_text()
    )


def write_nested(folder: Path, settings: str) -> Path:
    """A recipe whose step is another recipe."""
    (folder / "inner").mkdir()
    (folder / "inner" / "words.yaml").write_text(
        "settings: {data: nowhere, k: 3}\n"
        "steps:\n  index: {stage: index, collection: $data}\n"
        "  run: {stage: search, index: $index, collection: $data, k: $k}\n"
    )
    (folder / "outer.yaml").write_text(
        f"settings: {{data: {folder / 'collection'}}}\nsteps:\n  words: {{recipe: inner/words.yaml, {settings}}}\n"
        "  results: {stage: evaluate, runs: [$words/run], collection: $data, measures: [P@3]}\n"
    )
    return folder / "outer.yaml"


def test_a_step_may_be_another_recipe_with_settings_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_collection(tmp_path / "collection")
    recipe = write_nested(tmp_path, "data: $data")
    for _ in range(2):
        shortlist.recipe.run(shortlist.recipe.Config(recipe=recipe, out=tmp_path / "out"))
    assert "[2/3] words/run" in (err := capsys.readouterr().err)
    assert err.count("already done") == 3
    assert all(len(hits) == 3 for hits in read_run(tmp_path / "out" / "words" / "run" / "run.trec").values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("dta: $data", "step 'words': .*words.yaml: unknown setting 'dta': perhaps .*data"),
        ("stage: search", "expected settings with `stage:`, .*or `recipe:`"),
        ("k: many", "words.yaml: step 'run': .*many"),
    ],
)
def test_a_recipe_inside_is_checked_too_before_anything_runs(tmp_path: Path, settings: str, message: str):
    recipe = write_nested(tmp_path, settings)
    with pytest.raises(UserError, match=message):
        shortlist.recipe.run(shortlist.recipe.Config(recipe=recipe, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_every_run_says_what_each_of_its_stages_cost(once: Path):
    made_by = stages(once / "out" / "reranked" / "run.trec")
    assert [stage["stage"] for stage in made_by] == ["search", "search", "fuse", "rerank"]
    words, dense, fused, reranked = made_by
    assert words["index_bytes"] > 1000
    assert dense["num_parameters"] == reranked["num_parameters"] - 32 > 10_000  # its head
    assert dense["model"] != reranked["model"]
    assert min(stage["peak_bytes"] for stage in (words, dense, reranked)) > 2**20
    assert reranked["tokens_per_second"] > 1
    total = read_manifest(once / "out" / "reranked" / "run.trec")["results"]["ms_per_query"]
    assert sum(stage["ms"] for stage in made_by) == pytest.approx(total, abs=0.01)
    assert fused["ms"] < reranked["ms"]
    assert read_manifest(once / "out" / "vectors")["results"]["tokens_per_second"] > 1


def test_a_second_time_nothing_is_done_even_where_the_folder_was_moved(done: Path, capsys: pytest.CaptureFixture[str]):
    assert again(done) == set()
    err = capsys.readouterr().err
    assert err.count("already done") == 29
    assert "[29/29] compared" in err


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        ("depth=3", {"reranked", "results", "diagnosis", "table", "compared"}),
        ("keep=5", {"hybrid", "reranked", "results", "diagnosis", "table", "compared"}),
        ("reranker_seed=1", {"reranker", "reranked", "results", "diagnosis", "table", "compared"}),
        ("start=$backbone", {"reranker", "reranked", "results", "diagnosis", "table", "compared"}),
    ],
)
def test_a_changed_setting_redoes_what_it_touches_and_nothing_else(done: Path, setting: str, steps: set[str]):
    assert again(done, setting) == steps
    assert again(done, setting) == set()


def test_changed_judgements_redo_what_read_them(done: Path):
    write_qrels(done / "collection" / "qrels" / "test.tsv", {f"q{i}": {"d0": 1} for i in range(12)})
    read = {"results", "diagnosis", "table", "compared", "pool", "judged", "agreement", "selected", "tuned"}
    assert again(done) == read
    write_qrels(done / "collection" / "qrels" / "train.tsv", {f"q{i}": {f"d{7 - i}": 1} for i in range(8)})
    redone = again(done)
    assert {"retriever", "groups", "reranker", "results"} <= redone
    assert not {"index", "bm25", "backbone", "for-mining"} & redone


def test_a_changed_corpus_redoes_everything(done: Path):
    path = done / "collection" / "corpus.jsonl"
    path.write_text(path.read_text().replace("weight", "price"))
    assert {"index", "backbone", "retriever", "vectors", "dense", "groups", "reranker", "reranked"} <= again(done)


def test_an_interrupted_recipe_goes_on_where_it_was(done: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(config: encode.Config) -> None:
        raise KeyboardInterrupt

    shutil.rmtree(done / "out" / "vectors")
    with monkeypatch.context() as patch:
        patch.setattr(encode, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again(done)
    assert again(done) == {"vectors"}  # which come out the same, so that all that follows stays


@pytest.mark.slow
def test_several_processes_train_together_and_one_finds_their_work_done(done: Path):
    shutil.rmtree(done / "out" / "retriever")
    redone = again(done, processes=2)  # what was made of it too, where its last bits are others
    assert "retriever" in redone
    assert not redone & {"index", "bm25", "backbone", "for-mining", "groups", "passages", "functions", "lengths"}
    manifest = read_manifest(done / "out" / "retriever")
    assert manifest is not None
    assert manifest["results"]["processes"] == 2
    assert again(done) == set()


def test_training_that_stops_in_processes_of_its_own_stops_the_recipe(done: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("retriever", "results"):
        shutil.rmtree(done / "out" / name)
    started: list[tuple[list[str], int]] = []

    def fail(command: list[str], processes: int, *, on_gpus: bool) -> None:
        started.append((command, processes))
        raise UserError("process 2 of 2 was ended by SIGKILL")

    monkeypatch.setattr("shortlist.settings.train_job.run_together", fail)
    with pytest.raises(UserError, match="process 2 of 2 was ended by SIGKILL"):
        again(done, processes=2)
    [(command, processes)] = started
    assert command[:2] == ["train", "retriever"]
    assert "--processes=2" in command
    assert processes == 2
    assert not (done / "out" / "results").exists()


def edited(tmp_path: Path, edit: Callable[[dict], object]) -> dict:
    recipe = yaml.safe_load(RECIPE.format(data=tmp_path))
    edit(recipe)
    return recipe


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r["steps"]["bm25"].update(stage="serach"), r"step 'bm25': unknown stage 'serach': perhaps 'search'"),
        (lambda r: r["steps"]["bm25"].pop("stage"), r"step 'bm25': expected settings with `stage:`, one of index"),
        (lambda r: r["steps"].update(bm25=3), r"step 'bm25': expected settings with `stage:`"),
        (lambda r: r["steps"]["results"].update(mesures=["AP"]), r"step 'results': .*'mesures': perhaps 'measures'"),
        (lambda r: r["steps"]["results"].update(ties="treck"), r"step 'results': .*'treck'"),
        (lambda r: r["steps"]["bm25"].update(k="many"), r"step 'bm25': .*'many'"),
        (lambda r: r["steps"]["results"].update(runs=["$renraked"]), r"'results': .*'renraked': perhaps 'reranked'"),
        (lambda r: r["steps"]["bm25"].update(index="$vectors"), r"step 'bm25': unknown .*earlier step 'vectors'"),
        (lambda r: r["settings"].update(start="$start"), r"step 'reranker': unknown .*'start'"),
        (lambda r: r["settings"].update(bm25=1), r"step 'bm25': the name is taken"),
        (lambda r: r.update(stages={}), r"unknown section 'stages'"),
        (lambda r: r.update(steps={}), r"has no steps"),
        (lambda r: r.update(steps=["index"]), r"steps holds \['index'\]; expected `name: value` lines"),
        (lambda r: r.update(settings="x"), r"settings holds 'x'"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_before_anything_runs(tmp_path: Path, edit: Callable, message: str):
    with pytest.raises(UserError, match=message) as refusal:
        run_recipe(edited(tmp_path, edit), tmp_path / "out", where="the recipe")
    assert str(refusal.value).startswith("the recipe: ")
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dept=3", "--set dept=3: unknown setting 'dept': perhaps 'depth'"),
        ("depth", "--set depth: expected name=value"),
    ],
)
def test_a_setting_that_the_recipe_does_not_have_is_refused(done: Path, setting: str, message: str):
    with pytest.raises(UserError, match=message):
        again(done, setting)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".", "", ".git", "recipe.yaml", "a\0b", 1])
def test_a_step_cannot_leave_the_folder_of_the_recipe(tmp_path: Path, name: str):
    recipe = {"steps": {name: {"stage": "index", "collection": "c"}}}
    with pytest.raises(UserError, match=r"here: step .*: is the name of its folder in --out; expected a word"):
        run_recipe(recipe, tmp_path / "out", where="here")
    recipe = {"steps": {"a": {"stage": "index", "collection": "c", "out": str(tmp_path / "x")}}}
    with pytest.raises(UserError, match=r"here: step 'a': `out` cannot be set"):
        run_recipe(recipe, tmp_path / "out", where="here")
    assert list(tmp_path.iterdir()) == []


def test_a_step_neither_follows_a_link_nor_replaces_what_no_recipe_made(tmp_path: Path):
    recipe = {"steps": {"a": {"stage": "index", "collection": "c"}}}
    mine = tmp_path / "out" / "a"
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"step 'a': .*out/a is there already, and no recipe has made it"):
        run_recipe(recipe, tmp_path / "out", where="here")
    mine.rename(tmp_path / "elsewhere")
    mine.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"step 'a': .*out/a is a link"):
        run_recipe(recipe, tmp_path / "out", where="here")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_recipe_that_is_a_step_of_itself_is_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("steps:\n  again: {recipe: b.yaml}\n")
    (tmp_path / "b.yaml").write_text("steps:\n  again: {recipe: a.yaml}\n")
    with pytest.raises(UserError, match=r"step 'again': .* has itself among its steps"):
        shortlist.recipe.run(shortlist.recipe.Config(recipe=tmp_path / "a.yaml", out=tmp_path / "out"))


def test_a_step_may_refuse_to_replace_what_it_made_before(tmp_path: Path):
    recipe = {"steps": {"a": {"stage": "index", "collection": "c", "overwrite": False}}}
    assert not plan(recipe, tmp_path, where="here")[0].config.overwrite


def test_names_stand_for_settings_outputs_and_settings_that_are_names(tmp_path: Path):
    recipe = {
        "settings": {"data": "c", "measures": ["AP", "$other"], "other": "P@1", "first": "$run"},
        "steps": {
            "run": {"stage": "search", "index": "i", "collection": "$data"},
            "results": {"stage": "evaluate", "runs": ["$first"], "collection": "$data", "measures": "$measures"},
        },
    }
    first, second = plan(recipe, tmp_path, where="here")
    assert (first.name, first.stage, first.config.out) == ("run", "search", tmp_path / "run" / "run.trec")
    assert second.config.runs == (first.config.out,)
    assert second.config.measures == ("AP", "P@1")
    assert first.config.overwrite


def test_values_that_are_set_are_read_as_yaml(done: Path):
    shortlist.recipe.run(
        shortlist.recipe.Config(recipe=done / "recipe.yaml", out=done / "out", set=("depth=3", "keep=12"))
    )
    settings = yaml.safe_load((done / "out" / "recipe.yaml").read_text())["settings"]
    assert (settings["depth"], settings["keep"], settings["reranker_seed"]) == (3, 12, 0)
