import math
from pathlib import Path

import pytest
import torch
from named import language_model_to_train, reranker_to_train, retriever_to_train
from tiny import DOCUMENTS, QUERIES, Tiny
from torch import Tensor
from toys import PerToken, Toy, Words, maxsim_example

from shortlist.math.losses import LOSSES
from shortlist.models.adapter_settings import make_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.backbone import checkpoint_layers
from shortlist.models.dense import DenseModel
from shortlist.models.outputs import join, split
from shortlist.models.pointwise import PointwiseModel
from shortlist.models.save import Trainable
from shortlist.text.batching import pad
from shortlist.train.examples import Batch
from shortlist.train.guide import Guide
from shortlist.train.losses import parse_losses
from shortlist.train.objectives import make_example
from shortlist.train.start import Start
from shortlist.train.steps import Example, Outcome, backward, compute_outputs

ONE_BUCKET = 100_000
BUCKETS = 40
"""Tokens per forward pass that split every batch below into several."""

RAGGED = Batch(
    queries=QUERIES[:3],
    documents=[[DOCUMENTS[i] for i in group] for group in ([0, 3, 4, 9], [1, 5], [2, 7, 10])],
    positives=[frozenset({f"d{i}"}) for i in range(3)],
)


@pytest.fixture
def retriever(tiny: Tiny) -> DenseModel:
    return retriever_to_train(str(tiny.llama), None)


@pytest.fixture
def reranker(tiny: Tiny) -> PointwiseModel:
    return new_reranker(tiny.llama)


def new_reranker(backbone: Path) -> PointwiseModel:
    model = reranker_to_train(str(backbone), None, seed=0)
    model.head.data *= 5  # far enough from 0 for scores to differ
    return model


@pytest.fixture(params=["retriever", "reranker"])
def model(request: pytest.FixtureRequest, tiny: Tiny) -> DenseModel | PointwiseModel:
    """A BERT: it has dropout, and padding to get wrong."""
    if request.param == "retriever":
        return retriever_to_train(str(tiny.bert), None)
    return new_reranker(tiny.bert)


def example(model: Trainable, batch: Batch = RAGGED, temperature: float = 0.5, losses: str = "infonce") -> Example:
    terms = parse_losses(losses.split(), temperature=temperature)
    return make_example(model.kind, model.inputs, batch, terms)


def step(model: Trainable | Toy, item: Example, **options) -> tuple[Outcome, Tensor]:
    """The outcome of one step, and all its gradients in a row."""
    model.zero_grad()
    defaults = {"token_budget": ONE_BUCKET, "bf16": False, "seed": 3}
    outcome = backward(model, item, **(defaults | options))
    return outcome, torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def assert_same(one: tuple[Outcome, Tensor], other: tuple[Outcome, Tensor], relative: float = 1e-5) -> None:
    assert one[0].loss.item() == pytest.approx(other[0].loss.item(), rel=relative)
    assert one[0].accuracy == other[0].accuracy
    assert one[1].norm() > 1e-3
    assert (one[1] - other[1]).norm() <= relative * other[1].norm()


def vector(model: DenseModel | PointwiseModel, token_ids: list[int]) -> Tensor:
    """The output for one input alone: no padding, no bucket."""
    return model(*pad([token_ids], 0)).values[0]


def test_buckets_change_neither_loss_nor_gradients(model: DenseModel | PointwiseModel):
    model.eval()
    assert_same(step(model, example(model), token_budget=BUCKETS), step(model, example(model)))
    assert_same(step(model, example(model), token_budget=1), step(model, example(model)))


@pytest.mark.parametrize("token_budget", [BUCKETS, ONE_BUCKET])
def test_the_cached_step_has_the_plain_steps_gradients_dropout_included(
    model: DenseModel | PointwiseModel, token_budget: int
):
    model.train()
    plain = step(model, example(model), token_budget=token_budget)
    cached = step(model, example(model), token_budget=token_budget, cached=True)
    assert_same(cached, plain)
    other = step(model, example(model), token_budget=token_budget, seed=4)
    assert other[0].loss.item() != pytest.approx(plain[0].loss.item(), rel=1e-4)  # there is dropout to get wrong


@pytest.fixture(params=[PerToken, Words])
def toy(request: pytest.FixtureRequest, tiny: Tiny) -> Toy:
    """A model that gives several rows for a text, or one that is no vector."""
    retriever = retriever_to_train(str(tiny.bert), None)
    return request.param(retriever.backbone, retriever.inputs)


def test_a_model_may_give_several_rows_for_a_text_and_all_of_them_learn(toy: Toy):
    item = toy_example(toy.eval())
    outcome, gradients = step(toy, item, token_budget=BUCKETS)
    toy.zero_grad()
    parts = [toy(*pad([ids], 0)) for ids in item.token_ids]  # no padding, no bucket, none out of order
    expected = item.objective(join(parts))
    expected.loss.backward()
    whole = torch.cat([p.grad.flatten() for p in toy.parameters() if p.grad is not None])
    assert_same((outcome, gradients), (expected, whole))
    assert_same(step(toy, item), (expected, whole))
    rows = compute_outputs(toy, item.token_ids, token_budget=BUCKETS, bf16=False)
    for actual, part in zip(split(rows), parts, strict=True):
        torch.testing.assert_close(actual, part.values.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("token_budget", [BUCKETS, ONE_BUCKET])
def test_the_cached_step_carries_several_rows_for_a_text_too(toy: Toy, token_budget: int):
    item = toy_example(toy.train())
    plain = step(toy, item, token_budget=token_budget)
    assert_same(step(toy, item, token_budget=token_budget, cached=True), plain)


def toy_example(toy: Toy) -> Example:
    documents = [group[0] for group in RAGGED.documents] + RAGGED.documents[0][1:]
    return maxsim_example(toy.inputs.query_ids(RAGGED.queries) + toy.inputs.document_ids(documents), 3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_so_it_does_with_dropout_in_the_lora_of_a_decoder(tiny: Tiny, checkpointing: bool):
    model = retriever_to_train(str(tiny.llama), None)
    torch.manual_seed(0)
    add_adapter(model.backbone, make_adapter("lora", r=4, dropout=0.3))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    if checkpointing:
        checkpoint_layers(model.backbone)
    item = example(model.train())
    plain, expected = step(model, item, token_budget=BUCKETS)
    cached, gradients = step(model, item, token_budget=BUCKETS, cached=True)
    assert cached.loss == pytest.approx(plain.loss.item(), rel=1e-5)
    torch.testing.assert_close(gradients, expected, atol=1e-5 * expected.norm().item(), rtol=1e-3)


def test_gradients_are_added_to_those_that_are_there(reranker: PointwiseModel):
    _, once = step(reranker, example(reranker))
    backward(reranker, example(reranker), token_budget=ONE_BUCKET, bf16=False, seed=3)
    twice = torch.cat([p.grad.flatten() for p in reranker.parameters() if p.grad is not None])
    torch.testing.assert_close(twice, 2 * once)


def test_bfloat16_is_close_to_float32_and_leaves_weights_and_gradients_in_it(model: DenseModel | PointwiseModel):
    model.eval()
    exact, narrow = step(model, example(model)), step(model, example(model), bf16=True)
    assert narrow[0].loss.item() == pytest.approx(exact[0].loss.item(), rel=0.02)
    assert narrow[0].loss.item() != exact[0].loss.item()
    assert torch.cosine_similarity(narrow[1], exact[1], dim=0) > 0.99
    assert {p.dtype for p in model.parameters()} == {narrow[1].dtype} == {torch.float32}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("token_budget", [1, BUCKETS, ONE_BUCKET])
def test_a_language_models_loss_equals_a_loop_over_every_token_of_both_orders(
    tiny: Tiny, cached: bool, token_budget: int
):
    model = language_model_to_train(str(tiny.llama))
    outcome, gradients = step(model, example(model), token_budget=token_budget, cached=cached)
    model.zero_grad()
    losses, right = [], []
    for query, group in zip(RAGGED.queries, RAGGED.documents, strict=True):
        for turned in (False, True):
            [ids] = model.inputs.pair_ids([(query, group[0])], turned=turned)
            states = model.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
            logs = torch.log_softmax(states @ model.backbone.embed_tokens.weight.T, dim=1)
            losses += [-logs[place, ids[place + 1]] for place in range(len(ids) - 1)]
            right += [int(logs[place].argmax()) == ids[place + 1] for place in range(len(ids) - 1)]
    expected = torch.stack(losses).mean()
    expected.backward()
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert outcome.accuracy == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < len(right)
    whole = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (gradients - whole).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("cached", [False, True])
def test_a_retrievers_loss_equals_a_loop_over_every_query_and_document(retriever: DenseModel, cached: bool):
    outcome, _ = step(retriever, example(retriever, temperature=0.05), token_budget=BUCKETS, cached=cached)
    documents = [document for group in RAGGED.documents for document in group]
    losses, right = [], 0
    for query, own in zip(RAGGED.queries, [0, 4, 6], strict=True):
        query_vector = vector(retriever, retriever.inputs.query_ids([query])[0])
        scores = [(query_vector @ vector(retriever, ids)).item() for ids in retriever.inputs.document_ids(documents)]
        odds = [math.exp(score / 0.05) for score in scores]
        losses.append(-math.log(odds[own] / sum(odds)))
        right += max(scores) == scores[own]
    assert outcome.loss.item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert outcome.accuracy == pytest.approx(right / 3)


@pytest.mark.parametrize("cached", [False, True])
def test_a_rerankers_loss_equals_a_loop_over_groups_that_stay_ragged(reranker: PointwiseModel, cached: bool):
    outcome, _ = step(reranker, example(reranker, temperature=0.3), token_budget=BUCKETS, cached=cached)
    losses, right = [], 0
    for query, group in zip(RAGGED.queries, RAGGED.documents, strict=True):
        pairs = reranker.inputs.pair_ids([(query, document) for document in group])
        scores = [vector(reranker, ids).item() for ids in pairs]
        odds = [math.exp(score / 0.3) for score in scores]
        losses.append(-math.log(odds[0] / sum(odds)))
        right += max(scores) == scores[0]
    assert outcome.loss.item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert outcome.accuracy == pytest.approx(right / 3)


def test_a_reranker_does_not_see_the_documents_of_other_queries(reranker: PointwiseModel):
    def loss(*places: int) -> float:
        parts = (RAGGED.queries, RAGGED.documents, RAGGED.positives)
        batch = Batch(*([part[place] for place in places] for part in parts))  # type: ignore[arg-type]
        return step(reranker, example(reranker, batch))[0].loss.item()

    assert loss(0, 1, 2) == pytest.approx((loss(0) + loss(1) + loss(2)) / 3, rel=1e-5)


def test_a_retriever_does_see_the_documents_of_other_queries(retriever: DenseModel):
    alone = Batch(RAGGED.queries[1:2], RAGGED.documents[1:2], RAGGED.positives[1:2])
    losses = [step(retriever, example(retriever, batch))[0].loss.item() for batch in (RAGGED, alone)]
    assert losses[0] > losses[1] + 0.1


SCORED = RAGGED._replace(scores=[(1.0, 0.2, -0.5, 2.0), (0.0, 1.0), (3.0, 0.0, 0.1)])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_a_taught_models_loss_equals_a_loop_over_the_teachers_groups(tiny: Tiny, kind: str, cached: bool):
    model = retriever_to_train(str(tiny.llama)) if kind == "retriever" else new_reranker(tiny.llama)
    plain, _ = step(model, example(model, SCORED))
    distances = []
    for query, group, teacher in zip(SCORED.queries, SCORED.documents, SCORED.scores, strict=True):
        if isinstance(model, DenseModel):
            one = vector(model, model.inputs.query_ids([query])[0])
            scores = torch.stack([one @ vector(model, ids) for ids in model.inputs.document_ids(group)])
        else:
            scores = torch.stack([vector(model, ids) for ids in model.inputs.pair_ids([(query, d) for d in group])])
        wanted, given = torch.tensor(teacher).div(2.0).softmax(0), scores.detach().div(0.5).softmax(0)
        distances.append((wanted * (wanted / given).log()).sum().item())
    assert max(distances) > 0.02
    for share, losses in {0.25: "infonce=0.75 kl=0.25", 1.0: "kl"}.items():
        item = example(model, SCORED, losses=f"{losses} kl.teacher_temperature=2")
        taught, gradients = step(model, item, token_budget=BUCKETS, cached=cached)
        expected = (1 - share) * plain.loss.item() + share * sum(distances) / 3
        assert taught.loss.item() == pytest.approx(expected, rel=1e-5)
        assert taught.accuracy == plain.accuracy
        assert gradients.isfinite().all()


def test_what_a_loss_draws_does_not_depend_on_how_the_batch_was_dealt_out(
    reranker: PointwiseModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(LOSSES, "drawn", lambda ranking: (ranking.scores * torch.rand(ranking.scores.shape)).sum())
    whole = step(reranker, example(reranker, losses="drawn"))
    assert_same(step(reranker, example(reranker, losses="drawn"), token_budget=BUCKETS), whole)
    assert_same(step(reranker, example(reranker, losses="drawn"), token_budget=BUCKETS, cached=True), whole)
    assert step(reranker, example(reranker, losses="drawn"), seed=4)[0].loss != whole[0].loss


def test_where_no_loss_follows_the_teacher_its_scores_change_nothing(reranker: PointwiseModel):
    assert_same(step(reranker, example(reranker, SCORED)), step(reranker, example(reranker)), relative=0)


@pytest.mark.parametrize("cached", [False, True])
def test_a_step_compares_with_what_the_model_said_at_the_start(reranker: PointwiseModel, cached: bool):
    start, item = Start(reranker), example(reranker, temperature=1.0, losses="anchor")
    scores = compute_outputs(reranker, item.token_ids, token_budget=BUCKETS, bf16=False).values
    same, none = step(reranker.train(), item, start=start, cached=cached)
    assert same.loss.item() == pytest.approx(0, abs=1e-6)
    assert none.norm() < 1e-4
    with torch.no_grad():
        reranker.head.mul_(-2)
    moved, gradients = step(reranker, item, start=start, cached=cached, token_budget=BUCKETS)
    first = [part.log_softmax(0) for part in scores.split([4, 2, 3])]
    now = [part.log_softmax(0) for part in (-2 * scores).split([4, 2, 3])]
    expected = sum(float((n.exp() * (n - f)).sum()) for n, f in zip(now, first, strict=True)) / 3
    assert moved.loss.item() == pytest.approx(expected, rel=1e-4)
    assert gradients.norm() > 1e-3
    assert reranker.training


def test_the_start_has_no_dropout_and_costs_the_model_nothing(tiny: Tiny):
    model = new_reranker(tiny.bert).train()
    item = example(model, losses="infonce anchor")
    before = [p.detach().clone() for p in model.parameters()]
    start = Start(model)
    with start.restored():
        assert not model.training
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    with start.restored():
        for p, value in zip(model.parameters(), before, strict=True):
            assert torch.equal(p, value)
    assert model.training
    for p, value in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p, value + 0.01)
    plain = step(model, item, start=start, token_budget=BUCKETS)
    assert_same(step(model, item, start=start, token_budget=BUCKETS, cached=True), plain)


def test_under_an_adapter_the_start_keeps_what_trains_and_shares_the_rest(tiny: Tiny):
    model = new_reranker(tiny.llama)
    torch.manual_seed(0)
    add_adapter(model.backbone, make_adapter("lora", r=4, dropout=0.3))
    start, item = Start(model, adapter=True), example(model, losses="anchor")
    small = sum(value.numel() for value in start._weights.values())
    assert (
        small
        == sum(p.numel() for p in model.parameters() if p.requires_grad)
        < 0.5 * sum(p.numel() for p in model.parameters())
    )
    with torch.no_grad():
        model.head.mul_(2)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    learned = compute_outputs(model.eval(), item.token_ids, token_budget=BUCKETS, bf16=False).values
    with start.restored():
        found = compute_outputs(model, item.token_ids, token_budget=BUCKETS, bf16=False).values
    expected = compute_outputs(new_reranker(tiny.llama), item.token_ids, token_budget=BUCKETS, bf16=False).values
    torch.testing.assert_close(found, expected)
    assert (learned - expected).abs().max() > 1e-3


def test_a_guide_takes_false_negatives_out_of_a_step(retriever: DenseModel, tiny: Tiny):
    guide = retriever_to_train(str(tiny.llama), None).eval()
    terms = parse_losses(["infonce"], temperature=0.5)

    def outcome(margin: float, **options) -> Outcome:
        item = make_example("retriever", retriever.inputs, RAGGED, terms, guide=Guide(guide, margin))
        return step(retriever, item, guide=guide, **options)[0]

    everything, nothing = outcome(-2.0), outcome(2.0)
    plain = step(retriever, example(retriever))[0]
    assert everything.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    assert nothing.loss.item() == 0.0  # the positive alone is left
    some, cached = outcome(0.0), outcome(0.0, cached=True, token_budget=BUCKETS)
    assert 0 < some.loss < everything.loss
    assert cached.loss.item() == pytest.approx(some.loss.item(), rel=1e-5)
