import numpy as np
import pytest

from shortlist.text.views import VIEWS, masked

WORDS = [f"w{i}" for i in range(40)]
TEXT = " ".join(WORDS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("view", VIEWS)
def test_the_same_seed_gives_the_same_view_and_another_one_another(view: str):
    assert VIEWS[view](TEXT, rng()) == VIEWS[view](TEXT, rng()) != VIEWS[view](TEXT, rng(1))


@pytest.mark.parametrize("view", VIEWS)
def test_a_text_of_one_word_or_none_survives(view: str):
    assert all(VIEWS[view]("word", rng(seed)) in ("word", "_") for seed in range(5))
    assert VIEWS[view]("", rng()) == ""


def test_a_crop_is_a_span_of_a_tenth_to_half_of_the_words():
    for seed in range(30):
        words = VIEWS["crop"](TEXT, rng(seed)).split()
        start = WORDS.index(words[0])
        assert words == WORDS[start : start + len(words)]
        assert 4 <= len(words) <= 20


def test_dropping_keeps_the_order_and_about_half():
    words = VIEWS["drop"](TEXT, rng()).split()
    assert words == [word for word in WORDS if word in words]
    assert 10 <= len(words) <= 30


def test_masking_keeps_the_places():
    words = masked(TEXT, rng(), share=0.25).split()
    assert all(word in ("_", other) for word, other in zip(words, WORDS, strict=True))
    assert 3 <= words.count("_") <= 20
    assert masked(TEXT, rng(), share=0.0) == TEXT
