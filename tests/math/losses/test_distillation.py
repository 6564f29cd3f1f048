import math

import pytest
import torch
from rankings import TEACHER, random_scores, ranking
from torch import Tensor

from shortlist.math.losses.distillation import kl


def distance(scores: Tensor, teacher: Tensor, **parameters: float) -> Tensor:
    return kl(ranking(scores, torch.zeros(len(scores), dtype=torch.long), teacher), **parameters)


def test_kl_equals_the_value_worked_out_by_hand():
    scores, teacher = torch.tensor([[math.log(4.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert distance(scores, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert distance(teacher, scores).item() != pytest.approx(expected, rel=1e-2)  # it is not symmetric
    both = distance(torch.cat([scores, teacher]), torch.cat([teacher, teacher]))
    assert both.item() == pytest.approx(expected / 2, rel=1e-6)


def test_kl_is_pytorchs_own_divergence_of_the_two_distributions():
    wanted, given = torch.softmax(TEACHER / 0.5, 1), torch.log_softmax(random_scores() / 0.2, 1)
    expected = torch.nn.functional.kl_div(given, wanted, reduction="batchmean")
    found = distance(random_scores(), TEACHER, temperature=0.2, teacher_temperature=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_whoever_agrees_with_the_teacher_has_nothing_to_learn():
    scores = (TEACHER * 0.3 + 5).requires_grad_()
    loss = distance(scores, TEACHER * 3, temperature=0.1, teacher_temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-5
    assert distance(scores, TEACHER.roll(1, 1)).item() > 0.1


def test_what_is_added_to_all_scores_of_a_row_changes_nothing():
    shift = torch.tensor([[5.0], [-3.0], [0.0], [100.0]])
    expected = distance(random_scores(), TEACHER)
    torch.testing.assert_close(distance(random_scores(), TEACHER + shift), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(distance(random_scores() + shift, TEACHER), expected, atol=1e-5, rtol=1e-5)


def test_descent_raises_what_the_teacher_puts_higher_and_lowers_what_it_puts_lower():
    scores = random_scores().requires_grad_()
    distance(scores, TEACHER).backward()
    assert scores.grad is not None
    too_low = torch.softmax(random_scores(), 1) < torch.softmax(TEACHER, 1)
    assert (scores.grad[too_low] < 0).all()
    assert (scores.grad[~too_low] > 0).all()


def test_where_the_teacher_did_not_look_a_document_does_not_count():
    teacher, scores = TEACHER.clone(), random_scores().requires_grad_()
    teacher[:, 4:] = torch.nan
    teacher[0, 2] = torch.nan
    loss = distance(scores, teacher)
    first = distance(random_scores()[:1, [0, 1, 3]], TEACHER[:1, [0, 1, 3]])
    torch.testing.assert_close(loss, (first + 3 * distance(random_scores()[1:, :4], TEACHER[1:, :4])) / 4)
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad[:, 4:].any()
    assert scores.grad.isfinite().all()


def test_a_query_that_the_teacher_did_not_look_at_teaches_nothing():
    teacher, scores = TEACHER.clone(), random_scores().requires_grad_()
    teacher[1:] = torch.nan
    loss = distance(scores, teacher)
    torch.testing.assert_close(loss, distance(random_scores()[:1], TEACHER[:1]) / 4)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[1:].any()
    assert distance(random_scores(), torch.full((4, 12), torch.nan)) == 0


def test_without_a_teacher_there_is_nobody_to_follow():
    with pytest.raises(ValueError, match="there are none"):
        kl(ranking(random_scores(), teacher=None))
