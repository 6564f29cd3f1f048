"""Training of late interaction: its objective, its settings, and whole runs."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from late import write_bert as write_marked_bert
from late import write_stanford, write_t5
from named import late_to_train
from tiny import DOCUMENTS, QUERIES, Tiny
from torch import Tensor

from shortlist import LateRetriever, train
from shortlist.errors import UserError
from shortlist.math.losses import LOSSES
from shortlist.models.outputs import Rows, split
from shortlist.models.save import save_model, saved_weights
from shortlist.settings.train import check
from shortlist.text.contract import named_contract
from shortlist.train.examples import Batch
from shortlist.train.guide import Guide
from shortlist.train.losses import parse_losses
from shortlist.train.objectives import make_example
from shortlist.train.similarity import SCORINGS
from shortlist.train.steps import backward

BATCH = Batch(
    queries=QUERIES[:3],
    documents=[[DOCUMENTS[i] for i in group] for group in ([0, 3, 4, 9], [1, 5], [2, 7, 10])],
    positives=[frozenset({f"d{i}"}) for i in range(3)],
    grades=[(2, 1, 0, 0), (1, 0), (3, 2, 0)],
    scores=[(3.0, 1.0, 0.0, 2.0), (1.0, -2.0), (1.0, 0.5, -1.0)],
)


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Any:
    return late_to_train(str(tiny.bert), dim=8)


def example(model: Any, losses: str = "infonce", batch: Batch = BATCH, **options: Any) -> Any:
    return make_example("late", model.inputs, batch, parse_losses(losses.split(), temperature=1.0), **options)


def gradients(model: Any, item: Any, **options: Any) -> tuple[float, Tensor]:
    model.train().zero_grad()
    outcome = backward(model, item, **{"token_budget": 40, "bf16": False, "seed": 5} | options)
    return outcome.loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("options", [{}, {"similarity": SCORINGS["xtr"]}, {"dims": (8, 3), "weights": (1.0, 0.5)}])
def test_the_cached_step_has_the_gradients_of_the_plain_one(options: dict[str, Any], model: Any):
    options = options | ({"similarity": lambda *rows: SCORINGS["xtr"](*rows, k=9)} if "similarity" in options else {})
    (plain, one), (cached, other) = (gradients(model, example(model, **options), cached=each) for each in (False, True))
    assert plain == pytest.approx(cached, abs=1e-6)
    assert one.norm() > 1e-3
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_from_late_interaction(loss: str, model: Any):
    item = example(model, loss)
    model.eval()
    with torch.no_grad():
        rows = model_rows(model, item.token_ids)
    leaf = rows.values.requires_grad_()
    outcome = item.objective(Rows(leaf, rows.counts), start_rows=Rows(leaf.detach() * 0.9, rows.counts))
    outcome.loss.backward()
    assert outcome.loss.isfinite()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert leaf.grad.norm() > 1e-6


def model_rows(model: Any, token_ids: list[list[int]]) -> Rows:
    """The rows of inputs, one after another."""
    parts = [model(torch.tensor([ids]), torch.tensor([len(ids)])) for ids in token_ids]
    return Rows(torch.cat([part.values for part in parts]), torch.cat([part.counts for part in parts]))


def test_the_loss_is_that_of_the_sum_of_best_matches(model: Any):
    item = example(model)
    model.eval()
    with torch.no_grad():
        rows = model_rows(model, item.token_ids)
        texts = split(rows)
        scores = torch.stack([torch.stack([(q @ d.T).max(1).values.sum() for d in texts[3:]]) for q in texts[:3]])
        expected = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 4, 6]))
    assert item.objective(rows).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_document_without_a_vector_leaves_the_loss_finite(model: Any):
    item = example(model)
    counts = torch.full((12,), 2)
    counts[[3, 5]] = 0  # the first query's positive, and one of its negatives
    values = torch.nn.functional.normalize(torch.randn(20, 8), dim=1).requires_grad_()
    outcome = item.objective(Rows(values, counts))
    outcome.loss.backward()
    assert outcome.loss.isfinite()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_a_late_guide_leaves_out_what_it_finds_near(model: Any):
    guide = Guide(model, margin=1000.0)
    assert example(model, guide=guide).guide_ids == example(model).token_ids
    rows = Rows(torch.nn.functional.normalize(torch.randn(24, 8), dim=1), torch.full((12,), 2))
    batch = BATCH._replace(grades=())
    found = example(model, batch=batch, guide=guide).objective(rows, guide_rows=rows)
    assert found.loss.item() == 0  # nothing is left to compare with
    assert found.accuracy == 1


def settings(tiny: Tiny, out: Path, **change: Any) -> train.Config:
    values = {"kind": "late", "backbone": str(tiny.bert), "collection": str(tiny.collection), "out": out, "dim": 8}
    values |= {"batch_size": 4, "steps": 2, "warmup_steps": 0, "heldout_split": "test"}
    return train.Config(**(values | change))


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": "r=2,alpha=4,dropout=0,targets=q_proj", "backbone": "llama"},
        {"scoring": "xtr,k=5", "temperature": 0.1, "negatives_from": "bm25", "negatives": 1},
        {"refresh_steps": 1, "refresh_depth": 4, "dims": (8, 4), "views": "crop", "views_weight": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_trained_model_is_saved_and_loads(tiny: Tiny, tmp_path: Path, change: dict[str, Any]):
    change = change | ({"backbone": str(tiny.llama)} if "backbone" in change else {})
    train.run(settings(tiny, tmp_path / "model", **change))
    retriever = LateRetriever.load(str(tmp_path / "model"))
    assert retriever.dim == 8
    vectors = retriever.encode_documents(DOCUMENTS)
    np.testing.assert_allclose(np.linalg.norm(vectors.values, axis=1), 1, rtol=1e-5)
    assert len(vectors) == len(DOCUMENTS)
    again = late_to_train(str(tmp_path / "model"))  # its projection goes on
    torch.testing.assert_close(again.layers[0].weight, retriever.model.layers[0].weight)  # type: ignore[attr-defined]


def test_a_dry_run_needs_no_weights(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    backbone = write_marked_bert(tmp_path / "bert")
    train.run(settings(tiny, tmp_path / "model", backbone=str(backbone), dry_run=True))
    said = capsys.readouterr().out
    assert "queries cut    0.0%; the longest has 32 tokens" in said  # as they are filled up
    assert not (tmp_path / "model").exists()


def test_the_contract_of_a_new_model_follows_from_the_backbone(tiny: Tiny, tmp_path: Path):
    marked = late_to_train(str(write_marked_bert(tmp_path / "bert")))
    assert marked.contract == named_contract("colbert")
    assert marked.row_shape == (128,)
    assert late_to_train(str(tiny.bert)).contract.form.query == named_contract("colbert-text").form.query
    assert not late_to_train(str(tiny.bert)).contract.form.expansion  # its tokenizer has no mask token
    assert late_to_train(str(tiny.llama)).contract == named_contract("colbert-decoder")
    assert late_to_train(str(tiny.retriever), named_contract("bert")).reading.pooling == "tokens"


def test_weights_that_are_tied_are_saved_once(tmp_path: Path):
    save_model(late_to_train(str(write_t5(tmp_path / "t5")), dim=8), tmp_path / "model")
    keys = {key for key, _ in saved_weights(tmp_path / "model")}
    assert "linear.weight" in keys
    assert len({"shared.weight", "encoder.embed_tokens.weight"} & keys) == 1


def test_training_goes_on_from_a_model_of_stanfords(tmp_path: Path):
    folder = write_stanford(tmp_path / "model")
    before = LateRetriever.load(str(folder))
    model = late_to_train(str(folder)).eval()
    assert model.contract == before.contract
    save_model(model, tmp_path / "ours")
    after = LateRetriever.load(str(tmp_path / "ours"))
    np.testing.assert_array_equal(after.encode_queries("lamp"), before.encode_queries("lamp"))
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == ["BertModel"]
    with pytest.raises(UserError, match=r"--dim is 8, and .* has vectors of 12"):
        late_to_train(str(folder), dim=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring": "xtr,k=0"}, "--scoring xtr,k=0: k is 0; expected at least 1"),
        ({"scoring": "xrt"}, "unknown scoring 'xrt': perhaps 'xtr'"),
        ({"dim": 0}, "--dim is 0; expected at least 1"),
        ({"dim": 4, "dims": (8,)}, "--dim is 4; expected at least 8"),
        ({"pooling": "mean"}, "--pooling mean: late interaction keeps every token's vector"),
        ({"mix_negatives": 1}, "--mix-negatives: mixes single vectors"),
        ({"kind": "retriever"}, "--dim: is for late interaction"),
        ({"kind": "reranker", "dim": None, "scoring": "xtr"}, "--scoring: is for late interaction"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tiny: Tiny, tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        check(settings(tiny, tmp_path, **change))


def test_one_vector_for_a_text_cannot_be_every_tokens(tiny: Tiny, tmp_path: Path):
    with pytest.raises(UserError, match=r"the pooling tokens keeps a vector for each token.*train late"):
        train.run(settings(tiny, tmp_path, kind="retriever", dim=None, pooling="tokens"))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["infonce", "kl", "margin_mse"])
def test_losses_and_gradients_are_those_of_sentence_transformers(tmp_path: Path, loss: str):
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder import losses

    folder = write_stanford(tmp_path / "model")
    ours, theirs = late_to_train(str(folder)).eval(), MultiVectorEncoder(str(folder), device="cpu").eval()
    batch = Batch(
        queries=QUERIES[:3],
        documents=[[DOCUMENTS[i] for i in group] for group in ([0, 3], [1, 5], [2, 7])],
        positives=[frozenset({f"d{i}"}) for i in range(3)],
        scores=[(3.0, 1.0), (1.0, -2.0), (1.0, 0.5)],
    )
    assert batch.scores is not None
    margins = torch.tensor([positive - negative for positive, negative in batch.scores])
    kind, labels = {
        "infonce": (losses.MultiVectorMultipleNegativesRankingLoss, None),
        "kl": (losses.MultiVectorDistillKLDivLoss, torch.tensor(batch.scores)),
        "margin_mse": (losses.MultiVectorMarginMSELoss, margins),
    }[loss]
    outcome = backward(ours, example(ours, loss, batch), token_budget=1 << 20, bf16=False, seed=0)
    queries = theirs.preprocess([q.text for q in batch.queries], prompt=theirs.prompts["query"], task="query")
    documents = [
        theirs.preprocess(
            [group[i].text for group in batch.documents], prompt=theirs.prompts["document"], task="document"
        )
        for i in range(2)
    ]
    expected = kind(theirs)([queries, *documents], labels)
    expected.backward()
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    own = dict(ours.backbone.named_parameters())
    for name, parameter in cast(Any, theirs[0]).auto_model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(own[name].grad, parameter.grad, atol=5e-6, rtol=1e-4)
