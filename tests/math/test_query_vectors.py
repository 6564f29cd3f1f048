"""Vectors of queries that have read documents: by hand, and what they do not depend on."""

import numpy as np
import pytest

from shortlist.math.query_vectors import cosines, merged_query


def test_cosines_are_those_worked_out_by_hand():
    documents = np.array([[3.0, 4.0], [4.0, -3.0], [0.0, 0.0], [-6.0, -8.0]])
    assert cosines(np.array([0.3, 0.4]), documents).tolist() == pytest.approx([1.0, 0.0, 0.0, -1.0])
    assert cosines(np.zeros(2), documents).tolist() == [0, 0, 0, 0]


def test_the_length_of_no_vector_changes_a_cosine():
    draw = np.random.default_rng(0)
    query, documents = draw.normal(size=5), draw.normal(size=(4, 5))
    np.testing.assert_allclose(cosines(7 * query, 0.1 * documents), cosines(query, documents))


def test_blocks_count_by_the_best_of_their_documents():
    # weights (1 + 0.6) / 2 = 0.8 and (1 - 0.6) / 2 = 0.2
    merged = merged_query(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([0.6, -0.6]))
    assert merged.tolist() == pytest.approx([0.8, 0.4])


def test_one_block_is_left_as_it_is_and_the_order_of_blocks_does_not_matter():
    draw = np.random.default_rng(0)
    queries, bests = draw.normal(size=(3, 4)), draw.uniform(-1, 1, 3)
    np.testing.assert_allclose(merged_query(queries[:1], bests[:1]), queries[0])
    np.testing.assert_allclose(merged_query(queries[::-1], bests[::-1]), merged_query(queries, bests))
    np.testing.assert_allclose(merged_query(queries[:2], np.array([-1.0, -1.0])), queries[:2].mean(0))
