import numpy as np
import pytest

from shortlist.math.cur import Prior, fit_scores, promise_by_inverse, spread_items, with_prior

RANDOM = np.random.default_rng(3)
LOW_RANK = RANDOM.standard_normal((12, 4)) @ RANDOM.standard_normal((4, 30))
"""Scores of 12 anchor queries for 30 documents."""
QUERY = RANDOM.standard_normal(12) @ LOW_RANK
"""A query's scores, which lie in the same space."""
NONE = np.empty(0, dtype=np.int64)


def test_approximate_scores_are_those_worked_out_by_hand():
    """The pseudo-inverse of items 0 and 2 is [[1, 0], [-1/2, 1/2]], so item 1 is 3 x item 0 + 1/2 x item 2."""
    scores = np.array([[1.0, 3.0, 0.0], [1.0, 4.0, 2.0]])
    promised = promise_by_inverse(scores)(np.array([0, 2]), np.array([2.0, 10.0]))
    np.testing.assert_allclose(promised, [2, 11, 10], atol=1e-12)


def test_it_is_the_product_with_the_pseudo_inverse():
    scores, known = RANDOM.standard_normal((8, 30)), RANDOM.standard_normal(6)
    anchors = np.array([1, 4, 9, 16, 25, 29])
    promised = promise_by_inverse(scores)(anchors, known)
    np.testing.assert_allclose(promised, known @ np.linalg.pinv(scores[:, anchors]) @ scores, atol=1e-10)
    np.testing.assert_allclose(promised[anchors], known, atol=1e-10)


def test_scores_of_low_rank_are_found_exactly():
    anchors = spread_items(LOW_RANK, 4)
    np.testing.assert_allclose(promise_by_inverse(LOW_RANK)(anchors, QUERY[anchors]), QUERY, atol=1e-9)


def test_items_that_hardly_differ_do_not_explode():
    scores = LOW_RANK.copy()
    scores[:, 1] = scores[:, 0] + 1e-6 * RANDOM.standard_normal(12)
    anchors = np.array([0, 1, 7])
    known = QUERY[anchors] + np.array([0.01, -0.01, 0.0])
    assert np.abs(promise_by_inverse(scores)(anchors, known)).max() < 10 * np.abs(QUERY).max()
    assert np.abs(fit_scores(scores, anchors, known, rcond=1e-12) @ scores).max() > 100 * np.abs(QUERY).max()


def test_the_items_that_tell_most_are_chosen_first():
    scores = np.array([[1.0, 9.0, 8.9, 0.0], [0.0, 0.0, 0.1, 2.0]])
    assert spread_items(scores, 1).tolist() == [1]
    assert spread_items(scores, 2).tolist() == [1, 3]
    assert spread_items(scores, 9).tolist() == [0, 1, 2, 3]


def test_the_shortest_of_all_vectors_that_fit_is_found():
    items = np.array([[1.0, 0.0, 5.0], [1.0, 0.0, 7.0], [0.0, 1.0, 9.0]])
    np.testing.assert_allclose(fit_scores(items, np.array([0, 1]), np.array([4.0, 3.0])), [2, 2, 3], atol=1e-12)


def test_with_the_querys_own_vector_alone_its_products_are_promised():
    vectors, own = RANDOM.standard_normal((6, 30)), RANDOM.standard_normal(6)
    read, known = np.array([1, 2, 8]), np.array([1.0, 3.0, 2.0])
    for promised in (
        promise_by_inverse(vectors, Prior(own, 1.0))(read, known),
        promise_by_inverse(vectors, Prior(own, 0.2))(NONE, np.empty(0)),
    ):
        np.testing.assert_allclose(promised, own @ vectors)


def test_scores_in_any_unit_mix_with_the_querys_own_vector_alike():
    vectors, own, read = RANDOM.standard_normal((6, 30)), RANDOM.standard_normal(6), np.array([1, 2, 8])
    known = np.array([1.0, 3.0, 2.0])
    mixed = with_prior(vectors, read, known, Prior(own, 0.3))
    np.testing.assert_allclose(with_prior(vectors, read, 50 * known - 7, Prior(own, 0.3)), mixed)
    products = own @ vectors[:, read]
    scaled = (known - 2) / known.std() * products.std() + products.mean()
    np.testing.assert_allclose(mixed, 0.7 * fit_scores(vectors, read, scaled) + 0.3 * own)
    assert np.isfinite(with_prior(vectors, read, np.ones(3), Prior(own, 0.3))).all()


def test_nothing_to_begin_with_is_refused():
    with pytest.raises(ValueError, match="neither items read first nor a prior"):
        promise_by_inverse(LOW_RANK)(NONE, np.empty(0))
