import math

import pytest
import torch

from shortlist.math.losses import LOSSES, countable, distillation, infonce


def random_scores(queries: int = 4, docs: int = 12) -> torch.Tensor:
    return torch.randn(queries, docs, generator=torch.Generator().manual_seed(0))


POSITIVES = torch.tensor([0, 3, 6, 9])


def test_infonce_equals_the_value_worked_out_by_hand():
    scores = torch.tensor([[2.0, 1.0, 0.0]])
    expected = -math.log(math.e**2 / (math.e**2 + math.e + 1))
    assert infonce(scores, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-6)


def test_infonce_is_the_mean_over_queries():
    both = infonce(random_scores()[:2], POSITIVES[:2])
    alone = [infonce(random_scores()[i : i + 1], POSITIVES[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_does_not_care_where_the_positive_sits(name: str):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    keep = random_scores().roll(1, 0) > -1
    keep[torch.arange(4), POSITIVES] = True
    moved = LOSSES[name](random_scores()[:, order], order.argsort()[POSITIVES], keep=keep[:, order])
    torch.testing.assert_close(LOSSES[name](random_scores(), POSITIVES, keep=keep), moved)


@pytest.mark.parametrize("name", LOSSES)
def test_descent_raises_the_positive_and_lowers_the_others(name: str):
    scores = random_scores().requires_grad_()
    LOSSES[name](scores, POSITIVES).backward()
    assert scores.grad is not None
    own = torch.zeros(4, 12, dtype=torch.bool)
    own[torch.arange(4), POSITIVES] = True
    assert (scores.grad[own] < 0).all()
    assert (scores.grad[~own] > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_kept_is_as_good_as_absent(name: str):
    scores = random_scores().requires_grad_()
    keep = torch.ones(4, 12, dtype=torch.bool)
    keep[:, [2, 11]] = False
    loss = LOSSES[name](scores, POSITIVES, keep=keep)
    present = [i for i in range(12) if i not in (2, 11)]
    without = LOSSES[name](scores[:, present], torch.tensor([present.index(int(p)) for p in POSITIVES]))
    torch.testing.assert_close(loss, without)
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad[:, [2, 11]].any()


def test_the_temperature_divides_the_scores():
    cold = infonce(random_scores(), POSITIVES, temperature=0.05)
    torch.testing.assert_close(cold, infonce(random_scores() * 20, POSITIVES))


def test_scores_in_bfloat16_lose_nothing_more_in_the_loss():
    scores = random_scores().bfloat16()
    loss = infonce(scores, POSITIVES, temperature=0.01)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, infonce(scores.float(), POSITIVES, temperature=0.01))


TEACHER = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))


def test_distillation_equals_the_value_worked_out_by_hand():
    scores, teacher = torch.tensor([[math.log(4.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert distillation(scores, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert distillation(teacher, scores).item() != pytest.approx(expected, rel=1e-2)  # it is not symmetric
    both = distillation(torch.cat([scores, teacher]), torch.cat([teacher, teacher]))
    assert both.item() == pytest.approx(expected / 2, rel=1e-6)


def test_distillation_is_pytorchs_own_divergence_of_the_two_distributions():
    wanted, given = torch.softmax(TEACHER / 0.5, 1), torch.log_softmax(random_scores() / 0.2, 1)
    loss = distillation(random_scores(), TEACHER, temperature=0.2, teacher_temperature=0.5)
    torch.testing.assert_close(loss, torch.nn.KLDivLoss(reduction="batchmean")(given, wanted))


def test_whoever_agrees_with_the_teacher_has_nothing_to_learn():
    scores = (TEACHER * 0.3 + 5).requires_grad_()
    loss = distillation(scores, TEACHER * 3, temperature=0.1, teacher_temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert scores.grad is not None
    assert scores.grad.abs().max() < 1e-5
    assert distillation(scores, TEACHER.roll(1, 1)).item() > 0.1


def test_what_is_added_to_all_scores_of_a_row_changes_nothing():
    shift = torch.tensor([[5.0], [-3.0], [0.0], [100.0]])
    expected = distillation(random_scores(), TEACHER)
    torch.testing.assert_close(distillation(random_scores(), TEACHER + shift), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(distillation(random_scores() + shift, TEACHER), expected, atol=1e-5, rtol=1e-5)


def test_the_order_of_a_rows_documents_changes_nothing():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = distillation(random_scores()[:, order], TEACHER[:, order])
    torch.testing.assert_close(moved, distillation(random_scores(), TEACHER))


def test_descent_raises_what_the_teacher_puts_higher_and_lowers_what_it_puts_lower():
    scores = random_scores().requires_grad_()
    distillation(scores, TEACHER).backward()
    assert scores.grad is not None
    too_low = torch.softmax(random_scores(), 1) < torch.softmax(TEACHER, 1)
    assert (scores.grad[too_low] < 0).all()
    assert (scores.grad[~too_low] > 0).all()


def test_a_place_without_a_document_is_as_good_as_absent_from_distillation():
    scores, keep = random_scores().requires_grad_(), torch.ones(4, 12, dtype=torch.bool)
    keep[:, [2, 11]] = False
    loss = distillation(scores, TEACHER, keep=keep)
    present = [i for i in range(12) if i not in (2, 11)]
    torch.testing.assert_close(loss, distillation(random_scores()[:, present], TEACHER[:, present]))
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad[:, [2, 11]].any()
    assert scores.grad.isfinite().all()


def kept(doc_ids: str, own: list[int], positives: list[set[str]]) -> list[str]:
    """Rows of countable as strings of 0 and 1."""
    return ["".join(str(int(k)) for k in row) for row in countable(list(doc_ids), own, positives)]


def test_everything_counts_where_nothing_repeats():
    assert kept("abcd", [0, 2], [{"a"}, {"c"}]) == ["1111", "1111"]


def test_a_document_counts_once_however_often_the_batch_holds_it():
    assert kept("abcb", [0, 2], [{"a"}, {"c"}]) == ["1110", "1110"]


def test_another_positive_of_the_query_is_not_pushed_away():
    assert kept("abcd", [0, 2], [{"a", "d", "elsewhere"}, {"c"}]) == ["1110", "1111"]


def test_the_positive_of_two_queries_stays_with_each_of_them_in_its_own_column():
    assert kept("abac", [0, 2], [{"a"}, {"a"}]) == ["1101", "0111"]


def test_a_repeat_of_the_own_positive_does_not_count_against_it():
    assert kept("aabb", [0, 2], [{"a"}, {"b"}]) == ["1010", "1010"]


def test_the_own_positive_stays_even_where_it_is_not_listed():
    assert kept("abc", [1], [set()]) == ["111"]
    assert kept("bab", [2], [{"a"}]) == ["001"]


def test_one_set_of_positives_is_wanted_for_each_query():
    with pytest.raises(ValueError, match="zip"):
        countable(["a"], [0], [])
