"""The command with methods that ask a language model: what it writes, keeps, counts, limits and refuses."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from oracle import RUN, SERVER, Oracles, best_first, candidates_of, perfect

from shortlist.cli import main
from shortlist.data.manifest import read_manifest, stages
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.rerankers import asking

LISTWISE = [*SERVER, "--method", "listwise", "--window", "4", "--stride", "2"]
METHODS = {
    "listwise": (["--window", "6", "--stride", "3"], 3),
    "pairwise": (["--top", "4"], 4),
    "setwise": (["--sort", "insertion", "--top", "5"], 5),
    "tournament": (["--seed", "1"], 0),
    "exclusion": (["--window", "4"], 3),
    "groupwise": (["--window", "20", "--repeats", "1"], 0),
    "graded": ([], 0),
}


OLD = {query_id: [hit.doc_id for hit in hits] for query_id, hits in RUN.items()}


def order(path: Path) -> dict[str, list[str]]:
    return {query_id: [hit.doc_id for hit in hits] for query_id, hits in read_run(path).items()}


def results(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    assert manifest is not None
    return manifest["results"] | {"complete": manifest["complete"]}


def failure(command: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command fails."""
    capfd.readouterr()
    assert main(command) == 1
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("shortlist rerank: ")]
    return line


@pytest.mark.parametrize("method", METHODS)
def test_the_best_come_first_and_what_was_not_read_or_placed_follows_in_its_old_order(
    command: list[str], oracles: Oracles, tmp_path: Path, method: str
):
    flags, top = METHODS[method]
    assert main([*command, *SERVER, "--method", method, *flags, "--depth", "9"]) == 0
    for query_id, hits in read_run(tmp_path / "out.trec").items():
        query, documents = candidates_of(query_id)
        found = [hit.doc_id for hit in hits]
        assert found[:top] == best_first(query, documents[:9])[:top]
        assert found[9:] == [document.doc_id for document in documents[9:]]
        if method in ("pairwise", "setwise"):
            old = [document.doc_id for document in documents if document.doc_id not in found[:top]]
            assert found[top:] == old
        assert all(above.score > below.score for above, below in pairwise(hits))
        assert sorted(found) == sorted(hit.doc_id for hit in RUN[query_id])


def test_the_manifest_says_what_was_asked(command: list[str], oracles: Oracles, tmp_path: Path):
    assert main([*command, *LISTWISE]) == 0
    found = results(tmp_path / "out.trec")
    assert (found["calls"], found["malformed"], found["known"]) == (6 * 5, 0, 0)
    assert found["prompt_tokens"] == 10 * 4 * found["calls"]
    assert (found["complete"], found["not_reached"], found["num_pairs"]) == (True, 0, 72)


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--max-malformed", "0"]])
def test_the_log_is_closed_however_a_run_ends(command: list[str], oracles: Oracles, flags: list[str]):
    oracles.spoil = lambda number, answer: answer if number else "[1]"
    assert main([*command, *LISTWISE, *flags]) == ("0" in flags)
    [questions] = oracles.questions
    with pytest.raises(UserError, match="closed database"):
        questions.log.find(["key"])


def test_a_run_that_is_done_asks_nothing_more(command: list[str], oracles: Oracles, capfd: pytest.CaptureFixture[str]):
    assert main([*command, *LISTWISE]) == 0
    num_asked = len(oracles.asked)
    assert main([*command, *LISTWISE]) == 0
    assert "out.trec is already done" in capfd.readouterr().err
    assert len(oracles.opened) == 1
    assert len(oracles.asked) == num_asked


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("listwise --window 4 --stride 2 --prompt rankgpt", "prompt"),
        ("listwise --window 6 --stride 2", "window"),
        ("listwise --window 4 --stride 2 --answers logits", "answers"),
        ("listwise --window 4 --stride 2 --model-name another", "model"),
        ("setwise --window 4", "method"),
    ],
)
def test_another_method_model_or_prompt_does_not_overwrite_an_output(
    command: list[str], oracles: Oracles, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: str, named: str
):
    assert main([*command, *LISTWISE]) == 0
    before, num_asked = (tmp_path / "out.trec").read_bytes(), len(oracles.asked)
    command = [*command, *SERVER, "--method", *flags.split()]
    line = failure(command, capfd)
    assert named.replace("_", "-") in line
    assert "--overwrite" in line
    assert (tmp_path / "out.trec").read_bytes() == before
    assert len(oracles.asked) == num_asked
    assert main([*command, "--overwrite"]) == 0
    assert len(oracles.asked) > num_asked


def test_a_run_that_failed_before_its_first_score_binds_nobody(
    command: list[str], oracles: Oracles, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    oracles.spoil = lambda _, answer: "?"
    assert "answers are malformed" in failure([*command, *LISTWISE, "--prompt", "rankgpt"], capfd)
    assert (tmp_path / "out.trec.scores").exists()
    oracles.spoil = perfect
    assert main([*command, *LISTWISE]) == 0


# --- malformed answers


def test_too_many_malformed_answers_end_the_run_and_more_can_be_allowed_without_asking_again(
    command: list[str], oracles: Oracles, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    oracles.spoil = lambda number, answer: answer if number % 2 else "I cannot"
    details = ["--details", str(tmp_path / "details.jsonl")]
    line = failure([*command, *LISTWISE, *details], capfd)
    assert re.search(r"\d+ of \d+ answers are malformed \(\d+x nothing could be read", line)
    assert not (tmp_path / "out.trec").exists()
    known = len(oracles.asked)
    assert known == 24  # the run ends in the fourth round
    assert failure([*command, *LISTWISE, *details], capfd) == line
    assert len(oracles.asked) == known
    assert main([*command, *LISTWISE, *details, "--max-malformed", "1"]) == 0
    assert len({tuple(key) for key in oracles.asked}) == len(oracles.asked) == 30
    found = results(tmp_path / "out.trec")
    assert (found["known"], found["calls"]) == (known, 30 - known)
    cost = stages(tmp_path / "out.trec")[-1]
    assert (cost["calls"], cost["malformed"]) == (30, 15)
    assert cost["prompt_tokens"] == 10 * 4 * 30  # of the refused commands too
    assert len((tmp_path / "details.jsonl").read_text().splitlines()) == found["malformed"] == 15


def test_few_malformed_answers_are_said_and_the_run_goes_on(
    command: list[str], oracles: Oracles, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    oracles.spoil = lambda number, answer: answer if number else answer + " > [1]"
    assert main([*command, *LISTWISE]) == 0
    assert "1 malformed (1x a document was named twice)." in capfd.readouterr().err
    assert results(tmp_path / "out.trec")["malformed"] == 1


def test_the_few_answers_of_a_short_run_count_too(
    command: list[str], oracles: Oracles, capfd: pytest.CaptureFixture[str]
):
    oracles.spoil = lambda number, answer: "?"
    line = failure([*command, *LISTWISE, "--depth", "4"], capfd)
    assert "6 of 6 answers are malformed" in line
    assert failure([*command, *LISTWISE, "--depth", "4"], capfd) == line
    assert len(oracles.asked) == 6


def test_a_limited_run_is_not_judged_by_few_answers(command: list[str], oracles: Oracles):
    oracles.spoil = lambda number, answer: "?"
    assert main([*command, *LISTWISE, "--max-calls", "5"]) == 0


# --- interruptions and limits


def whole_run(command: list[str], oracles: Oracles, tmp_path: Path) -> tuple[bytes, int]:
    """The bytes of a run without interruption, and its number of calls."""
    out = str(tmp_path / "whole.trec")
    assert main([*command, *LISTWISE, "--out", out]) == 0
    num_asked = len(oracles.asked)
    oracles.opened.clear()
    return Path(out).read_bytes(), num_asked


def test_an_interrupted_run_goes_on_with_no_call_twice_and_the_same_bytes(
    command: list[str], oracles: Oracles, tmp_path: Path
):
    expected, num_calls = whole_run(command, oracles, tmp_path)

    def interrupted(number: int, answer: str) -> str:
        if number == 10:
            raise KeyboardInterrupt
        return answer

    for times in range(1, 3):
        oracles.spoil = interrupted
        assert main([*command, *LISTWISE]) == 130
        assert len(oracles.asked) == 11 * times  # the last one of each has no answer
    oracles.spoil = perfect
    assert main([*command, *LISTWISE]) == 0
    assert (tmp_path / "out.trec").read_bytes() == expected
    assert len(oracles.asked) == num_calls + 2
    assert len({tuple(key) for key in oracles.asked}) == num_calls


def until_done(command: list[str], oracles: Oracles, tmp_path: Path, check: Callable[[int], None]) -> None:
    for _ in range(20):
        before = len(oracles.asked)
        assert main(command) == 0
        check(len(oracles.asked) - before)
        if results(tmp_path / "out.trec")["complete"]:
            return
    raise AssertionError("it never ends")


def test_calls_are_limited_and_the_same_command_goes_on(
    command: list[str], oracles: Oracles, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    expected, num_calls = whole_run(command, oracles, tmp_path)
    asked: list[int] = []
    until_done([*command, *LISTWISE, "--max-calls", "7"], oracles, tmp_path, asked.append)
    assert asked == [7, 7, 7, 7, 2]
    assert sum(asked) == num_calls
    assert (tmp_path / "out.trec").read_bytes() == expected
    said = capfd.readouterr().err
    assert "7 calls, 280 tokens read" in said
    assert "the same command with more time, pairs or calls goes on" in said


def test_a_limited_run_is_whole_and_leaves_unfinished_queries_as_they_were(
    command: list[str], oracles: Oracles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from shortlist import rerank

    monkeypatch.setattr(rerank, "BEST_FIRST", 24)  # two lists
    assert main([*command, *LISTWISE, "--max-calls", "13"]) == 0
    found = order(tmp_path / "out.trec")
    assert [query_id for query_id in OLD if found[query_id] != OLD[query_id]] == ["q0", "q1"]
    assert results(tmp_path / "out.trec")["not_reached"] == 4 * 12


def test_without_time_nothing_is_asked_and_the_run_is_as_it_was(
    command: list[str], oracles: Oracles, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    expected, num_calls = whole_run(command, oracles, tmp_path)
    assert main([*command, *LISTWISE, "--budget-seconds", "0"]) == 0
    assert oracles.asked == []
    assert order(tmp_path / "out.trec") == OLD
    assert "72 of 72 pairs were not reached" in capfd.readouterr().err
    assert main([*command, *LISTWISE]) == 0
    assert (tmp_path / "out.trec").read_bytes() == expected
    assert len(oracles.asked) == num_calls


def test_time_that_runs_out_in_the_middle_loses_no_answer(
    command: list[str], oracles: Oracles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected, num_calls = whole_run(command, oracles, tmp_path)
    now = [0.0]
    monkeypatch.setattr(asking.time, "monotonic", lambda: now[0])

    def slowly(_: int, answer: str) -> str:
        now[0] += 1
        return answer

    oracles.spoil = slowly
    until_done([*command, *LISTWISE, "--budget-seconds", "9"], oracles, tmp_path, lambda asked: None)
    assert (tmp_path / "out.trec").read_bytes() == expected
    assert len(oracles.asked) == num_calls
    assert len(oracles.opened) > 1


# --- forecasts


@pytest.mark.parametrize("method", ["listwise", "exclusion", "groupwise", "graded", "tournament"])
def test_a_forecast_says_how_many_calls_a_run_then_makes(
    command: list[str], oracles: Oracles, tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str
):
    command = [*command, *SERVER, "--method", method, *METHODS[method][0]]
    assert main([*command, "--dry-run"]) == 0
    said = capfd.readouterr().err
    assert not list(tmp_path.glob("out.trec*"))
    [calls] = re.findall(r"6 queries, 72 candidates: (\d+) calls", said)
    [tokens] = re.findall(r"([\d,]+) tokens to read", said)
    assert main(command) == 0
    found = results(tmp_path / "out.trec")
    assert int(calls) == found["calls"]
    if method in ("listwise", "graded"):  # whose prompts are all of one length
        assert int(tokens.replace(",", "")) == found["prompt_tokens"]


@pytest.mark.parametrize("flags", ["pairwise", "setwise", "pairwise --sort bubble", "setwise --sort insertion"])
def test_the_calls_of_a_sort_are_within_the_forecast(
    command: list[str], oracles: Oracles, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: str
):
    command = [*command, *SERVER, "--top", "4", "--method", *flags.split()]
    assert main([*command, "--dry-run"]) == 0
    [(low, high)] = re.findall(r"candidates: (\d+) to (\d+) calls", capfd.readouterr().err)
    assert main(command) == 0
    assert int(low) <= results(tmp_path / "out.trec")["calls"] <= 1.1 * int(high)


def test_a_forecast_says_how_many_answers_of_its_sample_are_malformed(
    command: list[str], oracles: Oracles, capfd: pytest.CaptureFixture[str]
):
    oracles.spoil = lambda number, answer: answer if number % 4 else "?"
    assert main([*command, *LISTWISE, "--dry-run"]) == 0
    assert "(from 6 calls; 2 of them malformed: 2x nothing could be read)" in capfd.readouterr().err


# --- refusals


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "listwize"], "unknown method 'listwize': perhaps 'listwise'"),
        (["--prompt", "rankzephyr"], "--prompt: unknown prompt 'rankzephyr': perhaps 'rank-zephyr'"),
        (["--prompt", "prp"], "'prp' asks for the better of two; this method needs all documents in order"),
        (["--window", "1"], "window must be at least 2, not 1"),
        (["--stride", "0"], "stride must be at least 1, not 0"),
        (["--passes", "0"], "nothing is asked"),
        (["--sort", "heap"], "unknown setting of the method 'listwise' 'sort'"),
        (["--top", "3"], "unknown setting of the method 'listwise' 'top'"),
        (["--repeats", "3"], "unknown setting of the method 'listwise' 'repeats'"),
        (["--seed", "3"], "unknown setting of the method 'listwise' 'seed'"),
        (["--segments", "maxp"], "unknown setting of the method 'listwise' 'segments'"),
        (["--max-calls", "0"], "--max-calls is 0; expected at least 1."),
        (["--max-malformed", "1.5"], "--max-malformed is 1.5; expected a share from 0 to 1."),
        (["--max-calls", "3", "--workers", "2"], "--max-calls: calls are counted in one process; leave out --workers"),
        (["--model", "/no/such/folder"], "--model-name is a server's name of a model"),
        (["--method", "pairwise", "--window", "9"], "unknown setting of the method 'pairwise' 'window'"),
        (["--method", "pairwise", "--sort", "insertion"], "--sort: unknown sort of the method 'pairwise' 'insertion'"),
        (["--method", "tournament", "--answers", "logits"], "--answers: what 'tourrank' asks for is not read from"),
    ],
)
def test_a_typo_in_a_flag_is_one_line_before_anything_is_asked(
    command: list[str], oracles: Oracles, capfd: pytest.CaptureFixture[str], flags: list[str], words: str
):
    base = [*SERVER] if "pairwise" in flags or "tournament" in flags else [*SERVER, "--method", "listwise"]
    assert words in failure([*command, *base, *flags], capfd)
    assert oracles.asked == []


@pytest.mark.parametrize("flags", [["--answers", "logit"], ["--sort", "heapsort"], ["--max-malformed", "many"]])
def test_a_value_that_a_flag_does_not_have_is_wrong_usage(command: list[str], flags: list[str]):
    assert main([*command, *LISTWISE, *flags]) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "first"], "unknown setting of the method 'pointwise' 'prompt'"),
        (["--answers", "text"], "unknown setting of the method 'pointwise' 'answers'"),
        (["--model-name", "x"], "unknown setting of the method 'pointwise' 'model_name'"),
        (["--dry-run"], "--dry-run is for methods that ask a language model, not for pointwise; leave it out."),
        (["--max-calls", "3"], "--max-calls is for methods that ask a language model"),
        (["--details", "x"], "--details is for methods that ask a language model"),
    ],
)
def test_pointwise_has_none_of_these_settings(
    command: list[str], tiny: Any, capfd: pytest.CaptureFixture[str], flags: list[str], words: str
):
    assert words in failure([*command, "--model", str(tiny.reranker), *flags], capfd)
