import numpy as np

from shortlist.math.maxsim import TokenVectors, maxsim

QUERIES = TokenVectors(np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32), np.array([2, 1]))
DOCUMENTS = TokenVectors(np.array([[0.6, 0.8], [1, 0], [0, -1]], dtype=np.float32), np.array([2, 0, 1]))


def test_scores_are_those_worked_out_by_hand():
    expected = [[1 + 0.8, -np.inf, 0 - 1], [-0.6, -np.inf, 0]]
    np.testing.assert_allclose(maxsim(QUERIES, DOCUMENTS), np.array(expected, dtype=np.float32))


def test_texts_come_one_after_another():
    assert [len(text) for text in DOCUMENTS] == [2, 0, 1]
    assert len(DOCUMENTS) == 3
    assert list(TokenVectors(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))) == []
