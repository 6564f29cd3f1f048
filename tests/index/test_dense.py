"""The first stage over vectors, fed with queries or with vectors."""

import numpy as np

from shortlist.index.dense import DenseSearch, EncodesQueries
from shortlist.index.protocols import FirstStage, SearchesTerms, SearchesVectors, VectorIndex
from shortlist.records import Hit, Query


class Lengths:
    """A vector of one number: how long the text is."""

    def encode_queries(self, queries):
        return np.array([[len(query.text)] for query in queries], dtype=np.float32)


class Nearest:
    def find(self, queries, k):
        return [[Hit(f"d{i}", i * float(vector[0])) for i in (3, 2, 1)[:k]] for vector in queries]


def test_vectors_are_searched_as_the_queries_that_give_them():
    dense = DenseSearch(Lengths(), Nearest())
    queries = [Query("a", "four"), Query("b", "sixsix")]
    run = dense.search(queries, 2)
    assert run == {"a": [Hit("d3", 12.0), Hit("d2", 8.0)], "b": [Hit("d3", 18.0), Hit("d2", 12.0)]}
    assert dense.find_by_vectors(dense.query_vectors(queries), 2) == list(run.values())
    assert dense.find_by_vectors(np.array([[0.5]]), 1) == [[Hit("d3", 1.5)]]


def test_what_a_first_stage_can_be_fed_is_seen():
    dense = DenseSearch(Lengths(), Nearest())
    assert isinstance(dense, FirstStage)
    assert isinstance(dense, SearchesVectors)
    assert not isinstance(dense, SearchesTerms)
    assert isinstance(dense.retriever, EncodesQueries)
    assert isinstance(dense.vectors, VectorIndex)
