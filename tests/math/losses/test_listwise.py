import math
from itertools import permutations

import pytest
import torch
from rankings import TEACHER, graded, random_scores, ranking, slope

from shortlist.math.losses.contrastive import infonce
from shortlist.math.losses.listwise import approxndcg, listmle, listnet

GRADES = torch.tensor([[3.0, 0, 1, 1, 0, 2]])


def sequence(scores: list[float], order: tuple[int, ...] | list[int], most: int = 99) -> float:
    """-log of the probability that documents are drawn in this order, the first `most` of them."""
    return sum(
        math.log(sum(math.exp(scores[doc]) for doc in order[place:])) - scores[order[place]]
        for place in range(min(most, len(order)))
    )


def test_listnet_equals_the_value_worked_out_by_hand():
    given = graded([0.0, math.log(3.0)], [1, 0])
    high, low = math.e / (1 + math.e), 1 / (1 + math.e)
    found = listnet(given)
    assert found.item() == pytest.approx(-high * math.log(1 / 4) - low * math.log(3 / 4), rel=1e-6)
    assert slope(found, given) == pytest.approx([1 / 4 - high, 3 / 4 - low], rel=1e-5)


def test_listnet_with_cold_grades_picks_the_positive():
    given = ranking(random_scores())
    torch.testing.assert_close(listnet(given, grade_temperature=0.01), infonce(given, temperature=1.0))


def test_listnet_is_least_where_scores_are_the_grades():
    given = ranking(GRADES / 2 + 7, torch.tensor([0]), None)._replace(relevance=GRADES)
    least = listnet(given, temperature=0.5, grade_temperature=1.0)
    wanted = GRADES.softmax(1)
    torch.testing.assert_close(least, -(wanted * wanted.log()).sum())
    assert listnet(given._replace(scores=random_scores(1, 6))) > least


def test_listmle_equals_the_value_worked_out_by_hand():
    given = graded([math.log(3.0), math.log(2.0), 0.0], [2, 1, 0])
    found = listmle(given)
    assert found.item() == pytest.approx(-math.log(3 / 6 * 2 / 3), rel=1e-6)
    best, _, worst = slope(found, given)
    assert best < 0 < worst


def test_listmle_with_one_positive_is_infonce():
    given = ranking(random_scores())
    torch.testing.assert_close(listmle(given, temperature=0.3), infonce(given, temperature=0.3))


def test_documents_of_equal_grades_stand_in_the_likeliest_order_and_the_lowest_have_none():
    scores = random_scores(1, 5)[0].tolist()
    orders = [(*first, *last) for first in permutations([1, 3]) for last in permutations([0, 2, 4])]
    expected = min(sequence(scores, order, most=2) for order in orders)
    assert listmle(graded(scores, [0, 1, 0, 1, 0])).item() == pytest.approx(expected, rel=1e-5)


def test_listmle_follows_the_teachers_order_of_what_it_scored():
    given = ranking(random_scores())
    teacher = TEACHER.clone()
    teacher[:, 8:] = torch.nan
    expected = 0.0
    for scores, known in zip(random_scores()[:, :8], TEACHER[:, :8], strict=True):
        expected += sequence(scores.tolist(), known.argsort(descending=True).tolist()) / 4
    found = listmle(given._replace(teacher=teacher), order="teacher")
    assert found.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="listmle follows"):
        listmle(given._replace(teacher=None), order="teacher")


def test_position_weights_are_those_of_p_listmle():
    scores = [0.3, -0.2, 0.9]
    weights = [(2**2 - 1) / 4, (2**1 - 1) / 4]
    choices = [sequence(scores, (0, 1, 2), most=1), sequence(scores[1:], (0, 1), most=1)]
    expected = sum(weight * choice for weight, choice in zip(weights, choices, strict=True))
    found = listmle(graded(scores, [2, 1, 0]), weigh_positions=True)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    long = ranking(random_scores(4, 2000, seed=1), teacher=random_scores(4, 2000, seed=2))
    assert listmle(long, order="teacher", weigh_positions=True).isfinite()


def test_approxndcg_equals_the_value_worked_out_by_hand():
    given = graded([0.0, 0.0], [1, 0])
    found = approxndcg(given)
    assert found.item() == pytest.approx(1 - 1 / math.log2(1 + 1.5), rel=1e-6)  # each is above the other by half
    own, other = slope(found, given)
    assert own < 0 < other
    three = graded([1.0, 0.0, 3.0], [2, 1, 0])

    def rank(*others: float) -> float:
        return 1 + sum(1 / (1 + math.exp(-(other / 0.5))) for other in others)

    dcg = 2 / math.log2(1 + rank(-1, 2)) + 1 / math.log2(1 + rank(1, 3))
    expected = 1 - dcg / (2 + 1 / math.log2(3))
    assert approxndcg(three, temperature=0.5).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gain", ["linear", "exponential"])
def test_approxndcg_becomes_ndcg_as_ranks_become_sharp(gain):
    worth = GRADES[0] if gain == "linear" else 2 ** GRADES[0] - 1
    scores = random_scores(1, 6)
    cut = 1 / torch.log2(torch.arange(2.0, 8))
    exact = (worth[scores[0].argsort(descending=True)] * cut).sum() / (worth.sort(descending=True).values * cut).sum()
    given = ranking(scores, torch.tensor([0]), None)._replace(relevance=GRADES)
    torch.testing.assert_close(approxndcg(given, temperature=1e-4, gain=gain), 1 - exact)
