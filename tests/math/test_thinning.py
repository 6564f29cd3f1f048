import numpy as np
import pytest
import torch

from shortlist.math.maxsim import TokenVectors
from shortlist.math.thinning import kept_tokens, likeness, pooled_tokens, thinned


def unit(*rows: tuple[float, ...]) -> np.ndarray:
    vectors = np.array(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


RANDOM = unit(*np.random.default_rng(0).normal(size=(23, 8)))


def test_pooling_worked_out_by_hand():
    """The first is protected; two pairs of equal directions become their means."""
    vectors = unit((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 0.1), (0, 0.1, 1))
    pooled = pooled_tokens(vectors, 2.0)
    assert len(pooled) == 3
    expected = unit((1, 0, 0), *(vectors[i] + vectors[i + 2] for i in (1, 2)))
    order = [0, 1, 2] if pooled[1, 1] > pooled[2, 1] else [0, 2, 1]
    np.testing.assert_allclose(pooled[order], expected, atol=1e-6)


@pytest.mark.slow
def test_pooling_is_that_of_sentence_transformers():
    published = pytest.importorskip("sentence_transformers.multi_vector_encoder.modules.token_pooling")
    for factor in (1.0, 1.5, 2.0, 3.0, 7.0, 100.0):
        for count in (1, 2, 5, 23):
            expected = published.HierarchicalTokenPooling(factor).pool_one(torch.from_numpy(RANDOM[:count]))
            np.testing.assert_allclose(pooled_tokens(RANDOM[:count], factor), expected.numpy(), atol=1e-6)


def test_keeping_worked_out_by_hand():
    """Of three that are nearly alike the most important is kept, then the two that differ from it."""
    vectors = unit((1, 0), (1, 0.05), (0, 1), (1, -0.05), (-1, 0.2))
    importance = np.array([1.0, 0.9, 0.5, 0.8, 0.0], dtype=np.float32)
    assert kept_tokens(vectors, importance, 1).tolist() == [0]
    assert kept_tokens(vectors, importance, 2).tolist() == [0, 4]  # 0.5 * 0 + 0.5 * 0.98 beats 0.5 * 0.5 - 0
    assert kept_tokens(vectors, importance, 3).tolist() == [0, 2, 4]
    assert kept_tokens(vectors, importance, 2, balance=1.0).tolist() == [0, 1]  # importance alone
    assert kept_tokens(vectors, importance, 9).tolist() == [0, 1, 2, 3, 4]


def test_equal_importance_keeps_what_differs():
    vectors = unit((1, 0), (1, 0), (0, 1))
    assert kept_tokens(vectors, np.ones(3, dtype=np.float32), 2).tolist() == [0, 2]


def test_importance_is_likeness_to_the_first_vector():
    np.testing.assert_allclose(likeness(unit((1, 0), (3, 4), (0, 1))), [1, 0.6, 0], atol=1e-6)
    assert thinned(TokenVectors(RANDOM, np.array([23])), budget=1).values.tolist() == RANDOM[:1].tolist()


def test_every_document_is_reduced_by_itself():
    documents = TokenVectors(RANDOM, np.array([10, 0, 1, 12]))
    assert thinned(documents, factor=3.0).counts.tolist() == [4, 0, 1, 4]
    assert thinned(documents, budget=5).counts.tolist() == [5, 0, 1, 5]
    both = thinned(documents, factor=3.0, budget=2)
    assert both.counts.tolist() == [2, 0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(both.values, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(thinned(documents, factor=2.0).values[-6:], pooled_tokens(RANDOM[11:], 2.0))
    assert thinned(documents).values is documents.values
