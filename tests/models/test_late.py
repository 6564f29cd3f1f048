"""Late-interaction models give the numbers of sentence-transformers in every layout that it reads."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from late import (
    DIM,
    TEXTS,
    bert_tokenizer,
    write_bert,
    write_decoder,
    write_encoder,
    write_pylate,
    write_stanford,
    write_t5,
)
from safetensors.torch import load_file, save_file
from samples import FAMILIES, small

from shortlist import LateRetriever, Retriever
from shortlist.errors import UserError
from shortlist.math.maxsim import maxsim
from shortlist.models.dense import DenseLayer
from shortlist.models.folder import open_folder
from shortlist.models.late import LateModel
from shortlist.models.outputs import split
from shortlist.records import Document, Query
from shortlist.text.batching import pad
from shortlist.text.contract import Reading, named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.marks import NO_VECTOR, TOKEN_ID, UNREAD

ON_BERT = {"document_length": 9, "query_expansion": {"strategy": "fixed", "length": 10}}
AT_LEAST = {"query_expansion": {"strategy": "min", "length": 10, "attend": True, "token": "[SEP]"}, "query_length": 20}
SKIPS = {"skiplist_words": [".", ",", "nope"], "skiplist_tasks": ["query", "document"]}
SIGNS = {"skiplist_words": [".", ","]}  # sentence-transformers fails on others if there is no unknown token
FILLED = {"query_expansion": {"strategy": "fixed", "length": 16}, "document_length": 20}

LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "stanford": lambda path: write_stanford(path / "model"),
    "stanford, read": lambda path: write_stanford(path / "model", attend_to_mask_tokens=True, mask_punctuation=False),
    "pylate": lambda path: write_pylate(path / "model"),
    "pylate, unfilled": lambda path: write_pylate(path / "model", do_query_expansion=False, skiplist_words=None),
    "pylate, prompts": lambda path: write_pylate(
        path / "model", residual=True, attend_to_expansion_tokens=True, prompts={"query": "[Q] which "}
    ),
    "encoder": lambda path: write_encoder(path / "model", write_bert(path / "bert"), **ON_BERT),
    "encoder, unfilled": lambda path: write_encoder(path / "model", write_bert(path / "bert"), document_length=9),
    "encoder, min": lambda path: write_encoder(path / "model", write_bert(path / "bert"), mask=SKIPS, **AT_LEAST),
    "decoder": lambda path: write_encoder(path / "model", write_decoder(path / "llama"), document_length=20),
    "decoder, filled": lambda path: write_encoder(path / "model", write_decoder(path / "llama"), mask=SIGNS, **FILLED),
    "xtr": lambda path: write_xtr(path),
}
"""Folders of other tools, by what is special about them."""


def write_xtr(path: Path) -> Path:
    """T5's encoder whose settings say that texts are lower-cased, and whose tokenizer does not do so."""
    folder = write_encoder(path / "model", write_t5(path / "t5"), prompts={})
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings | {"do_lower_case": True}))
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LateRetriever, Any]:
    """The same model here and in sentence-transformers."""
    from sentence_transformers import MultiVectorEncoder

    folder = str(LAYOUTS[request.param](tmp_path_factory.mktemp("late")))
    return LateRetriever.load(folder), MultiVectorEncoder(folder, device="cpu")


WITH_TEXT = [*filter(None, TEXTS), "The Lamp HAS a colour", "of" + " of" * 29]
"""A text that is empty loses the space before it here, which some tokenizers read as a token there."""


def test_vectors_and_scores_are_those_of_sentence_transformers(pair: tuple[LateRetriever, Any]):
    ours, theirs = pair
    queries, documents = ours.encode_queries(WITH_TEXT), ours.encode_documents(WITH_TEXT)
    for own, other in ((queries, theirs.encode_query(WITH_TEXT)), (documents, theirs.encode_document(WITH_TEXT))):
        assert own.counts.tolist() == [len(vectors) for vectors in other]
        np.testing.assert_allclose(own.values, np.concatenate([np.asarray(text) for text in other]), atol=1e-6)
    scores = theirs.similarity(theirs.encode_query(WITH_TEXT), theirs.encode_document(WITH_TEXT))
    np.testing.assert_allclose(maxsim(queries, documents), scores.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.score(WITH_TEXT[0], WITH_TEXT), scores[0].numpy(), rtol=1e-5, atol=1e-5)


def test_the_texts_beside_it_change_nothing_of_a_texts_vectors(pair: tuple[LateRetriever, Any]):
    ours, _ = pair
    for encode in (ours.encode_queries, ours.encode_documents):
        for text, together in zip(WITH_TEXT, encode(WITH_TEXT), strict=True):
            np.testing.assert_allclose(encode(text), together, atol=1e-6)


@pytest.fixture(scope="module")
def stanford(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stanford(tmp_path_factory.mktemp("late") / "stanford")


def test_a_query_is_marked_filled_up_and_its_filling_is_not_read(stanford: Path):
    retriever = LateRetriever.load(str(stanford))
    tokenizer, inputs = retriever.inputs.tokenizer, retriever.inputs
    [query], [document] = inputs.query_ids([Query("q", "which boat")]), inputs.document_ids([Document("d", "boat.")])
    assert tokenizer.convert_ids_to_tokens([token & TOKEN_ID for token in query]) == [
        *("[CLS]", "[unused0]", "which", "boat", "[SEP]"),
        *["[MASK]"] * 5,
    ]
    assert [bool(token & UNREAD) for token in query] == [False] * 5 + [True] * 5
    assert tokenizer.convert_ids_to_tokens([token & TOKEN_ID for token in document])[:2] == ["[CLS]", "[unused1]"]
    assert [bool(token & NO_VECTOR) for token in document] == [False, False, False, True, False]


def test_a_token_that_is_not_read_changes_no_other(stanford: Path):
    model = LateRetriever.load(str(stanford)).model
    ids, lengths = torch.tensor([[2, 5, 7, 3]]), torch.tensor([4])
    alone = model(ids, lengths).values
    filled = torch.cat([ids, torch.full((1, 3), 4 | UNREAD)], 1)
    torch.testing.assert_close(model(filled, lengths + 3).values[:4], alone)
    read = torch.cat([ids, torch.full((1, 3), 4)], 1)
    assert (model(read, lengths + 3).values[:4] - alone).abs().max() > 1e-3


def test_words_that_the_vocabulary_lacks_are_not_skipped_as_unknown(stanford: Path):
    retriever = LateRetriever.load(str(stanford))
    assert "[UNK]" not in retriever.contract.form.skipped
    assert len(retriever.encode_documents("zebra (")) == 5  # [CLS], [unused1], two unknown, [SEP]


def test_a_query_of_markers_alone_and_a_document_of_skipped_words_alone_have_vectors(stanford: Path):
    retriever = LateRetriever.load(str(stanford))
    assert len(retriever.encode_queries("")) == 10
    assert len(retriever.encode_documents(" . , ! ")) == 3
    assert retriever.encode_documents([]).values.shape == (0, DIM)
    assert np.isfinite(retriever.score("", ["", "."])).all()


def test_a_document_without_a_vector_scores_lowest(tmp_path: Path):
    folder = write_encoder(
        tmp_path / "model", write_t5(tmp_path / "t5"), prompts={}, mask={"skiplist_words": [".", "</s>"]}
    )
    scores = LateRetriever.load(str(folder)).score("lamp", [".", "which"])
    assert scores[0] == -np.inf < scores[1]


@pytest.mark.parametrize("filled", [None, {"strategy": "fixed", "length": 4}])
def test_a_query_of_nothing_at_all_has_no_vectors_but_those_that_fill_it_up(tmp_path: Path, filled: Any):
    settings = {"query_expansion": filled} if filled else {}
    retriever = LateRetriever.load(
        str(write_encoder(tmp_path / "model", write_decoder(tmp_path / "llama"), prompts={}, **settings))
    )
    together = retriever.encode_queries(["", "lamp"])
    assert together.counts[0] == (4 if filled else 0)
    assert np.isfinite(together.values).all()
    np.testing.assert_allclose(retriever.encode_queries(""), next(iter(together)), atol=1e-6)
    if not filled:
        assert retriever.score("", ["lamp", "which"]).tolist() == [0, 0]
        assert retriever.score("lamp", [""]).tolist() == [-np.inf]


def test_markers_of_jina_are_known_by_the_vocabulary(tmp_path: Path):
    folder = write_stanford(tmp_path / "model", attend_to_mask_tokens=False)
    tokenizer = open_folder(str(folder)).tokenizer
    tokenizer.add_tokens(["[QueryMarker]", "[DocumentMarker]"])
    tokenizer.save_pretrained(folder)
    form = open_folder(str(folder)).contract("document").form
    assert form.query == named_contract("jina-colbert-v2").form.query
    assert form.document == named_contract("jina-colbert-v2").form.document
    assert form.expansion_read


def test_one_vector_and_one_for_each_token_are_not_mistaken_for_each_other(stanford: Path, tiny: Any):
    with pytest.raises(UserError, match=r"gives a vector for each token .*; load it with LateRetriever"):
        Retriever.load(str(stanford))
    with pytest.raises(UserError, match=r"gives one vector for each text; load it with Retriever"):
        LateRetriever.load(str(tiny.retriever))


def test_an_encoder_without_a_projection_is_no_late_interaction_model(tiny: Any):
    contract = named_contract("bert")
    contract = replace(contract, reading=replace(contract.reading, pooling="tokens"))
    with pytest.raises(UserError, match=r"has no projection of tokens .*shortlist train late"):
        LateRetriever.load(str(tiny.bert), contract=contract)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.dnn"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str):
    folder = write_stanford(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        LateRetriever.load(str(folder))


def test_a_layer_of_the_backbone_whose_name_ends_alike_is_not_the_projection(tmp_path: Path):
    folder = write_stanford(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["bert.other.linear.weight"] = weights.pop("linear.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="has no projection"):
        LateRetriever.load(str(folder))


def test_dims_cut_the_vectors(stanford: Path):
    whole, cut = LateRetriever.load(str(stanford)), LateRetriever.load(str(stanford), dims=5)
    assert cut.dim == 5
    first = whole.encode_queries("lamp")[:, :5]
    np.testing.assert_allclose(
        cut.encode_queries("lamp"), first / np.linalg.norm(first, axis=1, keepdims=True), atol=1e-6
    )


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_padding_changes_nothing_and_what_is_not_read_no_other_token(
    family: str, attention: str | None
):
    inputs = Inputs(named_contract("colbert").form, bert_tokenizer())
    backbone = small(family, attn_implementation=attention)
    model = LateModel(backbone, inputs, Reading(pooling="tokens"), [DenseLayer(torch.randn(6, 64))]).eval()
    text, longer = [5, 9, 17, 23 | NO_VECTOR, 7], [5, 8, 9, 11, 12, 13, 14, 15]
    filled = [*text, *[4 | UNREAD] * 8]  # more than windows are wide
    with torch.no_grad():
        alone, together, unread = (
            split(model(*pad(rows, 0)))[0] for rows in ([text], [text, longer], [filled, [*longer, 31]])
        )
    assert len(alone) == 4
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert len(unread) == 12
    assert unread.isfinite().all()
    torch.testing.assert_close(unread[:4], alone, atol=1e-5, rtol=0)
