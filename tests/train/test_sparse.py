"""Training of learned sparse models: its objective, its regularisers, its settings, and whole runs."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sparse import write_masked
from tiny import DOCUMENTS, QUERIES, Tiny
from torch import Tensor

from shortlist import SparseRetriever, train
from shortlist.cli import main
from shortlist.errors import UserError
from shortlist.math.losses import LOSSES
from shortlist.models.folder import open_folder
from shortlist.models.loading_sparse import sparse_to_train
from shortlist.models.outputs import Rows
from shortlist.models.sparse import entries
from shortlist.settings.sparsity import parse_regulariser
from shortlist.settings.train import check
from shortlist.train.examples import Batch
from shortlist.train.losses import parse_losses
from shortlist.train.objectives import make_example
from shortlist.train.similarity import by_terms, dot_products
from shortlist.train.sparsity import Sparsity
from shortlist.train.steps import backward

BATCH = Batch(
    queries=QUERIES[:3],
    documents=[[DOCUMENTS[i] for i in group] for group in ([0, 3, 4, 9], [1, 5], [2, 7, 10])],
    positives=[frozenset({f"d{i}"}) for i in range(3)],
    grades=[(2, 1, 0, 0), (1, 0), (3, 2, 0)],
    scores=[(3.0, 1.0, 0.0, 2.0), (1.0, -2.0), (1.0, 0.5, -1.0)],
)
SIDES = {
    side: parse_regulariser(text, "") for side, text in {"query": "l1,weight=0.1", "document": "flops,exempt=3"}.items()
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return sparse_to_train(open_folder(str(write_masked(tmp_path_factory.mktemp("sparse") / "bert"))))


def example(model: Any, losses: str = "infonce", **options: Any) -> Any:
    return make_example("sparse", model.inputs, BATCH, parse_losses(losses.split(), temperature=1.0), **options)


def gradients(model: Any, item: Any, **options: Any) -> tuple[Any, Tensor]:
    model.train().zero_grad()
    outcome = backward(model, item, **{"token_budget": 40, "bf16": False, "seed": 5} | options)
    return outcome, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_cached_step_has_the_gradients_of_the_plain_one(model: Any):
    penalty = partial(Sparsity(SIDES, steps=3).penalty, step=2)
    (plain, one), (cached, other) = (gradients(model, example(model, penalty=penalty), cached=c) for c in (False, True))
    assert plain.loss.item() == pytest.approx(cached.loss.item(), abs=1e-5)
    assert one.norm() > 1e-3
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert plain.measured.keys() == {"query_terms", "document_terms", "products"}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_from_weights_of_terms(loss: str, model: Any):
    item = example(model, loss)
    leaf = (torch.randn(12, 9, generator=torch.Generator().manual_seed(0)).relu() + 0.01).requires_grad_()
    outcome = item.objective(Rows(leaf), start_rows=Rows(leaf.detach() * 0.9))
    outcome.loss.backward()
    assert outcome.loss.isfinite()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert leaf.grad.norm() > 1e-6


def test_scores_are_the_same_from_weights_of_all_terms_and_of_those_above_0():
    torch.manual_seed(0)
    queries, documents = torch.randn(3, 20).relu(), torch.randn(300, 20).relu()
    expected = dot_products(Rows(queries), Rows(documents))
    torch.testing.assert_close(by_terms(entries(queries), entries(documents)), expected)
    torch.testing.assert_close(by_terms(Rows(queries), Rows(documents)), expected)


def test_the_loss_grows_by_the_regularisers(model: Any):
    sparsity = Sparsity(SIDES, steps=3)
    rows = Rows(torch.rand(12, 9, generator=torch.Generator().manual_seed(0)) + 0.1)
    bare, full = (
        example(model, **more).objective(rows) for more in ({}, {"penalty": partial(sparsity.penalty, step=0)})
    )
    queries, documents = rows.values[:3], rows.values[3:]
    more = 0.1 * queries.sum(1).mean() + 0.001 * documents.mean(0).square().sum()
    assert (full.loss - bare.loss).item() == pytest.approx(more.item(), rel=1e-3)


def test_weights_grow_with_the_square_of_the_steps_and_are_steered_to_a_density():
    sides = {"document": parse_regulariser("flops,weight=2,steps=4,terms=5", "")}
    sparsity = Sparsity(sides, steps=100)
    queries, documents = torch.ones(1, 10), torch.ones(2, 10)
    assert sparsity.penalty(queries, documents, step=0)[0].item() == pytest.approx(2 * 10 / 16)
    assert sparsity.penalty(queries, documents, step=3)[0].item() == pytest.approx(2 * 10)
    _, measured = sparsity.penalty(queries, documents, step=3)
    assert measured == {"query_terms": 10, "document_terms": 10, "products": 10, "document_factor": 1}
    sparsity.steer({"step": 3, "document_terms": 10})
    assert sparsity.factors == {"document": 1.0}  # the weight is still growing
    sparsity.steer({"step": 4, "document_terms": 10})
    assert sparsity.factors["document"] == pytest.approx(2**0.05)
    sparsity.steer({"step": 5, "document_terms": 2.5})
    assert sparsity.factors["document"] == pytest.approx(1)


def settings(tiny: Tiny, out: Path, **change: Any) -> train.Config:
    values = {"kind": "sparse", "backbone": str(tiny.bert), "collection": str(tiny.collection), "out": out}
    values |= {"batch_size": 4, "steps": 2, "warmup_steps": 0}
    return train.Config(**(values | change))


CHANGES: dict[str, dict[str, Any]] = {
    "held out": {"heldout_split": "test"},
    "narrow": {"precision": "bf16", "document_sparsity": "l1,weight=0.01"},
    "idf": {"query_terms": "idf", "document_sparsity": "idf-flops,terms=5,steps=1"},
    "own tokens": {"document_terms": "tokens", "query_terms": "tokens", "query_sparsity": "none"},
    "adapter": {"adapter": "r=2,alpha=4,dropout=0,targets=q_proj", "backbone": "llama"},
    "adapter, idf": {"adapter": "r=2,alpha=4,dropout=0,targets=query", "query_terms": "idf"},
    "echo": {"contract": "splade-echo", "backbone": "llama", "logs": 2},
    "refreshed": {"refresh_steps": 1, "refresh_depth": 4, "views": "crop", "views_weight": 0.5},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_trained_model_is_saved_and_loads(tiny: Tiny, tmp_path: Path, name: str):
    change = CHANGES[name] | ({"backbone": str(tiny.llama)} if "backbone" in CHANGES[name] else {})
    train.run(settings(tiny, tmp_path / "model", **change))
    retriever = SparseRetriever.load(str(tmp_path / "model"))
    weights = retriever.encode_documents(DOCUMENTS)
    assert len(weights) == len(DOCUMENTS)
    assert (weights.weights > 0).all()
    again = (
        sparse_to_train(open_folder(str(tmp_path / "model")))
        if name not in ("adapter", "adapter, idf", "echo")
        else None
    )
    if again is not None:
        expected = dict(retriever.model.named_parameters())
        for key, parameter in again.named_parameters():
            if "pooler" not in key:
                torch.testing.assert_close(parameter, expected[key], msg=key)
    if "idf" in name:
        alone = SparseRetriever.load(str(tmp_path / "model"), queries_only=True)
        np.testing.assert_array_equal(alone.encode_queries(QUERIES).weights, retriever.encode_queries(QUERIES).weights)
    records = [json.loads(line) for line in (tmp_path / "model/log.jsonl").read_text().splitlines()]
    assert all("document_terms" in record for record in records if "loss" in record)


def test_a_forecast_trains_nothing(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train.run(settings(tiny, tmp_path / "model", dry_run=True))
    assert "memory" in capsys.readouterr().out
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_two_processes_end_where_one_does(tiny: Tiny, tmp_path: Path):
    words = ["train", "sparse", "--backbone", str(tiny.llama), "--collection", str(tiny.collection), "--steps", "2"]
    words += ["--batch-size", "4", "--warmup-steps", "0", "--document-sparsity", "flops,weight=0.1,steps=1,terms=5"]
    for processes in (1, 2):
        assert main([*words, "--out", str(tmp_path / f"in-{processes}"), "--processes", str(processes)]) == 0
    logs = [(tmp_path / f"in-{processes}/log.jsonl").read_text().splitlines() for processes in (1, 2)]
    for name in ("loss", "document_terms"):
        alone, both = ([json.loads(line)[name] for line in log] for log in logs)
        assert both == pytest.approx(alone, rel=1e-3)


def stop(self: Sparsity, record: Any) -> None:
    """Interrupt a training in its third step."""
    if record["step"] == 3:
        raise KeyboardInterrupt
    STEER(self, record)


STEER = Sparsity.steer


def test_a_training_goes_on_with_the_factors_it_had(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    change = {"document_sparsity": "flops,terms=3,steps=1", "keep": 9, "checkpoint_steps": 2, "steps": 4}
    train.run(settings(tiny, tmp_path / "whole", **change))
    monkeypatch.setattr(Sparsity, "steer", stop)
    with pytest.raises(KeyboardInterrupt):
        train.run(settings(tiny, tmp_path / "parts", **change))
    monkeypatch.setattr(Sparsity, "steer", STEER)
    train.run(settings(tiny, tmp_path / "parts", **change))
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert json.loads((tmp_path / "parts/checkpoints/step-000002/sparsity.json").read_text())["document"] != 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"document_sparsity": "flop"}, "--document-sparsity flop: unknown regulariser 'flop': perhaps 'flops'"),
        ({"query_sparsity": "l1,weight=0"}, "weight is 0.0; expected more than 0"),
        ({"document_sparsity": "flops,terms=-1"}, "terms is -1; expected at least 0"),
        ({"pooling": "mean"}, "--pooling mean: expected terms-max or terms-sum"),
        ({"dims": (8,)}, "--dims: cuts vectors"),
        ({"keep_terms": 0}, "--keep-terms is 0; expected at least 1"),
        ({"query_terms": "none.json"}, "--query-terms none.json: expected model, tokens, binary, idf or a JSON file"),
        ({"kind": "retriever", "logs": 2}, "--logs: is for a sparse model"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tiny: Tiny, tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        check(settings(tiny, tmp_path, **change))


def test_a_regulariser_that_reads_a_list_needs_one():
    with pytest.raises(UserError, match="idf-flops: reads the weights of queries' terms"):
        Sparsity({"document": parse_regulariser("idf-flops", "")}, steps=1)
