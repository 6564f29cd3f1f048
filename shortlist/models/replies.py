"""Readers of an OpenAI-compatible server's JSON: answers, log-probabilities, usage, errors."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Float

IMPOSSIBLE = -9999.0
"""The log-probability by which OpenAI and vLLM mean "too small to say"; llama.cpp goes lower still."""
SPACES = " \t\n\r▁Ġ"
"""What a first token may begin with: white space, or its mark in SentencePiece and byte-level vocabularies."""
SHOWN_CHARACTERS = 200
HIDDEN_CHARACTERS = 12
"""The shortest piece of a prompt that is cut out of a server's message."""


class ServerAnswer(NamedTuple):
    """An answer's text and why it ended."""

    text: str
    ended: str
    """The server's reason: `stop`, `length`, `content_filter`, ...; empty if it gives none."""
    tokens: tuple[tuple[str, float], ...] = ()
    """Its tokens with their log-probabilities, where they were asked for."""

    @property
    def is_cut(self) -> bool:
        """Whether the answer reached the limit of tokens before its end."""
        return self.ended == "length"


class TokensUsed(NamedTuple):
    """Tokens that a request took."""

    num_prompt_tokens: int
    num_answer_tokens: int


def read_answers(reply: Mapping[str, Any], mode: str) -> list[ServerAnswer]:
    """Return the answers in a reply, in the order of its choices.

    An answer without text is empty: a model that thinks until its limit, or that refuses, gives none.

    Raises:
        ValueError: the reply holds no such answers; the message says what it holds.
    """
    return [_read_answer(choice, MODES[mode].find_text) for choice in _choices(reply)]


def _choices(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        error = error_message(reply)
        raise ValueError(f"no choices{f' ({error})' if error else ''}")
    return choices


def _read_answer(choice: Mapping[str, Any], find_text: Callable[[Mapping[str, Any]], object]) -> ServerAnswer:
    text, ended = find_text(choice), choice.get("finish_reason")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"a {type(text).__name__} where an answer's text belongs")
    whole = (text or "").encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # half a pair cannot be stored
    return ServerAnswer(whole, ended if isinstance(ended, str) else "", _token_log_probs(choice))


def _token_log_probs(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return an answer's tokens with their log-probabilities.

    Reads the shapes of a chat and of legacy completions.
    """
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        return ()
    content, tokens, values = found.get("content"), found.get("tokens"), found.get("token_logprobs")
    if isinstance(content, list):
        pairs = [(one.get("token"), one.get("logprob")) for one in content if isinstance(one, dict)]
    elif isinstance(tokens, list) and isinstance(values, list):
        pairs = list(zip(tokens, values, strict=False))
    else:
        return ()
    return tuple((token, float(value)) for token, value in pairs if isinstance(token, str) and _is_number(value))


def _chat_text(choice: Mapping[str, Any]) -> object:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ValueError("a choice without a message")
    return message.get("content")


def _plain_text(choice: Mapping[str, Any]) -> object:
    return choice.get("text")


class Mode(NamedTuple):
    """One of the two ways in which such a server is asked."""

    path: str
    find_text: Callable[[Mapping[str, Any]], object]


MODES = {"chat": Mode("/chat/completions", _chat_text), "completions": Mode("/completions", _plain_text)}


def read_usage(reply: Mapping[str, Any]) -> TokensUsed | None:
    """Return the tokens that a reply says were used; None if it does not say."""
    usage = reply.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = [usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
    return TokensUsed(*counts) if all(type(count) is int and count >= 0 for count in counts) and any(counts) else None


def first_log_probs(reply: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the likeliest first tokens of a reply's first answer with their log-probabilities.

    Reads the shapes of OpenAI's chat and legacy completions, of vLLM (which has both), and of llama.cpp (which
    gives completions in the shape of a chat). Empty if the reply names none.
    """
    found = _choices(reply)[0].get("logprobs")
    if not isinstance(found, dict):
        return []
    content, legacy = found.get("content"), found.get("top_logprobs")
    if isinstance(content, list) and content and isinstance(content[0], dict):
        top = content[0].get("top_logprobs")
        top = top if isinstance(top, list) else []
        pairs = [(one.get("token"), one.get("logprob")) for one in top if isinstance(one, dict)]
    elif isinstance(legacy, list) and legacy and isinstance(legacy[0], dict):
        pairs = list(legacy[0].items())
    else:
        return []
    return [(token, float(value)) for token, value in pairs if isinstance(token, str) and _is_number(value)]


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # neither NaN nor infinite, nor a whole number that no float can hold


def label_row(tokens: Sequence[tuple[str, float]], labels: Sequence[str]) -> Float[np.ndarray, " labels"]:
    """Return each label's log-probability among first tokens; NaN where none of them is the label.

    A label may be several tokens, with and without a space before it; their probabilities are added.
    """
    row = np.full(len(labels), -np.inf)
    places = {bare(label): place for place, label in enumerate(labels)}
    for token, value in tokens:
        place = places.get(bare(token))
        if place is not None and value > IMPOSSIBLE:
            row[place] = np.logaddexp(row[place], value)
    return np.where(np.isneginf(row), np.nan, row)


def bare(token: str) -> str:
    """Return a token without the space before it, however its vocabulary writes that."""
    return token.lstrip(SPACES)


def error_message(reply: object) -> str:
    """Return the message in a server's error; empty if there is none.

    Reads the errors of OpenAI, vLLM (old and new), llama.cpp, Ollama and FastAPI, whose lists of faults quote
    the request and are cut down to the messages.
    """
    if not isinstance(reply, Mapping):
        return ""
    error = reply.get("error", reply)
    if isinstance(error, str):
        return error
    if not isinstance(error, Mapping):
        return ""
    message = error.get("message") or error.get("detail") or ""
    if isinstance(message, list):
        message = "; ".join(_fault(one) for one in message)
    return message if isinstance(message, str) else ""


def _fault(one: object) -> str:
    if not isinstance(one, Mapping):
        return "a fault"
    place = one.get("loc")
    where = ".".join(map(str, place)) if isinstance(place, list) else ""
    return f"{where}: {one.get('msg', 'a fault')}".removeprefix(": ")


def safe_line(message: str, *, key: str, prompts: Sequence[str]) -> str:
    """Make one short line of a server's message, without the key and pieces of prompts."""
    line = _one_line(message)[: 5 * SHOWN_CHARACTERS]
    if key:
        line = line.replace(key, "***")
    texts, size = [_one_line(prompt) for prompt in prompts], HIDDEN_CHARACTERS
    hidden = [False] * len(line)
    for start in range(len(line) - size + 1):
        if any(line[start : start + size] in text for text in texts):
            hidden[start : start + size] = [True] * size
    shown = "".join("\0" if hide else character for character, hide in zip(line, hidden, strict=True))
    shown = re.sub("\0+", "…", shown)
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[: SHOWN_CHARACTERS - 1]}…"


def _one_line(text: str) -> str:
    text = re.sub(r"\\[nrt]", " ", text)  # an error that quotes a text writes its line breaks so
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
