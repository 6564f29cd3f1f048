import random

import pytest

from shortlist.demo.functions.overlap import NEAR, Overlap, body_words, normalized, shingles

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def test_normalising_keeps_lowercase_words_and_splits_identifiers_at_underscores():
    assert normalized("Return max_len: the `HTTP/1.1` size.") == "return max len the http 1 1 size"


def test_body_words_hold_neither_name_nor_signature_nor_comments():
    text = "def load(path: str = '#') -> dict:\n    # read it\n    return json.loads(open(path).read())  # all of it"
    assert body_words(text) == "return json loads open path read"


def test_a_hash_inside_a_string_is_not_a_comment():
    assert body_words("def f(line):\n    return line.split('#')[0], \"it's # here\", '''#\n#x'''") == (
        "return line split 0 it s here x"
    )


def test_body_words_of_a_one_line_function_begin_behind_the_signature_in_bytes():
    assert body_words("def größe(maß='ß'): return maß.count") == "return maß count"


def test_body_words_do_not_change_with_formatting_or_the_name():
    one = "def total(xs):\n    return sum(x.price for x in xs if x.price > 0)"
    other = "async def altogether(xs,):\n\n  return sum(\n    x.price\n    for x in xs\n    if x.price>0  # paid\n  )"
    assert body_words(one) == body_words(other)


def test_six_words_are_two_shingles_and_a_short_body_is_one():
    assert shingles("a b c d e f") == {("a", "b", "c", "d", "e"), ("b", "c", "d", "e", "f")}
    assert shingles("return x") == {("return", "x")}


def test_seven_of_ten_shared_shingles_are_near_and_six_are_not():
    # 12 words are 8 shingles. Changing the last word changes one: 7 shared of 9 = 0.78; the last two: 6 of 10 = 0.6.
    words = list("abcdefghijkl")
    overlap = Overlap([" ".join(words)])
    assert overlap.near(" ".join([*words[:-1], "z"])) == {0}
    assert overlap.near(" ".join([*words[:-2], "y", "z"])) == set()


def test_exactly_the_threshold_counts_as_near():
    # 14 words are 10 shingles, of which the first 11 words are 7: 7 shared of 10 = 0.7.
    overlap = Overlap([" ".join("abcdefghijklmn")])
    assert overlap.near(" ".join("abcdefghijk")) == {0}


@pytest.mark.parametrize("seed", range(3))
def test_the_index_finds_what_comparing_with_every_body_finds(seed):
    rng = random.Random(seed)
    base = [[rng.choice(LETTERS) for _ in range(rng.randint(1, 60))] for _ in range(12)]
    bodies = []
    for words in base * 4:
        words = list(words)
        for _ in range(rng.randint(0, 3)):
            words[rng.randrange(len(words))] = rng.choice(LETTERS)
        bodies.append(" ".join(words))
    overlap = Overlap(bodies)
    for body in bodies:
        own = shingles(body)
        brute = {n for n, b in enumerate(bodies) if len(own & shingles(b)) / len(own | shingles(b)) >= NEAR}
        assert overlap.near(body) == brute
