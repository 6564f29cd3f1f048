"""A language model on an OpenAI-compatible server: vLLM, llama.cpp, Ollama, transformers serve, OpenAI."""

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, final

import numpy as np
from jaxtyping import Float

from shortlist.errors import UserError, unknown
from shortlist.models.replies import MODES, ServerAnswer, bare, first_log_probs, label_row, read_answers, read_usage
from shortlist.models.server import EXPECTED, KEYS, RefusedError, RemoteServer, StoppedError
from shortlist.progress import say

Messages = Sequence[Mapping[str, str]]
"""Turns of a chat, each with a `role` and a `content`."""
TextOrChat = str | Messages
T = TypeVar("T")

LOG_PROBS = (20, 10, 5, 1)
"""Numbers of log-probabilities to ask for: 20 are allowed by OpenAI and vLLM, 5 by Azure and legacy completions."""
PROBE_PROMPT = "Answer with one letter, A or B:"
MOST_NAMES = 10
"""Models of a server that an error lists."""


@final
class Remote:
    """A language model on a server, over texts and chats rather than token ids.

    The key is read from SHORTLIST_API_KEY or else OPENAI_API_KEY, and goes nowhere but to the server.

    Args:
        url: address of the API, such as http://127.0.0.1:8000/v1.
        model_name: the server's name of the model.
        at_once: requests in flight at a time, in each call.
        timeout_seconds: longest time that one request may take.
        tries: how often a request is sent at most, if faults that may pass keep it from being answered.
        mode: `chat` lets the server's template make a prompt of messages, `completions` sends texts as they are.
        sleep: waits between tries (None: ends early where the answer is not wanted any more).
        jitter: returns a number from 0 to 1, by which these waits differ.

    Raises:
        UserError: the address is unusable, or a key would be sent over it unprotected.
    """

    def __init__(
        self,
        url: str,
        model_name: str,
        *,
        at_once: int = 8,
        timeout_seconds: float = 300.0,
        tries: int = 5,
        mode: str = "chat",
        sleep: Callable[[float], object] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        if min(at_once, tries) < 1 or timeout_seconds <= 0:
            raise UserError(f"{url}: at_once, tries and timeout_seconds must be positive.")
        self.model_name, self.mode, self.at_once = model_name, mode, at_once
        self._server = RemoteServer(
            url,
            about=f"model {model_name!r}",
            at_once=at_once,
            timeout_seconds=timeout_seconds,
            tries=tries,
            sleep=sleep,
            jitter=jitter,
        )
        self.num_requests = 0
        """Requests that were answered."""
        self.num_prompt_tokens = 0
        """Tokens of the prompts, as the server counts them; 0 if it does not."""
        self.num_answer_tokens = 0
        """Tokens of the answers, as the server counts them; 0 if it does not."""
        self.num_cut = 0
        """Answers that reached the limit of tokens before their end."""
        self._limit_name, self._takes_several = "max_tokens", True
        self._most_log_probs: int | None = None
        self._said: set[str] = set()
        self._lock, self._probing = threading.Lock(), threading.Lock()

    def __repr__(self) -> str:
        return f"Remote({self.url!r}, {self.model_name!r}, mode={self.mode!r})"

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._server.close()

    @property
    def url(self) -> str:
        """The address of the API, without a last slash."""
        return self._server.url

    @property
    def num_retries(self) -> int:
        """Requests that were sent again after a fault."""
        return self._server.num_retries

    def generate(
        self,
        prompts: Sequence[TextOrChat],
        *,
        most: int,
        samples: int = 1,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> list[list[str]]:
        """Return `samples` answers to each prompt; arguments and errors are as for `generate_stream`."""
        stream = self.generate_stream(
            prompts, most=most, samples=samples, temperature=temperature, stop=stop, seed=seed
        )
        texts: list[list[str]] = [[] for _ in prompts]
        for index, answers in stream:
            texts[index] = [answer.text for answer in answers]
        return texts

    def generate_stream(
        self,
        prompts: Sequence[TextOrChat],
        *,
        most: int,
        samples: int = 1,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        log_probs: bool = False,
    ) -> Iterator[tuple[int, list[ServerAnswer]]]:
        """Yield the number of a prompt and its answers, as they come.

        After an error nothing more is sent; what the server is still answering is yielded before the error is raised.

        Args:
            most: most tokens of an answer.
            samples: answers to each prompt.
            temperature: 0 for the likeliest answer.
            stop: texts before which an answer ends; OpenAI takes at most 4.
            seed: makes sampling repeatable where the server supports it; None: its choice.
            log_probs: ask for the log-probability of each token of an answer, too.

        Raises:
            UserError: the server refuses a request, or gives no usable answer.
        """
        if samples > 1 and temperature == 0:
            raise UserError(f"samples={samples}: they would all be equal at temperature 0; raise it, or take one.")
        settings: dict[str, Any] = {"temperature": temperature}
        if stop:
            settings["stop"] = list(stop)
        if log_probs:
            settings["logprobs"] = True if self.mode == "chat" else 1
        bodies = [self._body(prompt, most) | settings for prompt in prompts]
        return in_threads(
            len(bodies), lambda index, stopped: self._sample(bodies[index], samples, seed, stopped), self.at_once
        )

    def _sample(
        self, body: Mapping[str, Any], samples: int, seed: int | None, stopped: threading.Event
    ) -> list[ServerAnswer]:
        """Ask until there are enough answers: many servers give one, however many are asked for."""
        answers: list[ServerAnswer] = []
        while (wanted := samples - len(answers)) > 0:
            several = {"n": wanted} if wanted > 1 else {}
            seeded = {} if seed is None else {"seed": seed + len(answers)}
            answers += self._ask({**body, **several, **seeded}, stopped, partial(read_answers, mode=self.mode))[:wanted]
        for answer in answers:
            if not answer.text:
                self._say_once(f"an answer has no text (its end: {answer.ended or 'not given'}); it counts as empty.")
        with self._lock:
            self.num_cut += sum(answer.is_cut for answer in answers)
        return answers

    @property
    def gives_log_probs(self) -> bool:
        """Whether the server gives log-probabilities, found out by asking once."""
        return self._probe() > 0

    def label_log_probs_stream(
        self, prompts: Sequence[TextOrChat], labels: Sequence[str]
    ) -> Iterator[tuple[int, Float[np.ndarray, " labels"]]]:
        """Yield the number of a prompt and its labels' log-probabilities (nats), as they come.

        NaN: the label is not among the tokens that the server names, at most 20. Labels and tokens are compared
        without the space before them; probabilities of tokens that are then the same are added.

        Raises:
            UserError: the server gives no log-probabilities, refuses a request, or gives no usable answer; or two
                labels are the same.
        """
        if len({bare(label) for label in labels}) < len(labels) or not all(map(bare, labels)):
            raise UserError(f"labels {list(labels)}: expected different ones that are more than a space.")
        if not prompts:
            return iter(())
        if not (most := self._probe()):
            raise UserError(
                f"{self._server.where}: the server gives no log-probabilities. Read generated answers instead, or use "
                "a server that gives them, such as vLLM or llama.cpp."
            )
        bodies = [self._log_prob_body(prompt, most) for prompt in prompts]

        def look(index: int, stopped: threading.Event) -> Float[np.ndarray, " labels"]:
            return label_row(self._ask(bodies[index], stopped, first_log_probs), labels)

        return in_threads(len(bodies), look, self.at_once)

    def _log_prob_body(self, prompt: TextOrChat, count: int) -> dict[str, Any]:
        """Make the request for one greedy token and the `count` likeliest in its place."""
        asked = {"logprobs": True, "top_logprobs": count} if self.mode == "chat" else {"logprobs": count}
        return {**self._body(prompt, 1), "temperature": 0.0, **asked}

    def _probe(self) -> int:
        """Return how many log-probabilities to ask for, 0 for none; found out and said once."""
        with self._probing:
            if self._most_log_probs is None:
                self._most_log_probs = most = self._find_most_log_probs()
                given = f"gives log-probabilities of {most} tokens" if most else "gives no log-probabilities"
                say(f"{self._server.where}: the server {given}.")
            return self._most_log_probs

    def _find_most_log_probs(self) -> int:
        never = threading.Event()
        for count in LOG_PROBS:
            body = self._log_prob_body(PROBE_PROMPT, count)
            try:
                reply = self._post(body, never)
            except RefusedError as refused:
                if refused.status in {401, 404}:
                    raise self._refusal(refused, body) from None
                continue
            return count if self._reading(first_log_probs, reply, body) else 0
        self._ask(self._body(PROBE_PROMPT, 16), never, dict)  # or it was not the log-probabilities that were refused
        return 0

    def _body(self, prompt: TextOrChat, most: int) -> dict[str, Any]:
        """Make a request for at most `most` tokens."""
        if self.mode == "chat":
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*map(dict, prompt)]
            return {"model": self.model_name, "messages": messages, "max_tokens": most}
        if not isinstance(prompt, str):
            raise UserError(
                "mode completions: expected texts, found messages of a chat; render them, or use mode chat."
            )
        return {"model": self.model_name, "prompt": prompt, "max_tokens": most}

    def _ask(self, body: Mapping[str, Any], stopped: threading.Event, read: Callable[[Mapping[str, Any]], T]) -> T:
        """Send a request and return what `read` finds in the reply."""
        try:
            reply = self._post(body, stopped)
        except RefusedError as refused:
            raise self._refusal(refused, body) from None
        return self._reading(read, reply, body)

    def _post(self, body: Mapping[str, Any], stopped: threading.Event) -> dict[str, Any]:
        """Send a request in the words that the server takes, and count its tokens."""
        while True:
            sent = self._in_its_words(body)
            try:
                reply = self._server.post(MODES[self.mode].path, sent, stopped)
            except RefusedError as refused:
                if not self._learn(refused, sent):
                    raise
            else:
                self._count(reply)
                return reply

    def _in_its_words(self, body: Mapping[str, Any]) -> dict[str, Any]:
        words = {self._limit_name if name == "max_tokens" else name: value for name, value in body.items()}
        return words if self._takes_several else {name: value for name, value in words.items() if name != "n"}

    def _learn(self, refused: RefusedError, sent: Mapping[str, Any]) -> bool:
        """Change the words of requests if it may have been these that were refused."""
        if "max_tokens" in sent and "max_completion_tokens" in refused.message:  # OpenAI's models that think
            self._limit_name = "max_completion_tokens"
            return True
        if "n" in sent and refused.status in {400, 422}:  # most servers ignore it, some refuse it
            self._takes_several = False
            return True
        return False

    def _count(self, reply: Mapping[str, Any]) -> None:
        usage = read_usage(reply)
        with self._lock:
            self.num_requests += 1
            if usage:
                self.num_prompt_tokens += usage.num_prompt_tokens
                self.num_answer_tokens += usage.num_answer_tokens
        if usage is None:
            self._say_once("the server does not say how many tokens were used; they are not counted.")

    def _say_once(self, message: str) -> None:
        with self._lock:
            if message in self._said:
                return
            self._said.add(message)
        say(f"{self._server.where}: {message}")

    def _reading(self, read: Callable[[Mapping[str, Any]], T], reply: Mapping[str, Any], body: Mapping[str, Any]) -> T:
        try:
            return read(reply)
        except ValueError as error:
            found = self._server.safe(str(error), body)
            raise UserError(f"{self._server.where}: the server's answer has {found}. {EXPECTED}") from None

    def _refusal(self, refused: RefusedError, body: Mapping[str, Any]) -> UserError:
        """Make the error for a request that the server refuses for good."""
        return UserError(f"{self._server.where}: {self._server.refusal(refused, body)}. {self._advice(refused)}")

    def _advice(self, refused: RefusedError) -> str:
        if refused.status in {401, 403}:
            return f"Set {KEYS[0]} to a key of this server that may use this model."
        if 300 <= refused.status < 400:
            return "Give the address to which it redirects."
        if refused.status == 404 or self.model_name in refused.message:
            return self._advice_on_names()
        return "Change what it names, then go on; what was answered is kept."

    def _advice_on_names(self) -> str:
        names = self._server.models()
        if not names:
            return EXPECTED
        if self.model_name in names:
            return (
                f"It offers this model, so look at the request: it went to {MODES[self.mode].path} (mode {self.mode})."
            )
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        return f"It offers {', '.join(map(repr, names[:MOST_NAMES]))}{more}; name one of them."


def in_threads(count: int, work: Callable[[int, threading.Event], T], at_once: int) -> Iterator[tuple[int, T]]:
    """Yield numbers below `count` with what `work` makes of each, as it comes.

    At most `at_once` are worked on at a time. After an error nothing more is started; what is finished all the
    same is yielded, then the error is raised. The event that `work` gets is set when its result is not wanted.
    """
    todo: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, T] | Exception | None] = SimpleQueue()
    stopped = threading.Event()
    for index in range(count):
        todo.put(index)

    def run() -> None:
        try:
            while not stopped.is_set():
                index = todo.get_nowait()
                done.put((index, work(index, stopped)))
        except (Empty, StoppedError):
            pass
        except Exception as error:  # raised where the results are read
            stopped.set()
            done.put(error)
        finally:
            done.put(None)

    workers = min(count, at_once)
    for _ in range(workers):  # daemons: Ctrl-C does not wait for answers, which may take minutes
        threading.Thread(target=run, daemon=True).start()
    try:
        yield from _finished(done, workers)
    finally:
        stopped.set()


def _finished(done: "SimpleQueue[tuple[int, T] | Exception | None]", workers: int) -> Iterator[tuple[int, T]]:
    """Yield results until all workers have ended, then raise the first error."""
    first: Exception | None = None
    while workers:
        result = done.get()
        if result is None:
            workers -= 1
        elif isinstance(result, Exception):
            first = first or result
        else:
            yield result
    if first is not None:
        raise first
