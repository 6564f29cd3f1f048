from itertools import permutations

import pytest
import torch
from rankings import graded, slope
from torch import Tensor

from shortlist.math.losses.policy import REWARDS, policy

SCORES, GRADES = [0.4, -0.3, 0.9, 0.0], [2, 0, 1, 0]


def log_prob(scores: Tensor, order: tuple[int, ...]) -> Tensor:
    """Of drawing all documents in this order, one after another."""
    drawn = scores[list(order)]
    return sum((drawn[i] - drawn[i:].logsumexp(0) for i in range(len(order))), start=torch.tensor(0.0))


def reward_of(name: str, order: tuple[int, ...], k: int) -> float:
    """The measure of a ranking, written out."""
    grades = [GRADES[doc] for doc in order[:k]]
    if name == "mrr":
        return next((1 / rank for rank, grade in enumerate(grades, 1) if grade), 0.0)
    if name == "recall":
        return sum(grade > 0 for grade in grades) / 2
    discounts = (1 / torch.log2(torch.arange(2.0, 2 + k))).tolist()
    best = sum(g * d for g, d in zip(sorted(GRADES, reverse=True)[:k], discounts, strict=True))
    return sum(g * d for g, d in zip(grades, discounts, strict=True)) / best


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("reward", REWARDS)
def test_the_mean_over_samples_nears_value_and_gradient_of_the_expected_reward(reward, k: int):
    scores = torch.tensor(SCORES, requires_grad=True)
    orders = list(permutations(range(4)))
    expected = sum((log_prob(scores, o).exp() * reward_of(reward, o, k) for o in orders), start=torch.tensor(0.0))
    (gradient,) = torch.autograd.grad(-expected, scores)
    torch.manual_seed(0)
    given = graded(SCORES, GRADES)
    found = policy(given, samples=30_000, reward=reward, k=k)
    assert found.item() == pytest.approx(-expected.item(), abs=0.005)
    assert slope(found, given) == pytest.approx(gradient.tolist(), abs=0.005)
    assert gradient.abs().max() > 0.01 or (reward, k) == ("recall", 4)  # there is something to miss


def test_few_samples_are_right_on_average_too():
    """Many queries of two samples have the gradient of one query of many."""
    torch.manual_seed(0)
    one = graded(SCORES, GRADES)
    expected = slope(policy(one, samples=30_000), one)
    many = one._replace(
        scores=torch.tensor([SCORES] * 30_000, requires_grad=True),
        relevance=one.relevance.expand(30_000, -1),
        keep=one.keep.expand(30_000, -1),
    )
    (found,) = torch.autograd.grad(policy(many, samples=2), many.scores)
    assert found.sum(0).tolist() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("reward", REWARDS)
def test_where_all_rankings_have_one_reward_there_is_nothing_to_learn(reward):
    alike = graded([0.4, -0.3, 0.9], [1, 1, 1])
    assert slope(policy(alike, reward=reward), alike) == pytest.approx([0, 0, 0], abs=1e-7)
    nothing = graded([0.4, -0.3, 0.9], [0, 0, 0])
    found = policy(nothing, reward=reward)
    assert found.item() == 0
    assert slope(found, nothing) == [0, 0, 0]


def test_the_value_is_minus_the_mean_reward_and_the_same_after_the_same_seed():
    given = graded([50.0, 0.0, 0.0], [1, 0, 0])
    assert policy(given).item() == pytest.approx(-1)  # so far ahead that every sample finds it first
    torch.manual_seed(3)
    first = policy(graded(SCORES, GRADES))
    assert policy(graded(SCORES, GRADES)) != first
    torch.manual_seed(3)
    assert policy(graded(SCORES, GRADES)) == first
