"""Questions to a language model: asked once, counted, limited, and never malformed in silence."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from oracle import Oracle, Spoil, coarse, grade, perfect
from tiny import DOCUMENTS, QUERIES

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.rerankers import asking
from shortlist.rerankers.asking import Questions, Tally
from shortlist.rerankers.limits import CallLimits, LimitReachedError
from shortlist.text.prompts import named_prompt
from shortlist.text.rendering import QueryAndShown

ASKED: list[QueryAndShown] = [(query, DOCUMENTS[:3]) for query in QUERIES]


def questions(
    prompt: str = "rankgpt", *, reads: str = "text", spoil: Spoil = perfect, **limits: Any
) -> tuple[Questions, Oracle]:
    oracle = Oracle(named_prompt(prompt), reads, spoil)
    given = CallLimits(**limits) if limits else None
    return Questions(oracle, oracle.prompt, "shared", limits=given), oracle


def test_an_answer_scores_each_document_shown():
    ask, _ = questions()
    for (query, documents), verdict in zip(ASKED, ask(ASKED), strict=True):
        order = sorted(range(3), key=lambda place: -grade(query, documents[place]))
        assert sorted(range(3), key=lambda place: -verdict[place]) == order


def test_equal_questions_are_one_call_in_one_round_and_in_the_next():
    ask, oracle = questions()
    first = ask([*ASKED, *ASKED[:5]])
    again = ask(ASKED[::-1])
    assert first[:5] == first[-5:]
    assert again == first[:12][::-1]
    assert len(oracle.asked) == 12
    assert ask.tally == Tally(calls=12, known=17, prompt_tokens=12 * 30, answer_tokens=12 * len("[1] > [2] > [3]"))


def test_the_same_documents_in_another_order_are_another_question():
    ask, oracle = questions()
    ask([(QUERIES[0], DOCUMENTS[:2]), (QUERIES[0], DOCUMENTS[1::-1])])
    assert len(oracle.asked) == 2


def test_answers_in_the_log_serve_the_next_process_and_no_other_model(tmp_path: Path):
    ask, _ = questions(log=tmp_path / "log")
    verdicts = ask(ASKED)
    ask.close()
    again, oracle = questions(log=tmp_path / "log")
    assert again(ASKED) == verdicts
    assert (oracle.asked, again.tally.known, again.tally.prompt_tokens) == ([], 12, 0)
    other = Questions(oracle, oracle.prompt, "another model", limits=again.limits)
    assert len(other(ASKED)) == len(oracle.asked) == 12


def test_answers_are_kept_as_they_come_and_not_only_at_the_end(tmp_path: Path):
    def fails(number: int, answer: str) -> str:
        if number == 5:
            raise KeyboardInterrupt
        return answer

    ask, _ = questions(log=tmp_path / "log", spoil=fails)
    with pytest.raises(KeyboardInterrupt):
        ask(ASKED)
    again, oracle = questions(log=tmp_path / "log")
    again(ASKED)
    assert len(oracle.asked) == 12 - 5


# --- limits


@pytest.mark.parametrize("most", [1, 5, 12])
def test_no_more_calls_are_made_than_allowed_and_their_answers_are_kept(tmp_path: Path, most: int):
    for left in (12, 12 - most)[: 1 + (most < 12)]:
        ask, oracle = questions(log=tmp_path / "log", max_calls=most)
        if left > most:
            with pytest.raises(LimitReachedError):
                ask(ASKED)
        else:
            ask(ASKED)
        assert len(oracle.asked) == min(most, left)
        assert ask.is_spent == (left > most)


def test_known_answers_cost_no_calls(tmp_path: Path):
    questions(log=tmp_path / "log")[0](ASKED)
    ask, _ = questions(log=tmp_path / "log", max_calls=1)
    assert len(ask([*ASKED, (QUERIES[0], DOCUMENTS[3:5])])) == 13


def test_what_is_spent_is_not_looked_for_in_the_log():
    ask, oracle = questions(max_calls=2)
    for _ in range(2):
        with pytest.raises(LimitReachedError):
            ask(ASKED)
    assert len(oracle.asked) == 2
    assert ask.tally.known == 0


def test_nothing_is_asked_when_the_time_is_over():
    ask, oracle = questions(until=time.monotonic())
    with pytest.raises(LimitReachedError):
        ask(ASKED)
    assert oracle.asked == []


def test_the_clock_is_looked_at_between_few_calls(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(asking.time, "monotonic", lambda: now[0])

    def slowly(_: int, answer: str) -> str:
        now[0] += 1
        return answer

    asked = [(query, DOCUMENTS[place : place + 2]) for query in QUERIES for place in range(10)]
    ask, oracle = questions(until=50.0, spoil=slowly)
    with pytest.raises(LimitReachedError):
        ask(asked)
    assert 50 <= len(oracle.asked) < 50 + asking.TIMED[0]
    assert oracle.rounds < 5  # it asks for as many at once as there is time for


# --- malformed answers


def spoilt(number: int, answer: str) -> str:
    """Two of ten answers have a fault."""
    return {3: "I'm sorry, I cannot rank these.", 7: "[2]"}.get(number % 10, answer)


ANSWERED = [(query, DOCUMENTS[place : place + 3]) for query in QUERIES for place in range(5)]


def test_faults_are_counted_by_kind():
    ask, _ = questions(spoil=spoilt)
    verdicts = ask(ANSWERED)
    assert ask.tally.malformed == 12
    assert ask.kinds == {"none": 6, "refused": 6, "missing": 6}
    assert ask.faults() == ("6x nothing could be read; 6x the model declined to answer; 6x a document was left out")
    assert all(score != score for score in verdicts[3])  # no score is made up
    assert [score == score for score in verdicts[7]] == [False, True, False]


def test_each_malformed_answer_is_listed_once_however_often_a_run_begins(tmp_path: Path):
    for _ in range(2):
        limits: dict[str, Any] = {"log": tmp_path / "log", "details": tmp_path / "new" / "details.jsonl"}
        questions(spoil=spoilt, **limits)[0](ANSWERED)
    lines = [json.loads(line) for line in (tmp_path / "new" / "details.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    query, documents = ANSWERED[3]
    told = {"query_id": query.query_id, "doc_ids": [document.doc_id for document in documents]}
    assert lines[0].items() >= {**told, "faults": ["none", "refused"], "answer": spoilt(3, "")}.items()


def test_too_many_malformed_answers_end_the_run_with_what_to_do(tmp_path: Path):
    ask, _ = questions(spoil=spoilt, log=tmp_path / "log", max_malformed=0.1)
    with pytest.raises(UserError) as caught:
        ask(ANSWERED)
    message = str(caught.value)
    assert message.startswith("12 of 60 answers are malformed (6x nothing could be read; ")
    for advice in ("more than --max-malformed 0.1", "--prompt", "--answers", "--details", "or allow more"):
        assert advice in message
    again, oracle = questions(log=tmp_path / "log", max_malformed=0.2)
    again(ANSWERED)
    assert oracle.asked == []


def test_few_answers_are_judged_only_when_no_more_come():
    ask, _ = questions(spoil=lambda _, answer: "", max_malformed=0.2)
    ask(ASKED)
    with pytest.raises(UserError, match="12 of 12 answers are malformed"):
        ask.check_faults()


def test_without_limits_malformed_answers_are_reported_once(capfd: pytest.CaptureFixture[str]):
    ask, _ = questions(spoil=lambda _, answer: "")
    ask(ANSWERED)
    ask([(QUERIES[0], DOCUMENTS[::-1])])
    [line] = [line for line in capfd.readouterr().err.splitlines() if "malformed" in line]
    assert "60 of 60 answers are malformed (60x nothing could be read; 60x the answer's tags or text" in line


# --- logits


def test_the_likeliest_label_of_the_worst_document_scores_lowest():
    ask, _ = questions("iranker", reads="logits")
    for (query, documents), verdict in zip(ASKED, ask(ASKED), strict=True):
        worst = min(range(3), key=lambda place: grade(query, documents[place]))
        assert min(range(3), key=lambda place: verdict[place]) == worst


def test_a_grade_read_from_logits_is_the_expected_one():
    ask, oracle = questions("graded", reads="logits")
    asked = [(QUERIES[0], [document]) for document in DOCUMENTS]
    expected = [coarse(QUERIES[0], document, oracle.prompt.grades) for document in DOCUMENTS]
    assert [score for [score] in ask(asked)] == pytest.approx(expected, abs=1e-6)


NAN = float("nan")


class Says:
    """A model that gives the same logits to every question."""

    def __init__(self, *logits: float) -> None:
        self.logits = [*logits]

    def keys(self, asked: Any) -> list[Any]:
        return list(range(len(asked)))

    def replies(self, asked: Any) -> Any:
        yield {place: asking.RawAnswer(self.logits, 1, 0) for place in range(len(asked))}


@pytest.mark.parametrize(
    ("prompt", "logits", "expected", "faults"),
    [
        ("graded", [0.0, 0.0, 0.0, 0.0], [1.5], {}),
        ("graded", [NAN, NAN, 0.0, 0.0], [2.5], {}),  # a server names only the likeliest tokens
        ("graded", [NAN] * 4, [NAN], {"none": 1}),
        ("setwise", [NAN, 2.0], [NAN, 2.0], {}),
        ("setwise", [NAN, NAN], [NAN, NAN], {"none": 1}),
        ("first", [1.0, NAN], [1.0, NAN], {"missing": 1}),
    ],
)
def test_labels_of_which_nothing_is_known_get_no_score(
    prompt: str, logits: list[float], expected: list[float], faults: dict[str, int]
):
    ask = Questions(Says(*logits), named_prompt(prompt), None)
    documents = [Document("d", "text")] * (1 if prompt == "graded" else 2)
    [verdict] = ask([(Query("q", "text"), documents)])
    assert verdict == pytest.approx(expected, nan_ok=True)
    assert ask.kinds == faults
