"""What every loss in the table has to do; a new one is tested by its name alone."""

import inspect
from typing import Any

import pytest
import torch
from rankings import columns, random_scores, ranking
from torch import Tensor

from shortlist.math.losses import LOSSES, NEEDS, NEEDS_NO_POSITIVE
from shortlist.math.ranking import Ranking

START = random_scores(seed=3)

SAMPLES: dict[str, dict[str, Any]] = {"policy": {"samples": 2048, "k": 3}}
"""Losses that draw samples, with parameters so that their value is near the expected one."""

WHOLE_BATCH = ("sinkhorn",)
"""Losses that compare queries with one another, so that they are no mean over queries."""


def whole_ranking(scores: Tensor | None = None) -> Ranking:
    """One positive in each row, every document counted, everything known."""
    return ranking(random_scores() if scores is None else scores)._replace(start=START)


def loss(name: str, given: Ranking) -> Tensor:
    torch.manual_seed(0)  # where a loss samples
    return LOSSES[name](given, **SAMPLES.get(name, {}))


def assert_equal(name: str, found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, or for what a mean of samples is off by."""
    exactly = name not in SAMPLES
    torch.testing.assert_close(found, expected, atol=1e-5 if exactly else 0.02, rtol=1.3e-6 if exactly else 0.0)


def some_rows(given: Ranking, rows: slice | Tensor, places: slice | Tensor = slice(None)) -> Ranking:
    """The ranking of some rows, cut to some columns."""
    return Ranking(*(None if part is None else part[rows][:, places] for part in given))  # type: ignore[arg-type]


def hidden(given: Ranking, places: list[int]) -> Ranking:
    """The ranking with columns that must not count and hold nothing that could."""
    keep = given.keep.clone()
    keep[:, places] = False
    rubbish = {}
    for field in given._fields:
        if field != "keep" and (part := getattr(given, field)) is not None:
            rubbish[field] = part.clone()
            rubbish[field][:, places] = torch.nan
    return given._replace(keep=keep, **rubbish)


@pytest.mark.parametrize("name", LOSSES)
def test_every_parameter_has_a_default_and_a_name(name: str):
    first, *others = inspect.signature(LOSSES[name]).parameters.values()
    assert first.annotation in (Ranking, "Ranking")
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in others)
    assert all(isinstance(parameter.default, bool | int | float | str | tuple) for parameter in others)


def test_what_losses_need_is_something_that_a_training_can_have():
    assert NEEDS.keys() | NEEDS_NO_POSITIVE.keys() <= LOSSES.keys()
    known = {"teacher", "grades", "start", "shared documents"}
    assert {need for needs in NEEDS.values() for need in needs} == known


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_kept_is_as_good_as_absent_whatever_stands_there(name: str):
    whole = whole_ranking()
    blurred = hidden(whole, [2, 11])
    scores = blurred.scores.requires_grad_()
    found = loss(name, blurred)
    present = torch.tensor([place for place in range(12) if place not in (2, 11)])
    assert_equal(name, found, loss(name, columns(whole, present)))
    found.backward()
    assert scores.grad is not None
    assert not scores.grad[:, [2, 11]].any()
    assert scores.grad[:, present].any()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_which_nothing_counts_adds_nothing(name: str):
    whole = whole_ranking()
    blurred = whole._replace(scores=whole.scores.clone(), keep=whole.keep.clone())
    blurred.keep[3] = False
    scores = blurred.scores.requires_grad_()
    found = loss(name, blurred)
    assert_equal(name, found, loss(name, some_rows(whole, slice(3))) * 3 / 4)
    found.backward()
    assert scores.grad is not None
    assert not scores.grad[3].any()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_query_without_a_positive_teaches_nothing_unless_the_loss_needs_none(name: str):
    whole = whole_ranking()
    unjudged = whole._replace(scores=whole.scores.clone(), relevance=torch.zeros(4, 12))
    scores = unjudged.scores.requires_grad_()
    loss(name, unjudged).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    learns = name == "bands" or NEEDS_NO_POSITIVE.get(name) == {}  # a grade of 0 has its band
    assert bool(scores.grad.any()) == learns


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - set(WHOLE_BATCH)))
def test_rows_may_count_different_documents(name: str):
    whole = whole_ranking()
    keep = (random_scores(seed=5) > -0.5) | (whole.relevance > 0)
    rows = [loss(name, some_rows(whole, slice(i, i + 1), keep[i])) for i in range(4)]
    assert_equal(name, loss(name, whole._replace(keep=keep)), torch.stack(rows).mean())


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_documents_changes_nothing(name: str):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    whole = whole_ranking()
    assert_equal(name, loss(name, columns(whole, order)), loss(name, whole))


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_twice_as_large_has_the_same_loss(name: str):
    whole = whole_ranking()
    twice = some_rows(whole, torch.arange(8) % 4)
    assert_equal(name, loss(name, twice), loss(name, whole))


@pytest.mark.parametrize("name", LOSSES)
def test_scores_in_bfloat16_lose_nothing_more_in_the_loss(name: str):
    narrow = whole_ranking(random_scores().bfloat16())
    found = loss(name, narrow)
    assert found.dtype == torch.float32
    assert found.shape == ()
    torch.testing.assert_close(found, loss(name, narrow._replace(scores=narrow.scores.float())))


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_the_gradient_lowers_the_loss(name: str):
    scores = random_scores().requires_grad_()
    before = loss(name, whole_ranking(scores))
    before.backward()
    assert scores.grad is not None
    size = 0.3 if name in SAMPLES else 1e-3  # the mean of samples moves by jumps
    after = loss(name, whole_ranking(scores.detach() - size * scores.grad / scores.grad.norm()))
    assert after < before


@pytest.mark.parametrize("name", LOSSES)
def test_scores_far_apart_and_scores_all_alike_have_finite_gradients(name: str):
    for size in (0.0, 1e4):
        scores = (random_scores() * size).requires_grad_()
        found = loss(name, whole_ranking(scores))
        found.backward()
        assert found.isfinite()
        assert scores.grad is not None
        assert scores.grad.isfinite().all()
