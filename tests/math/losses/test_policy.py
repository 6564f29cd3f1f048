import math
from itertools import permutations, product

import pytest
import torch
from rankings import graded, slope
from torch import Tensor

from shortlist.math.losses.policy import (
    POLICIES,
    REWARDS,
    dapo,
    dpo,
    dr_grpo,
    draw_rankings,
    group_advantages,
    grpo,
    k3,
    orpo,
    pg,
    policy,
    ranked,
)
from shortlist.math.ranking import Rollout

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


def test_of_three_documents_the_six_rankings_give_the_exact_gradient():
    """Weigh the loss of each ranking's pair with every other by how likely both are: the leave-one-out estimate."""
    scores, grades = torch.tensor([0.5, -0.2, 0.1], requires_grad=True), [0.0, 2.0, 1.0]
    orders = list(permutations(range(3)))
    given = graded(scores.tolist(), grades)
    chances = [log_prob(scores, order).exp() for order in orders]
    rewards = [ranked(given, torch.tensor([[order]])).rewards.item() for order in orders]
    expected = sum((p * r for p, r in zip(chances, rewards, strict=True)), start=torch.tensor(0.0))
    (gradient,) = torch.autograd.grad(-expected, scores)
    total = torch.zeros(3)
    for (i, first), (j, second) in product(enumerate(orders), repeat=2):
        one = graded(scores.tolist(), grades)
        rollout = ranked(one, torch.tensor([[first, second]]))
        total += (chances[i] * chances[j]).item() * torch.tensor(slope(pg(rollout), one))
    assert total.tolist() == pytest.approx(gradient.tolist(), abs=1e-6)
    assert gradient.abs().max() > 0.05


def rollout_of(
    log_probs: list, rewards: list, *, before: list | None = None, start: list | None = None, keep: list | None = None
) -> Rollout:
    """Samples of some questions, with log-probabilities that take gradients."""
    now = torch.tensor(log_probs, requires_grad=True)
    kept = torch.ones(now.shape, dtype=torch.bool) if keep is None else torch.tensor(keep)
    known = now.detach() if before is None else torch.tensor(before)
    return Rollout(now, known, torch.tensor(rewards), kept, 4, None if start is None else torch.tensor(start))


TWO = rollout_of([[[-1.0, -2.0], [-0.5, -9.0]]], [[1.0, 0.0]], keep=[[[True, True], [True, False]]])
"""Two samples of a question, of two steps and of one; their advantages are 0.70711 and -0.70711."""
HALF = 0.7071068


def gradient_of(loss: Tensor, rollout: Rollout) -> list[float]:
    (found,) = torch.autograd.grad(loss, rollout.log_probs)
    return found.flatten().tolist()


def test_grpo_weighs_the_steps_of_a_sample_by_its_normalised_reward():
    assert group_advantages(TWO.rewards)[0].tolist() == pytest.approx([HALF, -HALF], abs=1e-5)
    loss = grpo(TWO, kl=0.0)
    assert loss.item() == pytest.approx(0, abs=1e-6)  # -(0.70711 - 0.70711) / 2
    # a mean over two samples, of two steps and of one
    assert gradient_of(loss, TWO) == pytest.approx([-HALF / 4, -HALF / 4, HALF / 2, 0], abs=1e-5)


def test_a_step_that_has_moved_out_of_the_clip_is_not_moved_further():
    moved = [[[-1.0, -2.0], [-0.5, -9.0]]]
    before = [[[-1.5, -1.5], [-0.5, -9.0]]]  # ratios e^0.5 = 1.65, e^-0.5 = 0.61 and 1
    rollout = rollout_of(moved, [[1.0, 0.0]], before=before, keep=[[[True, True], [True, False]]])
    loss = grpo(rollout, kl=0.0)
    low = math.exp(-0.5)
    assert loss.item() == pytest.approx((-HALF * (1.2 + low) / 2 + HALF) / 2, abs=1e-5)
    assert gradient_of(loss, rollout) == pytest.approx([0, -HALF * low / 4, HALF / 2, 0], abs=1e-5)


def test_dr_grpo_divides_neither_by_deviation_nor_by_length():
    loss = dr_grpo(TWO)  # advantages 0.5 and -0.5; the most steps are 4; two samples
    assert gradient_of(loss, TWO) == pytest.approx([-0.5 / 8, -0.5 / 8, 0.5 / 8, 0], abs=1e-6)


def test_dapo_counts_all_steps_alike_and_leaves_out_questions_without_a_difference():
    alike = [[-1.0, -1.0], [-1.0, -1.0]]
    keep = [[[True, True], [True, False]], [[True, True], [True, True]]]
    rollout = rollout_of([[[-1.0, -2.0], [-0.5, -9.0]], alike], [[1.0, 0.0], [1.0, 1.0]], keep=keep)
    expected = [-HALF / 3, -HALF / 3, HALF / 3, 0, 0, 0, 0, 0]  # three steps
    assert gradient_of(dapo(rollout), rollout) == pytest.approx(expected, abs=1e-5)
    before = [[[-1.25, -2.0], [-0.5, -9.0]], alike]  # the first ratio is e^0.25 = 1.284, above 1.28
    later = rollout._replace(before=torch.tensor(before))
    assert gradient_of(dapo(later), later)[0] == 0
    assert gradient_of(dapo(later, clip_above=0.3), later)[0] < 0


def test_dpo_prefers_the_best_sample_to_the_worst_as_far_as_the_start_does_not():
    log_probs, start = [[[-1.0, -1.0], [-3.0, -1.0], [-2.0, -2.0]]], [[[-1.5, -1.0], [-2.0, -1.0], [-2.0, -2.0]]]
    rollout = rollout_of(log_probs, [[0.9, 0.5, 0.1]], start=start)
    # the best has moved by 0.5 since the start, the worst by 0: log(1 + e^(-0.1 * 0.5))
    loss = dpo(rollout)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.05)))
    weight = 0.1 / (1 + math.exp(0.05))
    assert gradient_of(loss, rollout) == pytest.approx([-weight, -weight, 0, 0, weight, weight], abs=1e-6)
    assert dpo(rollout._replace(rewards=torch.full((1, 3), 0.5))).item() == 0
    with pytest.raises(ValueError, match="start"):
        dpo(rollout._replace(start=None))


def test_orpo_learns_the_best_sample_and_prefers_its_odds_and_its_length():
    half, fifth = math.log(0.5), math.log(0.2)  # odds of 1 and of 1/4, so the logarithm of their ratio is log 4
    keep = [[[True, True, False, False], [True] * 4]]
    rollout = rollout_of([[[half, half, -9.0, -9.0], [fifth] * 4]], [[1.0, 0.0]], keep=keep)
    nll = math.log(2)
    assert orpo(rollout).item() == pytest.approx(nll + 0.1 * math.log(1 + 1 / 4), abs=1e-6)
    multiplied = orpo(rollout, beta=2.5, length="multiplied", per_token=1.0)  # shorter by 2: 4 squared
    assert multiplied.item() == pytest.approx(nll + 2.5 * math.log(1 + 1 / 16), abs=1e-6)
    assert orpo(rollout, length="multiplied").item() == pytest.approx(orpo(rollout).item())  # 0.1 * 2 is below 1
    added = orpo(rollout, length="added")
    assert added.item() == pytest.approx(nll + 0.1 * math.log(1 + math.exp(-0.2) / 4), abs=1e-6)
    turned = rollout._replace(rewards=torch.tensor([[0.0, 1.0]]))  # the longer one is the best: length says nothing
    assert orpo(turned, length="added").item() == pytest.approx(orpo(turned).item())
    gradient = gradient_of(orpo(rollout), rollout)
    assert gradient[0] == gradient[1] < 0 == gradient[2] == gradient[3] < gradient[4] == gradient[7]
    assert orpo(rollout._replace(rewards=torch.ones(1, 2))).item() == 0
    certain = rollout_of([[[0.0], [-1.0]]], [[1.0, 0.0]])
    assert torch.isfinite(orpo(certain))


def test_the_estimated_divergence_is_never_below_0_and_pulls_back_to_the_start():
    now = torch.tensor([[[-1.0, -2.0, -1.0]]], requires_grad=True)
    start = torch.tensor([[[-1.5, -1.5, -1.0]]])  # now likelier, less likely and equal
    found = k3(now, start)
    expected = [math.exp(-0.5) + 0.5 - 1, math.exp(0.5) - 0.5 - 1, 0]
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), now)
    assert gradient.flatten().tolist() == pytest.approx([1 - math.exp(-0.5), 1 - math.exp(0.5), 0], abs=1e-6)


def test_the_mean_of_the_estimates_is_the_divergence():
    now, start = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    estimates = k3(now.log()[None, None], start.log()[None, None])[0, 0]
    assert (now * estimates).sum().item() == pytest.approx((now * (now / start).log()).sum().item(), abs=1e-6)


def test_grpo_adds_the_divergence_of_each_step():
    rollout = rollout_of([[[-1.0], [-1.0]]], [[1.0, 1.0]], start=[[[-1.5], [-1.0]]])
    assert grpo(rollout, kl=0.5).item() == pytest.approx(0.5 * (math.exp(-0.5) + 0.5 - 1) / 2)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_makes_the_better_sample_likelier_and_the_worse_one_less_likely(name: str):
    rollout = rollout_of([[[-1.0, -1.0], [-1.0, -1.0]]], [[0.2, 0.7]], start=[[[-1.0, -1.0], [-1.0, -1.0]]])
    found = gradient_of(POLICIES[name](rollout), rollout)
    assert found[0] == found[1] > 0 > found[2] == found[3]


def test_a_document_that_does_not_count_is_drawn_last_and_changes_nothing():
    given = graded([0.4, 9.0, -0.3], [1, 0, 0])
    given = given._replace(keep=torch.tensor([[True, False, True]]))
    chosen = draw_rankings(given, samples=50, k=3)
    assert (chosen[0, :, 2] == 1).all()
    rollout = ranked(given, chosen)
    assert rollout.keep[0].tolist() == [[True, True, False]] * 50
    assert slope(pg(rollout), given)[1] == 0
