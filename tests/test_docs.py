"""What the documents say can be typed: commands, recipes, links and Python."""

import ast
import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from foreign import small_dataset, small_task
from jaxtyping import Float
from named import late_to_train
from tiny import DOCUMENTS, QUERIES

from shortlist.commands import COMMANDS, GONE
from shortlist.config import flag_of, parse
from shortlist.data.collections import open_collection
from shortlist.math.ranking import Ranking
from shortlist.models.folder import open_folder
from shortlist.models.loading_sparse import sparse_to_train
from shortlist.models.save import save_model
from shortlist.pipeline import spec
from shortlist.recipe import plan
from shortlist.settings.sources import parse_sources
from shortlist.text.contract import InputContract, presets

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SET_UP = [
    ROOT / "Makefile",
    ROOT / "constraints.txt",
    ROOT / "pyproject.toml",
    ROOT / "scripts/check",
    ROOT / ".ci/run",
]
CONTRACT_SETTINGS = InputContract().to_dict().keys()
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
REGISTRIES = re.compile(
    r"pypi\.|pythonhosted|pytorch\.org|anaconda|huggingface\.co|hf\.co|npmjs|index-url", re.IGNORECASE
)


def blocks(path: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(path.read_text("utf-8")) if language in languages]


def prose(path: Path) -> str:
    """The text outside the fenced blocks."""
    return FENCE.sub("", path.read_text("utf-8"))


def commands(text: str) -> list[list[str]]:
    """The words of each line that runs `shortlist`, under torchrun too; continuation lines joined."""
    text = text.replace("\\\n", " ").replace(" && ", "\n")
    lines = re.findall(r"^(?:torchrun .* -m )?shortlist (.*)", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


SHOWN = [(path, words) for path in DOCS for body in blocks(path, "", "bash") for words in commands(body)]
MENTIONS = [
    (path, shlex.split(mention))
    for path in DOCS
    for mention in re.findall(r"`shortlist ([^`]+)`", " ".join(prose(path).split()))
]


def stage(name: str):
    return import_module(f"shortlist.{COMMANDS[name].module}")


def words_of(value: Path | list[str]) -> str:
    return value.name if isinstance(value, Path) else " ".join(value[:2])


@pytest.mark.parametrize(("path", "words"), SHOWN, ids=words_of)
def test_every_command_in_a_block_can_be_typed(path, words):
    name, *flags = words
    assert name in COMMANDS, path
    assert parse(stage(name).Config, flags, prog=f"shortlist {name}")


@pytest.mark.parametrize(("path", "words"), MENTIONS, ids=words_of)
def test_every_command_in_the_text_exists_with_its_flags(path, words):
    name, *rest = words
    assert name in COMMANDS or name in {"COMMAND", "--help", "--version", "--completion"}, path
    if name in COMMANDS:
        known = {"--help", "--config", *map(flag_of, stage(name).Config.__dataclass_fields__)}
        assert {word for word in rest if word.startswith("--")} <= known, path


def test_the_readme_and_the_guide_show_commands():
    shown = {words[0] for path, words in SHOWN if path.name in ("guide.md", "models.md", "scale.md", "evaluation.md")}
    assert shown == set(COMMANDS) - {"demo"}
    assert any(path.name == "README.md" for path, _ in SHOWN)


def test_what_the_list_of_papers_names_is_there():
    rows = [line.split("|") for line in (ROOT / "docs/papers.md").read_text().splitlines() if re.match(r"\| \d", line)]
    assert [int(row[1]) for row in rows] == list(range(1, 54))
    for number, _, run, code, tested in (row[1:6] for row in rows):
        for folder, named in (("shortlist", code), ("tests", tested)):
            paths = re.findall(r"`([^`]+)`", named)
            assert [path for path in paths if not (ROOT / folder / path).is_file()] == [], f"paper {number}"
        assert re.search(r"nothing|check list", run) or (code.strip() and tested.strip()), f"paper {number}"


def test_every_flag_in_the_text_belongs_to_some_command():
    known = {flag_of(field)[2:] for name in COMMANDS for field in stage(name).Config.__dataclass_fields__}
    known |= {"help", "version", "config", "completion", "no-verify", "no-deps"}
    gone = {name.partition(" --")[2] for name in GONE}
    for path in DOCS:
        flags = {
            flag for code in re.findall(r"`([^`]+)`", prose(path)) for flag in re.findall(r"--([a-z][\w-]*)", code)
        }
        assert flags <= (known | gone if path.name == "CHANGELOG.md" else known), path


def test_the_changelog_says_what_everything_that_has_gone_is_now():
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert {name for name, new in GONE.items() if f"| `{name}` | `{new}` |\n" not in changes} == set()


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_recipe_and_pipeline_in_a_document_can_be_read(path, tmp_path):
    for values in map(yaml.safe_load, blocks(path, "yaml")):
        if path.name == "pipelines.md":
            assert spec.parse_description(values, where=path.name).steps
        elif all(isinstance(value, dict) and "collection" in value for value in values.values()):
            assert parse_sources(json.dumps(values))
        else:
            assert values.keys() <= CONTRACT_SETTINGS or plan(values, tmp_path, where=path.name)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_project_can_be_planned(path, tmp_path):
    assert plan(yaml.safe_load(path.read_text("utf-8")), tmp_path, where=str(path))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_python_block_is_python(path):
    for body in blocks(path, "python"):
        ast.parse(body)


def test_the_stage_that_the_documents_show_works(tmp_path):
    body = next(body for body in blocks(ROOT / "docs/extending.md", "python") if "Stage `count`" in body)
    module: dict = {"__name__": "count"}
    exec(body, module)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "three words here"}\n')
    config = module["Config"](collection=str(tmp_path), out=tmp_path / "words.txt")
    module["run"](config)
    assert (tmp_path / "words.txt").read_text() == "3\n"
    assert open_collection(str(tmp_path)).splits() == ["all"]


def test_the_loss_that_the_documents_show_works():
    body = next(body for body in blocks(ROOT / "docs/extending.md", "python") if "def triplet" in body)
    module: dict = {"torch": torch, "Ranking": Ranking, "Float": Float, "Tensor": torch.Tensor, "infonce": 0, "kl": 0}
    exec(body, module)
    scores, nan = torch.tensor([[1.0, 0.95, 0.5, 1.2], [3.0, 0.0, torch.nan, 2.95]]), torch.nan
    keep = torch.tensor([[True] * 4, [True, True, False, True]])
    ranking = Ranking(scores, torch.tensor([[1.0, 0, 0, 0], [0, 0, nan, 1.0]]), None, keep)
    assert module["LOSSES"]["triplet"](ranking).item() == pytest.approx((0.05 + 0.3 + 0.15) / 2, abs=1e-6)


@pytest.mark.slow
def test_the_blocks_about_python_run_one_after_the_other(tiny, tmp_path, monkeypatch):
    mteb, ir_datasets = pytest.importorskip("mteb"), pytest.importorskip("ir_datasets")
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    monkeypatch.chdir(tmp_path)
    for folder in (tiny.collection, tiny.retriever, tiny.reranker):
        shutil.copytree(folder, {"collection": "my-data"}.get(folder.name, f"my-{folder.name}"))
    save_model(late_to_train(str(tiny.bert)), Path("my-late-model"))
    save_model(sparse_to_train(open_folder(str(tiny.bert))), Path("my-sparse-model"))
    qrels = open_collection("my-data").qrels("test")
    candidates = {query_id: [document.doc_id for document in DOCUMENTS] for query_id in qrels}
    tasks = {"SciFact": None, "AskUbuntuDupQuestions": candidates}
    made = {name: small_task(DOCUMENTS, QUERIES, qrels, given) for name, given in tasks.items()}
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: [made[name] for name in tasks])
    dataset = small_dataset(tmp_path, DOCUMENTS, QUERIES, qrels, monkeypatch=monkeypatch)
    monkeypatch.setattr(ir_datasets, "load", {"beir/scifact/test": dataset}.__getitem__)
    namespace: dict = {}
    for body in blocks(ROOT / "docs/python.md", "python"):
        exec(body, namespace)
    assert namespace["similarities"].shape == (1, 2)
    assert set(namespace["run"]) == set(qrels)
    assert namespace["results"].task_results[0].task_name == "SmallReranking"
    assert len(namespace["best"]) == 2
    assert len(namespace["tokens"]) == 2


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("path", [*DOCS, *SET_UP], ids=lambda path: path.name)
def test_no_document_and_no_set_up_file_names_a_registry(path):
    assert REGISTRIES.findall(path.read_text("utf-8")) == []


def test_the_presets_are_documented():
    rows = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs/formats.md").read_text("utf-8"), re.MULTILINE)
    assert set(presets()) <= set(rows)


def test_the_extending_document_names_every_room():
    listed = (ROOT / "docs/extending.md").read_text("utf-8")
    rooms = {path.stem for path in (ROOT / "shortlist").iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert {room for room in rooms if room not in listed} == set()


def block(document: str, words: str) -> str:
    """The Python block of a document that holds these words."""
    [body] = [body for body in blocks(ROOT / "docs" / document, "python") if words in body]
    return body


def test_the_pooling_that_the_documents_show_works():
    import torch

    from shortlist.math.pooling import POOLINGS

    space: dict = {"torch": torch, "weighted_mean": POOLINGS["weighted"], **POOLINGS}
    exec(block("extending.md", "def ends"), space)
    hidden = torch.tensor([[[1.0], [4.0], [100.0]]])
    assert space["POOLINGS"]["ends"](hidden, torch.tensor([2])).tolist() == [[2.5]]


def test_the_model_that_the_documents_show_works(tiny):
    import torch
    from named import load_retriever
    from torch import nn

    from shortlist.models.backbone import load_backbone, real_tokens
    from shortlist.models.outputs import Rows, split
    from shortlist.models.run import run_model
    from shortlist.text.contract import InputContract

    space: dict = {"nn": nn, "real_tokens": real_tokens, "Rows": Rows, "InputContract": InputContract}
    exec(block("extending.md", "class PerToken"), space)
    backbone, dense = load_backbone(str(tiny.bert)).eval(), load_retriever(str(tiny.retriever))
    model = space["PerToken"](backbone, dense.inputs, dense.reading)
    assert model.contract == dense.contract
    texts = [[1, 5, 9, 2], [1, 7, 2], [1, 4, 8, 9, 2]]
    with torch.inference_mode():
        alone = [backbone(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in texts]
    for actual, expected in zip(split(run_model(model, texts)), alone, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_the_kind_of_model_that_the_documents_show_is_the_one_that_is_tested(monkeypatch):
    import scaled

    from shortlist.models.kinds import KINDS

    monkeypatch.setitem(KINDS, "scaled", scaled.SCALED)  # so that it is taken out again
    functions = ("find_scale", "load", "to_train")
    exec(block("extending.md", 'KINDS["scaled"]'), {name: getattr(scaled, name) for name in functions})
    for name in ("role", "reads", "load", "to_train", "saved"):
        assert getattr(KINDS["scaled"], name) == getattr(scaled.SCALED, name)


def test_the_contract_that_the_documents_show_works(tiny, tmp_path, monkeypatch):
    from shortlist.models.folder import open_folder
    from shortlist.records import Document, Query
    from shortlist.text.contract import named_contract
    from shortlist.text.inputs import Inputs

    [body] = [body for body in blocks(ROOT / "docs/reranking.md", "yaml") if "Relevant?" in body]
    (tmp_path / "my-yes-no.yaml").write_text(body, "utf-8")
    monkeypatch.setitem(presets(), "my-yes-no", tmp_path / "my-yes-no.yaml")
    contract = named_contract("my-yes-no")
    assert (contract.form.pair_length, contract.reading.answer) == (1024, ("yes", "no"))
    inputs = Inputs(contract.form, open_folder(str(tiny.llama)).tokenizer)
    [ids] = inputs.pair_ids([(Query("q", "apple"), Document("d", "boat"))])
    assert ids[0] == inputs.special_id("<bos>")


def test_the_reranker_that_the_documents_show_works(tiny, tmp_path, monkeypatch):
    from shortlist.cli import main
    from shortlist.data.runs import read_run, write_run
    from shortlist.records import Hit
    from shortlist.rerankers.kinds import RERANKERS

    monkeypatch.setitem(RERANKERS, "novelty", RERANKERS["pointwise"])  # so that it is taken out again
    exec(block("extending.md", "class Novelty"), {})
    write_run(tmp_path / "run.trec", {"q0": [Hit("d0", 3.0), Hit("d1", 2.0)]})
    names = ["--run", str(tmp_path / "run.trec"), "--collection", str(tiny.collection), "--out", str(tmp_path / "out")]
    assert main(["rerank", "--method", "novelty", *names]) == 0
    assert {hit.doc_id for hit in read_run(tmp_path / "out")["q0"]} == {"d0", "d1"}


def test_the_method_that_the_documents_open_in_python_works(language_model):
    space: dict = {}
    exec(block("reranking.md", "load_reranker").replace("Qwen/Qwen3-4B", str(language_model)), space)
    assert sorted(space["scores"]) == [1, 2]


def test_every_method_and_every_prompt_is_documented():
    from shortlist.rerankers.kinds import RERANKERS
    from shortlist.text.prompts import prompts

    reranking, formats = ((ROOT / "docs" / name).read_text("utf-8") for name in ("reranking.md", "formats.md"))
    assert {name for name in RERANKERS if f"`{name}`" not in reranking} == set()
    assert {name for name in prompts() if f"`{name}`" not in formats} == set()


def test_the_vectors_can_be_read_as_the_documents_show(tmp_path, monkeypatch):
    import numpy as np

    from shortlist.data.stores.vectors import VectorWriter

    vectors = np.arange(2 * 384, dtype=np.float32).reshape(2, 384)
    VectorWriter(tmp_path, 384).write_shard(0, ["d1", "d2"], vectors)
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(block("formats.md", "shard-00000.bin"), space)
    assert np.array_equal(space["vectors"], vectors)
    assert space["doc_ids"] == ["d1", "d2"]
