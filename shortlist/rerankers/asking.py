"""Asking a language model about documents: answers kept, counted, read and limited."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from shortlist.data.answers import AnswerLog, answer_keys
from shortlist.errors import UserError
from shortlist.math.permutation import Verdict
from shortlist.rerankers.limits import LimitReachedError, Limits
from shortlist.rerankers.models import CALLS_AT_ONCE, AnswersQuestions, Asked, Reply
from shortlist.text.answers import MALFORMED
from shortlist.text.prompts import Prompt

FEWEST = 20
"""Answers before the share of malformed ones is looked at."""


class Tally(NamedTuple):
    """What was asked so far."""

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
        limits: what the run allows.

    Attributes:
        tally: what was asked so far.
        kinds: how many answers had each kind of fault.
    """

    def __init__(self, model: AnswersQuestions, prompt: Prompt, shared: Any, *, limits: Limits | None = None) -> None:
        self.model, self.prompt, self.shared, self.limits = model, prompt, shared, limits or Limits()
        self.log = AnswerLog(self.limits.log)
        self.tally, self.kinds = Tally(), Counter[str]()

    def __call__(self, asked: Sequence[Asked]) -> list[Verdict]:
        """Answer questions, each with a score for every document shown.

        Raises:
            LimitReachedError: no more may be asked; what was answered is in the log.
            UserError: too many answers are malformed.
        """
        return [
            verdict
            for start in range(0, len(asked), CALLS_AT_ONCE)
            for verdict in self._some(asked[start : start + CALLS_AT_ONCE])
        ]

    def _some(self, asked: Sequence[Asked]) -> Iterator[Verdict]:
        keys = answer_keys(self.shared, self.model.keys(asked))
        known = self.log.find(keys)
        wanted = list({key: place for place, key in enumerate(keys) if key not in known}.values())
        self.tally = self.tally._replace(known=self.tally.known + len(asked) - len(wanted))
        for some in self._within_limits(wanted):
            for replies in self.model.replies([asked[place] for place in some]):
                self._keep({keys[some[number]]: reply for number, reply in replies.items()}, known)
        for key, one in zip(keys, asked, strict=True):
            yield self._verdict(known[key], one)
        self._check_faults()

    def _within_limits(self, wanted: list[int]) -> Iterator[list[int]]:
        """Yield questions to ask as long as the limits allow.

        Raises:
            LimitReachedError: they allow no more.
        """
        timed = self.limits.until < math.inf
        step = 64 if timed else max(1, len(wanted))
        while wanted:
            left = len(wanted) if self.limits.max_calls is None else self.limits.max_calls - self.tally.calls
            if left < 1 or time.monotonic() >= self.limits.until:
                raise LimitReachedError
            count = min(step, left)
            yield wanted[:count]
            wanted = wanted[count:]

    def _keep(self, replies: dict[str, Reply], known: dict[str, Any]) -> None:
        answers = {key: reply.answer for key, reply in replies.items()}
        self.log.add(answers)
        known |= answers
        tally = self.tally
        self.tally = tally._replace(
            calls=tally.calls + len(replies),
            prompt_tokens=tally.prompt_tokens + sum(reply.prompt_tokens for reply in replies.values()),
            answer_tokens=tally.answer_tokens + sum(reply.answer_tokens for reply in replies.values()),
        )

    def _verdict(self, answer: str | list[float], asked: Asked) -> Verdict:
        query, documents = asked
        if isinstance(answer, str):
            scores, faults = self.prompt.parsed(answer, len(documents))
        else:
            scores, faults = self._from_numbers(answer)
        if faults:
            self.tally = self.tally._replace(malformed=self.tally.malformed + 1)
            self.kinds.update(faults)
            self._list(query.query_id, [document.doc_id for document in documents], faults, answer)
        return scores

    def _from_numbers(self, numbers: list[float]) -> tuple[list[float], tuple[str, ...]]:
        """Read an answer's label logits: as they are, or as the expected grade."""
        faults = ("none",) if all(map(math.isnan, numbers)) else ("missing",) if any(map(math.isnan, numbers)) else ()
        if self.prompt.asks != "grade" or "none" in faults:
            return numbers, faults
        found = np.array([-math.inf if math.isnan(number) else number for number in numbers])
        chances = np.exp(found - found.max())
        return [float(chances @ np.array(self.prompt.grades) / chances.sum())], faults

    def _list(self, query_id: str, doc_ids: list[str], faults: Sequence[str], answer: Any) -> None:
        if self.limits.details is None:
            return
        line = {"query_id": query_id, "doc_ids": doc_ids, "faults": list(faults), "answer": answer}
        with open(self.limits.details, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _check_faults(self) -> None:
        total = self.tally.calls + self.tally.known
        if total >= FEWEST and self.tally.malformed > self.limits.max_malformed * total:
            raise UserError(
                f"{self.tally.malformed:,} of {total:,} answers are malformed ({self.faults()}), more than "
                f"--max-malformed {self.limits.max_malformed:g}; choose the --prompt that the model was trained with, "
                "read the labels' logits with --answers logits, look at them with --details, or allow more."
            )

    def faults(self) -> str:
        """Describe the faults found, the most frequent first."""
        return "; ".join(f"{count:,}x {MALFORMED[kind]}" for kind, count in self.kinds.most_common())

    def close(self) -> None:
        """Close the log."""
        self.log.close()
