import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist.math.diversity import cover, ideal_cover, mmr, scaled, unit_rows


def plain_mmr(relevance: np.ndarray, vectors: np.ndarray, k: int, share: float) -> list[int]:
    """The definition: compare every candidate with all chosen ones."""
    chosen = [int(relevance.argmax())]
    while len(chosen) < min(k, len(relevance)):
        values = share * relevance - (1 - share) * (vectors @ vectors[chosen].T).max(1)
        values[chosen] = -np.inf
        chosen.append(int(values.argmax()))
    return chosen


def made_up(num_docs: int, dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(num_docs), unit_rows(rng.normal(size=(num_docs, dim)).astype(np.float32))


def test_a_list_worked_out_by_hand():
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]])
    relevance = np.array([1.0, 0.9, 0.2, 0.5])
    # after the first: .45 - .5 = -.05, .1 - 0 = .1, .25 - .3 = -.05; then .45 - .5, .25 - .4
    assert mmr(relevance, vectors, k=4, share=0.5).tolist() == [0, 2, 1, 3]
    assert mmr(relevance, vectors, k=4, share=1.0).tolist() == [0, 1, 3, 2]
    assert mmr(relevance, vectors, k=2, share=0.0).tolist() == [0, 2]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95, 1.0])
@pytest.mark.parametrize(("num_docs", "dim"), [(40, 8), (500, 8), (500, 64)])
def test_the_choices_are_those_of_comparing_all(num_docs: int, dim: int, share: float):
    for seed in range(3):
        relevance, vectors = made_up(num_docs, dim, seed)
        chosen = mmr(relevance, vectors, k=100, share=share).tolist()
        assert chosen[0] == relevance.argmax()
        for count in range(1, len(chosen)):
            values = share * relevance - (1 - share) * (vectors @ vectors[chosen[:count]].T).max(1)
            left = np.delete(values, chosen[:count])
            assert values[chosen[count]] >= left.max() - 1e-6  # as values are computed in 32 bits


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.sampled_from([0.25, 0.5, 1.0]))
def test_of_equally_good_documents_the_first_is_chosen(grades: list[int], share: float):
    relevance = np.array(grades) / 4
    vectors = np.eye(4)[np.arange(len(grades)) % 4]  # all values are exact
    assert mmr(relevance, vectors, k=90, share=share).tolist() == plain_mmr(relevance, vectors, 90, share)


def test_documents_of_opposite_direction_gain_beyond_their_relevance():
    vectors = np.array([[1.0, 0], [-1, 0], [0, 1]])
    assert mmr(np.array([1.0, 0.0, 0.5]), vectors, k=3, share=0.4).tolist() == [0, 1, 2]


def test_every_document_is_chosen_once_and_nothing_of_nothing():
    relevance, vectors = made_up(70)
    assert sorted(mmr(relevance, vectors, k=200)) == list(range(70))
    assert mmr(relevance[:0], vectors[:0], k=3).tolist() == []
    assert cover(relevance[:0], np.zeros((2, 0)), k=3).tolist() == []


def test_coverage_worked_out_by_hand():
    aspects = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.4]])
    relevance = np.array([1.0, 0.9, 0.0, 0.3])
    # share 0.5: .75, .7, .125, .25; after the first, the first aspect is worth 0.25: .575, .125, .25
    assert cover(relevance, aspects, k=2, share=0.5).tolist() == [0, 1]
    # share 0: .5, .5, .25, .2; then .25, .25, .2 and the third comes before the fourth, as .25 > .2
    assert cover(relevance, aspects, k=3, share=0.0).tolist() == [0, 1, 2]
    assert cover(relevance, aspects, k=3, share=0.0, alpha=1.0).tolist() == [0, 2, 3]
    assert cover(relevance, aspects, k=4, share=1.0).tolist() == [0, 1, 3, 2]
    assert cover(relevance, np.zeros((0, 4)), k=4, share=0.5).tolist() == [0, 1, 3, 2]


def test_scores_are_scaled_between_0_and_1_and_vectors_to_length_1():
    assert scaled(np.array([3.0, 2.0, 1.0])).tolist() == [1, 0.5, 0]
    assert scaled(np.array([2.0, 2.0])).tolist() == [1, 1]
    assert unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0, 0]]


def test_an_ideal_list_worked_out_by_hand():
    aspects = np.array([[0.6, 0.7, 0.1, 0.2], [0.3, 0.0, 0.45, 0.2]])
    # gains by halves: .45 .35 .275 .2; by 4 and 7 elevenths: - .2545 .3227 .2; by 8 and 11 nineteenths: - .2947 - .2
    assert ideal_cover(aspects, k=4).tolist() == [0, 2, 1, 3]
    assert ideal_cover(aspects, k=2).tolist() == [0, 2]


def test_an_ideal_list_begins_anew_once_every_aspect_has_its_best_answer():
    aspects = np.array([[0.6, 0.6, 0, 0], [0, 0, 0.5, 0.5]])
    assert ideal_cover(aspects, k=4).tolist() == [0, 2, 1, 3]  # otherwise the last would have .25 against .24


@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 99))
def test_an_ideal_list_holds_every_document_once(num_aspects: int, num_docs: int, seed: int):
    aspects = np.random.default_rng(seed).integers(0, 3, size=(num_aspects, num_docs)) / 2
    assert sorted(ideal_cover(aspects, k=99).tolist()) == list(range(num_docs))
