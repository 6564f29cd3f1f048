"""Learned sparse models give the numbers of sentence-transformers, and of a plain forward pass."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from late import bert_tokenizer
from safetensors.torch import save_file
from samples import DECODERS, FAMILIES, small
from sparse import TEXTS, masked_bert, write_encoder, write_masked, write_opensearch
from tiny import Tiny

from shortlist import LateRetriever, Retriever, SparseRetriever, TermWeights
from shortlist.errors import UserError
from shortlist.math.terms import dot
from shortlist.models.backbone import apply_reading, is_decoder
from shortlist.models.folder import open_folder
from shortlist.models.loading_sparse import sparse_to_train
from shortlist.models.lookups import LOOKUP_KEY, read_named_weights
from shortlist.models.save import save_model
from shortlist.models.sparse import SparseModel, entries, vocabulary_wide
from shortlist.models.term_heads import VocabularyHead, masked_head
from shortlist.records import Document, Query
from shortlist.text.batching import pad
from shortlist.text.contract import InputContract, named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.marks import NO_VECTOR

LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "max": lambda path: write_encoder(path / "model", write_masked(path / "bert")),
    "sum": lambda path: write_encoder(path / "model", write_masked(path / "bert"), pooling_strategy="sum", old=True),
    "two logs": lambda path: write_encoder(
        path / "model", write_masked(path / "bert", tie_word_embeddings=False), activation_function="log1p_relu"
    ),
    "lookup": lambda path: write_encoder(path / "model", write_masked(path / "bert"), lookup=True),
}
"""Folders of sentence-transformers, by what is special about them."""


def wide(weights: TermWeights, size: int) -> np.ndarray:
    """The weights of all terms."""
    table = np.zeros((len(weights), size), dtype=np.float32)
    for row, (terms, values) in enumerate(weights):
        table[row, terms] = values
    return table


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_those_of_sentence_transformers(layout: str, tmp_path: Path):
    from sentence_transformers import SparseEncoder

    folder = str(LAYOUTS[layout](tmp_path))
    ours, theirs = SparseRetriever.load(folder), SparseEncoder(folder, device="cpu")
    texts = [*TEXTS, "of" + " of" * 29]
    for here, there in ((ours.encode_queries, theirs.encode_query), (ours.encode_documents, theirs.encode_document)):
        expected: Any = there(texts)
        found = here(texts)
        assert found.counts.min() > 0
        np.testing.assert_allclose(wide(found, ours.num_terms), expected.to_dense().numpy(), atol=1e-6)


def plain_weights(model: Any, texts: list[str]) -> np.ndarray:
    tokenizer = bert_tokenizer()
    rows = []
    for text in texts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
        rows.append(logits.relu().log1p().amax(0))
    return torch.stack(rows).numpy()


def test_a_masked_language_model_is_read_with_the_contract_splade(tmp_path: Path):
    retriever = SparseRetriever.load(str(write_masked(tmp_path / "bert")), contract="splade")
    found = retriever.encode_documents(TEXTS)
    np.testing.assert_allclose(wide(found, retriever.num_terms), plain_weights(masked_bert(), TEXTS), atol=5e-6)
    for terms, weights in found:
        assert (np.diff(terms) > 0).all()
        assert (weights > 0).all()
    assert retriever.terms == bert_tokenizer().convert_ids_to_tokens(list(range(retriever.num_terms)))
    queries = retriever.encode_queries(TEXTS[0])
    np.testing.assert_allclose(retriever.score(TEXTS[0], TEXTS), dot(queries, found)[0], rtol=1e-6)
    assert isinstance(retriever.score(TEXTS[0], TEXTS[1]), float)
    assert len(retriever.encode_documents([])) == 0
    assert "terms" in repr(retriever)


def test_a_model_saved_here_gives_the_same_weights_and_opens_in_transformers(tmp_path: Path):
    from transformers import AutoModelForMaskedLM

    folder = write_masked(tmp_path / "bert")
    model = sparse_to_train(open_folder(str(folder)))
    save_model(model, tmp_path / "ours")
    before, after = SparseRetriever.load(str(folder), contract="splade"), SparseRetriever.load(str(tmp_path / "ours"))
    np.testing.assert_array_equal(after.encode_documents(TEXTS).weights, before.encode_documents(TEXTS).weights)
    loaded, found = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not found["missing_keys"]
    np.testing.assert_allclose(plain_weights(loaded.eval(), TEXTS), plain_weights(masked_bert(), TEXTS), atol=5e-6)


SETTINGS: dict[str, dict[str, Any]] = {
    "lookup": {"queries": "lookup"},
    "own tokens": {"weighing": "tokens", "queries": "tokens"},
    "tokens of queries": {"queries": "tokens", "logs": 2},
    "few": {"keep_terms": 3, "keep_query_terms": 2},
    "sum": {"pooling": "terms-sum", "left_out": ("[CLS]", "[SEP]")},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_form_is_saved_and_runs_as_it_trains(name: str, tmp_path: Path):
    def adjust(contract: InputContract) -> InputContract:
        return replace(contract, reading=replace(contract.reading, **SETTINGS[name]))

    torch.manual_seed(0)
    folder = open_folder(str(write_masked(tmp_path / "bert")))
    model = sparse_to_train(folder, adjust=adjust, lookup=lambda inputs, size: torch.arange(size) / 10.0)
    save_model(model, tmp_path / "model")
    retriever = SparseRetriever.load(str(tmp_path / "model"))
    assert retriever.contract == model.contract
    model.train().backbone.eval()
    for weights, rows in (
        (retriever.encode_queries(TEXTS), model.inputs.query_ids([Query("", text) for text in TEXTS])),
        (retriever.encode_documents(TEXTS), model.inputs.document_ids([Document("", text) for text in TEXTS])),
    ):
        with torch.no_grad():
            dense = torch.cat([model(torch.tensor([row]), torch.tensor([len(row)])).values for row in rows])
        np.testing.assert_allclose(wide(weights, model.num_terms), dense.numpy(), atol=5e-6)
    if name == "few":
        assert retriever.encode_documents(TEXTS).counts.max() == 3
        assert retriever.encode_queries(TEXTS).counts.max() == 2
    if name == "own tokens":
        own = {2, 3, *(retriever.terms.index(name) for name in ("the", "apple", "has", "a", "colour", "."))}
        assert 0 < len(found := set(retriever.encode_documents(TEXTS[0]).terms.tolist())) <= len(own)
        assert found <= own
    if name == "lookup":
        alone = SparseRetriever.load(str(tmp_path / "model"), queries_only=True)
        expected = retriever.encode_queries(TEXTS)
        np.testing.assert_array_equal(alone.encode_queries(TEXTS).weights, expected.weights)
        lamp = alone.encode_queries("lamp lamp")
        assert dict(zip(lamp.terms.tolist(), lamp.weights.tolist(), strict=True))[
            alone.terms.index("lamp")
        ] == pytest.approx(alone.terms.index("lamp") / 10)
        with pytest.raises(UserError, match="loaded for queries alone"):
            alone.encode_documents("lamp")


def test_opensearchs_third_version_applies_the_logarithm_twice(tmp_path: Path):
    folder = write_opensearch(tmp_path / "opensearch-neural-sparse-encoding-doc-v3-distill")
    retriever, tokenizer = SparseRetriever.load(str(folder)), bert_tokenizer()
    once = plain_weights(masked_bert(), TEXTS)
    expected = np.log1p(once)
    expected[:, tokenizer.all_special_ids] = 0  # as its contract leaves them out
    found = wide(retriever.encode_documents(TEXTS), retriever.num_terms)
    found[:, tokenizer.all_special_ids] = 0
    np.testing.assert_allclose(found, expected, atol=5e-6)
    assert retriever.contract.reading.logs == 2
    (tmp_path / "opensearch-neural-sparse-encoding-doc-v2").mkdir()
    second = write_opensearch(tmp_path / "opensearch-neural-sparse-encoding-doc-v2")
    assert SparseRetriever.load(str(second), queries_only=True).contract.reading.logs == 1


def test_queries_that_are_looked_up_load_no_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_opensearch(tmp_path / "model")
    whole = SparseRetriever.load(str(folder))
    monkeypatch.setattr("shortlist.models.loading_sparse.open_backbone", None)
    alone = SparseRetriever.load(str(folder), queries_only=True)
    found, expected = (
        alone.encode_queries(["the lamp", "lamp [SEP]", ""]),
        whole.encode_queries(["the lamp", "lamp [SEP]", ""]),
    )
    np.testing.assert_array_equal(found.terms, expected.terms)
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert found.counts.tolist() == [2, 1, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_padding_changes_no_weight(family: str):
    reading = replace(named_contract("splade").reading, bidirectional=family in DECODERS)
    inputs, backbone = Inputs(named_contract("splade").form, bert_tokenizer()), small(family)
    apply_reading(backbone, reading)
    head = VocabularyHead(reading) if is_decoder(backbone) else masked_head(backbone, reading, {}, seed=0)[0]
    assert head is not None
    if head.bias is not None:
        head.bias.data.zero_()  # or no term would be near to these random states
    model = SparseModel(backbone, inputs, reading, head).eval()
    text, longer = [5, 9, 17, 23, 7], [5, 8, 9, 11, 12, 13, 14, 15]
    with torch.no_grad():
        alone, together, marked = (
            vocabulary_wide(model(*pad(rows, 0)), 100)[0]
            for rows in ([text], [text, longer], [[token | NO_VECTOR for token in text]])
        )
    assert 0 < (alone > 0).sum() < 100
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not marked.any()


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_new_head_starts_with_the_terms_whose_embeddings_are_near(family: str):
    backbone = small(family)
    embedding = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    backbone.config.hidden_size = 64
    backbone.set_input_embeddings(torch.nn.Embedding(100, 64, _weight=embedding))
    head, lacking = masked_head(backbone, named_contract("splade").reading, {}, seed=0)
    assert head is not None
    assert lacking
    states, wanted = embedding[None, [7, 20, 31]], torch.ones(1, 3, dtype=torch.bool)
    weights = head(states, wanted, torch.tensor([[7, 20, 31]]), embedding)[0]
    assert set(weights.topk(3).indices.tolist()) == {7, 20, 31}
    assert 3 <= (weights > 0).sum() < 10
    if family == "bert":
        normal = torch.nn.functional.layer_norm(states[0], (64,))
        logits = normal @ embedding.T - 4 * embedding.norm(dim=1)
        torch.testing.assert_close(weights, logits.amax(0).relu().log1p(), atol=1e-5, rtol=1e-5)


def test_weights_of_all_terms_are_told_from_those_above_0():
    weights = torch.tensor([[0.0, 2.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    rows = entries(weights)
    assert rows.values.tolist() == [[1, 2.0], [2, 0.5], [0, 1.0]]
    assert rows.counts is not None
    assert rows.counts.tolist() == [2, 0, 1]
    torch.testing.assert_close(vocabulary_wide(rows, 3), weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lamp": -1.0}, r"the weight of 'lamp' is -1.0; expected a number of at least 0"),
        ({"lamp": float("nan")}, r"the weight of 'lamp' is NaN"),
        ({"lump": 1.0}, r"1 of its \d+ terms are not in the tokenizer's vocabulary, such as 'lump'"),
    ],
)
def test_a_bad_lookup_is_refused_in_one_line(change: dict[str, float], message: str, tmp_path: Path):
    folder = write_opensearch(tmp_path / "model", **change)
    with pytest.raises(UserError, match=message) as error:
        SparseRetriever.load(str(folder), queries_only=True)
    assert "\n" not in str(error.value)


def test_a_lookup_that_lacks_terms_is_refused(tmp_path: Path):
    path = tmp_path / "idf.json"
    path.write_text(json.dumps({"lamp": 1.0}))
    with pytest.raises(UserError, match=r"has no weight for \d+ of the vocabulary's \d+ terms, such as '!'"):
        read_named_weights(path, bert_tokenizer(), 100)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -2.0], r"1 weights of queries' terms are negative or not finite, such as that of term 1, -2.0"),
        ([1.0, 1.0, float("inf")], r"such as that of term 2, inf; expected numbers of at least 0"),
        ([], r"has weights for 9 terms, and \d+ of the vocabulary's come behind them, such as '!'; expected the list"),
        ([1.0] * 200, r"has weights for 200 terms, and the model's vocabulary has \d+"),
    ],
)
def test_a_stored_list_of_weights_that_does_not_fit_is_refused(weights: list[float], message: str, tmp_path: Path):
    folder = write_opensearch(tmp_path / "model")
    size = len(bert_tokenizer()) if weights else 9
    save_file({LOOKUP_KEY: torch.tensor(weights + [1.0] * (size - len(weights)))}, folder / "lookup.safetensors")
    for queries_only in (True, False):
        with pytest.raises(UserError, match=message) as error:
            SparseRetriever.load(str(folder), queries_only=queries_only)
        assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path):
    folder = write_masked(tmp_path / "bert")
    tokenizer = bert_tokenizer()
    tokenizer.add_tokens(["another", "word"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"its tokenizer has \d+ terms, and its model has weights for \d+"):
        SparseRetriever.load(str(folder), contract="splade")


def test_another_kind_of_model_is_refused(tiny: Tiny, tmp_path: Path):
    with pytest.raises(UserError, match="gives one vector for each text; load it with Retriever"):
        SparseRetriever.load(str(tiny.retriever))
    folder = write_opensearch(tmp_path / "model")
    for kind in (Retriever, LateRetriever):
        with pytest.raises(UserError, match="gives weights of terms"):
            kind.load(str(folder))
    with pytest.raises(UserError, match=r"has no usable masked-language-model head \(cls.predictions.bias is missing"):
        SparseRetriever.load(str(tiny.bert), contract="splade")


def test_a_contract_hash_of_documents_is_not_changed_by_what_queries_do():
    contract = named_contract("splade-doc")
    other = replace(contract, reading=replace(contract.reading, keep_query_terms=4))
    assert contract.of_documents() == other.of_documents()
    kept = replace(contract, reading=replace(contract.reading, keep_terms=4))
    assert contract.of_documents() != kept.of_documents()
