import numpy as np
import pytest

from shortlist.math.maxsim import TokenVectors, maxsim
from shortlist.math.token_feedback import Sample, cluster_means, sampled, vector_rarity, with_rarest

RNG = np.random.default_rng(3)


def rows(*vectors: tuple[float, float]) -> np.ndarray:
    return np.array(vectors, dtype=np.float32)


def test_a_query_gets_the_rarest_means_worked_out_by_hand():
    # two clusters: around (1, 0) with mean (.9, .1), and (0, 1) alone
    means = cluster_means(rows((1, 0), (0.8, 0.2), (0, 1)), 2)
    order = np.argsort(means[:, 1])
    assert means[order] == pytest.approx(np.array([[0.9, 0.1], [0, 1]]))
    # cosines with the documents' nearest vectors: (.99, .99, .99) and (.8, .6, 1), of which those above .7 are near
    documents = TokenVectors(rows((1, 0), (0.6, 0.8), (1, 0), (0.8, 0.6), (1, 0), (0, 1)), np.array([2, 2, 2]))
    found = vector_rarity(means[order], Sample(documents, 0.7))
    assert found == pytest.approx([0, np.log(4 / 3) / np.log(4)])
    query = rows((0.6, 0.8))
    longer = with_rarest(query, means[order], found, most=2, beta=0.5)
    assert longer == pytest.approx(np.array([[0.6, 0.8], [0, 0.5 * np.log(4 / 3) / np.log(4)]]))


def test_only_the_rarest_are_taken_and_of_equal_ones_the_first():
    means, rarities = rows((1, 0), (2, 0), (3, 0), (4, 0)), np.array([0.2, 0.5, 0.5, 0.5])
    assert with_rarest(means[:0], means, rarities, most=2, beta=1.0)[:, 0].tolist() == [1.0, 1.5]
    assert with_rarest(means[:1], means, rarities, most=2, beta=0.0).tolist() == [[1, 0]]


def test_a_vector_times_a_weight_has_its_score_times_the_weight():
    query, weights = RNG.normal(size=(5, 8)).astype(np.float32), np.array([1, 0.5, 2, 0, 3], dtype=np.float32)
    documents = TokenVectors(RNG.normal(size=(30, 8)).astype(np.float32), np.array([10, 1, 19]))
    singly = maxsim(TokenVectors(query, np.ones(5, dtype=np.int64)), documents)
    assert singly.min() < 0  # a negative greatest similarity is scaled too
    weighted = maxsim(TokenVectors(query * weights[:, None], np.array([5])), documents)
    assert weighted[0] == pytest.approx(weights @ singly, abs=1e-5)


def test_rarity_does_not_depend_on_lengths_and_goes_from_0_to_1():
    documents = TokenVectors(RNG.normal(size=(60, 8)).astype(np.float32), np.full(20, 3))
    sample, probes = sampled(documents), RNG.normal(size=(9, 8)).astype(np.float32)
    found = vector_rarity(probes, sample)
    assert ((found >= 0) & (found <= 1)).all()
    assert len(np.unique(found)) > 2
    longer = TokenVectors(documents.values * np.linspace(0.5, 3, 60, dtype=np.float32)[:, None], documents.counts)
    assert vector_rarity(4 * probes, sampled(longer)).tolist() == found.tolist()
    assert vector_rarity(np.zeros((1, 8), np.float32), sample).tolist() == [1.0]
    same = TokenVectors(np.ones((5, 8), np.float32), np.ones(5, np.int64))
    assert vector_rarity(probes[:1], Sample(same, -1.0)).tolist() == [0.0]


def test_a_tenth_of_the_documents_is_near_a_vector_of_another_one():
    documents = TokenVectors(RNG.normal(size=(400, 16)).astype(np.float32), np.full(100, 4))
    sample = sampled(documents)
    unit = documents.values / np.linalg.norm(documents.values, axis=1, keepdims=True)
    near = (unit @ unit.T).reshape(400, 100, 4).max(2) > sample.bound
    others = near[np.repeat(np.arange(100), 4)[:, None] != np.arange(100)]
    assert others.mean() == pytest.approx(0.1, abs=0.01)


def test_documents_without_vectors_are_left_out_of_a_sample():
    documents = TokenVectors(rows((1, 0), (0, 1)), np.array([0, 1, 0, 1]))
    assert sampled(documents).documents.counts.tolist() == [1, 1]
    assert sampled(TokenVectors(rows((3, 4)), np.array([1]))).bound == 1


def test_there_are_no_more_means_than_vectors():
    vectors = RNG.normal(size=(4, 8)).astype(np.float32)
    assert np.sort(cluster_means(vectors, 24), 0) == pytest.approx(np.sort(vectors, 0))
    assert cluster_means(np.ones((4, 8), np.float32), 3).tolist() == [[1.0] * 8]
    assert cluster_means(vectors[:0], 3).shape == (0, 8)
    many = RNG.normal(size=(50, 8)).astype(np.float32)
    assert cluster_means(many, 5).tolist() == cluster_means(many.copy(), 5).tolist()
