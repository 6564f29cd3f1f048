"""What every loss in the table has to do; a new one is tested by its name alone."""

import inspect

import pytest
import torch
from rankings import columns, random_scores, ranking
from torch import Tensor

from shortlist.math.losses import LOSSES, NEEDS
from shortlist.math.ranking import Ranking


def loss(name: str, given: Ranking) -> Tensor:
    torch.manual_seed(0)  # where a loss samples
    return LOSSES[name](given)


def hidden(given: Ranking, places: list[int]) -> Ranking:
    """The ranking with columns that must not count and hold nothing that could."""
    keep, rubbish = given.keep.clone(), [part.clone() for part in given[:3] if part is not None]
    keep[:, places] = False
    for part in rubbish:
        part[:, places] = torch.nan
    return Ranking(*rubbish, keep)


@pytest.mark.parametrize("name", LOSSES)
def test_every_parameter_has_a_default_and_a_name(name: str):
    first, *others = inspect.signature(LOSSES[name]).parameters.values()
    assert first.annotation in (Ranking, "Ranking")
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in others)
    assert all(isinstance(parameter.default, bool | int | float | str | tuple) for parameter in others)


def test_what_losses_need_is_something_that_groups_can_have():
    assert NEEDS.keys() <= LOSSES.keys()
    assert {need for needs in NEEDS.values() for need in needs} <= {"teacher", "grades"}


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_kept_is_as_good_as_absent_whatever_stands_there(name: str):
    whole = ranking(random_scores())
    blurred = hidden(whole, [2, 11])
    scores = blurred.scores.requires_grad_()
    found = loss(name, blurred)
    present = torch.tensor([place for place in range(12) if place not in (2, 11)])
    torch.testing.assert_close(found, loss(name, columns(whole, present)))
    found.backward()
    assert scores.grad is not None
    assert not scores.grad[:, [2, 11]].any()
    assert scores.grad[:, present].any()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_rows_may_count_different_documents(name: str):
    whole = ranking(random_scores())
    keep = (random_scores(seed=5) > -0.5) | (whole.relevance > 0)
    rows = [
        loss(name, Ranking(*(None if part is None else part[i : i + 1, keep[i]] for part in whole)))  # type: ignore[arg-type]
        for i in range(4)
    ]
    torch.testing.assert_close(loss(name, whole._replace(keep=keep)), torch.stack(rows).mean())


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_documents_changes_nothing(name: str):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    whole = ranking(random_scores())
    torch.testing.assert_close(loss(name, columns(whole, order)), loss(name, whole))


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_twice_as_large_has_the_same_loss(name: str):
    whole = ranking(random_scores())
    twice = Ranking(*(None if part is None else torch.cat([part, part]) for part in whole))  # type: ignore[arg-type]
    torch.testing.assert_close(loss(name, twice), loss(name, whole))


@pytest.mark.parametrize("name", LOSSES)
def test_scores_in_bfloat16_lose_nothing_more_in_the_loss(name: str):
    narrow = ranking(random_scores().bfloat16())
    found = loss(name, narrow)
    assert found.dtype == torch.float32
    assert found.shape == ()
    torch.testing.assert_close(found, loss(name, narrow._replace(scores=narrow.scores.float())))


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_the_gradient_lowers_the_loss(name: str):
    scores = random_scores().requires_grad_()
    before = loss(name, ranking(scores))
    before.backward()
    assert scores.grad is not None
    after = loss(name, ranking(scores.detach() - 1e-3 * scores.grad / scores.grad.norm()))
    assert after < before
