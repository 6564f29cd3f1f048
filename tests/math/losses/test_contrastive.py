import math

import pytest
import torch
import torch.nn.functional as F
from rankings import POSITIVES, graded, random_scores, ranking, slope

from shortlist.math.losses.contrastive import infonce


def test_infonce_equals_the_value_worked_out_by_hand():
    given = ranking(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), None)
    expected = -math.log(math.e**2 / (math.e**2 + math.e + 1))
    assert infonce(given, temperature=1.0).item() == pytest.approx(expected, rel=1e-6)


def test_infonce_is_the_cross_entropy_of_the_positives():
    expected = F.cross_entropy(random_scores() / 0.05, POSITIVES)
    torch.testing.assert_close(infonce(ranking(random_scores()), temperature=0.05), expected, rtol=1e-6, atol=1e-6)


def test_infonce_is_the_mean_over_queries():
    both = infonce(ranking(random_scores()[:2], POSITIVES[:2]))
    alone = [infonce(ranking(random_scores()[i : i + 1], POSITIVES[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_the_positive_is_the_kept_document_of_the_highest_grade():
    given = ranking(random_scores())
    graded = given._replace(relevance=given.relevance * 2 + (random_scores() > 1))
    torch.testing.assert_close(infonce(graded), infonce(given))
    keep = given.keep.clone()
    keep[torch.arange(4), POSITIVES] = False
    others = given.relevance * 3
    others[torch.arange(4), POSITIVES + 1] = 1
    moved = infonce(given._replace(relevance=others, keep=keep), temperature=1.0)
    scores = random_scores().masked_fill(~keep, -torch.inf)
    torch.testing.assert_close(moved, F.cross_entropy(scores, POSITIVES + 1))


def test_the_temperature_divides_the_scores():
    cold = infonce(ranking(random_scores()), temperature=0.05)
    torch.testing.assert_close(cold, infonce(ranking(random_scores() * 20), temperature=1.0))


def test_descent_raises_the_positive_and_lowers_the_others():
    scores = random_scores().requires_grad_()
    infonce(ranking(scores), temperature=1.0).backward()
    assert scores.grad is not None
    own = ranking(scores).relevance > 0
    assert (scores.grad[own] < 0).all()
    assert (scores.grad[~own] > 0).all()


def test_focal_weighs_each_query_by_how_hard_it_is_without_a_gradient_of_its_own():
    given = graded([2.0, 1.0, 0.0], [1, 0, 0])
    p = math.e**2 / (math.e**2 + math.e + 1)
    found = infonce(given, temperature=1.0, focal=0.5)
    assert found.item() == pytest.approx(math.sqrt(1 - p) * -math.log(p), rel=1e-6)
    plain = slope(infonce(given, temperature=1.0), given)
    assert slope(found, given) == pytest.approx([math.sqrt(1 - p) * value for value in plain], rel=1e-5)


def test_focal_counts_hard_queries_more_and_0_switches_it_off():
    easy, hard = graded([9.0, 0.0], [1, 0]), graded([0.0, 9.0], [1, 0])
    for given, least, most in ((easy, 0.0, 0.02), (hard, 0.99, 1.0)):
        share = infonce(given, temperature=1.0, focal=0.5) / infonce(given, temperature=1.0)
        assert least < share.item() <= most
    whole = ranking(random_scores())
    assert infonce(whole, focal=0.0) == infonce(whole)


def test_picking_any_relevant_document_adds_up_their_probabilities():
    given = graded([2.0, 1.0, 0.0], [1, 2, 0])
    shares = torch.softmax(torch.tensor([2.0, 1.0, 0.0]), 0)
    found = infonce(given, temperature=1.0, positives="all")
    assert found.item() == pytest.approx(-float((shares[0] + shares[1]).log()), abs=1e-5)
    assert slope(found, given)[:2] == pytest.approx(
        [-float(shares[2] * shares[i] / (1 - shares[2])) for i in (0, 1)], abs=1e-5
    )
    one, none = graded([2.0, 1.0, 0.0], [0, 1, 0]), graded([2.0, 1.0, 0.0], [0, 0, 0])
    torch.testing.assert_close(infonce(one, positives="all"), infonce(one))
    assert infonce(none, positives="all").item() == 0
    assert slope(infonce(none, positives="all"), none) == [0, 0, 0]
