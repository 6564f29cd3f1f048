import math

import numpy as np
import pytest

from shortlist.math.logistic import fit_logistic

RANDOM = np.random.default_rng(0)


def test_a_line_without_features_that_vary_gives_the_share_of_positives():
    line = fit_logistic(np.ones((4, 2)), np.array([True, False, False, False]))
    assert line.weights.tolist() == [0, 0]
    assert line.bias == pytest.approx(math.log(1 / 3), abs=1e-6)


def test_the_weight_of_one_feature_as_worked_out_by_hand():
    """Rows at -1 and 1, three of four labels right on each side: without a price the weight is log 3."""
    features = np.array([[-1.0]] * 4 + [[1.0]] * 4)
    positive = np.array([False, False, False, True, True, True, True, False])
    line = fit_logistic(features, positive, ridge=1e-9)
    assert (line.weights[0], line.bias) == (pytest.approx(math.log(3), abs=1e-6), pytest.approx(0, abs=1e-9))
    assert 0 < fit_logistic(features, positive, ridge=4.0).weights[0] < math.log(3)


def test_labels_that_a_line_separates_have_a_finite_line():
    features = np.array([[0.0], [1.0], [2.0], [3.0]])
    line = fit_logistic(features, features[:, 0] > 1.5)
    assert 0 < line.weights[0] < 10
    assert line.weights[0] * 1.5 + line.bias == pytest.approx(0, abs=1e-6)


def test_a_feature_on_another_scale_gives_the_same_chances():
    features, positive = RANDOM.standard_normal((50, 3)), RANDOM.random(50) < 0.4
    line, other = fit_logistic(features, positive), fit_logistic(features * [1, 1000, 1] + [0, 5, 0], positive)
    np.testing.assert_allclose(
        features @ line.weights + line.bias,
        (features * [1, 1000, 1] + [0, 5, 0]) @ other.weights + other.bias,
        atol=1e-6,
    )


def test_scikit_learn_finds_the_same_line():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, noise = RANDOM.standard_normal((300, 4)), RANDOM.standard_normal(300)
    positive = features @ [1, -2, 0, 0.5] + noise > 1
    scaled = (features - features.mean(0)) / features.std(0)
    known = linear_model.LogisticRegression(C=0.5, tol=1e-10, max_iter=1000).fit(scaled, positive)
    line = fit_logistic(features, positive, ridge=2.0)
    np.testing.assert_allclose(line.weights * features.std(0), known.coef_[0], atol=1e-4)
