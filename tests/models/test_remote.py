"""A model on a server: against servers that misbehave in every way, recorded shapes of replies, and a real one."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shutil import copytree
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import torch
from processes import PATIENCE, Started, free_port
from replying import Local, Said, chat, echo, serving
from transformers import AutoModelForCausalLM, AutoTokenizer

from shortlist.errors import UserError
from shortlist.models.remote import LOG_PROBS, Remote, in_threads
from shortlist.models.replies import bare, error_message, label_row, safe_line
from shortlist.models.server import KEYS, LONGEST_WAIT_SECONDS, check_url

KEY = "sk-shortlist-0123456789abcdef"
CHAT = [{"role": "system", "content": "You rank."}, {"role": "user", "content": "Which is best?"}]


@pytest.fixture
def local() -> Iterator[Local]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def waits() -> list[float]:
    """Seconds that were to be waited between tries."""
    return []


@pytest.fixture
def remote(local: Local, waits: list[float]) -> Iterator[Remote]:
    with Remote(local.url, "tiny", sleep=waits.append, jitter=lambda: 1.0, tries=3) as remote:
        yield remote


def failure(action: Callable[[], object]) -> str:
    """The one line that the action fails with."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    return message


def log_probs(remote: Remote, prompts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    found = np.full((len(prompts), len(labels)), np.nan)
    for number, row in remote.label_log_probs_stream(prompts, labels):
        found[number] = row
    return found


def ask(remote: Remote, *texts: str, **settings: Any) -> list[list[str]]:
    return remote.generate(texts or ["hello"], **{"most": 5} | settings)


# --- what is sent, and in which order it comes back


def test_answers_come_in_the_order_of_the_prompts_and_at_most_so_many_are_asked_at_once(local: Local) -> None:
    together = threading.Barrier(3)

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        together.wait(10)  # passes only if three are asked at once
        time.sleep(0.002 * (int(body["messages"][0]["content"]) % 5))
        return echo(body)

    local.answer = answer
    with Remote(local.url, "tiny", at_once=3) as remote:
        assert ask(remote, *map(str, range(12))) == [[f"you said {i}"] for i in range(12)]
    assert local.most_in_flight == 3


def test_a_chat_is_sent_as_messages_and_a_text_as_one_message(local: Local, remote: Remote) -> None:
    remote.generate([CHAT, "plain"], most=9, stop=["\n"], seed=4)
    assert sorted(local.bodies, key=str) == sorted(
        (
            {"model": "tiny", "messages": m, "max_tokens": 9, "temperature": 0.0, "stop": ["\n"], "seed": 4}
            for m in (CHAT, [{"role": "user", "content": "plain"}])
        ),
        key=str,
    )
    assert local.paths == ["/v1/chat/completions"] * 2


def test_completions_send_texts_and_no_chats(local: Local) -> None:
    local.says({"choices": [{"text": " B", "index": 0, "logprobs": None, "finish_reason": "length"}]})
    with Remote(local.url + "/", "tiny", mode="completions") as remote:
        assert ask(remote, "best:") == [[" B"]]
        assert "expected texts" in failure(lambda: remote.generate([CHAT], most=1))
        assert remote.num_cut == 1
    assert local.paths == ["/v1/completions"]
    assert local.bodies == [{"model": "tiny", "prompt": "best:", "max_tokens": 5, "temperature": 0.0}]


def test_an_unknown_mode_is_named_with_the_known_ones() -> None:
    assert "perhaps 'completions'?" in failure(lambda: Remote("http://127.0.0.1:1/v1", "tiny", mode="completion"))


def test_samples_are_asked_for_together_and_again_where_a_server_gives_one(local: Local, remote: Remote) -> None:
    local.says(chat("a", "b", "c"))
    assert ask(remote, samples=3, temperature=1.0, seed=10) == [["a", "b", "c"]]
    local.says(chat("a"), chat("b"), chat("c"))
    assert ask(remote, samples=3, temperature=1.0, seed=10) == [["a", "b", "c"]]
    asked = [(body.get("n"), body["seed"]) for body in local.bodies]
    assert asked == [(3, 10), (3, 10), (2, 11), (None, 12)]  # another seed, or all would be the same


def test_samples_come_from_a_server_that_refuses_several(local: Local, remote: Remote) -> None:
    def answer(body: dict[str, Any]) -> Said | dict[str, Any]:
        return Said({"error": {"message": "Only one completion choice is allowed"}}, 400) if "n" in body else chat("a")

    local.answer = answer
    assert ask(remote, "x", "y", samples=2, temperature=0.5) == [["a", "a"]] * 2
    assert ["n" in body for body in local.bodies].count(True) <= 2  # once for each of those at once


def test_equal_samples_are_refused(remote: Remote) -> None:
    assert "equal at temperature 0" in failure(lambda: ask(remote, samples=2))


def test_models_that_think_get_their_own_word_for_the_limit(local: Local, remote: Remote) -> None:
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    def answer(body: dict[str, Any]) -> Said | dict[str, Any]:
        return Said({"error": {"message": said}}, 400) if "max_tokens" in body else chat("a")

    local.answer = answer
    assert ask(remote) == ask(remote) == [["a"]]
    assert ["max_tokens" in body for body in local.bodies] == [True, False, False]


def test_what_was_used_is_counted(local: Local, remote: Remote) -> None:
    ask(remote, "x", "y")
    assert (remote.num_requests, remote.num_prompt_tokens, remote.num_answer_tokens) == (2, 14, 4)


@pytest.mark.parametrize("usage", [None, "many", {}, {"prompt_tokens": -1}, {"prompt_tokens": None}])
def test_a_server_that_does_not_count_is_named_once(
    local: Local, remote: Remote, usage: object, capfd: pytest.CaptureFixture[str]
) -> None:
    local.says(chat("a", usage=usage))
    ask(remote, "x", "y")
    assert (remote.num_requests, remote.num_prompt_tokens, remote.num_answer_tokens) == (2, 0, 0)
    assert capfd.readouterr().err.count("does not say how many tokens") == 1


def test_a_cut_answer_says_so_and_one_without_text_is_empty(
    local: Local, remote: Remote, capfd: pytest.CaptureFixture[str]
) -> None:
    local.says(chat("[2] > [", ended="length"))
    [(_, [cut])] = remote.generate_stream(["x"], most=4)
    local.says(chat(None, ended="length"))
    [(_, [empty])] = remote.generate_stream(["x"], most=4)
    local.says(chat("[2]", ended=None))
    [(_, [whole])] = remote.generate_stream(["x"], most=4)
    assert (cut.is_cut, empty.is_cut, whole.is_cut) == (True, True, False)
    assert (cut.text, empty.text, whole.text) == ("[2] > [", "", "[2]")
    assert remote.num_cut == 2
    assert "has no text (its end: length)" in capfd.readouterr().err


def test_half_of_a_surrogate_pair_can_be_asked_and_answered(local: Local, remote: Remote) -> None:
    local.says(Said(json.dumps(chat("b\ud800d")).encode()))
    [[text]] = ask(remote, "\udfff")
    assert text.replace("�", "") == "bd"
    assert text.encode()
    assert local.bodies[0]["messages"][0]["content"] == "\udfff"


# --- faults that pass


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_passing_fault_is_tried_again(local: Local, remote: Remote, waits: list[float], status: int) -> None:
    local.says(Said({"error": {"message": "busy"}}, status), chat("a"))
    assert ask(remote) == [["a"]]
    assert (remote.num_requests, remote.num_retries, waits) == (1, 1, [0.5])


def test_waits_double_and_differ(local: Local) -> None:
    local.says(Said({}, 503))
    waits: list[float] = []
    numbers = iter([0.0, 0.5, 1.0])
    remote = Remote(local.url, "tiny", tries=4, sleep=waits.append, jitter=lambda: next(numbers))
    assert "answered 503, 4 times" in failure(lambda: ask(remote))
    assert waits == [0.25, 0.75, 2.0]


@pytest.mark.parametrize(
    ("asked", "waited"), [("7", 7.0), ("0", 0.5), ("86400", LONGEST_WAIT_SECONDS), ("soon", 0.5), ("-3", 0.5)]
)
def test_a_server_that_says_when_to_come_back_is_obeyed_up_to_a_minute(
    local: Local, remote: Remote, waits: list[float], asked: str, waited: float
) -> None:
    local.says(Said({}, 429, {"retry-after": asked}), chat("a"))
    assert ask(remote) == [["a"]]
    assert waits == [waited]


def test_a_date_to_come_back_at_is_obeyed(local: Local, remote: Remote, waits: list[float]) -> None:
    local.says(Said({}, 503, {"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}), chat("a"))
    ask(remote)
    assert waits == [LONGEST_WAIT_SECONDS]


def test_a_closed_connection_is_tried_again(local: Local, remote: Remote) -> None:
    local.says(Said(chat("a"), is_cut=True), chat("a"))
    assert ask(remote) == [["a"]]
    local.says(Said(chat("a"), is_cut=True))
    assert "the connection broke" in failure(lambda: ask(remote))


def test_a_server_that_does_not_run_is_named_with_what_to_do(waits: list[float]) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    message = failure(lambda: ask(Remote(url, "tiny", sleep=waits.append, tries=2)))
    assert message.startswith(f"{url}, model 'tiny': no connection (")
    assert message.endswith(
        "2 times. Start the server, correct its address, or give it more time or fewer requests at once; then go on."
    )


@pytest.mark.parametrize("seconds", [0.03, 5.0])  # between bytes: all are too many, or each is
def test_a_slow_server_is_left(local: Local, waits: list[float], seconds: float) -> None:
    local.says(Said(chat("a"), seconds=seconds))
    remote = Remote(local.url, "tiny", timeout_seconds=0.1, tries=2, sleep=waits.append)
    assert "no answer within 0.1 s, 2 times. " in failure(lambda: ask(remote))
    assert len(waits) == 1


# --- faults that stay


ERRORS = {
    "OpenAI": {"error": {"message": "bad thing", "type": "invalid_request_error", "param": None, "code": None}},
    "vLLM before 0.10": {"object": "error", "message": "bad thing", "type": "BadRequestError", "code": 400},
    "llama.cpp": {"error": {"code": 400, "message": "bad thing", "type": "invalid_request_error"}},
    "a string": {"error": "bad thing"},
    "FastAPI": {"detail": "bad thing"},
    "FastAPI's list": {"detail": [{"loc": ["body", "n"], "msg": "bad thing", "input": {"prompt": "secret"}}]},
}


@pytest.mark.parametrize("shape", ERRORS)
def test_the_servers_own_message_is_shown(local: Local, remote: Remote, waits: list[float], shape: str) -> None:
    local.says(Said(ERRORS[shape], 400))
    message = failure(lambda: ask(remote))
    assert message.startswith(f"{local.url}, model 'tiny': the server answered 400 (")
    assert "bad thing). " in message
    assert "secret" not in message
    assert waits == []


@pytest.mark.parametrize("body", [b"", b"<html>no", b"[]", b'"x"', {}, {"error": None}, {"error": {"message": 3}}])
def test_an_error_without_a_message_is_an_error_all_the_same(local: Local, remote: Remote, body: object) -> None:
    local.says(Said(body, 418))
    assert "the server answered 418. " in failure(lambda: ask(remote))


def test_a_long_message_is_cut_and_made_one_line(local: Local, remote: Remote) -> None:
    local.says(Said({"error": {"message": "first\nsecond\t\x1b[31m" + "long " * 200}}, 400))
    message = failure(lambda: ask(remote))
    assert "(first second [31mlong long" in message
    assert len(message) < 400


def test_an_unknown_model_is_answered_with_those_that_there_are(local: Local, remote: Remote) -> None:
    missing = Said({"error": {"message": "The model `tiny` does not exist.", "type": "NotFoundError"}}, 404)
    listed: dict[str, Any] = {"object": "list", "data": [{"id": f"model-{i}", "object": "model"} for i in range(12)]}

    def answer(body: dict[str, Any]) -> Said | dict[str, Any]:
        return listed if body.get("path") == "/v1/models" else missing

    local.answer = answer
    message = failure(lambda: ask(remote))
    assert "(The model `tiny` does not exist.). It offers 'model-0', 'model-1'," in message
    assert message.endswith("'model-9' and 2 more; name one of them.")
    listed["data"] = [{"id": "tiny"}]
    assert "offers this model, so look at the request: it went to /chat/completions" in failure(lambda: ask(remote))
    for data in (None, [3, {"id": 4}], "x"):
        listed["data"] = data
        assert "mostly ends in /v1" in failure(lambda: ask(remote))


def test_a_refused_key_says_where_to_put_one(local: Local, remote: Remote) -> None:
    local.says(Said({"error": {"message": "no key"}}, 401))
    assert failure(lambda: ask(remote)).endswith(
        "(no key). Set SHORTLIST_API_KEY to a key of this server that may use this model."
    )


def test_a_refusal_for_another_reason_is_not_one_of_several_samples(local: Local, remote: Remote) -> None:
    local.says(Said({}, 401))
    failure(lambda: ask(remote, samples=2, temperature=1.0))
    assert len(local.bodies) == 1


def test_a_redirect_is_not_followed(local: Local, remote: Remote) -> None:
    local.says(Said(b"", 307, {"location": "http://example.com/v1"}))
    assert "answered 307. Give the address to which it redirects." in failure(lambda: ask(remote))
    assert len(local.bodies) == 1


NONSENSE = {
    "nothing": (b"", "no JSON ('')"),
    "a page": (b"<html>\n hello", "no JSON ('<html> hello')"),
    "bytes": (b"\xff\xfe\x00", "no JSON"),
    "deep": (b"[" * 100_000, "no JSON"),
    "a list": ([1], "JSON that is a list"),
    "no choices": ({"id": 1}, "has no choices"),
    "an error": ({"error": {"message": "out of memory"}}, "has no choices (out of memory)"),
    "empty choices": ({"choices": []}, "has no choices"),
    "choices of another kind": ({"choices": ["a"]}, "has no choices"),
    "no message": ({"choices": [{"text": "a"}]}, "has a choice without a message"),
    "a number": ({"choices": [{"message": {"content": 3}}]}, "has a int where an answer's text belongs"),
    "parts": ({"choices": [{"message": {"content": [{"text": "a"}]}}]}, "has a list where an answer's text belongs"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_named(local: Local, remote: Remote, kind: str) -> None:
    body, found = NONSENSE[kind]
    local.says(Said(body))
    message = failure(lambda: ask(remote))
    assert f"{local.url}, model 'tiny': the server" in message
    assert found in message
    assert "Expected what OpenAI's API answers" in message


def test_no_answer_is_lost_when_one_request_fails(local: Local) -> None:
    both = threading.Barrier(2)

    def answer(body: dict[str, Any]) -> Said | dict[str, Any]:
        text = body["messages"][0]["content"]
        if text in {"2", "bad"}:
            both.wait(10)
        if text == "2":
            time.sleep(0.05)  # the error is there long before this answer
        return Said({"error": {"message": "too long"}}, 400) if text == "bad" else echo(body)

    local.answer = answer
    seen: list[int] = []

    def read() -> None:
        for index, _ in Remote(local.url, "tiny", at_once=2).generate_stream(["0", "1", "2", "bad", "4", "5"], most=1):
            seen.append(index)

    assert "too long" in failure(read)
    assert sorted(seen) == [0, 1, 2]
    assert len(local.bodies) == 4  # nothing was asked after the error


def test_nothing_more_is_asked_when_nobody_listens(local: Local) -> None:
    stream = Remote(local.url, "tiny", at_once=2).generate_stream([str(i) for i in range(100)], most=1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    asked = len(local.bodies)
    time.sleep(0.05)
    assert len(local.bodies) <= asked + 2


def test_nothing_is_tried_again_after_an_error(local: Local) -> None:
    failed = threading.Event()

    def answer(body: dict[str, Any]) -> Said:
        if body["messages"][0]["content"] == "busy":
            failed.set()
            return Said({}, 503, {"retry-after": "60"})
        failed.wait(10)
        return Said({}, 400)

    local.answer = answer
    assert "answered 400" in failure(lambda: ask(Remote(local.url, "tiny"), "busy", "bad"))
    assert len(local.bodies) == 2


def test_waiting_ends_with_the_first_error() -> None:
    def work(index: int, stopped: threading.Event) -> int:
        if index == 0:
            raise UserError("first")
        assert stopped.wait(10)
        return index

    seen: list[tuple[int, int]] = []

    def read() -> None:
        for result in in_threads(50, work, 4):
            seen.append(result)

    assert failure(read) == "first"
    assert len(seen) <= 3


# --- the key and the prompts


def test_the_key_is_sent_and_shown_nowhere(
    local: Local, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SHORTLIST_API_KEY", f" {KEY}\n")
    prompt = "a private question about a very private matter"
    said = f"Incorrect API key provided: {KEY}. Your request was: {prompt!r}, messages: {{'content': '{prompt}'}}"
    shown = ""
    with Remote(local.url, "tiny", sleep=lambda _: None, tries=2) as remote:
        assert ask(remote, prompt) == [[f"you said {prompt}"]]
        for status in (200, 400, 401, 404, 429, 500):
            local.says(Said({"error": {"message": said}}, status))
            shown += failure(lambda: ask(remote, prompt))
        local.says(Said(said.encode()))
        shown += failure(lambda: ask(remote, prompt))
        shown += repr(remote) + repr(vars(remote)) + repr(vars(remote._server)) + str(remote)
    assert "Incorrect API key provided: ***" in shown
    shown += "".join(capfd.readouterr()) + caplog.text
    assert KEY not in shown
    assert "private" not in shown
    assert set(local.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ({"OPENAI_API_KEY": "b"}, "Bearer b"),
        ({"SHORTLIST_API_KEY": "a", "OPENAI_API_KEY": "b"}, "Bearer a"),
        ({"SHORTLIST_API_KEY": "", "OPENAI_API_KEY": "b"}, ""),
        ({}, ""),
    ],
)
def test_the_packages_own_key_comes_first(
    local: Local, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], sent: str
) -> None:
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    ask(Remote(local.url, "tiny"))
    assert local.keys == [sent]


@pytest.mark.parametrize("url", ["http://example.com/v1", "http://10.0.0.8:8000/v1", "http://localhost.example.com/v1"])
def test_a_key_is_not_sent_in_the_open(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    Remote(url, "tiny").close()  # without a key there is nothing to hide
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    message = failure(lambda: Remote(url, "tiny"))
    assert message.startswith(f"{url}: OPENAI_API_KEY is set, and plain http would show the key")
    assert "Use https, or a tunnel" in message
    assert KEY not in message
    Remote(url.replace("http:", "https:"), "tiny").close()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/v1", "http://localhost:1/v1", "http://[::1]:1/v1", "http://127.9.9.9/v1"]
)
def test_this_machine_may_have_the_key(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Remote(url, "tiny").close()


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ключ"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SHORTLIST_API_KEY", key)
    message = failure(lambda: Remote("http://127.0.0.1:1/v1", "tiny"))
    assert message == "SHORTLIST_API_KEY: holds characters that no key has; expected printable ASCII without spaces."


def test_no_proxy_stands_before_this_machine(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert ask(Remote(local.url, "tiny", tries=1)) == [["you said hello"]]


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000/v1", "127.0.0.1:8000", "ftp://host/v1", "http://", "http://[::1/v1", "http://host:port/v1"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    assert "expected one such as http://127.0.0.1:8000/v1" in failure(lambda: Remote(url, "tiny"))


@pytest.mark.parametrize(
    "url", ["https://me:s3cret@host/v1", "https://host/v1?key=s3cret", "https://me:s3cret@[::1/v1"]
)
def test_an_address_that_holds_a_secret_is_refused_and_not_shown(url: str) -> None:
    assert "s3cret" not in failure(lambda: Remote(url, "tiny"))


def test_the_last_slash_of_an_address_does_not_matter() -> None:
    assert check_url("https://host/v1/") == ("https://host/v1", False)


def test_pieces_of_prompts_are_hidden_and_the_rest_is_not() -> None:
    prompts = ["Rank these:\n[1] the first passage tells of apples"]
    line = "Invalid input: 'Rank these:\\n[1] the first passage tells of apples' (type=str)"
    assert safe_line(line, key="", prompts=prompts) == "Invalid input: '…' (type=str)"
    assert safe_line("max_tokens is too large", key="", prompts=prompts) == "max_tokens is too large"


# --- log-probabilities

TOKENS = [("B", -0.25), (" A", -1.75), ("The", -3.5)]
OPENAI_CHAT = chat("B", ended="length")
OPENAI_CHAT["choices"][0]["logprobs"] = {
    "content": [
        {
            "token": "B",
            "logprob": -0.25,
            "bytes": [66],
            "top_logprobs": [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in TOKENS],
        }
    ],
    "refusal": None,
}
VLLM_CHAT = chat("B", ended="length", prompt_logprobs=None, kv_transfer_params=None)
VLLM_CHAT["choices"][0] |= {
    "stop_reason": None,
    "token_ids": None,
    "logprobs": {
        "content": [
            {
                "token": "B",
                "logprob": -0.25,
                "bytes": [66],
                "top_logprobs": [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in TOKENS],
            }
        ]
    },
}
LEGACY = {
    "tokens": ["B"],
    "token_logprobs": [-0.25],
    "top_logprobs": [dict(TOKENS)],
    "text_offset": [11],
}
OPENAI_COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "davinci-002",
    "choices": [{"text": "B", "index": 0, "logprobs": LEGACY, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}
VLLM_COMPLETION = OPENAI_COMPLETION | {
    "choices": [
        {
            "index": 0,
            "text": "B",
            "logprobs": {name: LEGACY[name] for name in ("text_offset", "token_logprobs", "tokens", "top_logprobs")},
            "finish_reason": "length",
            "stop_reason": None,
            "prompt_logprobs": None,
        }
    ]
}
LLAMA_CPP_CONTENT = {
    "content": [
        {
            "id": 33,
            "token": "B",
            "bytes": [66],
            "logprob": -0.25,
            "top_logprobs": [
                {"id": 33 + i, "token": t, "bytes": list(t.encode()), "logprob": p} for i, (t, p) in enumerate(TOKENS)
            ],
        }
    ]
}
TIMINGS = {"prompt_n": 5, "prompt_ms": 8.5, "predicted_n": 1, "predicted_ms": 0.02}
LLAMA_CPP_CHAT = chat("B", ended="length", timings=TIMINGS, system_fingerprint="b6000-abc")
LLAMA_CPP_CHAT["choices"][0]["logprobs"] = LLAMA_CPP_CONTENT
LLAMA_CPP_COMPLETION = {
    "choices": [{"text": "B", "index": 0, "logprobs": LLAMA_CPP_CONTENT, "finish_reason": "length"}],
    "object": "text_completion",
    "usage": {"completion_tokens": 1, "prompt_tokens": 5, "total_tokens": 6},
    "timings": TIMINGS,
}
SHAPES = {
    "OpenAI chat": ("chat", OPENAI_CHAT),
    "OpenAI completions": ("completions", OPENAI_COMPLETION),
    "vLLM chat": ("chat", VLLM_CHAT),
    "vLLM completions": ("completions", VLLM_COMPLETION),
    "llama.cpp chat": ("chat", LLAMA_CPP_CHAT),
    "llama.cpp completions": ("completions", LLAMA_CPP_COMPLETION),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_log_probs_are_read_in_the_shapes_of_the_servers_that_give_them(
    local: Local, shape: str, capfd: pytest.CaptureFixture[str]
) -> None:
    mode, reply = SHAPES[shape]
    local.says(reply)
    with Remote(local.url, "tiny", mode=mode) as remote:
        found = log_probs(remote, ["x", "y"], ["A", "B", "C"])
        np.testing.assert_allclose(found, [[-1.75, -0.25, np.nan]] * 2)
        log_probs(remote, ["z"], ["A"])
        assert remote.gives_log_probs
    assert len(local.bodies) == 4  # the server was tried once
    assert capfd.readouterr().err == (f"{local.url}, model 'tiny': the server gives log-probabilities of 20 tokens.\n")
    wanted = {"chat": {"logprobs": True, "top_logprobs": 20}, "completions": {"logprobs": 20}}[mode]
    assert local.bodies[-1] == local.bodies[-1] | wanted | {"max_tokens": 1, "temperature": 0.0}


@pytest.mark.parametrize(
    "shape",
    [
        {
            "content": [
                {"token": token, "logprob": value} for token, value in [("<answer>", 0.0), ("1", -0.5), ("0", -0.25)]
            ]
        },
        {"tokens": ["<answer>", "1", "0"], "token_logprobs": [None, -0.5, -0.25]},
        None,
    ],
)
def test_tokens_of_answers_come_with_their_log_probs(local: Local, remote: Remote, shape: Any) -> None:
    reply = chat("<answer>10")
    reply["choices"][0]["logprobs"] = shape
    local.says(reply)
    [(_, [answer])] = remote.generate_stream(["x"], most=5, log_probs=True)
    assert local.bodies[-1]["logprobs"] is True
    assert answer.tokens[-2:] == ((("1", -0.5), ("0", -0.25)) if shape else ())


@pytest.mark.parametrize("most", [19, 5, 1])
def test_fewer_log_probs_are_asked_for_where_twenty_are_refused(local: Local, remote: Remote, most: int) -> None:
    def answer(body: dict[str, Any]) -> Said | dict[str, Any]:
        said = f"Requested sample logprobs of {body['top_logprobs']}, which is greater than max allowed: {most}"
        return Said({"error": {"message": said}}, 400) if body["top_logprobs"] > most else OPENAI_CHAT

    local.answer = answer
    log_probs(remote, ["x"], ["A"])
    assert local.bodies[-1]["top_logprobs"] == max(count for count in LOG_PROBS if count <= most)


def test_a_model_that_refuses_log_probs_gives_none(
    local: Local, remote: Remote, capfd: pytest.CaptureFixture[str]
) -> None:
    def answer(body: dict[str, Any]) -> Said | dict[str, Any]:
        said = {"error": {"message": "You are not allowed to request logprobs from this model"}}
        return Said(said, 403) if "logprobs" in body else chat("A")

    local.answer = answer
    assert not remote.gives_log_probs
    message = failure(lambda: log_probs(remote, ["x"], ["A"]))
    assert "the server gives no log-probabilities. Read generated answers instead" in message
    assert capfd.readouterr().err.count("gives no log-probabilities") == 1
    assert len(local.bodies) == len(LOG_PROBS) + 1


@pytest.mark.parametrize(
    "given", [None, {}, [], {"content": None}, {"content": []}, {"content": [{"token": "A", "top_logprobs": []}]}]
)
def test_a_server_that_ignores_the_wish_gives_none(local: Local, remote: Remote, given: object) -> None:
    reply = chat("A")
    reply["choices"][0]["logprobs"] = given
    local.says(reply)
    assert not remote.gives_log_probs


@pytest.mark.parametrize("status", [401, 404, 400])
def test_another_refusal_is_not_taken_for_a_lack_of_log_probs(local: Local, remote: Remote, status: int) -> None:
    local.says(Said({"error": {"message": "no such thing"}}, status))
    assert f"answered {status} (no such thing)" in failure(lambda: remote.gives_log_probs)
    assert len(local.bodies) == (len(LOG_PROBS) + 1 if status == 400 else 1)  # no wish is behind the other two


def test_the_word_for_the_limit_costs_no_log_probs(local: Local, remote: Remote) -> None:
    def answer(body: dict[str, Any]) -> Said | dict[str, Any]:
        return Said({"error": "use max_completion_tokens"}, 400) if "max_tokens" in body else OPENAI_CHAT

    local.answer = answer
    log_probs(remote, ["x"], ["A"])
    assert local.bodies[-1]["top_logprobs"] == LOG_PROBS[0]


def test_labels_are_found_with_any_space_before_them_and_their_probabilities_are_added() -> None:
    tokens = [
        ("A", np.log(0.5)),
        (" A", np.log(0.25)),
        ("▁B", -2.0),
        ("ĠC", -3.0),
        ("a", -1.0),
        ("AB", -1.5),
        ("\n", 0.0),
    ]
    row = label_row(tokens, ["A", " B", "C", "D"])
    np.testing.assert_allclose(row, [np.log(0.75), -2.0, -3.0, np.nan])
    assert [bare(token) for token in ("▁▁1", "\t[", "Ġ", "x y ")] == ["1", "[", "", "x y "]


def test_a_token_too_unlikely_to_say_is_not_named() -> None:
    assert np.isnan(label_row([("A", -9999.0), ("B", -3.4e38), ("C", float("-inf"))], ["A", "B", "C"])).all()


@pytest.mark.parametrize(
    "top",
    [
        None,
        3,
        ["A"],
        [{"token": 3, "logprob": 0}],
        [
            {"token": "A", "logprob": "x"},
            {"token": "A", "logprob": True},
            {"token": "A", "logprob": -(10**400)},
            {"token": "A", "logprob": float("nan")},
            {"token": "A"},
        ],
    ],
)
def test_wrong_types_among_log_probs_name_no_label(local: Local, remote: Remote, top: object) -> None:
    bad = chat("A")
    bad["choices"][0]["logprobs"] = {"content": [{"token": "A", "logprob": 0.0, "top_logprobs": top}]}
    local.says(OPENAI_CHAT, bad)
    assert np.isnan(log_probs(remote, ["x"], ["A"])).all()


@pytest.mark.parametrize("labels", [["A", " A"], ["A", ""], [" "]])
def test_labels_that_cannot_be_told_apart_are_refused(remote: Remote, labels: Sequence[str]) -> None:
    assert "expected different ones" in failure(lambda: log_probs(remote, ["x"], labels))


def test_no_prompts_ask_nothing(local: Local, remote: Remote) -> None:
    assert remote.generate([], most=1) == []
    assert log_probs(remote, [], ["A", "B"]).shape == (0, 2)
    assert local.bodies == []


def test_an_error_of_another_type_has_no_message() -> None:
    assert [error_message(reply) for reply in (None, [], "x", 3, {"detail": {}}, {"error": [1]})] == [""] * 6


# --- a real server


def serve(folder: str, port: int) -> None:
    """Run `transformers serve`."""
    from transformers.cli.serve import Serve

    Serve(force_model=folder, port=port, host="127.0.0.1", device="cpu")


class Real(NamedTuple):
    """A real server and the folder of its model."""

    url: str
    folder: Path


TEMPLATE = "{% for message in messages %}{{ message.content }}:{% endfor %}"


@pytest.fixture(scope="module")
def real(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """`transformers serve` with a LLaMA of two layers."""
    folder = copytree(llama, tmp_path_factory.mktemp("served") / "tiny")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    port, err = free_port(), folder.parent / "stderr"
    process = Started(serve, str(folder), port, err=err)
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_up(port):
            assert process.poll() is None, err.read_text()
            assert time.monotonic() < deadline, err.read_text()
            time.sleep(0.05)
        yield Real(f"http://127.0.0.1:{port}/v1", folder)
    finally:
        process.send_signal(9)
        process.wait()


def is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def greedy(folder: Path, text: str, most: int) -> tuple[str, int]:
    """What transformers itself answers, and the number of tokens of the prompt."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(inputs["input_ids"], max_new_tokens=most, do_sample=False)[0]
    num_prompt = inputs["input_ids"].shape[1]
    return tokenizer.decode(ids[num_prompt:], skip_special_tokens=True), num_prompt


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["chat", "completions"])
def test_a_real_server_answers_as_its_model_does(real: Real, mode: str) -> None:
    texts = ["the apple has a colour", "which boat", "a goat"]
    with Remote(real.url, str(real.folder), mode=mode, at_once=2) as remote:
        answers = remote.generate(texts, most=6)
        ended = [answer.ended for _, [answer] in remote.generate_stream(texts[:1], most=6)]
    expected = [greedy(real.folder, f"{text}:" if mode == "chat" else text, 6) for text in texts]
    assert answers == [[text] for text, _ in expected]
    assert ended == ["length"]
    assert remote.num_prompt_tokens == sum(count for _, count in expected) + expected[0][1]
    assert (remote.num_requests, remote.num_answer_tokens, remote.num_cut) == (4, 24, 4)


@pytest.mark.slow
def test_a_real_server_without_log_probs_and_with_another_model_says_so(
    real: Real, capfd: pytest.CaptureFixture[str]
) -> None:
    with Remote(real.url, str(real.folder)) as remote:
        assert not remote.gives_log_probs
        assert len(ask(remote, samples=3, temperature=1.0)[0]) == 3  # it gives one at a time, whatever is asked for
    assert "gives no log-probabilities" in capfd.readouterr().err
    assert "the server answered 400 (Server is pinned to" in failure(lambda: ask(Remote(real.url, "another")))
