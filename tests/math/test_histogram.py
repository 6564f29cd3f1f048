import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist.math.histogram import add_lengths, mean_length, quantile, share_at_most, shares

EMPTY = np.zeros(0, dtype=np.int64)


def test_a_histogram_grows_by_the_texts_added():
    histogram = add_lengths(add_lengths(EMPTY, [2, 0]), [5, 2])
    assert histogram.tolist() == [1, 0, 2, 0, 0, 1]
    assert add_lengths(histogram, [1]).tolist() == [1, 1, 2, 0, 0, 1]


def test_shares_are_those_worked_out_by_hand():
    histogram = add_lengths(EMPTY, [1, 2, 2, 4])
    assert shares(histogram).tolist() == [0.0, 0.25, 0.75, 0.75, 1.0]
    assert [share_at_most(histogram, limit) for limit in (0, 2, 3, 9)] == [0.0, 0.75, 0.75, 1.0]
    assert [quantile(histogram, share) for share in (0.25, 0.26, 0.75, 0.76, 1.0)] == [1, 2, 2, 4, 4]
    assert mean_length(histogram) == 2.25


@given(st.lists(st.integers(0, 300), min_size=1), st.sampled_from([0.01, 0.05, 0.25, 0.5, 0.9, 0.99, 1.0]))
def test_the_histogram_says_what_the_list_says(lengths: list[int], share: float):
    histogram = add_lengths(EMPTY, lengths)
    assert quantile(histogram, share) == np.quantile(lengths, share, method="inverted_cdf")
    assert mean_length(histogram) == pytest.approx(np.mean(lengths))
    assert share_at_most(histogram, 100) == pytest.approx(np.mean(np.array(lengths) <= 100))
