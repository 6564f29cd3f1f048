import numpy as np
import pytest

from shortlist.data.vectors import VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.index import flat
from shortlist.index.flat import FlatIndex


@pytest.fixture
def store(tmp_path):
    """Writes vectors to disk in shards of 130 and opens them."""

    def write(vectors: np.ndarray) -> VectorReader:
        writer = VectorWriter(tmp_path / "vectors", vectors.shape[1])
        for shard, start in enumerate(range(0, len(vectors), 130)):
            rows = vectors[start : start + 130]
            writer.write_shard(shard, [f"d{start + row}" for row in range(len(rows))], rows)
        return VectorReader(tmp_path / "vectors")

    return write


def by_the_book(queries, vectors, k):
    scores = queries @ vectors.T
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, indices, axis=1), indices


@pytest.fixture(params=[1 << 23, 500, 40], ids="{0} numbers held".format)
def block_size(request, monkeypatch):
    """One block, some blocks, blocks far smaller than k."""
    monkeypatch.setattr(flat, "BLOCK_NUMBERS", request.param)


@pytest.mark.parametrize("k", [1, 10, 100, 299, 300, 1000])
@pytest.mark.parametrize("num_queries", [1, 7])
def test_search_is_exact_and_ties_keep_corpus_order(store, block_size, k, num_queries):
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (300, 8)).astype(np.float32)  # small integers: exact sums, many ties
    queries = rng.integers(-2, 3, (num_queries, 8)).astype(np.float32)
    scores, indices = FlatIndex(store(vectors)).search_vectors(queries, k)
    expected_scores, expected_indices = by_the_book(queries, vectors, k)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("order", [1, -1], ids=["worst first", "best first"])
def test_search_is_exact_where_the_corpus_is_sorted_by_score(store, block_size, order):
    vectors = np.arange(300, dtype=np.float32)[::order, None].copy()
    scores, indices = FlatIndex(store(vectors)).search_vectors(np.array([[1.0], [-1.0]], dtype=np.float32), 20)
    expected_scores, expected_indices = by_the_book(np.array([[1.0], [-1.0]]), vectors, 20)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(indices, expected_indices)


def test_search_agrees_with_double_precision_on_real_numbers(store, block_size):
    rng = np.random.default_rng(1)
    vectors, queries = rng.standard_normal((300, 8), np.float32), rng.standard_normal((5, 8), np.float32)
    scores, indices = FlatIndex(store(vectors)).search_vectors(queries, 50)
    expected_scores, expected_indices = by_the_book(queries.astype(np.float64), vectors.astype(np.float64), 50)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(indices, expected_indices)


def test_no_queries_find_nothing(store):
    scores, indices = FlatIndex(store(np.ones((5, 4)))).search_vectors(np.ones((0, 4), dtype=np.float32), 10)
    assert scores.shape == indices.shape == (0, 5)


def test_no_block_is_larger_than_the_allowance(store, monkeypatch):
    asked = []
    vectors = store(np.ones((300, 8)))
    monkeypatch.setattr(flat, "BLOCK_NUMBERS", 400)
    monkeypatch.setattr(vectors, "blocks", lambda rows: asked.append(rows) or iter(()))
    index = FlatIndex(vectors)
    index.search_vectors(np.ones((2, 8), dtype=np.float32), 3)
    index.search_vectors(np.ones((100, 8), dtype=np.float32), 3)
    assert asked == [400 // 8, 400 // 100]


def test_candidates_that_wait_stay_within_k_and_a_block(store, monkeypatch):
    waiting_at_once = []
    merge = flat._merge

    def watch(best, waiting, k):
        waiting_at_once.append(sum(values.shape[1] for values, _ in waiting))
        return merge(best, waiting, k)

    monkeypatch.setattr(flat, "_merge", watch)
    monkeypatch.setattr(flat, "BLOCK_NUMBERS", 20)
    rising = np.arange(300, dtype=np.float32)[:, None].copy()
    FlatIndex(store(rising)).search_vectors(np.ones((1, 1), dtype=np.float32), 30)
    assert max(waiting_at_once) <= 30 + 20


def test_queries_of_another_dimension_are_refused(store):
    with pytest.raises(UserError, match="queries have 3 dimensions, the vectors 8"):
        FlatIndex(store(np.ones((2, 8)))).search_vectors(np.ones((1, 3), dtype=np.float32), 1)
