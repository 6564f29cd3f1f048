import numpy as np
import pytest

from shortlist.math.combination import COMBINATIONS, avgp, maxp

STARTS = np.array([0, 1, 4])


def test_combinations_equal_the_values_worked_out_by_hand():
    scores = np.array([5.0, 1.0, 3.0, -1.0, 2.0], dtype=np.float32)
    assert maxp(scores, STARTS).tolist() == [5.0, 3.0, 2.0]
    assert avgp(scores, STARTS).tolist() == [5.0, 1.0, 2.0]


def test_the_mean_of_vectors_has_the_mean_of_their_inner_products():
    vectors = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    query = np.ones(8, dtype=np.float32)
    np.testing.assert_allclose(avgp(vectors, STARTS) @ query, avgp(vectors @ query, STARTS), atol=1e-6)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_one_segment_counts_as_itself(name: str):
    values = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    np.testing.assert_array_equal(COMBINATIONS[name](values, np.arange(4)), values)
