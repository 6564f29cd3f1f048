import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist.errors import UserError
from shortlist.math.losses import infonce
from shortlist.models.checkpoint import retriever_to_train
from shortlist.models.retriever import Retriever
from shortlist.train.examples import Batch
from shortlist.train.loop import fit, learning_rate_factor, new_optimizer
from shortlist.train.steps import Example, Outcome, retriever_example

BATCH = Batch(QUERIES[:4], [[document] for document in DOCUMENTS[:4]], [frozenset({d.doc_id}) for d in DOCUMENTS[:4]])


@pytest.fixture
def model(tiny: Tiny) -> Retriever:
    return retriever_to_train(str(tiny.llama), None)


def same_batch(model: Retriever, count: int, temperature: float = 0.05) -> Iterator[Example]:
    for _ in range(count):
        yield retriever_example(model, BATCH, loss=infonce, temperature=temperature)


def train(
    model: Retriever,
    folder: Path,
    *,
    steps: int = 4,
    first_step: int = 0,
    warmup_steps: int = 2,
    token_budget: int = 10_000,
    examples: Iterator[Example] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    checkpoint: Callable[[int], None] = lambda step: None,
) -> dict[str, int | float]:
    return fit(
        model,
        examples or same_batch(model, steps - first_step),
        optimizer or new_optimizer(model, learning_rate=0.01),
        first_step=first_step,
        steps=steps,
        learning_rate=0.01,
        warmup_steps=warmup_steps,
        step_options={"token_budget": token_budget, "bf16": False},
        seed=0,
        log=folder / "log.jsonl",
        checkpoint=checkpoint,
    )


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_learning_rate_rises_and_falls_in_straight_lines():
    factors = [learning_rate_factor(step, steps=10, warmup_steps=4) for step in range(10)]
    assert factors == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert learning_rate_factor(10, steps=10, warmup_steps=4) == 0


def test_without_a_warmup_the_learning_rate_starts_at_its_highest():
    assert [learning_rate_factor(step, steps=2, warmup_steps=0) for step in range(2)] == [1, 0.5]


def test_a_warmup_longer_than_the_training_never_ends():
    assert learning_rate_factor(2, steps=3, warmup_steps=100) == 3 / 100


def test_every_step_is_logged_with_its_learning_rate(model: Retriever, tmp_path: Path):
    last = train(model, tmp_path)
    records = logged(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["learning_rate"] for record in records] == pytest.approx([0.005, 0.01, 0.01, 0.005])
    assert last == records[-1]
    assert {"loss", "accuracy", "gradient_norm", "tokens_per_second"} < last.keys()


def test_training_makes_the_loss_smaller(model: Retriever, tmp_path: Path):
    train(model, tmp_path, steps=12)
    losses = [record["loss"] for record in logged(tmp_path)]
    assert losses[-1] < 0.2 * losses[0]


def test_the_learning_rate_reaches_the_weights_and_gradients_are_cut_to_length_1(model: Retriever, tmp_path: Path):
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    plain = torch.optim.SGD(model.parameters(), lr=123.0)
    last = train(model, tmp_path, steps=1, warmup_steps=2, optimizer=plain)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert last["gradient_norm"] > 1.5
    assert (after - before).norm().item() == pytest.approx(0.005, rel=1e-4)


def test_each_step_starts_from_gradients_of_zero(model: Retriever, tmp_path: Path):
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    for group in still.param_groups:
        group["lr"] = 0.0
    train(model, tmp_path, steps=2, warmup_steps=0, optimizer=StandStill(still))
    first, second = logged(tmp_path)
    assert first["gradient_norm"] == second["gradient_norm"]


class StandStill(torch.optim.SGD):
    """Changes nothing, whatever the learning rate."""

    def __init__(self, other: torch.optim.Optimizer) -> None:
        super().__init__([p for group in other.param_groups for p in group["params"]], lr=0.0)

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        pass


def test_every_micro_batch_of_every_step_has_dropout_of_its_own(
    model: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    train(model, tmp_path, steps=3, token_budget=1)
    assert len(seeds) == len(set(seeds)) == 3 * 8


def test_the_optimizer_has_no_weight_decay_and_only_what_trains(model: Retriever):
    for p in list(model.parameters())[1:]:
        p.requires_grad_(False)
    (group,) = new_optimizer(model, learning_rate=0.5).param_groups
    assert (group["weight_decay"], group["lr"], len(group["params"])) == (0.0, 0.5, 1)


def test_a_checkpoint_is_offered_after_every_step_that_is_logged(model: Retriever, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    train(model, tmp_path, checkpoint=lambda step: seen.append((step, len(logged(tmp_path)))))
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_lines_of_steps_that_are_done_again_leave_the_log(model: Retriever, tmp_path: Path):
    train(model, tmp_path)
    train(model, tmp_path, first_step=2)
    assert [record["step"] for record in logged(tmp_path)] == [1, 2, 3, 4]


def test_the_log_ends_in_whole_lines_after_a_crash_in_the_middle_of_one(model: Retriever, tmp_path: Path):
    train(model, tmp_path)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    train(model, tmp_path, first_step=4, steps=6)
    assert [record["step"] for record in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training_before_it_touches_the_weights(
    model: Retriever, tmp_path: Path, loss: float
):
    def broken() -> Iterator[Example]:
        good, *_ = same_batch(model, 1)
        yield good
        yield good._replace(objective=lambda vectors: Outcome(vectors.sum() * loss, 0.0))

    done: list[int] = []
    with pytest.raises(UserError, match=r"step 2: the loss is (nan|-?inf) \(queries q0, q1, q2, q3, ...\)"):
        train(model, tmp_path, examples=broken(), checkpoint=done.append)
    assert done == [1]
    assert len(logged(tmp_path)) == 1
    assert all(p.isfinite().all() for p in model.parameters())
