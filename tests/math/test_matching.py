import numpy as np
import pytest
import torch

from shortlist.math import matching
from shortlist.math.matching import query_tiles, scan_integers, score_documents
from shortlist.math.maxsim import TokenVectors, maxsim
from shortlist.math.ragged import text_parts

RAGGED = [0, 3, 1, 0, 20, 7, 0, 40, 2, 16, 0]


def texts(counts, dim: int = 24, seed: int = 0) -> TokenVectors:
    values = np.random.default_rng(seed).standard_normal((sum(counts), dim)).astype(np.float32)
    return TokenVectors(values / np.linalg.norm(values, axis=1, keepdims=True), np.array(counts))


def score(queries: TokenVectors, documents: TokenVectors) -> np.ndarray:
    values = torch.from_numpy(documents.values)
    found = score_documents(query_tiles(queries), documents.counts, lambda start, stop: values[start:stop])
    return np.concatenate(found, axis=1).T


@pytest.mark.parametrize("sizes", [(512, 1 << 19), (8, 300)], ids=["one piece", "many"])
@pytest.mark.parametrize("counts", [RAGGED, [5] * 30, [0, 0], [0, 9]], ids=["ragged", "alike", "empty", "short"])
def test_scores_are_those_of_the_definition(monkeypatch, sizes, counts):
    monkeypatch.setattr(matching, "TILE_TOKENS", sizes[0])
    monkeypatch.setattr(matching, "PIECE_SIMILARITIES", sizes[1])
    queries, documents = texts([4, 1, 32, 6], seed=1), texts(counts)
    np.testing.assert_allclose(score(queries, documents), maxsim(queries, documents), atol=1e-5)


def test_a_score_worked_out_by_hand():
    queries = TokenVectors(np.array([[1, 0], [0, 1]], dtype=np.float32), np.array([2]))
    documents = TokenVectors(np.array([[0.5, -0.5], [0.25, -1], [-1, -1]], dtype=np.float32), np.array([2, 0, 1]))
    assert score(queries, documents).tolist() == [[0.0, -np.inf, -2.0]]  # negative similarities count


def test_a_pair_scores_the_same_whatever_it_is_computed_with(monkeypatch):
    queries, documents = texts([4, 1, 32, 6], 128, seed=1), texts([0, 3, 20, 100, 100, 1], 128)
    together = score(queries, documents)
    for row, query in enumerate(queries):
        for column, document in enumerate(documents):
            one, other = (TokenVectors(values, np.array([len(values)])) for values in (query, document))
            assert score(one, other)[0, 0] == together[row, column]
    monkeypatch.setattr(matching, "PIECE_SIMILARITIES", 512)
    np.testing.assert_array_equal(score(queries, documents), together)


def test_integers_find_nearly_the_same_scores():
    queries, documents = texts([32, 5], seed=1), texts(RAGGED)
    scale = float(np.abs(documents.values).max()) / 127
    integers = torch.from_numpy((documents.values / scale).round()).to(torch.int8)
    scores = np.concatenate(scan_integers(query_tiles(queries), documents.counts, integers, scale), axis=1).T
    np.testing.assert_allclose(scores, maxsim(queries, documents), rtol=0.02, atol=0.01)


def test_parts_hold_whole_texts():
    assert list(text_parts(np.array([3, 0, 2, 9, 1]), 5)) == [(0, 3, 0, 5), (3, 4, 5, 14), (4, 5, 14, 15)]
