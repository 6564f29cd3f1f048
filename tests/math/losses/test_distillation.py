import math

import pytest
import torch
from rankings import TEACHER, graded, random_scores, ranking, slope
from torch import Tensor

from shortlist.math.losses.contrastive import infonce
from shortlist.math.losses.distillation import js, judge, kl, pld, sinkhorn
from shortlist.math.losses.listwise import listmle


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


def test_js_equals_the_value_worked_out_by_hand():
    given = graded([math.log(4.0), 0.0], [0, 0], [0.0, 0.0])
    expected = 0.8 * math.log(0.8 / 0.65) + 0.2 * math.log(0.2 / 0.35) + 0.5 * math.log(0.5 / 0.65 * 0.5 / 0.35)
    found = js(given)
    assert found.item() == pytest.approx(expected / 2, rel=1e-5)
    too_high, too_low = slope(found, given)
    assert too_low < 0 < too_high


def test_js_is_symmetric_and_at_most_log_2():
    one, other = ranking(random_scores(), teacher=TEACHER), ranking(TEACHER, teacher=random_scores())
    torch.testing.assert_close(
        js(one, temperature=0.5, teacher_temperature=0.2), js(other, temperature=0.2, teacher_temperature=0.5)
    )
    assert js(graded([1000.0, 0.0], [0, 0], [0.0, 1000.0])).item() == pytest.approx(math.log(2))
    assert js(ranking(TEACHER + 3)).item() == pytest.approx(0, abs=1e-6)


def test_judge_equals_the_value_worked_out_by_hand():
    given = graded([0.02 * math.log(4.0), 0.0], [1, 0], [0.5, 0.5])
    found = judge(given)
    forth = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    back = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert found.item() == pytest.approx((forth + back) / 2, rel=1e-5)
    too_high, too_low = slope(found, given)
    assert too_low < 0 < too_high


def test_judge_is_the_mean_of_both_directions():
    one, other = ranking(random_scores()), ranking(TEACHER, teacher=random_scores())
    found = judge(one, temperature=0.5, teacher_temperature=0.2)
    forth = kl(one, temperature=0.5, teacher_temperature=0.2)
    back = kl(other, temperature=0.2, teacher_temperature=0.5)
    torch.testing.assert_close(found, (forth + back) / 2)


def test_pld_equals_the_value_worked_out_by_hand():
    given = graded([math.log(3.0), math.log(2.0), 0.0], [1, 0, 0], [0.0, 0.0, math.log(2.0)])
    first, second = math.log(6 / 3), math.log(3 / 1)  # the positive, then the teacher's best of the others
    found = pld(given)
    assert found.item() == pytest.approx(1 / 4 * first + 2 / 4 * second, rel=1e-6)
    own, lowest, best = slope(found, given)
    assert own < 0 < lowest
    assert best < 0


def test_pld_is_listmle_where_the_teacher_prefers_nothing_and_infonce_where_it_is_sure():
    given = ranking(random_scores(), teacher=TEACHER)
    order = given.teacher.masked_fill(given.relevance > 0, 99.0) if given.teacher is not None else None
    uniform = pld(given, teacher_temperature=1e6, temperature=0.7)
    expected = listmle(given._replace(teacher=order), order="teacher", temperature=0.7) / 12
    torch.testing.assert_close(uniform, expected, rtol=1e-5, atol=1e-6)
    sure = given._replace(teacher=torch.where(given.relevance > 0, 1000.0, TEACHER))
    torch.testing.assert_close(pld(sure), infonce(sure, temperature=1.0))


def test_pld_counts_what_the_teacher_scored_and_does_without_a_positive():
    seen = graded([0.5, 1.0, -1.0, 7.0], [1, 0, 0, 0], [2.0, 1.0, 0.0, math.nan])
    torch.testing.assert_close(pld(seen), pld(graded([0.5, 1.0, -1.0], [1, 0, 0], [2.0, 1.0, 0.0])))
    unscored = graded([0.5, 1.0, -1.0], [1, 0, 0], [math.nan, 1.0, 0.0])
    torch.testing.assert_close(pld(unscored), pld(graded([1.0, -1.0], [0, 0], [1.0, 0.0])))


def test_pld_does_not_depend_on_what_is_added_to_a_row_and_is_convex():
    one, other, shift = random_scores(), random_scores(seed=7), torch.tensor([[5.0], [-3.0], [0.0], [100.0]])
    torch.testing.assert_close(pld(ranking(one + shift)), pld(ranking(one)), atol=1e-5, rtol=1e-5)
    assert pld(ranking((one + other) / 2)) <= (pld(ranking(one)) + pld(ranking(other))) / 2


def plain_sinkhorn(scores: Tensor, teacher: Tensor, epsilon: float, iterations: int) -> float:
    """The same in sums and products, as the paper writes it."""
    given, wanted = scores.double().softmax(1), teacher.double().softmax(1)
    cost = (given[:, None] - wanted[None]).abs().sum(2)
    plan = (-cost / epsilon).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return float((plan * cost).sum() / len(scores))


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.1, 20), (0.5, 1), (2.0, 500)])
def test_sinkhorn_equals_the_formula_in_sums_and_products(epsilon: float, iterations: int):
    scores, teacher = random_scores(8, 12), random_scores(8, 12, seed=2)
    found = sinkhorn(ranking(scores, torch.arange(8), teacher), epsilon=epsilon, iterations=iterations)
    assert found.item() == pytest.approx(plain_sinkhorn(scores, teacher, epsilon, iterations), rel=1e-5)


def test_sinkhorn_of_one_query_is_the_sum_of_absolute_differences():
    given = graded([math.log(4.0), 0.0], [0, 0], [0.0, 0.0])
    found = sinkhorn(given)
    assert found.item() == pytest.approx(0.3 + 0.3, rel=1e-5)
    too_high, too_low = slope(found, given)
    assert too_low < 0 < too_high


def test_sinkhorn_equals_the_value_worked_out_by_hand():
    """Two queries that agree with the teacher: what is moved to the other one costs c."""
    scores = torch.tensor([[math.log(4.0), 0.0], [0.0, math.log(4.0)]])
    given = ranking(scores, torch.tensor([0, 1]), scores)
    c, moved = 1.2, 1 / (1 + math.exp(1.2 / 0.4))
    assert sinkhorn(given, epsilon=0.4).item() == pytest.approx(c * moved, rel=1e-5)


def test_sinkhorn_has_numbers_where_the_plan_has_none_but_logarithms():
    scores = random_scores(6, 12).requires_grad_()
    given = ranking(scores, torch.arange(6), random_scores(6, 12, seed=2))
    found = sinkhorn(given, epsilon=1e-3, iterations=200)
    assert not math.isfinite(plain_sinkhorn(scores.detach().float() * 20, given.teacher * -20, 1e-3, 200))
    assert 0 < found.item() < 2
    (gradient,) = torch.autograd.grad(found, scores)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_lists_without_common_documents_are_moved_onto_their_own():
    scores, teacher = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), torch.full((2, 6), torch.nan)
    teacher[0, :3], teacher[1, 3:] = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.0, 0.3, 0.1])
    given = [scores[0, :3].softmax(0), scores[1, 3:].softmax(0)]
    wanted = [teacher[0, :3].softmax(0), teacher[1, 3:].softmax(0)]
    expected = sum((g - w).abs().sum() for g, w in zip(given, wanted, strict=True)) / 2
    found = sinkhorn(ranking(scores, torch.tensor([0, 3]), teacher), epsilon=0.02)
    torch.testing.assert_close(found, torch.as_tensor(expected))


@pytest.mark.parametrize("loss", [js, judge, pld, sinkhorn])
def test_queries_without_a_teacher_add_nothing_and_no_teacher_at_all_is_an_error(loss):
    teacher, scores = TEACHER.clone(), random_scores().requires_grad_()
    teacher[1:] = torch.nan
    found = loss(ranking(scores, teacher=teacher))
    torch.testing.assert_close(found, loss(ranking(random_scores()[:1], torch.tensor([0]), TEACHER[:1])) / 4)
    (gradient,) = torch.autograd.grad(found, scores)
    assert gradient.isfinite().all()
    assert not gradient[1:].any()
    nothing = loss(ranking(scores, teacher=torch.full((4, 12), torch.nan)))
    nothing.backward()
    assert nothing == 0
    with pytest.raises(ValueError, match="there are none"):
        loss(ranking(scores, teacher=None))
