import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist.text.answers import MALFORMED, PARSES, Choices, bad_tags, grade_place, plain_digits, text_in
from shortlist.text.prompts import named_prompt, prompts

NAN = math.nan


def same(scores: list[float], expected: list[float]) -> bool:
    return len(scores) == len(expected) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(scores, expected, strict=True)
    )


def numbered(count: int, **choices: object) -> Choices:
    return Choices(tuple(str(i + 1) for i in range(count)), **choices)  # type: ignore[arg-type]


def lettered(count: int) -> Choices:
    return Choices(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]))


ORDERS = [
    ("[2] > [3] > [1]", [1, 3, 2], ()),
    ("[2]>[3]>[1]\n", [1, 3, 2], ()),
    ("[ 2 ] > [3] > [1", [1, 3, 2], ()),
    ("2 > 3 > 1", [1, 3, 2], ("form",)),
    ("Of the 3 passages: [2] > [3] > [1].", [1, 3, 2], ()),
    ("[2] > [2] > [3] > [1]", [1, 3, 2], ("repeated",)),
    ("[2] > [4] > [3] > [1]", [1, 3, 2], ("out of range",)),
    ("[0] > [2] > [3] > [1]", [1, 3, 2], ("out of range",)),
    ("[2] > [3]", [NAN, 3, 2], ("missing",)),
    ("[3] > [3] > [9]", [NAN, NAN, 3], ("out of range", "repeated", "missing")),
    ("[²] > [③] > [１]", [1, 3, 2], ()),
    ("<think>first [1] > [2]</think>\n[3] > [2] > [1]", [1, 2, 3], ()),
    ("I think [1]. </think> [3] > [2] > [1]", [1, 2, 3], ()),
    ("<think>maybe [1] > [2] > [3]", [NAN] * 3, ("none", "unfinished")),
    ("", [NAN] * 3, ("none", "no answer")),
    ("I'm sorry, I cannot rank these.", [NAN] * 3, ("none", "refused")),
    ("[7]", [NAN] * 3, ("none", "out of range")),
    ("½ of them", [NAN] * 3, ("none",)),
]


@pytest.mark.parametrize(("answer", "scores", "malformed"), ORDERS)
def test_an_order_of_numbers_is_read(answer: str, scores: list[float], malformed: tuple[str, ...]):
    parsed = PARSES["numbers"](answer, numbered(3))
    assert same(parsed.scores, scores)
    assert parsed.malformed == malformed


@pytest.mark.parametrize(
    ("answer", "scores", "malformed"),
    [
        ("[B] > [C] > [A]", [1, 3, 2], ()),
        ("[B > [C] > [A", [1, 3, 2], ()),
        ("B > C > A", [1, 3, 2], ("form",)),
        ("Sure! The Answer: [C] > [A] > [B]", [2, 1, 3], ()),
        ("[B] > [Best] > [B] > [D]", [NAN, 3, NAN], ("out of range", "repeated", "missing")),
        ("none of them", [NAN] * 3, ("none",)),
    ],
)
def test_an_order_of_letters_is_read(answer: str, scores: list[float], malformed: tuple[str, ...]):
    parsed = PARSES["letters"](answer, lettered(3))
    assert same(parsed.scores, scores)
    assert parsed.malformed == malformed


@pytest.mark.parametrize(
    ("answer", "scores", "malformed"),
    [
        ("[PASSAGE2, PASSAGE3, PASSAGE1]", [1, 3, 2], ()),
        ("SORTED_PASSAGES = [Passage2, PASSAGE 3]", [NAN, 3, 2], ("missing",)),
        ("[2, 3, 1]", [NAN] * 3, ("none",)),
    ],
)
def test_an_order_of_names_is_read(answer: str, scores: list[float], malformed: tuple[str, ...]):
    parsed = PARSES["names"](answer, Choices(("PASSAGE1", "PASSAGE2", "PASSAGE3")))
    assert same(parsed.scores, scores)
    assert parsed.malformed == malformed


@pytest.mark.parametrize(
    ("answer", "scores", "malformed"),
    [
        ("Document 3, Document 1", [3, NAN, 4, NAN], ()),
        ("Here they are:\nDocument 3, ..., Document 1.", [3, NAN, 4, NAN], ()),
        ("Document 2 is bad.\nDocument 3, Document 1\nThat is all.", [3, NAN, 4, NAN], ()),
        ("Document 3", [NAN, NAN, 4, NAN], ("missing",)),
        ("Document 3, Document 1, Document 2", [3, 2, 4, NAN], ("several",)),
        ("Document 3, Document 5", [NAN, NAN, 4, NAN], ("out of range", "missing")),
        ("3, 1", [NAN] * 4, ("none",)),
    ],
)
def test_the_best_few_are_read(answer: str, scores: list[float], malformed: tuple[str, ...]):
    parsed = PARSES["top"](answer, numbered(4, most=2))
    assert same(parsed.scores, scores)
    assert parsed.malformed == malformed


@pytest.mark.parametrize(
    ("answer", "scores", "malformed"),
    [
        ("Passage B", [0, 1, 0], ()),
        (" Passage: B", [0, 1, 0], ()),
        ("b", [0, 1, 0], ()),
        ("[B].", [0, 1, 0], ()),
        ("The most relevant one is Passage B.", [0, 1, 0], ("form",)),
        ("Passage D", [NAN] * 3, ("none", "out of range")),
        ("Passage A is better than Passage B", [NAN] * 3, ("none", "several")),
        ("a good question", [NAN] * 3, ("none",)),
        ("", [NAN] * 3, ("none", "no answer")),
    ],
)
def test_the_letter_of_the_best_is_read(answer: str, scores: list[float], malformed: tuple[str, ...]):
    parsed = PARSES["label"](answer, lettered(3))
    assert same(parsed.scores, scores)
    assert set(parsed.malformed) == set(malformed)


@pytest.mark.parametrize(
    ("answer", "scores", "malformed"),
    [
        ("<think>hm</think> <answer>[2]</answer>", [0, 1, 0], ()),
        ("<THINK>hm</think>\n<ANSWER> [2] </ANSWER>", [0, 1, 0], ()),
        ("<think>[1]</think><answer>2</answer>", [0, 1, 0], ("form",)),
        ("<think>hm</think><answer>[1] and [2]</answer>", [NAN] * 3, ("none", "several")),
        ("<think>hm</think><answer>[4]</answer>", [NAN] * 3, ("none", "out of range")),
        ("<think>hm</think> [2]", [NAN] * 3, ("none", "no answer")),
        ("<think>hm <answer>[2]</answer>", [NAN] * 3, ("none", "unfinished")),
    ],
)
def test_a_number_in_tags_is_read(answer: str, scores: list[float], malformed: tuple[str, ...]):
    parsed = PARSES["tagged"](answer.replace("<THINK>", "<think>"), numbered(3))
    assert same(parsed.scores, scores)
    assert set(parsed.malformed) == set(malformed)


@pytest.mark.parametrize(
    ("answer", "scores", "malformed"),
    [
        ("<think>hm</think><answer>passage 1</answer>", [0, -1, 0], ()),
        ("<answer>\nPassage 1\n</answer>", [0, -1, 0], ()),
        ("I exclude passage 1", [0, -1, 0], ("no answer", "form")),
        ("<answer>passage 0 or passage 1</answer>", [NAN] * 3, ("none", "several")),
        ("<answer>passage 3</answer>", [NAN] * 3, ("none", "out of range")),
        ("<answer>the last</answer>", [NAN] * 3, ("none",)),
    ],
)
def test_the_worst_is_read(answer: str, scores: list[float], malformed: tuple[str, ...]):
    parsed = PARSES["excluded"](answer, Choices(("passage 0", "passage 1", "passage 2")))
    assert same(parsed.scores, scores)
    assert set(parsed.malformed) == set(malformed)


@pytest.mark.parametrize(
    ("answer", "score", "malformed"),
    [
        ("<think>8 points?</think><answer>7</answer>", 7, ()),
        ("10", 10, ()),
        ("0", 0, ()),
        ("Score: 7", 7, ("form",)),
        ("<answer>７</answer>", 7, ()),
        ("<answer>11</answer>", NAN, ("none", "out of range")),
        ("<answer>-1</answer>", NAN, ("none", "out of range")),
        ("<answer>7.5</answer>", NAN, ("none", "not a number")),
        ("7 or 8", NAN, ("none", "several")),
        ("very relevant", NAN, ("none", "not a number")),
        ("<think>7", NAN, ("none", "unfinished")),
        ("", NAN, ("none", "no answer")),
    ],
)
def test_one_grade_is_read_and_never_made_up(answer: str, score: float, malformed: tuple[str, ...]):
    grades = tuple(range(11))
    parsed = PARSES["grade"](answer, Choices(tuple(map(str, grades)), grades))
    assert same(parsed.scores, [score])
    assert parsed.malformed == malformed
    if not math.isnan(score):
        place = grade_place(answer)
        assert place is not None
        assert float(answer[place]) == score


def test_the_grade_is_found_behind_other_numbers():
    answer = "<think>10 of 3</think><answer> 3 </answer>"
    assert grade_place(answer) == slice(31, 32)
    assert grade_place("<think>7") is None


@pytest.mark.parametrize(
    ("answer", "scores", "malformed"),
    [
        ('<reason>x</reason><answer>\n```json\n{"[1]": 5, "[2]": 0, "[3]": 10}\n```\n</answer>', [5, 0, 10], ()),
        ('<answer>{"[1]": 5, "[2]": 3, "[3]": 8}</answer>', [5, 3, 8], ()),
        ('{"1": 5, "2": 3, "3": 8}', [5, 3, 8], ("form",)),
        ('<answer>{"[1]]": 5, "[2]": 3, "[3]": 8}</answer>', [5, 3, 8], ()),
        ('<answer>{"[1]": 5, "[2]": 3, "[3]": 8</answer>', [5, 3, 8], ()),
        ('<answer>{"[1]": 5, "[2]": 3}</answer>', [5, 3, NAN], ("missing",)),
        ('<answer>{"[1]": 5, "[1]": 6, "[2]": 3, "[3]": 8}</answer>', [5, 3, 8], ("repeated",)),
        ('<answer>{"[1]": 5, "[2]": 3, "[3]": 8, "[4]": 1}</answer>', [5, 3, 8], ("out of range",)),
        ('<answer>{"[1]": 5, "[2]": 11, "[3]": 8}</answer>', [5, NAN, 8], ("out of range",)),
        ('<answer>{"[1]": "5", "[2]": true, "[3]": "good"}</answer>', [5, NAN, NAN], ("not a number",)),
        ('<answer>{"[1]": NaN, "[2]": null, "[3]": [1]}</answer>', [NAN] * 3, ("none", "not a number")),
        ("<answer>5, 3, 8</answer>", [NAN] * 3, ("none", "no answer")),
        ('<answer>{"[1]": {"[2]": 3}}</answer>', [NAN] * 3, None),
        ("", [NAN] * 3, ("none", "no answer")),
    ],
)
def test_grades_are_read_from_json(answer: str, scores: list[float], malformed: tuple[str, ...] | None):
    parsed = PARSES["grades"](answer, numbered(3, grades=tuple(range(11))))
    assert same(parsed.scores, scores) or malformed is None
    if malformed is not None:
        assert set(parsed.malformed) == set(malformed)


CHOICES = {
    "letters": lettered(3),
    "label": lettered(3),
    "names": Choices(("PASSAGE1", "PASSAGE2", "PASSAGE3")),
    "excluded": Choices(("passage 0", "passage 1", "passage 2")),
    "grade": Choices(("0", "1", "2"), (0, 1, 2)),
    "grades": numbered(3, grades=(0, 1, 2)),
    "top": numbered(3, most=2),
}

PIECES = ["[", "]", "1", "2", "9", "²", "A", "B", " > ", ", ", "\n", '"', "{", "}", ":", "passage ", "Document ",
          "PASSAGE", "<think>", "</think>", "<answer>", "</answer>", "```json", "```", "-", ".", "é"]  # fmt: skip


@pytest.mark.parametrize("name", PARSES)
@given(answer=st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_any_answer_gives_scores_or_says_that_there_are_none(name: str, answer: str):
    choices = CHOICES.get(name, numbered(3))
    parsed = PARSES[name](answer, choices)
    assert len(parsed.scores) == (1 if name == "grade" else 3)
    assert set(parsed.malformed) <= MALFORMED.keys()
    assert len(set(parsed.malformed)) == len(parsed.malformed)
    assert ("none" in parsed.malformed) == all(map(math.isnan, parsed.scores))
    assert not any(map(math.isinf, parsed.scores))


@pytest.mark.parametrize("name", [name for name in prompts() if named_prompt(name).asks in ("order", "top")])
def test_a_full_answer_is_read_as_it_was_meant(name: str):
    prompt = named_prompt(name)
    parsed = prompt.parsed(prompt.begins + prompt.full_answer(4), 4, most=4)
    assert parsed.scores == [4, 3, 2, 1]
    assert parsed.malformed == ()


def test_digits_of_other_scripts_are_digits():
    assert plain_digits("²③１٣ ½") == "2313 ½"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<think>so</think> <answer>[1]</answer>", 0),
        ("<THINK>so</THINK>\n<Answer>[1]</Answer> and more", 0),
        ("so</think><answer>[1]</answer>", 1),
        ("<think>so</think> then <answer>[1]</answer>", 1),  # more than space between the parts
        ("<think>so</think><answer>[1]", 1),
        ("<think>so <answer>[1]</answer>", 2),  # no end, and the answer begins inside
        ("<answer>[1]</answer><think>so</think>", 2),
        ("<think><think>so</think></think><answer>[1]</answer>", 3),
        ("[1]", 4),
    ],
)
def test_tags_that_are_missing_repeated_or_out_of_order_are_counted(answer: str, expected: int):
    assert bad_tags(answer, ("think", "answer")) == expected


def test_without_tags_that_are_asked_for_none_is_bad():
    assert bad_tags("<x>[1]", ()) == 0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('<think>hm</think> "two\nlines"', "two lines"),
        ("I'm sorry, I can't", None),
        (" ... ", None),
        ("<think>never ended", None),
        ("they said: I am sorry", "they said: I am sorry"),
    ],
)
def test_a_text_is_read_on_one_line_and_a_refusal_is_none(answer: str, text: str | None):
    assert text_in(answer) == text
