import numpy as np
import pytest

from shortlist.math.run_features import FEATURES, list_features
from shortlist.records import Hit

A, B = [Hit("a", 5.0), Hit("b", 3.0), Hit("c", 1.0)], [Hit("d", 0.5), Hit("b", 0.25)]


def test_every_document_of_every_list_has_what_each_list_says():
    doc_ids, features = list_features([A, B], ["score", "scaled", "reciprocal_rank", "found"])
    assert doc_ids == ["a", "b", "c", "d"]
    np.testing.assert_allclose(
        features,
        [
            [5, 1, 1, 1, 0.25, 0, 0, 0, 1],
            [3, 0.5, 1 / 2, 1, 0.25, 0, 1 / 2, 1, 2],
            [1, 0, 1 / 3, 1, 0.25, 0, 0, 0, 1],
            [1, 0, 0, 0, 0.5, 1, 1, 1, 1],
        ],
        rtol=1e-6,
    )


def test_the_z_score_of_a_document_that_is_not_found_is_the_lowest_one():
    _, features = list_features([A, B], ["zscore"])
    assert features[:, 0].tolist() == pytest.approx([1.5**0.5, 0, -(1.5**0.5), -(1.5**0.5)])


def test_an_empty_list_says_nothing():
    doc_ids, features = list_features([A, []], [*FEATURES])
    assert doc_ids == ["a", "b", "c"]
    assert not features[:, len(FEATURES) : -1].any()
    assert list_features([[], []], ["found"])[0] == []
