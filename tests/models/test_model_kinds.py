"""Kinds of models are a table, to which anybody can add."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from named import load_reranker, load_retriever, reranker_to_train, retriever_to_train
from scaled import SCALED
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist import CrossEncoder, Reranker, Retriever, encode, export, inspect, train
from shortlist.data.stores.vectors import VectorReader
from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.models.kinds import KINDS, for_kind, kind_in
from shortlist.models.save import saved_names, saved_weights
from shortlist.train.heldout import EVALUATIONS
from shortlist.train.objectives import OBJECTIVES


def training(tiny: Tiny, out: Path, **change: Any) -> train.Config:
    values: dict[str, Any] = {"kind": "scaled", "backbone": str(tiny.llama), "collection": str(tiny.collection)}
    values |= {"steps": 4, "batch_size": 4, "learning_rate": 0.1, "warmup_steps": 0, "heldout_split": "test"}
    return train.Config(**(values | {"out": out} | change))


@pytest.mark.slow
def test_a_kind_from_outside_is_trained_saved_loaded_used_shown_and_exported(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(KINDS, "scaled", SCALED)
    train.run(training(tiny, tmp_path / "model", adapter="r=2,alpha=4,dropout=0,targets=q_proj"))
    retriever = Retriever.load(str(tmp_path / "model"))
    assert retriever.model.kind == "scaled"
    scale = retriever.model.scale.item()  # type: ignore[attr-defined]
    assert scale != 1  # it has learnt
    vectors = retriever.encode_documents(DOCUMENTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), abs(scale), rtol=1e-5)
    where = {"model": str(tmp_path / "model"), "collection": str(tiny.collection)}
    encode.run(encode.Config(**where, out=tmp_path / "vectors"))
    np.testing.assert_allclose(VectorReader(tmp_path / "vectors").take(np.arange(12)), vectors, atol=1e-5)
    inspect.run(inspect.Config(model=where["model"]))
    assert f"{where['model']}, a retriever" in capsys.readouterr().out
    export.run(export.Config(model=where["model"], to="merged", out=tmp_path / "merged"))
    again = Retriever.load(str(tmp_path / "merged"))
    np.testing.assert_allclose(again.encode_queries(QUERIES), retriever.encode_queries(QUERIES), atol=1e-5)
    with pytest.raises(UserError, match="a scaled is not written as ONNX"):
        export.run(export.Config(model=where["model"], to="onnx", out=tmp_path / "onnx"))


def test_a_kind_that_is_not_there_is_refused_with_those_that_are(tiny: Tiny, tmp_path: Path):
    with pytest.raises(UserError, match="unknown kind of model 'retreiver': perhaps 'retriever'"):
        train.run(training(tiny, tmp_path, kind="retreiver"))
    with pytest.raises(UserError, match="unknown kind of model 'classifier'"):  # which is not trained here
        train.run(training(tiny, tmp_path, kind="classifier"))


def test_a_folder_holds_one_kind(tiny: Tiny):
    for path, reads, name in ((tiny.retriever, "document", "retriever"), (tiny.reranker, "pair", "reranker")):
        folder = open_folder(str(path))
        assert kind_in(folder, folder.contract(reads), reads) is KINDS[name]


def test_every_kind_that_trains_has_an_objective_and_is_measured_or_no_retriever_nor_reranker():
    for name, kind in KINDS.items():
        if kind.to_train:
            assert for_kind(OBJECTIVES, name)
            assert kind.role not in ("retriever", "reranker") or for_kind(EVALUATIONS, name)


def test_a_saved_folder_has_the_keys_that_its_kind_names(tiny: Tiny):
    for folder, model in ((tiny.retriever, load_retriever), (tiny.reranker, load_reranker)):
        keys = set(saved_names(model(str(folder)), adapter=False).values())
        assert keys == {key for key, _ in saved_weights(folder)}


def test_the_names_of_python_follow_the_kind(tiny: Tiny):
    reranker = Reranker.load(str(tiny.reranker))
    assert type(reranker) is Reranker
    assert not isinstance(reranker, CrossEncoder)
    assert retriever_to_train(str(tiny.llama)).kind == "retriever"
    assert reranker_to_train(str(tiny.llama)).kind == "reranker"
