"""Asking a language model about documents: answers kept, counted, read and limited."""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from shortlist.data.answers import AnswerLog, answer_keys
from shortlist.math.permutation import Verdict
from shortlist.progress import say
from shortlist.records import Query
from shortlist.rerankers.limits import CallLimits, LimitReachedError, MalformedAnswersError
from shortlist.rerankers.models import CALLS_AT_ONCE, AnswersQuestions, QueryAndShown, RawAnswer
from shortlist.text.answers import MALFORMED
from shortlist.text.prompts import Prompt

FEWEST = 20
"""Answers before the share of malformed ones is looked at, while more are to come."""
QUESTION = Query("", "")
"""The query of a prompt that shows none."""
TIMED = (8, 64)
"""The fewest and the most calls between two looks at the clock, where time is limited."""


class Tally(NamedTuple):
    """Counts of calls, answers and tokens so far."""

    calls: int = 0
    """Prompts that the model has read in this process."""
    known: int = 0
    """Answers that were known."""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    malformed: int = 0
    """Answers with a fault, known ones too."""


@final
class Questions:
    """Asks a model questions with one prompt, and reads its answers.

    Args:
        model: the model.
        prompt: the prompt.
        shared: what all answers depend on, such as the model's identity, as JSON can hold it.
        limits: what the run allows (None: everything, and too many malformed answers are only reported).
        warns: whether they are only reported in any case.

    Attributes:
        tally: what was asked so far.
        kinds: how many answers had each kind of fault.
        is_spent: whether a limit was reached.
    """

    def __init__(
        self,
        model: AnswersQuestions,
        prompt: Prompt,
        shared: Any,
        *,
        limits: CallLimits | None = None,
        warns: bool = False,
    ) -> None:
        self.model, self.prompt, self.shared = model, prompt, shared
        self.limits, self._warns = limits or CallLimits(), limits is None or warns
        self.log, self._details = AnswerLog(self.limits.log), Details(self.limits.details)
        self.tally, self.kinds = Tally(), Counter[str]()
        self.is_spent = self._has_warned = False

    def __call__(self, asked: Sequence[QueryAndShown]) -> list[Verdict]:
        """Answer questions, each with a score for every document shown.

        Raises:
            LimitReachedError: no more may be asked; what was answered is in the log.
            MalformedAnswersError: too many answers are malformed.
        """
        if self.is_spent:  # even known answers have to be rendered to be found
            raise LimitReachedError
        return [
            verdict
            for start in range(0, len(asked), CALLS_AT_ONCE)
            for verdict in self._some(asked[start : start + CALLS_AT_ONCE])
        ]

    def _some(self, asked: Sequence[QueryAndShown]) -> Iterator[Verdict]:
        keys = answer_keys(self.shared, self.model.keys(asked))
        known = self.log.find(keys)
        wanted = list({key: place for place, key in enumerate(keys) if key not in known}.values())
        self.tally = self.tally._replace(known=self.tally.known + len(asked) - len(wanted))
        for some in self._within_limits(wanted):
            for replies in self.model.replies([asked[place] for place in some]):
                self._keep({keys[some[number]]: reply for number, reply in replies.items()}, known)
        for key, one in zip(keys, asked, strict=True):
            yield self._verdict(key, known[key], one)
        self.check_faults(fewest=1 if self._warns else FEWEST)

    def _within_limits(self, wanted: list[int]) -> Iterator[list[int]]:
        """Yield questions to ask as long as the limits allow.

        Raises:
            LimitReachedError: they allow no more.
        """
        begun, num_asked, step = time.monotonic(), 0, TIMED[0] if self.limits.until < math.inf else len(wanted)
        while wanted:
            left = len(wanted) if self.limits.max_calls is None else self.limits.max_calls - self.tally.calls
            now = time.monotonic()
            if left < 1 or now >= self.limits.until:
                self.is_spent = True
                raise LimitReachedError
            if num_asked:  # as many as there is time for, as long as a call has taken so far
                in_time = (self.limits.until - now) * num_asked / max(now - begun, 1e-9)
                step = int(min(max(in_time, TIMED[0]), TIMED[1]))
            count = min(step, left)
            yield wanted[:count]
            wanted, num_asked = wanted[count:], num_asked + count

    def _keep(self, replies: dict[str, RawAnswer], known: dict[str, Any]) -> None:
        answers = {key: reply.answer for key, reply in replies.items()}
        self.log.add(answers, {key: (reply.prompt_tokens, reply.answer_tokens) for key, reply in replies.items()})
        known |= answers
        tally = self.tally
        self.tally = tally._replace(
            calls=tally.calls + len(replies),
            prompt_tokens=tally.prompt_tokens + sum(reply.prompt_tokens for reply in replies.values()),
            answer_tokens=tally.answer_tokens + sum(reply.answer_tokens for reply in replies.values()),
        )

    def costs(self) -> dict[str, int]:
        """Return what all answers in the log cost, by the names of `data.manifest.stages`.

        Those of interrupted commands are among them. Malformed ones are counted among the answers that were read.
        """
        prompt_tokens, answer_tokens = self.log.num_tokens()
        counts = {"calls": len(self.log), "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
        return counts | {"malformed": self.tally.malformed}

    def _verdict(self, key: str, answer: Any, asked: QueryAndShown) -> Verdict:
        query, documents = asked
        probability = 1.0
        if isinstance(answer, dict):
            answer, probability = answer["text"], answer["probability"]
        if isinstance(answer, str):
            scores, faults = self.prompt.parsed(answer, len(documents))
            scores = [score * probability for score in scores]
            faults = faults or ("none",) * math.isnan(probability)
        else:
            scores, faults = self._from_numbers(answer)
        if faults:
            self.tally = self.tally._replace(malformed=self.tally.malformed + 1)
            self.kinds.update(faults)
            doc_ids = [document.doc_id for document in documents]
            self._details.add(key, query_id=query.query_id, doc_ids=doc_ids, faults=list(faults), answer=answer)
        return scores

    def _from_numbers(self, numbers: list[float]) -> tuple[list[float], tuple[str, ...]]:
        """Read an answer's label logits: as they are, or as the expected grade.

        A server names only the likeliest tokens. A label that is not among them is a fault where all are to be put in
        order, and otherwise an unlikely one.
        """
        known = [number for number in numbers if not math.isnan(number)]
        if not known:
            return [math.nan] * (1 if self.prompt.asks in ("grade", "likelihood") else len(numbers)), ("none",)
        if self.prompt.asks == "likelihood":
            return [sum(known) / (len(known) if self.prompt.likelihood == "mean" else 1)], ()
        if self.prompt.asks == "order":
            return numbers, ("missing",) * (len(known) < len(numbers))
        if self.prompt.asks == "worst":  # the likeliest label is that of the worst document
            return [-number for number in numbers], ()
        if self.prompt.asks != "grade":
            return numbers, ()
        found = np.array([-math.inf if math.isnan(number) else number for number in numbers])
        chances = np.exp(found - found.max())
        return [float(chances @ np.array(self.prompt.grades) / chances.sum())], ()

    def check_faults(self, *, fewest: int = 1) -> None:
        """Refuse too many malformed answers, or report them if there are no limits.

        Args:
            fewest: answers before their share means something.

        Raises:
            MalformedAnswersError: more are malformed than the limits allow.
        """
        total = self.tally.calls + self.tally.known
        if total < fewest or self.tally.malformed <= self.limits.max_malformed * total:
            return
        found = f"{self.tally.malformed:,} of {total:,} answers are malformed ({self.faults()})"
        if not self._warns:
            raise MalformedAnswersError(
                f"{found}, more than --max-malformed {self.limits.max_malformed:g}; choose the --prompt that the model "
                "was trained with, or other --answers, look at them with --details, or allow more."
            )
        if not self._has_warned:
            self._has_warned = True
            say(f"{found}; choose the prompt that the model was trained with.")

    def faults(self) -> str:
        """Describe the faults found, the most frequent first."""
        return "; ".join(f"{count:,}x {MALFORMED[kind]}" for kind, count in self.kinds.most_common())

    def close(self) -> None:
        """Close the log."""
        self.log.close()


def ask_each(
    model: AnswersQuestions,
    asked: Sequence[QueryAndShown],
    log: AnswerLog,
    *,
    shared: Any,
    max_calls: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[tuple[int, Any]]:
    """Yield the number of each question and its answer, which the log knows or keeps.

    Args:
        shared: what all answers depend on, such as the model's identity.
        max_calls: most prompts to send; questions that it does not reach are left out.
        advance: told how many questions were answered.
    """
    left = math.inf if max_calls is None else max_calls
    for start in range(0, len(asked), CALLS_AT_ONCE):
        some = asked[start : start + CALLS_AT_ONCE]
        keys = answer_keys(shared, model.keys(some))
        known = log.find(keys)
        wanted = list({key: place for place, key in enumerate(keys) if key not in known}.values())
        wanted = wanted[: int(min(left, len(wanted)))]
        left -= len(wanted)
        advance(len(some) - len(wanted))
        for replies in model.replies([some[place] for place in wanted]):
            answers = {keys[wanted[number]]: reply.answer for number, reply in replies.items()}
            tokens = {keys[wanted[number]]: (r.prompt_tokens, r.answer_tokens) for number, r in replies.items()}
            log.add(answers, tokens)
            known |= answers
            advance(len(replies))
        yield from ((start + place, known[key]) for place, key in enumerate(keys) if key in known)


class Details:
    """A file that lists malformed answers, each once however often a run is begun again.

    Args:
        path: the file of JSON lines (None: none is written).
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._listed = path, set[str]()
        if path is not None and path.exists():
            self._listed = set(re.findall(r'^{"key": "(\w+)"', path.read_text("utf-8"), re.MULTILINE))

    def add(self, key: str, **told: Any) -> None:
        """Add a line, unless it is there."""
        if self.path is None or key in self._listed:
            return
        self._listed.add(key)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:  # in one piece: several processes may write
            file.write((json.dumps({"key": key, **told}, ensure_ascii=False) + "\n").encode())
