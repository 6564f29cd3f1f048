import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from shortlist.math.agreement import agreement, kendall_tau


def test_the_same_vectors_agree():
    vectors = torch.nn.functional.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert agreement(vectors, vectors) == pytest.approx((1.0, 1.0, 1.0))
    assert agreement(-vectors, vectors).least_cosine == pytest.approx(-1.0)


def test_kendalls_tau_equals_the_values_worked_out_by_hand():
    one = np.array([4.0, 3.0, 2.0, 1.0])
    assert kendall_tau(one, np.array([4.0, 3.0, 1.0, 2.0])) == pytest.approx((5 - 1) / 6)
    assert kendall_tau(one, -one) == -1.0
    assert kendall_tau(one, np.zeros(4)) == 1.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=20))
def test_kendalls_tau_equals_scipys(pairs):
    one, other = np.array(pairs, dtype=np.float64).T
    expected = kendalltau(one, other).statistic
    assert kendall_tau(one, other) == pytest.approx(1.0 if np.isnan(expected) else expected)
