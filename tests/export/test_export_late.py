"""Late-interaction models open in sentence-transformers, and in PyLate's layout, with the same numbers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import pytest
from late import TEXTS, write_bert, write_decoder, write_encoder, write_pylate, write_stanford, write_t5
from named import late_to_train

from shortlist import LateRetriever, export
from shortlist.errors import UserError
from shortlist.models.save import save_model
from shortlist.text.contract import InputContract, named_contract

WITH_TEXT = [*filter(None, TEXTS), "The Lamp HAS a colour"]
AT_LEAST = {"query_expansion": {"strategy": "min", "length": 10, "attend": True, "token": "[SEP]"}, "query_length": 20}


def trained(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """What writes a model of ours on a backbone."""

    def write_ours(folder: Path) -> Path:
        save_model(late_to_train(str(write(folder / "backbone")), dim=12), folder / "model")
        return folder / "model"

    return write_ours


MODELS: dict[str, Callable[[Path], Path]] = {
    "bert": trained(write_bert),
    "decoder": trained(write_decoder),
    "t5": trained(write_t5),
    "stanford": lambda path: write_stanford(path / "model", attend_to_mask_tokens=True),
    "pylate": lambda path: write_pylate(path / "model", residual=True),
    "encoder": lambda path: write_encoder(path / "model", write_bert(path / "bert"), **AT_LEAST),
}
CANNOT = {"decoder": "adds prompts only where", "encoder": "adds prompts only where"}
"""Models that PyLate's layout has no place for, and why."""


@pytest.mark.parametrize("to", ["sentence-transformers", "pylate"])
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_gives_the_same_vectors(name: str, to: Any, tmp_path: Path):
    from sentence_transformers import MultiVectorEncoder

    folder = MODELS[name](tmp_path)
    config = export.Config(model=str(folder), to=to, out=tmp_path / "out")
    if to == "pylate" and name in CANNOT:
        with pytest.raises(UserError, match=CANNOT[name]):
            export.run(config)
        return
    export.run(config)
    ours, theirs = LateRetriever.load(str(folder)), MultiVectorEncoder(str(tmp_path / "out"), device="cpu")
    alone = read_as_foreign(tmp_path / "out")
    for encode, again, elsewhere in (
        (ours.encode_queries, alone.encode_queries, theirs.encode_query),
        (ours.encode_documents, alone.encode_documents, theirs.encode_document),
    ):
        expected, found = encode(WITH_TEXT), elsewhere(WITH_TEXT)
        assert expected.counts.tolist() == [len(text) for text in found]
        np.testing.assert_allclose(np.concatenate([np.asarray(text) for text in found]), expected.values, atol=1e-6)
        np.testing.assert_allclose(again(WITH_TEXT).values, expected.values, atol=1e-6)


def read_as_foreign(folder: Path) -> LateRetriever:
    """Load a copy of the folder that is read as one of another tool."""
    away = ignore_patterns("contract.json", "manifest.json")
    return LateRetriever.load(str(copytree(folder, folder.with_name("copy"), ignore=away)))


def test_a_card_says_how_the_model_is_used(tmp_path: Path):
    export.run(export.Config(model=str(MODELS["bert"](tmp_path)), to="sentence-transformers", out=tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from shortlist import LateRetriever" in card
    assert "A late-interaction retriever" in card


def test_a_marker_of_its_own_row_in_the_vocabulary_stays_one_token(tmp_path: Path):
    export.run(export.Config(model=str(MODELS["bert"](tmp_path)), to="pylate", out=tmp_path / "out"))
    known = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert (known["query_prefix"], known["document_prefix"]) == ("[unused0]", "[unused1]")
    assert known["model_type"] == "ColBERT"
    assert set(known["skiplist_words"]) == {".", ",", "!", "?", "-"}  # the vocabulary has no others


@pytest.mark.parametrize(
    ("to", "message"),
    [("peft", "is a whole model"), ("cross-encoder", "is for a reranker"), ("onnx", "a late is not written as ONNX")],
)
def test_layouts_without_a_place_for_it_are_refused(to: Any, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        export.run(export.Config(model=str(MODELS["bert"](tmp_path)), to=to, out=tmp_path / "out"))


def test_a_single_vector_is_not_for_pylate(tiny: Any, tmp_path: Path):
    with pytest.raises(UserError, match="--to pylate: is for a late-interaction model"):
        export.run(export.Config(model=str(tiny.retriever), to="pylate", out=tmp_path / "out"))


def test_a_cut_model_and_layers_that_have_no_place_are_refused(tmp_path: Path):
    def cut(contract: InputContract) -> InputContract:
        return replace(contract, reading=replace(contract.reading, cut=4))

    save_model(
        late_to_train(str(write_bert(tmp_path / "bert")), named_contract("colbert"), adjust=cut), tmp_path / "cut"
    )
    with pytest.raises(UserError, match="cuts its vectors to 4 dimensions"):
        export.run(export.Config(model=str(tmp_path / "cut"), to="pylate", out=tmp_path / "out"))
    with pytest.raises(UserError, match="has dense layers behind its backbone"):
        export.run(export.Config(model=str(MODELS["pylate"](tmp_path)), to="merged", out=tmp_path / "out"))
