"""An inverted index against a dense matrix of the same weights."""

from pathlib import Path

import numpy as np
import pytest

from shortlist.errors import UserError
from shortlist.index.inverted import InvertedIndex
from shortlist.records import Hit

NUM_TERMS, NUM_DOCS = 12, 40
RNG = np.random.default_rng(0)
MATRIX = np.where(RNG.random((NUM_TERMS, NUM_DOCS)) < 0.3, RNG.random((NUM_TERMS, NUM_DOCS)), 0).astype(np.float32)
MATRIX[-2:] = 0  # terms that no document holds
QUERIES = [[(0, 1.0), (3, 0.5)], [(5, 2.0)], [(1, 1.0), (1, 1.0), (2, -0.25)], [(11, 1.0)], []]


def build(folder: Path) -> InvertedIndex:
    documents = [
        (f"d{i}", np.flatnonzero(column)[::-1].tolist(), column[column != 0][::-1].tolist())
        for i, column in enumerate(MATRIX.T)
    ]
    return InvertedIndex.build(documents, folder, num_terms=NUM_TERMS)


@pytest.mark.parametrize("block", [7, 1000])
def test_scores_are_those_of_the_dense_product(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shortlist.index.postings.BLOCK_TOKENS", block)
    index = build(tmp_path)
    assert (index.num_terms, index.num_docs) == MATRIX.shape
    for query, hits in zip(QUERIES, index.find(QUERIES, 10), strict=True):
        dense = np.zeros(NUM_TERMS, dtype=np.float32)
        for term, weight in query:
            dense[term] += weight
        scores = dense @ MATRIX
        best = [i for i in np.argsort(-scores, kind="stable")[:10] if scores[i] > 0]
        assert hits == [Hit(f"d{i}", pytest.approx(scores[i], rel=1e-6)) for i in best]


def test_a_terms_postings_are_its_row_and_no_other_term_has_any(tmp_path: Path):
    index = build(tmp_path)
    for term, row in enumerate(MATRIX):
        assert index.postings(term).documents.tolist() == np.flatnonzero(row).tolist()
        assert index.postings(term).weights.tolist() == row[row != 0].tolist()
    for term in (-1, NUM_TERMS):
        with pytest.raises(IndexError):
            index.postings(term)


def test_equal_scores_come_in_corpus_order_also_where_k_cuts(tmp_path: Path):
    documents = [(f"d{i}", [0], [float(i % 2)]) for i in range(9)]
    index = InvertedIndex.build(documents, tmp_path, num_terms=1)
    assert [hit.doc_id for hit in index.find([[(0, 1.0)]], 3)[0]] == ["d1", "d3", "d5"]


def test_an_id_with_a_line_end_is_refused_and_nothing_is_left(tmp_path: Path):
    with pytest.raises(UserError, match="holds a line end"):
        InvertedIndex.build([("a\nb", [0], [1.0])], tmp_path, num_terms=1)
    assert list(tmp_path.iterdir()) == []
