import math

import pytest
import torch
from rankings import graded, random_scores, ranking, slope

from shortlist.math.losses.contrastive import infonce
from shortlist.math.losses.regularise import anchor, bands, lol


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_anchor_equals_the_value_worked_out_by_hand():
    given = graded([math.log(4.0), 0.0], [0, 0])._replace(start=torch.tensor([[0.0, 0.0]]))
    found = anchor(given)
    assert found.item() == pytest.approx(0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5), rel=1e-6)
    risen, fallen = slope(found, given)
    assert fallen < 0 < risen


def test_anchor_is_the_divergence_from_the_start_and_not_to_it():
    scores, start = random_scores(), random_scores(seed=1)
    given, wanted = torch.softmax(scores / 0.5, 1), torch.log_softmax(start / 0.5, 1)
    expected = torch.nn.functional.kl_div(wanted, given, reduction="batchmean")
    torch.testing.assert_close(anchor(ranking(scores)._replace(start=start), temperature=0.5), expected)


def test_a_model_that_stayed_has_nothing_to_learn_of_the_anchor():
    given = graded([0.5, -1.0, 2.0], [0, 0, 0])._replace(start=torch.tensor([[3.5, 2.0, 5.0]]))
    assert anchor(given).item() == pytest.approx(0, abs=1e-6)
    assert slope(anchor(given), given) == pytest.approx([0, 0, 0], abs=1e-6)
    with pytest.raises(ValueError, match="start model's scores"):
        anchor(given._replace(start=None))


def test_a_heavy_anchor_keeps_the_order_of_the_start_where_the_judgements_say_otherwise():
    start = torch.tensor([[2.0, 1.0, 0.0]])

    def trained(weight: float) -> list[int]:
        given = graded([2.0, 1.0, 0.0], [0, 0, 1])._replace(start=start)
        for _ in range(50):
            loss = infonce(given, temperature=1.0) + weight * anchor(given)
            values = given.scores.detach() - 0.5 / (1 + weight) * torch.tensor([slope(loss, given)])
            given = given._replace(scores=values.requires_grad_())
        return given.scores[0].argsort(descending=True).tolist()

    assert trained(0.0)[0] == 2
    assert trained(30.0) == [0, 1, 2]


def test_bands_equal_the_value_worked_out_by_hand():
    given = graded([2.0, 0.0], [4, 0])  # 0.88 of a band around 0.9, and 0.5 of one around 0.1
    found = bands(given, margin=0.5, pull=2.0)
    short = 0.5 - (sigmoid(2) - 0.5)
    outside = (0.5 - 0.1) ** 2 - 0.01
    assert found.item() == pytest.approx(short + 2 * (0 + outside) / 2, rel=1e-5)
    high, low = slope(found, given)
    assert high < 0 < low


@pytest.mark.parametrize(("grade", "centre"), [(0, 0.1), (1, 0.3), (2, 0.5), (3, 0.7), (4, 0.9), (7, 0.9)])
def test_within_its_grades_band_a_score_is_left_alone(grade: int, centre: float):
    for value, learns in ((centre, False), (centre + 0.09, False), (centre - 0.09, False), (centre - 0.099, False)):
        given = graded([math.log(value / (1 - value))], [grade])
        assert (bands(given).item() > 0) == learns
    for value, direction in ((min(centre + 0.15, 0.99), 1), (max(centre - 0.15, 0.01), -1)):
        if abs(value - centre) > 0.101:
            given = graded([math.log(value / (1 - value))], [grade])
            assert math.copysign(1, slope(bands(given), given)[0]) == direction


def test_fewer_levels_have_wider_bands():
    given = graded([0.0], [1])
    assert bands(given, levels=2, epsilon=0.0).item() == pytest.approx((0.5 - 0.75) ** 2)
    assert bands(given, levels=2, epsilon=0.0625).item() == 0


def test_lol_equals_the_value_worked_out_by_hand_and_pushes_the_shallower_loss_up():
    losses = torch.tensor([[0.5, 2.0], [0.9, 1.0], [0.3, 1.5]], requires_grad=True)
    depths = torch.tensor([[0, 3], [2, 1], [5, 0]])
    # the first query's pairs: 2 over 0 documents by 0.4, 5 over 0 and 2 by less than nothing; the second's: 3 over 1 by
    # 1.0, 3 over 0 by 0.5, 1 over 0 by less than nothing
    found = lol(losses, depths)
    assert found.item() == pytest.approx((0.4 + 1.0 + 0.5) / 6)
    found.backward()
    assert losses.grad is not None
    expected = [[-1 / 6, 2 / 6], [1 / 6, -1 / 6], [0, -1 / 6]]
    torch.testing.assert_close(losses.grad, torch.tensor(expected))
    assert lol(losses, depths, margin=0.1).item() == pytest.approx((0.5 + 1.1 + 0.6) / 6)


def test_lol_does_not_depend_on_the_order_of_versions_or_on_what_all_lose():
    losses = random_scores()
    depths = torch.stack([torch.randperm(12)[: len(losses)] for _ in range(12)], 1)
    shuffled = torch.randperm(len(losses))
    torch.testing.assert_close(lol(losses, depths), lol(losses[shuffled], depths[shuffled]))
    torch.testing.assert_close(lol(losses, depths), lol(losses + torch.arange(12), depths))
    assert lol(losses, torch.full_like(depths, 3)) == 0
    better = -depths.float()
    assert lol(better, depths) == 0 < lol(-better, depths)
