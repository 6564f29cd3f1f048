import math

import numpy as np
import pytest

from shortlist.math.weighting import bm25, length_penalty, rarity


def test_rarity_equals_the_value_worked_out_by_hand():
    assert rarity(np.array([1, 3, 1]), 3) == pytest.approx([math.log(8 / 3), math.log(8 / 7), math.log(8 / 3)])


def test_a_word_is_the_rarer_the_fewer_documents_hold_it_and_never_worth_less_than_nothing():
    values = rarity(np.arange(1, 101), 100)
    assert (np.diff(values) < 0).all()
    assert values[-1] > 0


def test_length_penalty_equals_the_value_worked_out_by_hand():
    assert length_penalty(np.array([1, 2, 6]), k1=2.0, b=0.5) == pytest.approx([1 + 1 / 3, 1 + 2 / 3, 1 + 2])


def test_a_document_of_mean_length_is_neither_held_back_nor_helped():
    lengths = np.array([1, 2, 3])
    assert length_penalty(lengths, k1=0.9, b=0.4)[1] == pytest.approx(0.9)
    assert length_penalty(lengths, k1=0.9, b=0.0) == pytest.approx([0.9] * 3)


def test_bm25_equals_the_value_worked_out_by_hand():
    found = bm25(np.array([2, 1]), np.array([3.0, 0.5], dtype=np.float32), np.array([1.0, 1.0]))
    assert found.dtype == np.float32
    assert found == pytest.approx([3 * 2 / 3, 0.5 / 2])


def test_bm25_grows_with_the_count_and_never_passes_the_rarity():
    counts = np.arange(1, 50)
    found = bm25(counts, np.full(49, 2.0, dtype=np.float32), np.full(49, 0.9))
    assert (np.diff(found) > 0).all()
    assert found[-1] < 2
