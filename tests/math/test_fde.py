import numpy as np
import pytest
import torch

from shortlist.math.fde import encode_documents, encode_queries, make_encoding
from shortlist.math.maxsim import TokenVectors, maxsim


def texts(counts, dim: int = 16, seed: int = 0) -> TokenVectors:
    values = np.random.default_rng(seed).standard_normal((sum(counts), dim)).astype(np.float32)
    return TokenVectors(values / np.linalg.norm(values, axis=1, keepdims=True), np.array(counts))


def test_an_encoding_worked_out_by_hand():
    encoding = make_encoding(2, repetitions=1, bits=1, width=2)._replace(planes=torch.tensor([[1.0], [0.0]]))
    tokens = TokenVectors(np.array([[2, 1], [4, 3], [-1, 5]], dtype=np.float32), np.array([2, 0, 1]))
    assert encode_queries(tokens, encoding).tolist() == [[0, 0, 6, 4], [0, 0, 0, 0], [-1, 5, 0, 0]]
    assert encode_documents(tokens, encoding).tolist() == [[3, 2, 3, 2], [0, 0, 0, 0], [-1, 5, -1, 5]]


def test_an_empty_bucket_holds_the_nearest_one():
    encoding = make_encoding(3, repetitions=1, bits=3, width=3)._replace(planes=torch.eye(3))
    one = TokenVectors(np.array([[1, -1, -1], [-1, -1, 1]], dtype=np.float32), np.array([2]))  # buckets 1 and 4
    buckets = encode_documents(one, encoding).view(8, 3)
    assert buckets[3].tolist() == buckets[1].tolist() == [1, -1, -1]  # one plane away from bucket 1, two from 4
    assert buckets[6].tolist() == buckets[4].tolist() == [-1, -1, 1]
    assert buckets.abs().sum(1).gt(0).all()


@pytest.mark.parametrize("width", [4, 16])
def test_products_resemble_scores(width):
    queries, documents = texts([8] * 4, seed=1), texts([12] * 60)
    values = documents.values.reshape(60, 12, 16).copy()
    for number, query in enumerate(queries):  # documents with more and more of a query's tokens
        for shared in range(9):
            values[10 * number + shared, :shared] = query[:shared]
    documents = TokenVectors(values.reshape(-1, 16), documents.counts)
    encoding = make_encoding(16, repetitions=24, bits=2, width=width)
    products = encode_queries(queries, encoding) @ encode_documents(documents, encoding).T
    scores = maxsim(queries, documents)
    for row in range(4):
        assert np.corrcoef(products[row], scores[row])[0, 1] > 0.6


def test_a_text_is_encoded_the_same_whatever_stands_beside_it():
    documents, encoding = texts([5, 3, 9]), make_encoding(16, repetitions=3, bits=2, width=8)
    together = encode_documents(documents, encoding)
    for row, values in zip(together, documents, strict=True):
        alone = encode_documents(TokenVectors(values, np.array([len(values)])), encoding)[0]
        torch.testing.assert_close(alone, row)
