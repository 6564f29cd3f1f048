import numpy as np
import pytest
import torch

from shortlist.math.latent import by_descent, by_least_squares, crossing, in_order, latent_scores, order_loss

ITEMS = np.array([0, 1, 1, 2])
SLATES = np.array([0, 0, 1, 1])


def test_an_item_in_two_slates_ties_them_together():
    # slate 1 gives .3 less: theta 1, .5, .2 with shifts of +-.15, as small as can be
    theta = by_least_squares(ITEMS, SLATES, np.array([1.0, 0.5, 0.2, -0.1]))
    np.testing.assert_allclose(theta, [0.85, 0.35, 0.05], atol=1e-5)


def test_slates_that_share_nothing_keep_their_scores():
    theta = by_least_squares(np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([0.9, 0.1, 0.4]))
    np.testing.assert_allclose(theta, [0.9, 0.1, 0.4], atol=1e-5)


def test_a_shift_of_a_whole_slate_changes_no_difference():
    rng = np.random.default_rng(0)
    items, slates, scores = np.tile(np.arange(6), 4), np.repeat(np.arange(4), 6), rng.random(24)
    moved = by_least_squares(items, slates, scores + np.array([0, 0.3, -0.2, 5])[slates])
    plain = by_least_squares(items, slates, scores)
    np.testing.assert_allclose(moved - moved[0], plain - plain[0], atol=1e-5)


def test_adamw_goes_to_the_least_squares():
    rng = np.random.default_rng(1)
    items = np.concatenate([rng.permutation(12)[:6] for _ in range(5)])
    slates = np.repeat(np.arange(5), 6)
    _, items = np.unique(items, return_inverse=True)
    truth = rng.random(items.max() + 1)
    scores = truth[items] + rng.uniform(-0.2, 0.2, 5)[slates]
    exact, found = (latent_scores(items, slates, scores), by_descent(items, slates, scores, tau=5.0, share=1.0))
    exact, found = (theta - theta.mean() for theta in (exact, found / found.max() * exact.max()))
    assert np.corrcoef(exact, found)[0, 1] > 0.99


def test_the_likelihood_of_the_order_parts_what_the_squares_leave_together():
    scores = np.array([0.5, 0.49, 0.49, 0.48])
    squares, both = (latent_scores(ITEMS, SLATES, scores, share=share) for share in (1.0, 0.2))
    assert both[0] - both[2] > 3 * (squares[0] - squares[2])


def test_the_loss_of_an_order_by_hand():
    places = in_order(np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.7, 0.5, 0.9, 0.2]))
    assert places.tolist() == [[1, 0, -1], [3, 2, 4]]
    scores = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0], requires_grad=True)
    loss = order_loss(scores, places)
    assert loss.item() == pytest.approx((np.log(2) + np.log(3) + np.log(2)) / 5)
    loss.backward()
    assert (scores.grad[[1, 3]] < 0).all()  # the first of each slate is pushed up
    assert (scores.grad[[0, 4]] > 0).all()


def test_the_crossing_lies_between_two_heaps():
    values = np.array([0.1, 0.12, 0.08, 0.1, 0.9, 0.88])
    assert 0.15 < crossing(values) < 0.85
    assert crossing(np.array([0.4, 0.4])) == 0.4
    assert crossing(np.array([0.7])) == 0.7
