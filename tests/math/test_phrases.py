import numpy as np
import pytest

from shortlist.math.phrases import phrase_scores, phrases_of

TEXTS = [np.array([4, 7, -1, 4]), np.array([4, 7, 9]), np.array([-1, -1])]
"""Two texts with words, which both hold the pair 4 7, and one without."""


def as_dict(texts, similarities) -> dict[tuple[int, ...], tuple[float, int]]:
    found = phrases_of(texts, np.array(similarities))
    rows = zip(found.words.tolist(), found.shares.tolist(), found.counts.tolist(), strict=True)
    return {tuple(word for word in words if word >= 0): (share, count) for words, share, count in rows}


def test_phrases_are_counted_once_a_text_and_do_not_cross_an_end():
    assert as_dict(TEXTS, [3.0, 1.0, 0.0]) == {
        (4,): (1.0, 2),
        (7,): (1.0, 2),
        (9,): (0.25, 1),
        (4, 7): (1.0, 2),
        (7, 9): (0.25, 1),
        (4, 7, 9): (0.25, 1),
    }
    assert as_dict([np.array([-1])], [1.0]) == as_dict([np.zeros(0, np.int64)], [1.0]) == {}


def test_phrases_are_those_of_a_loop():
    random = np.random.default_rng(0)
    texts = [random.integers(-1, 6, size=size) for size in (0, 1, 2, 30, 40)]
    expected: dict[tuple[int, ...], set[int]] = {}
    for number, text in enumerate(texts):
        for length in (1, 2, 3):
            for start in range(len(text) - length + 1):
                some = tuple(text[start : start + length].tolist())
                if min(some) >= 0:
                    expected.setdefault(some, set()).add(number)
    found = as_dict(texts, [1.0] * 5)
    assert found == {some: (pytest.approx(len(known) / 5), len(known)) for some, known in expected.items()}


def test_a_phrase_is_worth_its_words_over_its_length_and_what_share_holds_it():
    found = phrases_of(TEXTS, np.array([3.0, 1.0, 0.0]))
    scores = dict(zip(map(tuple, found.words.tolist()), phrase_scores(found, np.arange(10.0)).tolist(), strict=True))
    assert scores[4, -1, -1] == pytest.approx(4 / 1.25)
    assert scores[4, 7, -1] == pytest.approx(11 / 2.25)
    assert scores[7, 9, -1] == pytest.approx(16 / 2.25 * 0.25**1.5)
