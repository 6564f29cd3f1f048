import numpy as np
import pytest

from shortlist.math.ridge import FREE_LEVEL, NOISE, OF_VECTORS, SLOPE, SLOPE_VARIANCE, Expectation

RANDOM = np.random.default_rng(7)
SCORES = RANDOM.standard_normal((6, 4)) @ RANDOM.standard_normal((4, 30)) + RANDOM.standard_normal((6, 1)) - 5
"""Scores of 6 anchor queries for 30 documents."""
VECTORS = RANDOM.standard_normal((5, 30))
OWN_PRODUCTS = RANDOM.standard_normal(5) @ VECTORS
READ = np.array([3, 7, 20, 21])
KNOWN = np.array([-4.0, -6.5, -5.0, -3.0])
NONE = np.empty(0, dtype=np.int64)


def test_with_two_anchors_it_is_what_is_worked_out_by_hand():
    """Means 2, 0, 1 and levels 1 and -1 leave the anchors' parts (1, -1, 0) and (-1, 1, 0), of mean square 2/3.

    The level's variance is 1 / (2/3) = 3/2. Item 0 alone is read, with 6, which is 4 more than its mean. It varies by
    (1 + 1) / (2 x 2/3) = 3/2 with the anchors, by 3/2 with the level and by 1 of noise: 4 together, so the weight is 1.
    Item 1 moves by the level's 3/2 less 3/2 of the anchors; item 2 by the level; item 0 by both.
    """
    scores = np.array([[4.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    promised = Expectation(scores).promise()(np.array([0]), np.array([6.0]))
    np.testing.assert_allclose(promised, [2 + 3 / 2 + 3 / 2, 0 + 3 / 2 - 3 / 2, 1 + 3 / 2])


def test_before_anything_is_read_it_is_the_mean_and_the_querys_own_products():
    nothing = (NONE, np.empty(0))
    np.testing.assert_allclose(Expectation(SCORES).promise()(*nothing), SCORES.mean(0))
    order = np.argsort(Expectation(vectors=VECTORS).promise(OWN_PRODUCTS)(*nothing))
    assert order.tolist() == np.argsort(OWN_PRODUCTS).tolist()
    own = (OWN_PRODUCTS - OWN_PRODUCTS.mean()) / OWN_PRODUCTS.std()
    left = SCORES - SCORES.mean(0) - (SCORES - SCORES.mean(0)).mean(1, keepdims=True)
    expected = SCORES.mean(0) + SLOPE * left.std() * own
    np.testing.assert_allclose(Expectation(SCORES, VECTORS).promise(OWN_PRODUCTS)(*nothing), expected)


@pytest.mark.parametrize("with_scores", [True, False])
def test_it_is_the_mean_of_the_normal_distribution_given_what_was_read(with_scores: bool):
    """The plain form: the whole covariance of the items, and its blocks."""
    left = SCORES - SCORES.mean(0) - (SCORES - SCORES.mean(0)).mean(1, keepdims=True)
    near = VECTORS - VECTORS.mean(1, keepdims=True)
    near = near.T @ near * 30 / (near**2).sum()
    own = (OWN_PRODUCTS - OWN_PRODUCTS.mean()) / OWN_PRODUCTS.std()
    if with_scores:
        variance = (left**2).mean()
        level = (SCORES - SCORES.mean(0)).mean(1).var()
        covariance = variance * OF_VECTORS * near + (1 - OF_VECTORS) * left.T @ left / len(SCORES) + level
        mean = SCORES.mean(0) + SLOPE * np.sqrt(variance) * own
    else:
        variance = KNOWN.var()
        covariance = variance * (near + FREE_LEVEL)
        mean = SLOPE * np.sqrt(variance) * own
        mean += (KNOWN - mean[READ]).mean()
    covariance += variance * SLOPE_VARIANCE * SLOPE**2 * np.outer(own, own)
    inner = covariance[np.ix_(READ, READ)] + NOISE * variance * np.eye(4)
    expected = mean + covariance[:, READ] @ np.linalg.inv(inner) @ (KNOWN - mean[READ])
    found = Expectation(SCORES if with_scores else None, VECTORS).promise(OWN_PRODUCTS)(READ, KNOWN)
    np.testing.assert_allclose(found, expected)


def test_scores_in_another_unit_promise_the_same_order():
    for scores in (SCORES, None):
        moved = None if scores is None else 50 * scores - 7
        found = Expectation(scores, VECTORS).promise(OWN_PRODUCTS)(READ, KNOWN)
        again = Expectation(moved, VECTORS).promise(OWN_PRODUCTS)(READ, 50 * KNOWN - 7)
        np.testing.assert_allclose(again, 50 * found - 7)


def test_single_precision_changes_little():
    whole = Expectation(SCORES, VECTORS).promise(OWN_PRODUCTS)(READ, KNOWN)
    small = Expectation(SCORES.astype(np.float32), VECTORS.astype(np.float32))
    np.testing.assert_allclose(small.promise(OWN_PRODUCTS)(READ, KNOWN), whole, rtol=1e-4)


@pytest.mark.parametrize(
    ("scores", "vectors"), [(np.full((3, 30), 2.0), None), (None, np.ones((5, 30))), (SCORES, np.ones((5, 30)))]
)
def test_what_does_not_differ_promises_finite_scores(scores: np.ndarray | None, vectors: np.ndarray | None):
    own = None if vectors is None else np.zeros(30)
    promise = Expectation(scores, vectors).promise(own)
    for read, known in ((NONE, np.empty(0)), (READ[:1], KNOWN[:1]), (READ, np.full(4, 3.0)), (READ, KNOWN)):
        assert np.isfinite(promise(read, known)).all()


def test_neither_scores_nor_vectors_are_refused():
    with pytest.raises(ValueError, match="neither scores"):
        Expectation()
