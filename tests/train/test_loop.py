import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from named import retriever_to_train
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist.errors import UserError
from shortlist.models.dense import DenseModel
from shortlist.train import loop
from shortlist.train.examples import Batch
from shortlist.train.gather import OutOfMemory
from shortlist.train.log import Record
from shortlist.train.loop import fit, learning_rate_factor
from shortlist.train.losses import parse_losses
from shortlist.train.objectives import make_example
from shortlist.train.optimizers import new_optimizer
from shortlist.train.resume import State
from shortlist.train.steps import Example, Outcome

BATCH = Batch(QUERIES[:4], [[document] for document in DOCUMENTS[:4]], [frozenset({d.doc_id}) for d in DOCUMENTS[:4]])


@pytest.fixture
def model(tiny: Tiny) -> DenseModel:
    return retriever_to_train(str(tiny.llama), None)


def same_batch(model: DenseModel, count: int, temperature: float = 0.05) -> Iterator[Example]:
    for _ in range(count):
        yield make_example("retriever", model.inputs, BATCH, parse_losses(["infonce"], temperature=temperature))


def train(
    model: DenseModel,
    *,
    steps: int = 4,
    state: State | None = None,
    warmup_steps: int = 2,
    token_budget: int = 10_000,
    examples: Iterator[Example] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    after: Callable[[State], State] = lambda state: state,
) -> list[Record]:
    """What was measured of every step."""
    records: list[Record] = []
    state = state or State(token_budget=token_budget)

    def note(state: State, record: Record) -> State:
        records.append(record)
        return after(state)

    fit(
        model,
        examples or same_batch(model, steps - state.step),
        optimizer or new_optimizer(model, learning_rate=0.01),
        state,
        steps=steps,
        learning_rate=0.01,
        warmup_steps=warmup_steps,
        bf16=False,
        seed=0,
        after=note,
    )
    return records


def test_the_learning_rate_rises_and_falls_in_straight_lines():
    factors = [learning_rate_factor(step, steps=10, warmup_steps=4) for step in range(10)]
    assert factors == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert learning_rate_factor(10, steps=10, warmup_steps=4) == 0


def test_without_a_warmup_the_learning_rate_starts_at_its_highest():
    assert [learning_rate_factor(step, steps=2, warmup_steps=0) for step in range(2)] == [1, 0.5]


def test_a_warmup_longer_than_the_training_never_ends():
    assert learning_rate_factor(2, steps=3, warmup_steps=100) == 3 / 100


def test_every_step_is_measured_at_its_learning_rate(model: DenseModel):
    records = train(model)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["learning_rate"] for record in records] == pytest.approx([0.005, 0.01, 0.01, 0.005])
    assert {"loss", "accuracy", "gradient_norm", "tokens_per_second"} < records[0].keys()


def test_training_goes_on_at_the_learning_rate_of_the_step_it_begins_with(model: DenseModel):
    records = train(model, state=State(step=2, token_budget=10_000))
    assert [record["step"] for record in records] == [3, 4]
    assert [record["learning_rate"] for record in records] == pytest.approx([0.01, 0.005])


def test_training_makes_the_loss_smaller(model: DenseModel):
    losses = [record["loss"] for record in train(model, steps=12)]
    assert losses[-1] < 0.2 * losses[0]


def test_the_learning_rate_reaches_the_weights_and_gradients_are_cut_to_length_1(model: DenseModel):
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    plain = torch.optim.SGD(model.parameters(), lr=123.0)
    (record,) = train(model, steps=1, warmup_steps=2, optimizer=plain)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert record["gradient_norm"] > 1.5
    assert (after - before).norm().item() == pytest.approx(0.005, rel=1e-4)


def test_each_step_starts_from_gradients_of_zero(model: DenseModel):
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    for group in still.param_groups:
        group["lr"] = 0.0
    first, second = train(model, steps=2, warmup_steps=0, optimizer=StandStill(still))
    assert first["gradient_norm"] == second["gradient_norm"]


class StandStill(torch.optim.SGD):
    """Changes nothing, whatever the learning rate."""

    def __init__(self, other: torch.optim.Optimizer) -> None:
        super().__init__([p for group in other.param_groups for p in group["params"]], lr=0.0)

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        pass


def test_every_micro_batch_of_every_step_has_dropout_of_its_own(model: DenseModel, monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    train(model, steps=3, token_budget=1)
    assert len(set(seeds)) == 3 * 8
    assert len(seeds) == 3 * 8 + 3  # each step's loss has one too


def test_the_optimizer_has_no_weight_decay_and_only_what_trains(model: DenseModel):
    for p in list(model.parameters())[1:]:
        p.requires_grad_(False)
    (group,) = new_optimizer(model, learning_rate=0.5).param_groups
    assert (group["weight_decay"], group["lr"], len(group["params"])) == (0.0, 0.5, 1)


def test_what_is_done_after_a_step_decides_how_the_next_begins(model: DenseModel):
    budgets: list[int] = []

    def shrink(state: State) -> State:
        budgets.append(state.token_budget)
        return state._replace(token_budget=state.token_budget - 1)

    train(model, steps=3, token_budget=100, after=shrink)
    assert budgets == [100, 99, 98]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training_before_it_touches_the_weights(model: DenseModel, loss: float):
    def broken() -> Iterator[Example]:
        good, *_ = same_batch(model, 1)
        yield good
        yield good._replace(objective=lambda vectors: Outcome(vectors.values.sum() * loss, 0.0))

    done: list[State] = []
    with pytest.raises(UserError, match=r"step 2: the loss is (nan|-?inf) \(queries q0, q1, q2, q3\); the last"):
        train(model, examples=broken(), after=lambda state: done.append(state) or state)
    assert [state.step for state in done] == [1]
    assert all(p.isfinite().all() for p in model.parameters())


def test_so_does_a_gradient_that_is_no_number(model: DenseModel):
    def broken() -> Iterator[Example]:
        (good,) = same_batch(model, 1)
        yield good._replace(
            objective=lambda rows: Outcome((rows.values * 0).sqrt().sum(), 0.0)
        )  # 0, with slope 0 * inf

    with pytest.raises(UserError, match="step 1: the gradient's norm is nan"):
        train(model, examples=broken())
    assert all(p.isfinite().all() for p in model.parameters())


class TestOutOfMemory:
    """The device is made to hold so many tokens per pass, and in the plain step so many in all."""

    @pytest.fixture
    def device_holds(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, bool]]]:
        """Set the limits; what comes back lists the tries, as token budget and whether cached."""

        def limit(tokens: int) -> list[tuple[int, bool]]:
            tries: list[tuple[int, bool]] = []
            backward = loop.backward

            def limited(model, example, *, token_budget: int, cached: bool, **options):
                tries.append((token_budget, cached))
                next(model.parameters()).grad = torch.full_like(next(model.parameters()), torch.nan)  # half done
                if not cached or token_budget > tokens:
                    raise OutOfMemory
                model.zero_grad()
                return backward(model, example, token_budget=token_budget, cached=cached, **options)

            monkeypatch.setattr(loop, "backward", limited)
            return tries

        return limit

    def test_the_budget_is_halved_and_the_step_repeated(
        self, model: DenseModel, device_holds: Callable, capsys: pytest.CaptureFixture
    ):
        expected = [record["loss"] for record in train(copy.deepcopy(model), steps=2)]
        tries = device_holds(40)
        records = train(model, steps=2, token_budget=100)
        assert tries == [(100, False), (50, True), (25, True), (25, True)]
        assert [record["loss"] for record in records] == pytest.approx(expected, rel=1e-4)
        said = capsys.readouterr().err.strip().split("\n")
        assert said[0].startswith("step 1: out of memory; from here on 50 tokens per pass")
        assert len(said) == 2

    def test_a_budget_larger_than_the_batch_is_halved_from_the_batch(self, model: DenseModel, device_holds: Callable):
        tries = device_holds(10_000)
        train(model, steps=1, token_budget=1_000_000)
        assert 1 < tries[1][0] < 200

    def test_when_one_input_is_too_much_training_ends_with_what_would_help(
        self, model: DenseModel, device_holds: Callable
    ):
        device_holds(0)
        with pytest.raises(UserError, match=r"step 1: out of memory with one input of \d+ tokens at a time"):
            train(model, token_budget=100)
