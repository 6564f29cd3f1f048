import numpy as np
import pytest

from shortlist.text.words import Grams, word_grams


def words_of(grams: Grams, num_words: int) -> list[int]:
    return grams.numbers[:num_words].tolist()


def test_words_are_split_at_spaces_and_signs_whatever_their_case():
    grams = word_grams(["The cat's  hat!?"])
    assert len(grams.numbers) == 6 + 5  # the cat ' s hat !? and pairs of neighbours
    assert words_of(grams, 6) == words_of(word_grams(["the\tcat ' S HAT !?"]), 6)
    assert len({*grams.numbers.tolist()}) == 11


def test_equal_words_and_pairs_have_equal_numbers_in_every_text():
    grams = word_grams(["a b a b", "", "b a"])
    assert grams.texts.tolist() == [0, 0, 0, 0, 2, 2, 0, 0, 0, 2]
    a, b, *rest = words_of(grams, 6)
    assert rest == [a, b, b, a]
    pairs = grams.numbers[6:].tolist()
    assert pairs == [pairs[0], pairs[1], pairs[0], pairs[1]]
    assert len({a, b, *pairs}) == 4


def test_no_pair_reaches_into_the_next_text():
    assert len(word_grams(["a", "b"]).numbers) == 2
    assert word_grams(["a", "b", "a b"]).texts.tolist() == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("text", "num_words"), [("機械学習", 4), ("ไทย", 3), ("한국어 문장", 2), ("naïve café", 2), ("x_1", 1)]
)
def test_texts_without_spaces_are_read_letter_by_letter_and_in_pairs(text: str, num_words: int):
    assert len(word_grams([text]).numbers) == 2 * num_words - 1


def test_the_order_of_letters_counts_in_long_words_too():
    numbers = word_grams(["ab ba", "a" * 80 + "b", "a" * 79 + "ba", "a" * 81]).numbers[:5]
    assert len({*numbers.tolist()}) == 5


def test_texts_without_words_have_no_grams_and_numbers_never_change():
    assert len(word_grams([]).numbers) == len(word_grams(["", " \n\t"]).numbers) == 0
    assert word_grams(["İstanbul", "end"]).texts.tolist() == [0, 1]  # its lower case is longer
    assert word_grams(["cat"]).numbers.tolist() == [NUMBER_OF_CAT]
    assert word_grams(["\ud800"]).numbers.dtype == np.uint64


NUMBER_OF_CAT = 17775361192494894943
"""Weights that were written before are compared with new ones, so this may never change."""
