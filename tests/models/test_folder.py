"""What the name of a model stands for, looked up once however often it is asked."""

import pickle
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from named import load_retriever
from samples import DOCUMENTS
from tiny import Tiny, write_bert

from shortlist import encode, export, inspect, rerank, search, train
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.models import folder as folders
from shortlist.models.folder import open_folder
from shortlist.models.run import embed_documents
from shortlist.records import Hit
from shortlist.rerankers.pointwise import pointwise


@pytest.fixture
def asked(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the hub was asked for, which has three models."""
    there = {"hub/llama": tiny.llama, "hub/retriever": tiny.retriever, "hub/reranker": tiny.reranker}
    names: list[str] = []

    def fetch(name: str, **_: Any) -> str:
        names.append(name)
        return str(there[name])

    monkeypatch.setattr(folders, "snapshot_download", fetch)
    return names


def training(tiny: Tiny, out: Path, **change: Any) -> train.Config:
    values: dict[str, Any] = {"kind": "retriever", "backbone": "hub/llama", "collection": str(tiny.collection)}
    return train.Config(**(values | {"out": out, "steps": 1, "batch_size": 2, "warmup_steps": 0} | change))


def test_encode_and_search_look_a_name_up_once(tiny: Tiny, tmp_path: Path, asked: list[str]):
    where = {"collection": str(tiny.collection), "model": "hub/retriever"}
    encode.run(encode.Config(**where, out=tmp_path / "vectors", segments="maxp", precision="bf16"))
    assert asked == ["hub/retriever"]
    asked.clear()
    search.run(search.Config(**where, vectors=tmp_path / "vectors", out=tmp_path / "run.trec"))
    assert asked == ["hub/retriever"]


def test_rerank_looks_a_name_up_once(tiny: Tiny, tmp_path: Path, asked: list[str]):
    write_run(tmp_path / "run.trec", {"q1": [Hit("d1", 2.0), Hit("d2", 1.0)]}, tag="x")
    where = {"collection": str(tiny.collection), "run": tmp_path / "run.trec", "out": tmp_path / "reranked.trec"}
    rerank.run(rerank.Config(model="hub/reranker", **where, precision="bf16"))
    assert asked == ["hub/reranker"]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"dry_run": True}, {"kind": "reranker"}, {"adapter": "paper"}], ids=str)
def test_train_looks_a_name_up_once(tiny: Tiny, tmp_path: Path, asked: list[str], change: dict[str, Any]):
    train.run(training(tiny, tmp_path / "model", **change))
    assert asked == ["hub/llama"]


def test_export_and_inspect_look_a_name_up_once(tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]):
    for name in ("hub/retriever", "hub/reranker"):
        export.run(export.Config(model=name, to="merged", out=tmp_path / name))
        inspect.run(inspect.Config(model=name))
        assert asked == [name] * 2
        asked.clear()
    assert "hub/reranker, a reranker" in capsys.readouterr().out


@pytest.mark.slow
def test_so_is_the_base_of_an_adapter(tiny: Tiny, tmp_path: Path, asked: list[str]):
    train.run(training(tiny, tmp_path / "lora", adapter="paper"))
    asked.clear()
    encode.run(encode.Config(model=str(tmp_path / "lora"), collection=str(tiny.collection), out=tmp_path / "vectors"))
    assert asked == ["hub/llama"]
    export.run(export.Config(model=str(tmp_path / "lora"), to="peft", out=tmp_path / "peft"))
    assert asked == ["hub/llama"] * 2


def test_another_process_looks_nothing_up_and_reads_the_same_model(
    tiny: Tiny, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
):
    train.run(training(tiny, tmp_path / "lora", adapter="paper"))
    here = open_folder(str(tmp_path / "lora"))
    here.tokenizer  # noqa: B018 (to have it, as it does not travel)
    sent = pickle.dumps(here)
    assert len(sent) < 2000
    monkeypatch.setattr(folders, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    there = pickle.loads(sent)
    assert (there, there.base) == (here, here.base)
    assert there.num_parameters == here.num_parameters
    assert there.tokenizer.get_vocab() == here.tokenizer.get_vocab()


def test_on_another_machine_the_same_revision_is_looked_for(
    tiny: Tiny, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(tiny.llama, tmp_path / "there" / "abc")
    monkeypatch.setattr(folders, "snapshot_download", lambda name, **_: str(tmp_path / "there" / "abc"))
    sent = pickle.dumps(open_folder("hub/llama"))
    shutil.move(tmp_path / "there", tmp_path / "elsewhere")
    wanted: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        wanted.update(options, name=name)
        return str(tmp_path / "elsewhere" / "abc")

    monkeypatch.setattr(folders, "snapshot_download", fetch)
    assert pickle.loads(sent).path == tmp_path / "elsewhere" / "abc"
    assert (wanted["name"], wanted["revision"]) == ("hub/llama", "abc")


def test_a_hub_name_is_fetched_without_pickles(llama: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def fetch(name: str, *, revision: None, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(llama)

    monkeypatch.setattr(folders, "snapshot_download", fetch)
    assert open_folder("some/model").path == llama
    assert asked["name"] == "some/model"
    names = ["pytorch_model.bin", "a.py", "adapter_model.bin", "model.safetensors", "1_Pooling/config.json"]
    fetched = [name for name in names if any(fnmatch(name, pattern) for pattern in asked["patterns"])]
    assert fetched == ["adapter_model.bin", "model.safetensors", "1_Pooling/config.json"]
    assert open_folder("some/model").identity == f"hub:some/model@{llama.name}"
    found, expected = (load_retriever(name, contract="repllama") for name in ("some/model", str(llama)))
    assert (embed_documents(found, DOCUMENTS) == embed_documents(expected, DOCUMENTS)).all()


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such folder"):
        open_folder(name)


def test_a_hub_that_fails_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(folders, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"some/model: cannot load a model \(there is no such .* hub: no route\)"):
        open_folder("some/model")


def test_the_identity_of_a_folder_changes_with_its_contents(tiny: Tiny, tmp_path: Path):
    folder = shutil.copytree(tiny.retriever, tmp_path / "copy")
    assert open_folder(str(folder)).identity == open_folder(str(tiny.retriever)).identity
    (folder / "contract.json").write_text("{}")
    assert open_folder(str(folder)).identity != open_folder(str(tiny.retriever)).identity


def test_lengths_of_contracts_are_at_most_the_models_positions(tmp_path: Path):
    folder = open_folder(str(write_bert(tmp_path, max_position_embeddings=40)))
    assert folder.num_positions == 40
    contract = folder.contract("document", "bert")
    assert (contract.form.query_length, contract.form.document_length) == (40, 40)
    assert folder.any_contract("bert") == contract
    assert load_retriever(str(tmp_path), contract="bert").contract == contract


@pytest.mark.parametrize(
    "start",
    [
        lambda tiny, bert, out: encode.run(
            encode.Config(model=bert, contract="bert", collection=str(tiny.collection), out=out, max_length=300)
        ),
        lambda tiny, bert, out: train.run(training(tiny, out, backbone=bert, max_length=300)),
        lambda tiny, bert, out: train.run(training(tiny, out, backbone=bert, query_length=41)),
        lambda tiny, bert, out: pointwise(model=bert, contract="bert-pair", max_length=300),
    ],
    ids=["encode", "train documents", "train queries", "rerank"],
)
def test_a_length_beyond_the_positions_is_refused_before_anything_starts(
    start: Callable[..., Any], tiny: Tiny, tmp_path: Path
):
    bert = write_bert(tmp_path / "bert", max_position_embeddings=40)
    with pytest.raises(
        UserError, match=r"has positions for 40 tokens, and inputs may have (300|41); expected 40 or less"
    ):
        start(tiny, str(bert), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_turning_positions_have_no_limit(tiny: Tiny):
    assert open_folder(str(tiny.llama)).num_positions is None
