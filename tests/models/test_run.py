from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from named import load_reranker, load_retriever, reranker_to_train, retriever_to_train
from samples import DOCUMENTS, PAIRS, QUERIES
from torch import nn
from toys import TOYS, PerToken, Toy, Words
from transformers import AutoModel, LlamaForSequenceClassification

from shortlist.models import run as run_module
from shortlist.models.backbone import ONE_AT_A_TIME
from shortlist.models.dense import DenseModel
from shortlist.models.kernels.linear import PackedLinear, packing_is_right
from shortlist.models.outputs import split
from shortlist.models.pointwise import PointwiseModel
from shortlist.models.run import (
    Precision,
    default_token_budget,
    embed_documents,
    embed_queries,
    for_inference,
    run_model,
    score_pairs,
)
from shortlist.models.save import save_model
from shortlist.text.batching import pad


@pytest.fixture(params=["llama", "bert"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def retriever(folder: Path) -> DenseModel:
    return retriever_to_train(str(folder), None)


@pytest.fixture
def reranker(folder: Path) -> PointwiseModel:
    return reranker_to_train(str(folder), None, seed=0)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("token_budget", [1, 64, 100, 100_000])
def test_no_output_depends_on_the_batch_it_was_made_in(
    retriever: DenseModel, reranker: PointwiseModel, token_budget: int
):
    alone = np.concatenate([embed_documents(retriever, [d]) for d in DOCUMENTS])
    close(embed_documents(retriever, DOCUMENTS, token_budget=token_budget), alone)
    alone = np.concatenate([score_pairs(reranker, [pair]) for pair in PAIRS])
    close(score_pairs(reranker, PAIRS, token_budget=token_budget), alone)


def test_outputs_come_in_the_order_of_the_inputs(retriever: DenseModel):
    forth, back = embed_documents(retriever, DOCUMENTS), embed_documents(retriever, DOCUMENTS[::-1])
    close(forth, back[::-1])
    assert np.abs(forth[:, None] - forth).max(-1)[~np.eye(len(forth), dtype=bool)].min() > 0.01  # all different


def test_nothing_in_gives_nothing_out_of_the_right_shape(retriever: DenseModel, reranker: PointwiseModel):
    assert embed_documents(retriever, []).shape == (0, 64)
    assert embed_queries(retriever, []).shape == (0, 64)
    assert score_pairs(reranker, []).shape == (0,)


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("token_budget", [1, 64, 100_000])
def test_a_model_may_give_any_number_of_rows_for_a_text(folder: Path, toy: type[Toy], token_budget: int):
    retriever = retriever_to_train(str(folder), None)
    model = toy(retriever.backbone, retriever.inputs).eval()
    token_ids = retriever.inputs.document_ids(DOCUMENTS)
    with torch.inference_mode():
        alone = [model(*pad([ids], 0)).values for ids in token_ids]
    told: list[tuple[int, int]] = []
    rows = run_model(model, token_ids, token_budget=token_budget, advance=lambda *done: told.append(done))
    for actual, expected in zip(split(rows), alone, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert [sum(counts) for counts in zip(*told, strict=True)] == [len(token_ids), sum(map(len, token_ids))]
    if toy is not Words:
        assert len({len(one) for one in alone}) > 1
    assert run_model(model, []).values.shape == (0, *model.row_shape)


def test_a_model_of_another_kind_is_made_ready_and_gives_the_same(llama: Path):
    retriever = retriever_to_train(str(llama), None)
    model, token_ids = PerToken(retriever.backbone, retriever.inputs), retriever.inputs.document_ids(DOCUMENTS)
    expected = run_model(model.eval(), token_ids)
    for_inference(model, torch.device("cpu"))
    actual = run_model(model, token_ids)
    assert actual.counts is not None
    assert actual.counts.tolist() == list(map(len, token_ids))
    close(actual.values.numpy(), expected.values.numpy())


def test_progress_is_told_every_text_and_token(retriever: DenseModel):
    told: list[tuple[int, int]] = []
    for token_budget in (1, 1000):
        advance = lambda num_texts, num_tokens: told.append((num_texts, num_tokens))  # noqa: E731
        embed_queries(retriever, QUERIES, token_budget=token_budget, advance=advance)
    lengths = sorted(map(len, retriever.inputs.query_ids(QUERIES)), reverse=True)
    assert told == [*((1, length) for length in lengths), (3, sum(lengths))]


def test_outputs_are_float32_without_a_gradient(retriever: DenseModel):
    assert embed_queries(retriever, QUERIES).dtype == np.float32
    assert all(p.grad is None for p in retriever.parameters())


def test_a_model_made_ready_gives_the_same_and_can_no_longer_learn(retriever: DenseModel, reranker: PointwiseModel):
    vectors, scores = embed_documents(retriever, DOCUMENTS), score_pairs(reranker, PAIRS)
    for model in (retriever, reranker):
        model.train()
        for_inference(model, torch.device("cpu"), packed=True)
        assert not any(part.training for part in model.modules() if isinstance(part, nn.Dropout))
        assert not any(p.requires_grad for p in model.parameters())
    close(embed_documents(retriever, DOCUMENTS), vectors)
    close(score_pairs(reranker, PAIRS), scores)


@pytest.mark.parametrize(
    ("packed", "pays", "expected"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_linears_are_packed_as_told_or_where_that_pays(
    llama: Path, monkeypatch: pytest.MonkeyPatch, packed: bool | None, pays: bool, expected: bool
):
    monkeypatch.setattr(run_module, "packing_pays", lambda: pays)
    retriever = retriever_to_train(str(llama), None)
    for_inference(retriever, torch.device("cpu"), packed=packed)
    assert any(isinstance(module, PackedLinear) for module in retriever.modules()) is (expected and packing_is_right())


def test_being_told_to_pack_changes_nothing_where_the_private_operators_fail(
    llama: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_module, "packing_is_right", lambda dtype: False)
    retriever = retriever_to_train(str(llama), None)
    expected = embed_documents(retriever, DOCUMENTS)
    for_inference(retriever, torch.device("cpu"), packed=True)
    assert not any(isinstance(module, PackedLinear) for module in retriever.modules())
    close(embed_documents(retriever, DOCUMENTS), expected)


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.999), ("int8", 0.998)])
def test_narrow_precisions_give_nearly_the_same_in_float32(
    retriever: DenseModel, reranker: PointwiseModel, precision: Precision, least: float
):
    vectors, scores = embed_documents(retriever, DOCUMENTS), score_pairs(reranker, PAIRS)
    for model in (retriever, reranker):
        for_inference(model, torch.device("cpu"), precision=precision)
    actual = embed_documents(retriever, DOCUMENTS)
    assert actual.dtype == np.float32
    assert np.abs(actual - vectors).max() > 1e-6, "nothing was rounded"
    assert F.cosine_similarity(torch.from_numpy(actual), torch.from_numpy(vectors)).min() > least
    actual = score_pairs(reranker, PAIRS)
    assert actual.dtype == np.float32
    assert np.corrcoef(actual, scores)[0, 1] > least


def test_in_bf16_tokens_are_rotated_by_angles_that_were_not_rounded(llama: Path):
    retriever = retriever_to_train(str(llama), None)
    for_inference(retriever, torch.device("cpu"), precision="bf16")
    assert retriever.backbone.embed_tokens.weight.dtype == torch.bfloat16
    assert retriever.backbone.rotary_emb.inv_freq.dtype == torch.float32


def test_a_model_loaded_in_bf16_runs_in_float32_unless_told_otherwise(llama: Path):
    retriever = retriever_to_train(str(llama), None, dtype=torch.bfloat16)
    for_inference(retriever, torch.device("cpu"), packed=False)
    assert {p.dtype for p in retriever.parameters()} == {torch.float32}


def test_a_gpu_gets_larger_batches():
    assert default_token_budget(torch.device("cpu")) < default_token_budget(torch.device("cuda"))


@torch.inference_mode()
def test_stories260k_encodes_and_reranks_as_in_transformers(stories: Path, tmp_path: Path):
    retriever = load_retriever(str(stories), contract="repllama")
    reference = AutoModel.from_pretrained(stories)
    ids = retriever.inputs.document_ids(DOCUMENTS)
    expected = [F.normalize(reference(torch.tensor([row])).last_hidden_state[0, -1], dim=0) for row in ids]
    for_inference(retriever, torch.device("cpu"))
    close(embed_documents(retriever, DOCUMENTS), torch.stack(expected).numpy())
    save_model(reranker_to_train(str(stories), None, seed=0), tmp_path)
    reranker = load_reranker(str(tmp_path))
    classifier = LlamaForSequenceClassification.from_pretrained(tmp_path)
    ids = reranker.inputs.pair_ids(PAIRS)
    expected = [classifier(torch.tensor([row])).logits[0, 0] for row in ids]
    for_inference(reranker, torch.device("cpu"))
    close(score_pairs(reranker, PAIRS), torch.stack(expected).numpy())


def test_a_model_that_changes_its_rotations_runs_in_one_thread_at_a_time(retriever: DenseModel):
    seen: list[bool] = []
    retriever.backbone.get_input_embeddings().register_forward_hook(lambda *_: seen.append(ONE_AT_A_TIME.locked()))
    run_model(retriever, [[1, 2, 3]])
    retriever.backbone.rope_type = "dynamic"  # type: ignore[assignment]
    run_model(retriever, [[1, 2, 3]])
    assert seen == [False, True]
