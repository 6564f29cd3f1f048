"""What retrievers learn besides a ranking by whole vectors of the batch's documents."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import load_retriever, retriever_to_train
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist import export, train
from shortlist.data.formats import write_corpus
from shortlist.errors import UserError
from shortlist.math.matryoshka import shortened
from shortlist.models.outputs import Rows
from shortlist.models.save import save_model
from shortlist.records import Query
from shortlist.settings.train import check
from shortlist.text.views import VIEWS
from shortlist.train.build import collect_parts
from shortlist.train.examples import Batch
from shortlist.train.losses import parse_losses
from shortlist.train.mixture import Mixture
from shortlist.train.objectives import make_example
from shortlist.train.steps import backward
from shortlist.train.views import joined_examples, viewed

BATCH = Batch(
    queries=QUERIES[:3],
    documents=[[DOCUMENTS[i] for i in group] for group in ([0, 3, 4, 9], [1, 5], [2, 7, 10])],
    positives=[frozenset({f"d{i}"}) for i in range(3)],
)
DIMS: dict[str, Any] = {"dims": (8, 3), "weights": (1.0, 0.5), "unit": True}


def made(model: Any, **options: Any) -> Any:
    return make_example("retriever", model.inputs, BATCH, parse_losses(["infonce"], temperature=0.5), **options)


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Any:
    return retriever_to_train(str(tiny.bert), None)


def vectors(num: int = 12, dim: int = 8) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(0))


def test_the_loss_of_several_dimensions_is_the_sum_over_vectors_cut_and_scaled(model: Any):
    given, unit = vectors(), {"unit": True}
    alone = [made(model).objective(Rows(shortened(given, dim, **unit))) for dim in (8, 3)]
    both = made(model, **DIMS).objective(Rows(given))
    assert both.loss.item() == pytest.approx(alone[0].loss.item() + 0.5 * alone[1].loss.item())
    assert both.accuracy == alone[0].accuracy
    raw = [made(model).objective(Rows(given[:, :dim])).loss.item() for dim in (8, 3)]
    plain = made(model, dims=(8, 3), unit=False).objective(Rows(given))
    assert plain.loss.item() == pytest.approx(sum(raw), rel=1e-5)


def test_mixed_negatives_count_for_their_own_query_and_another_draw_gives_another_loss(model: Any):
    given, losses = torch.nn.functional.normalize(vectors(), dim=1), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(made(model, mixed=2).objective(Rows(given)).loss.item())
    assert losses[0] == losses[1] != losses[2]
    assert losses[0] > made(model).objective(Rows(given)).loss.item()


def test_a_batch_without_two_negatives_of_a_query_mixes_none(model: Any):
    batch = Batch(QUERIES[:1], [[DOCUMENTS[0]]], [frozenset({"d0"})])
    example = make_example("retriever", model.inputs, batch, parse_losses(["infonce"], temperature=0.5), mixed=2)
    assert example.objective(Rows(vectors(2))).loss.item() == 0


def test_another_positive_and_the_querys_own_are_never_mixed(model: Any):
    batch = Batch(QUERIES[:1], [[DOCUMENTS[i] for i in (0, 2, 3)]], [frozenset({"d0", "d2"})])
    terms, given = parse_losses(["infonce"], temperature=0.5), Rows(vectors(4))
    plain, mixed = (make_example("retriever", model.inputs, batch, terms, mixed=count) for count in (0, 2))
    assert plain.objective(given).loss.item() == mixed.objective(given).loss.item() > 0  # d3 alone has no partner


@pytest.mark.parametrize("options", [DIMS, {"mixed": 3}, DIMS | {"mixed": 3}], ids=["dims", "mixed", "both"])
def test_the_cached_step_has_the_gradients_of_the_plain_one(options: dict[str, Any], model: Any):
    gradients, losses = [], []
    for cached in (False, True):
        model.train().zero_grad()
        example = made(model, **options)
        losses.append(backward(model, example, token_budget=40, bf16=False, seed=5, cached=cached).loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_the_loss_and_gradients_are_those_of_sentence_transformers(tiny: Tiny, tmp_path: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    ours = retriever_to_train(str(tiny.bert), None).eval()
    save_model(ours, tmp_path / "ours")
    export.run(export.Config(model=str(tmp_path / "ours"), to="sentence-transformers", out=tmp_path / "theirs"))
    batch = Batch(QUERIES[:8], [[document] for document in DOCUMENTS[:8]], [frozenset({f"d{i}"}) for i in range(8)])
    terms, options = parse_losses(["infonce"], temperature=0.05), {"dims": (32, 16, 8), "weights": (1.0, 0.3, 0.2)}
    example = make_example("retriever", ours.inputs, batch, terms, **options, unit=True)
    outcome = backward(ours, example, token_budget=1 << 20, bf16=False, seed=0)
    theirs = SentenceTransformer(str(tmp_path / "theirs"), device="cpu").eval()
    inner = MultipleNegativesRankingLoss(theirs, scale=20.0)
    loss = MatryoshkaLoss(theirs, inner, matryoshka_dims=[32, 16, 8], matryoshka_weights=[1.0, 0.3, 0.2])
    texts = [[query.text for query in QUERIES[:8]], [document.text for document in DOCUMENTS[:8]]]
    expected = loss([theirs.preprocess(part) for part in texts], torch.arange(8))
    expected.backward()
    assert outcome.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    gradients = dict(ours.backbone.named_parameters())
    for name, parameter in theirs[0].auto_model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=5e-6, rtol=1e-5)


def settings(tiny: Tiny, out: Path, **change: Any) -> train.Config:
    values = {"kind": "retriever", "backbone": str(tiny.llama), "collection": str(tiny.collection), "out": out}
    return train.Config(**(values | {"batch_size": 4, "steps": 1, "warmup_steps": 0} | change))


def test_a_trained_model_says_which_dimensions_it_was_trained_for(tiny: Tiny, tmp_path: Path):
    train.run(settings(tiny, tmp_path / "m", dims=(32, 8), dims_weights=(1.0, 0.3), pooling="weighted"))
    reading = load_retriever(str(tmp_path / "m")).reading
    assert (reading.dims, reading.cut, reading.pooling) == ((32, 8), 0, "weighted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": (8, 8)}, "--dims has 8; expected different"),
        ({"dims": (8, 0)}, "--dims has 0"),
        ({"dims": (8, 4), "dims_weights": (1.0,)}, "--dims-weights has 1 numbers for 2 --dims"),
        ({"dims_weights": (1.0,)}, "--dims-weights has 1 numbers for 0 --dims"),
        ({"dims": (8,), "dims_weights": (0.0,)}, "--dims-weights has 0.0; expected more"),
        ({"kind": "reranker", "dims": (8,)}, "--dims: is for a retriever"),
        ({"kind": "language-model", "pooling": "mean"}, "--pooling: says nothing about a language model"),
        ({"mix_negatives": 2, "negatives": 1}, "--mix-negatives mixes two of --negatives"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        check(settings(tiny, tmp_path / "m", **change))


def test_more_dimensions_than_the_models_and_an_unknown_pooling_are_refused(tiny: Tiny, tmp_path: Path):
    with pytest.raises(UserError, match="has vectors of 32 dimensions, --dims has 64; expected no more"):
        train.run(settings(tiny, tmp_path / "m", dims=(64, 32)))
    with pytest.raises(UserError, match="pooling 'maen'"):
        train.run(settings(tiny, tmp_path / "m", pooling="maen"))


def test_a_document_alone_becomes_a_query_and_its_positive_by_two_views(tiny: Tiny):
    batch = Batch([Query("d0", "d0")], [[DOCUMENTS[0]._replace(title="T")]], [frozenset({"d0"})])
    made = viewed(batch, VIEWS["crop"], np.random.default_rng(0))
    query, document = made.queries[0].text, made.documents[0][0]
    assert query in DOCUMENTS[0].text
    assert document.text in DOCUMENTS[0].text
    assert query != document.text
    assert (document.title, document.doc_id, made.queries[0].query_id) == ("T", "d0", "d0")


def test_two_examples_are_one_step_with_the_weighted_sum_of_their_losses(model: Any):
    first, second = made(model), made(model, dims=(8,), unit=True)
    given = vectors(24)
    parts = [example.objective(Rows(part)) for example, part in zip((first, second), given.split(12), strict=True)]
    outcome = joined_examples(first, second, weight=0.25).objective(Rows(given))
    assert outcome.loss.item() == pytest.approx((parts[0].loss + 0.25 * parts[1].loss).item())
    assert outcome.accuracy == parts[0].accuracy


def test_a_corpus_alone_trains_a_retriever_and_each_epoch_sees_other_views(tiny: Tiny, tmp_path: Path):
    write_corpus(tmp_path / "c/corpus.jsonl", DOCUMENTS)
    config = settings(tiny, tmp_path / "m", views="drop", steps=6, collection=str(tmp_path / "c"))
    seen = [[example.token_ids for example in examples(config)] for _ in range(2)]
    assert seen[0] == seen[1]
    assert len({str(sorted(ids)) for ids in seen[0]}) == 6  # 3 steps are an epoch
    train.run(settings(tiny, tmp_path / "m", views="crop", collection=str(tmp_path / "c")))
    assert load_retriever(str(tmp_path / "m")).row_shape == (32,)


def examples(config: train.Config) -> list[Any]:
    model, mixture = retriever_to_train(config.backbone, None), Mixture(config, collect_parts(config))
    return list(train._examples(config, mixture, model, range(mixture.steps), (), train.Cut(model.inputs.form)))


@pytest.mark.slow
def test_views_beside_groups_add_their_weighted_loss(tiny: Tiny, tmp_path: Path):
    train.run(settings(tiny, tmp_path / "plain"))
    train.run(settings(tiny, tmp_path / "both", views="mask", views_weight=0.2))
    read = [json.loads((tmp_path / name / "log.jsonl").read_text()) for name in ("plain", "both")]
    assert read[1]["loss"] > read[0]["loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views_weight": 0.2}, "--views-weight: there are no views"),
        ({"views": "crop", "views_weight": 0.0}, "--views-weight is 0.0"),
        ({"views": "crop", "negatives_from": "bm25"}, "--negatives-from: --views alone reads documents only"),
        ({"views": "crop", "kind": "reranker"}, "--views: is for a retriever"),
        ({"corruption": 0.2}, "--corruption: is for a language model"),
        ({"kind": "language-model", "corruption": 1.0}, "--corruption is 1.0"),
    ],
)
def test_settings_of_views_and_corruption_are_checked(change: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        check(settings(tiny, tmp_path / "m", **change))


def test_mixing_needs_groups_with_two_negatives(tiny: Tiny, tmp_path: Path):
    with pytest.raises(UserError, match="has two negatives to mix; mine some"):
        train.run(settings(tiny, tmp_path / "m", mix_negatives=2))
