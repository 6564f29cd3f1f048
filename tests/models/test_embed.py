from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from samples import DOCUMENTS, PAIRS, QUERIES
from torch import nn
from transformers import AutoModel, LlamaForSequenceClassification

from shortlist.models import linear
from shortlist.models.checkpoint import load_reranker, load_retriever, reranker_to_train, retriever_to_train, save_model
from shortlist.models.embed import (
    default_token_budget,
    embed_documents,
    embed_queries,
    for_inference,
    score_pairs,
)
from shortlist.models.reranker import Reranker
from shortlist.models.retriever import Retriever


@pytest.fixture(params=["llama", "bert"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def retriever(folder: Path) -> Retriever:
    return retriever_to_train(str(folder), None)


@pytest.fixture
def reranker(folder: Path) -> Reranker:
    return reranker_to_train(str(folder), None, seed=0)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("token_budget", [1, 64, 100, 100_000])
def test_no_output_depends_on_the_batch_it_was_made_in(retriever: Retriever, reranker: Reranker, token_budget: int):
    alone = np.concatenate([embed_documents(retriever, [d]) for d in DOCUMENTS])
    close(embed_documents(retriever, DOCUMENTS, token_budget=token_budget), alone)
    alone = np.concatenate([score_pairs(reranker, [pair]) for pair in PAIRS])
    close(score_pairs(reranker, PAIRS, token_budget=token_budget), alone)


def test_outputs_come_in_the_order_of_the_inputs(retriever: Retriever):
    forth, back = embed_documents(retriever, DOCUMENTS), embed_documents(retriever, DOCUMENTS[::-1])
    close(forth, back[::-1])
    assert np.abs(forth[:, None] - forth).max(-1)[~np.eye(len(forth), dtype=bool)].min() > 0.01  # all different


def test_nothing_in_gives_nothing_out_of_the_right_shape(retriever: Retriever, reranker: Reranker):
    assert embed_documents(retriever, []).shape == (0, 64)
    assert embed_queries(retriever, []).shape == (0, 64)
    assert score_pairs(reranker, []).shape == (0,)


def test_progress_is_told_every_text(retriever: Retriever):
    told: list[float] = []
    for token_budget in (1, 1000):
        advance = lambda amount=1, note="": told.append(amount)  # noqa: E731
        embed_queries(retriever, QUERIES, token_budget=token_budget, advance=advance)
    assert told == [1, 1, 1, 3]


def test_outputs_are_float32_without_a_gradient(retriever: Retriever):
    assert embed_queries(retriever, QUERIES).dtype == np.float32
    assert all(p.grad is None for p in retriever.parameters())


def test_a_model_made_ready_gives_the_same_and_can_no_longer_learn(
    retriever: Retriever, reranker: Reranker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(linear, "packing_pays", lambda: True)
    vectors, scores = embed_documents(retriever, DOCUMENTS), score_pairs(reranker, PAIRS)
    for model in (retriever, reranker):
        model.train()
        for_inference(model, torch.device("cpu"))
        assert not any(part.training for part in model.modules() if isinstance(part, nn.Dropout))
        assert not any(p.requires_grad for p in model.parameters())
    close(embed_documents(retriever, DOCUMENTS), vectors)
    close(score_pairs(reranker, PAIRS), scores)


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
