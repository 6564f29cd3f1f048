import math
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rankings import TEACHER, graded, random_scores, ranking, slope
from torch import Tensor

from shortlist.math.losses.contrastive import infonce
from shortlist.math.losses.pairwise import hinge, lambdarank, margin_mse, ranknet, yes_no
from shortlist.math.ranking import Ranking


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_hinge_equals_the_value_worked_out_by_hand():
    given = graded([1.0, 0.95, 0.5, 1.2], [1, 0, 0, 0])
    found = hinge(given, margin=0.1)
    assert found.item() == pytest.approx((0.05 + 0 + 0.3) / 3, rel=1e-5)
    assert slope(found, given) == pytest.approx([-2 / 3, 1 / 3, 0, 1 / 3])


def test_hinge_is_pytorchs_margin_loss_of_every_pair_of_unequal_grades():
    scores, grades = random_scores(1, 6), torch.tensor([[3.0, 0, 1, 1, 0, 2]])
    pairs = [(i, j) for i in range(6) for j in range(6) if grades[0, i] > grades[0, j]]
    high, low = (scores[0, list(side)] for side in zip(*pairs, strict=True))
    expected = F.margin_ranking_loss(high, low, torch.ones(len(pairs)), margin=0.4)
    given = ranking(scores, torch.tensor([0]), None)._replace(relevance=grades)
    torch.testing.assert_close(hinge(given, margin=0.4), expected)
    torch.testing.assert_close(hinge(given._replace(scores=scores + 5), margin=0.4), expected)


def test_documents_a_margin_apart_have_nothing_to_learn():
    given = graded([2.0, 1.8, 1.6], [2, 1, 0])
    assert hinge(given, margin=0.1).item() == 0
    assert slope(hinge(given, margin=0.1), given) == [0, 0, 0]


def test_ranknet_equals_the_value_worked_out_by_hand():
    given = graded([1.0, 0.0, 2.0], [1, 0, 0])
    found = ranknet(given)
    assert found.item() == pytest.approx((softplus(-1) + softplus(1)) / 2, rel=1e-6)
    own, easy, hard = slope(found, given)
    assert own < 0 < easy < hard


def test_ranknet_by_ranks_divides_each_pair_by_the_sum_of_its_ranks():
    given = graded([0.0, 0.0, 0.0], [2, 1, 0])
    found = ranknet(given, weigh_by_ranks=True)
    assert found.item() == pytest.approx(math.log(2) * (1 / 3 + 1 / 4 + 1 / 5) / 3, rel=1e-6)
    tied = graded([0.0, 0.0, 0.0], [1, 1, 0])  # two firsts, then a third
    assert ranknet(tied, weigh_by_ranks=True).item() == pytest.approx(math.log(2) / 4, rel=1e-6)


def test_ranknet_follows_grades_or_the_teacher_whose_scores_matter_by_their_order_alone():
    scores = [0.3, -0.2, 0.9]
    by_grades = ranknet(graded(scores, [0, 2, 1]), weigh_by_ranks=True)
    for teacher in ([0.0, 2.0, 1.0], [-7.0, 100.0, 0.5]):
        found = ranknet(graded(scores, [1, 0, 0], teacher), order="teacher", weigh_by_ranks=True)
        torch.testing.assert_close(found, by_grades)
    seen = ranknet(graded([*scores, 9.0], [1, 0, 0, 0], [0.0, 2.0, 1.0, math.nan]), order="teacher")
    torch.testing.assert_close(seen, ranknet(graded(scores, [0, 2, 1])))
    with pytest.raises(ValueError, match="ranknet follows a teacher's scores, and there are none"):
        ranknet(graded(scores, [1, 0, 0]), order="teacher")


def test_the_temperature_divides_the_scores_of_pairs():
    cold = ranknet(ranking(random_scores()), temperature=0.1)
    torch.testing.assert_close(cold, ranknet(ranking(random_scores() * 10)))


def test_lambdarank_equals_the_value_worked_out_by_hand():
    given = graded([1.0, 2.0, 0.0], [1, 0, 0])  # the positive stands second
    above, below = 1 - 1 / math.log2(3), 1 / math.log2(3) - 1 / 2
    found = lambdarank(given)
    assert found.item() == pytest.approx(above * softplus(1) + below * softplus(-1), rel=1e-6)
    own, first, last = slope(found, given)
    assert own < 0 < last < first


@pytest.mark.parametrize("gain", ["linear", "exponential"])
@pytest.mark.parametrize("k", [2, 10])
def test_lambdarank_weighs_a_pair_by_what_swapping_it_changes_of_ndcg(gain, k: int):
    grades, scores = torch.tensor([3.0, 0, 1, 1, 0, 2]), random_scores(1, 6)[0]
    worth = grades if gain == "linear" else 2**grades - 1

    def ndcg(order: list[int]) -> float:
        cut = 1 / torch.log2(torch.arange(2.0, 2 + k))[: len(order)]
        best = worth.sort(descending=True).values
        return float((worth[order][:k] * cut).sum() / (best[:k] * cut).sum())

    order, expected = scores.argsort(descending=True).tolist(), 0.0
    for i, j in combinations(range(6), 2):
        swapped = [j if doc == i else i if doc == j else doc for doc in order]
        margin = float((scores[i] - scores[j]) * (grades[i] - grades[j]).sign())
        expected += abs(ndcg(swapped) - ndcg(order)) * softplus(-margin)
    given = ranking(scores[None], torch.tensor([0]), None)._replace(relevance=grades[None])
    assert lambdarank(given, gain=gain, k=k).item() == pytest.approx(expected, rel=1e-5)


def test_pairs_below_rank_k_count_nothing_in_lambdarank():
    given = graded([9.0, 8.0, 2.0, 1.0], [0, 0, 0, 1])
    gradient = slope(lambdarank(given, k=2), given)
    assert gradient[2] == 0
    assert min(gradient[:2]) > 0 > gradient[3]


def test_margin_mse_equals_the_value_worked_out_by_hand():
    given = graded([3.0, 1.0, 0.0], [1, 0, 0], [5.0, 1.0, 2.0])
    beside_positive = margin_mse(given)
    assert beside_positive.item() == pytest.approx(((2 - 4) ** 2 + (3 - 3) ** 2) / 2)
    assert slope(beside_positive, given) == pytest.approx([-2, 2, 0])  # the positive has to move away from the second
    among_all = margin_mse(given, pairs="all")
    assert among_all.item() == pytest.approx(((2 - 4) ** 2 + (3 - 3) ** 2 + (1 + 1) ** 2) / 3, rel=1e-6)


@pytest.mark.parametrize("pairs", ["positive", "all"])
def test_margins_are_what_is_matched_and_not_the_scores(pairs):
    apart = ranking(TEACHER * 2 + torch.tensor([[3.0], [0.0], [-5.0], [100.0]]))
    assert margin_mse(apart, pairs=pairs, scale=0.5).item() == pytest.approx(0, abs=1e-9)
    assert margin_mse(apart, pairs=pairs).item() > 0.1


def test_a_positive_that_the_teacher_did_not_score_leaves_no_margins_but_those_of_all_pairs():
    given = graded([1.0, 2.0, 4.0], [1, 0, 0], [math.nan, 0.0, 1.0])
    assert margin_mse(given).item() == 0
    assert slope(margin_mse(given), given) == [0, 0, 0]
    assert margin_mse(given, pairs="all").item() == pytest.approx(1)
    with pytest.raises(ValueError, match="margin_mse follows"):
        margin_mse(graded([1.0], [1]))


def test_yes_no_equals_the_value_worked_out_by_hand():
    given = graded([0.0, 1.0, -1.0], [1, 0, 0])
    hardest, every = yes_no(given), yes_no(given, negatives="all")
    assert hardest.item() == pytest.approx(softplus(0) + softplus(1), rel=1e-6)
    assert every.item() == pytest.approx(softplus(0) + (softplus(1) + softplus(-1)) / 2, rel=1e-6)
    assert slope(hardest, given) == pytest.approx([-0.5, 1 / (1 + math.exp(-1)), 0])
    assert slope(every, given)[2] > 0


def test_yes_no_is_the_cross_entropy_of_both_answers():
    given = ranking(random_scores())
    yes = given.relevance > 0
    losses = F.binary_cross_entropy_with_logits(random_scores(), given.relevance, reduction="none")
    expected = losses[yes].mean() + losses[~yes].mean()
    torch.testing.assert_close(yes_no(given, negatives="all"), expected)


def both_logits(count: int = 3) -> tuple[Tensor, Ranking]:
    """Logits of yes and no for some documents of two queries, and the ranking that is made of them."""
    logits = torch.randn(2, count, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    relevance = torch.zeros(2, count)
    relevance[0, 0] = relevance[1, 1] = 1
    keep = torch.ones(2, count, dtype=torch.bool)
    scores = logits[..., 0] - logits[..., 1]
    return logits, Ranking(scores, relevance, None, keep, yes=logits[..., 0])


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


def test_weight_and_direction_of_sft_are_the_cross_entropy_of_yes_and_no():
    logits, given = both_logits()
    loss = yes_no(given, negatives="each", weight="sft", direction="sft")
    expected = F.cross_entropy(logits.flatten(0, 1), (given.relevance == 0).long().flatten())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


def test_weight_and_direction_of_contrast_are_infonce_over_the_logits_of_yes():
    logits, given = both_logits()
    loss = yes_no(given, negatives="all", weight="contrastive", direction="contrastive")
    expected = infonce(given._replace(scores=logits[..., 0]), temperature=1.0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


@pytest.mark.parametrize("direction", ["sft", "contrastive"])
@pytest.mark.parametrize("weight", ["sft", "contrastive", "one"])
def test_weight_and_direction_may_be_those_of_different_losses(weight: Any, direction: Any):
    logits, given = both_logits()
    found = gradient(yes_no(given, negatives="each", weight=weight, direction=direction), logits)
    yes, no = logits.detach().unbind(-1)
    sign = 1 - 2 * given.relevance
    weights = {
        "sft": sign * torch.sigmoid(sign * (yes - no)) / 6,  # p("no") of a positive; 2 x 3 documents
        "contrastive": (yes.softmax(1) - given.relevance) / 2,  # 1 - p of a positive; 2 queries
        "one": sign / 6,
    }[weight]
    expected = torch.stack([weights, -weights if direction == "sft" else torch.zeros(2, 3)], -1)
    torch.testing.assert_close(found, expected)


def test_a_model_of_one_number_has_one_direction():
    scores = random_scores().requires_grad_()
    given = ranking(scores)
    one, other = (yes_no(given, weight="contrastive", direction=name) for name in ("sft", "contrastive"))
    torch.testing.assert_close(gradient(one, scores), gradient(other, scores))


def test_ranknet_is_firsts_where_pairs_are_weighed_by_the_teachers_ranks():
    given = graded([2.0, -1.0, 0.5, 1.0], [1, 0, 0, 0], [3.0, 4.0, 1.0, 2.0])  # the teacher's ranks are 2, 1, 4, 3
    assert ranknet(given, order="teacher", weigh_by_ranks=True).item() == pytest.approx(0.342026, abs=1e-6)
    assert ranknet(given, order="teacher").item() == pytest.approx(1.310947, abs=1e-6)
