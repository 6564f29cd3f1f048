import numpy as np
import pytest

from shortlist.math.lasso import positive_lasso

RANDOM = np.random.default_rng(0)


def test_one_column_as_worked_out_by_hand():
    assert positive_lasso(np.array([[2.0]]), np.array([3.0]), 1.0).tolist() == [1.0]
    assert positive_lasso(np.array([[2.0]]), np.array([3.0]), 3.0).tolist() == [0.0]
    assert positive_lasso(np.array([[2.0]]), np.array([-3.0]), 0.0).tolist() == [0.0]


def test_a_blend_of_two_of_five_columns_has_its_two_weights():
    columns = RANDOM.standard_normal((50, 5))
    blend = columns @ [0.0, 0.6, 0.0, 0.4, 0.0]
    weights = positive_lasso(columns.T @ columns, columns.T @ blend, 0.0)
    np.testing.assert_allclose(weights, [0, 0.6, 0, 0.4, 0], atol=1e-9)
    few = positive_lasso(columns.T @ columns, columns.T @ blend, 1.0)
    assert np.flatnonzero(few).tolist() == [1, 3]
    assert few.sum() < 1


def test_what_would_need_a_weight_below_0_gets_0():
    columns = RANDOM.standard_normal((50, 2))
    blend = columns @ [1.0, -1.0]
    first, second = positive_lasso(columns.T @ columns, columns.T @ blend, 0.0)
    assert second == 0
    assert first == pytest.approx(columns[:, 0] @ blend / (columns[:, 0] @ columns[:, 0]))


def test_scikit_learn_finds_the_same_weights():
    linear_model = pytest.importorskip("sklearn.linear_model")
    columns, noise = RANDOM.standard_normal((80, 6)), RANDOM.standard_normal(80)
    response = columns @ [1, 0, 2, 0, -1, 0.5] + noise
    known = linear_model.Lasso(alpha=0.1, fit_intercept=False, positive=True, tol=1e-12, max_iter=100_000)
    expected = known.fit(columns, response).coef_
    found = positive_lasso(columns.T @ columns, columns.T @ response, 0.1 * len(columns))
    np.testing.assert_allclose(found, expected, atol=1e-6)
