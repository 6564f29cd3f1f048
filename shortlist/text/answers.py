"""Answers of language models about documents -> scores, and what was wrong with them.

A score is NaN for a document of which nothing was said, and never made up. Whatever had to be repaired is named, so
that it can be counted.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MALFORMED = {
    "none": "nothing could be read",
    "refused": "the model declined to answer",
    "unfinished": "the model had not finished thinking",
    "no answer": "the answer's tags or text were missing",
    "missing": "a document was left out",
    "repeated": "a document was named twice",
    "out of range": "a label or grade that was not offered",
    "not a number": "a grade that is no number",
    "several": "several documents or grades where one was asked for",
    "form": "another form than was asked for",
}
"""Kinds of faults in an answer, with their meanings."""

REFUSALS = re.compile(r"\b(i('m| am) (sorry|unable|not able)|i (can't|cannot|can not)|as an ai)\b", re.IGNORECASE)


class Choices(NamedTuple):
    """The labels and grades that an answer may hold."""

    labels: tuple[str, ...]
    """Label of each document shown, or each grade that may be given to the only one."""
    grades: tuple[int, ...] = ()
    """The grades that may be given, from low to high."""
    most: int | None = None
    """The number of documents to choose."""


class Parsed(NamedTuple):
    """The scores in an answer, and its faults."""

    scores: list[float]
    """A score for each document shown, higher is better; NaN: nothing was said of it."""
    malformed: tuple[str, ...] = ()
    """The kinds of faults, each once."""


Parse = Callable[[str, Choices], Parsed]


def said(answer: str) -> str:
    """Cut the thoughts from an answer; nothing is left of unfinished ones."""
    _, ended, tail = answer.rpartition("</think>")
    return "" if "<think>" in tail and not ended else tail.strip()


def text_in(answer: str) -> str | None:
    """Return an answer's text on one line; None for a refusal or nothing."""
    text = " ".join(said(answer).split()).strip('"“”')
    return None if not any(map(str.isalnum, text)) or REFUSALS.match(text) else text


def queries_in(answer: str) -> list[str]:
    """Return an answer's lines without numbers, bullets and quotation marks: its queries."""
    lines = (
        re.sub(r"^\s*(?:[-*•]|\(?\d+[.):])\s+", "", line).strip().strip("\"'`“”") for line in said(answer).splitlines()
    )
    return list(dict.fromkeys(line.strip() for line in lines if any(map(str.isalnum, line))))


def plain_digits(text: str) -> str:
    """Turn digits of other forms, such as `²` or `①`, into 0 to 9."""
    if text.isascii():
        return text
    return "".join(c if c.isascii() else str(unicodedata.digit(c, c)) for c in text)


def _nothing(count: int, answer: str, *kinds: str) -> Parsed:
    """Say that nothing could be read, and why."""
    found = ["none", *(kind for kind in kinds if kind != "form")]
    if not said(answer):
        found.append("no answer" if "</think>" in answer or not answer.strip() else "unfinished")
    found += ["refused"] if REFUSALS.search(answer) else []
    return Parsed([math.nan] * count, tuple(dict.fromkeys(found)))


def _ordered(named: Sequence[str], choices: Choices, answer: str, *kinds: str) -> Parsed:
    """Score documents by the order in which their labels are named.

    The first of repeated labels counts.
    """
    places = {label: place for place, label in enumerate(choices.labels)}
    known = [places[name] for name in named if name in places]
    order = list(dict.fromkeys(known))
    found = [*kinds, *["out of range"] * (len(known) < len(named)), *["repeated"] * (len(order) < len(known))]
    if not order:
        return _nothing(len(places), answer, *found)
    expected = len(places) if choices.most is None else min(choices.most, len(places))
    found += ["missing"] * (len(order) < expected) + ["several"] * (choices.most is not None and len(order) > expected)
    scores = [math.nan] * len(places)
    for place, score in zip(order, range(len(places), 0, -1), strict=False):
        scores[place] = float(score)
    return Parsed(scores, tuple(found))


def _labels_in(answer: str, bracketed: str, bare: str) -> tuple[list[str], tuple[str, ...]]:
    """Find labels in brackets, or bare ones, which is a fault of form."""
    if found := re.findall(bracketed, answer):
        return found, ()
    found = re.findall(bare, answer)
    return found, ("form",) * bool(found)


def numbers(answer: str, choices: Choices) -> Parsed:
    """Read an order of numbers, such as `[2] > [1]`; without brackets, every number counts."""
    text = said(answer)
    found, kinds = _labels_in(plain_digits(text), r"\[\s*(\d+)", r"\d+")
    return _ordered([str(int(label)) for label in found], choices, answer, *kinds)


def letters(answer: str, choices: Choices) -> Parsed:
    """Read an order of letters, such as `[B] > [A]`; without brackets, single capitals count."""
    text = said(answer)
    found, kinds = _labels_in(text, r"\[\s*([A-Z])(?![A-Za-z])", r"\b[A-Z]\b")
    return _ordered(found, choices, answer, *kinds)


def _stem(choices: Choices) -> str:
    """Return the labels without their numbers."""
    return choices.labels[0].rstrip("0123456789")


def names(answer: str, choices: Choices) -> Parsed:
    """Read an order of names that end in numbers, such as `[PASSAGE2, PASSAGE1]`."""
    text = said(answer)
    name = _stem(choices)
    found = re.findall(rf"{re.escape(name)}\s*(\d+)", plain_digits(text), re.IGNORECASE)
    return _ordered([f"{name}{int(number)}" for number in found], choices, answer)


def top(answer: str, choices: Choices) -> Parsed:
    """Read the best few from the last line that has any: `Document 3, Document 1`."""
    text = said(answer)
    lines = [re.findall(r"Document\s*\[?(\d+)", line, re.IGNORECASE) for line in plain_digits(text).splitlines()]
    found = next((line for line in reversed(lines) if line), [])
    return _ordered([str(int(label)) for label in found], choices, answer)


def bad_tags(answer: str, names: Sequence[str]) -> int:
    """Count the tags that are missing, repeated or out of place.

    Between two parts there may be nothing but space.

    Args:
        names: the parts that an answer has, in order, such as `think` and `answer`.
    """
    text, bad, end = answer.lower(), 0, None
    for name in names:
        for tag in (f"<{name}>", f"</{name}>"):
            place = text.find(tag, end or 0)
            apart = end is not None and tag[1] != "/" and text[end:place].strip()
            if text.count(tag) != 1 or place < 0 or apart:
                bad += 1
            if place >= 0:
                end = place + len(tag)
    return bad


def _one(named: Sequence[str], choices: Choices, answer: str, score: float, *kinds: str) -> Parsed:
    """Score the only document that is named; several different ones say nothing."""
    different = list(dict.fromkeys(named))
    known = [name for name in different if name in choices.labels]
    found = (*kinds, *(("out of range",) if len(known) < len(different) else ()))
    if len(known) != 1:
        return _nothing(len(choices.labels), answer, *found, *(("several",) if known else ()))
    scores = [0.0] * len(choices.labels)
    scores[choices.labels.index(known[0])] = score
    return Parsed(scores, found)


def label(answer: str, choices: Choices) -> Parsed:
    """Read the letter of the best document, such as `Passage B` or `B`."""
    text = said(answer)
    clean = re.fullmatch(r"(?:passage)?[\s:]*[\[\"'(*]*([A-Za-z])[\]\"')*.]*", text, re.IGNORECASE)
    if clean:
        return _one([clean[1].upper()], choices, answer, 1.0)
    found = re.findall(r"passage[\s:]*[\[\"'(*]*([A-Z])\b", text, re.IGNORECASE) or re.findall(r"\b[A-Z]\b", text)
    return _one([letter.upper() for letter in found], choices, answer, 1.0, "form")


def _in_tags(answer: str) -> str | None:
    """Find what stands in the last `<answer>` tags."""
    found = re.findall(r"<answer>(.*?)</answer>", answer, re.DOTALL | re.IGNORECASE)
    return found[-1].strip() if found else None


def tagged(answer: str, choices: Choices) -> Parsed:
    """Read the number of the best document from `<answer>[3]</answer>`, behind the thoughts."""
    content = plain_digits(_in_tags(said(answer)) or "")
    clean = re.fullmatch(r"\[(\d+)\]", content)
    found = [clean[1]] if clean else re.findall(r"\d+", content)
    kinds = () if clean else ("form",) if content else ("no answer",) if said(answer) else ()
    return _one([str(int(number)) for number in found], choices, answer, 1.0, *kinds)


def excluded(answer: str, choices: Choices) -> Parsed:
    """Read the worst document's name from `<answer>passage 3</answer>`, or from the text without tags."""
    text = said(answer)
    content, kinds = plain_digits(_in_tags(text) or text), ("no answer",) if text and _in_tags(text) is None else ()
    name = _stem(choices)
    if clean := re.fullmatch(rf"{re.escape(name)}(\d+)", content, re.IGNORECASE):
        return _one([f"{name}{int(clean[1])}"], choices, answer, -1.0, *kinds)
    found = re.findall(rf"{re.escape(name.strip())}\W*(\d+)", content, re.IGNORECASE) or re.findall(r"\d+", content)
    return _one([f"{name}{int(number)}" for number in found], choices, answer, -1.0, *kinds, "form")


def grade_place(answer: str) -> slice | None:
    """Find the characters of the grade that `grade` reads; None if there is no number."""
    text = said(answer)
    content = _in_tags(text) or text
    start = answer.rfind(content)
    found = re.search(r"\d+", plain_digits(answer[start : start + len(content)]))
    return None if found is None else slice(start + found.start(), start + found.end())


def grade(answer: str, choices: Choices) -> Parsed:
    """Read one whole grade, from `<answer>` tags if there are any."""
    text = said(answer)
    content = plain_digits(_in_tags(text) or text)
    found = re.findall(r"(?<![\d.,])-?\d+(?:[.,]\d+)?", content)
    if len(set(found)) != 1:
        return _nothing(1, answer, *(("several",) if found else ("not a number",) if text else ()))
    if not re.fullmatch(r"-?\d+", found[0]):
        return _nothing(1, answer, "not a number")
    if int(found[0]) not in choices.grades:
        return _nothing(1, answer, "out of range")
    return Parsed([float(found[0])], () if re.fullmatch(r"\d+", content) else ("form",))


def grades(answer: str, choices: Choices) -> Parsed:
    """Read a grade for each document from JSON, such as `{"[1]": 5, "[2]": 3}`."""
    text = said(answer)
    pairs = _json_pairs(_in_tags(text) or text)
    if not pairs:
        return _nothing(len(choices.labels), answer, *(("no answer",) if text else ()))
    places = {label: place for place, label in enumerate(choices.labels)}
    scores, found = [math.nan] * len(places), [] if _in_tags(text) is not None else ["form"]
    seen: set[int] = set()
    for key, value in pairs:
        place = places.get(str(key).strip().strip("[]").strip())
        if place is None or place in seen:
            found.append("out of range" if place is None else "repeated")
            continue
        seen.add(place)
        scores[place], fault = _one_grade(value, choices.grades)
        found += [fault] if fault else []
    found += ["missing"] * (len(seen) < len(places))
    kinds = tuple(dict.fromkeys(found))
    return Parsed(scores, kinds) if not all(map(math.isnan, scores)) else _nothing(len(places), answer, *kinds)


def _one_grade(value: Any, offered: Sequence[int]) -> tuple[float, str | None]:
    """Read the value of a document in JSON, and name its fault."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan, "not a number"
    if not offered[0] <= value <= offered[-1]:
        return math.nan, "out of range"
    return float(value), None


def _json_pairs(text: str) -> list[tuple[str, Any]]:
    """Find the last JSON object in a text.

    Two faults are repaired: a bracket too many in a key, and a missing last brace.
    """
    fenced = re.findall(r"```(?:json)?\s*(\{.*?)```", text, re.DOTALL)
    found = fenced or re.findall(r"\{[^{}]*\}?", text)
    if not found:
        return []
    body = re.sub(r"(\[\d+\])\]", r"\1", found[-1].strip())
    for attempt in (body, body.rstrip().rstrip(",") + "}"):
        try:
            pairs = json.loads(attempt, object_pairs_hook=list)
        except ValueError:
            continue
        return pairs if all(isinstance(pair, tuple) for pair in pairs) else []
    return []


PARSES: dict[str, Parse] = {
    "numbers": numbers,
    "letters": letters,
    "names": names,
    "top": top,
    "label": label,
    "tagged": tagged,
    "excluded": excluded,
    "grade": grade,
    "grades": grades,
}
"""Functions that read an answer, by the name in a prompt's `parse`."""
