"""Guesses of an answer's next ids, which one forward pass checks together."""

from collections.abc import Sequence
from typing import final

from shortlist.models.prefixes import PromptIds

LENGTHS = (3, 2, 1)
"""The numbers of last ids whose earlier place is looked for, in this order."""
START, MOST = 4, 16
"""The most ids to guess at first, and ever."""


@final
class Draft:
    """Guesses what follows in one answer: what followed the same ids before.

    They are looked for in the answer, then in the prompt. Answers about documents repeat a form, such as `] > [`, and
    labels that stand in the prompt.

    Args:
        prompt: the ids before the answer.

    https://arxiv.org/abs/2304.04487
    """

    def __init__(self, prompt: PromptIds) -> None:
        self._prompt, self._said, self._most = list(prompt), list[int](), START
        longest = LENGTHS[0]
        self._in_prompt = {tuple(self._prompt[i - longest : i]): i for i in range(longest, len(prompt))}
        self._in_answer: dict[tuple[int, ...], int] = {}

    def add(self, ids: Sequence[int]) -> None:
        """Add ids to the answer."""
        for token in ids:
            place = len(self._said)
            self._in_answer |= {tuple(self._said[place - n :]): place for n in LENGTHS if n <= place}
            self._said.append(token)

    def guess(self, room: int) -> list[int]:
        """Guess the ids that follow, at most `room`."""
        most = min(self._most, room)
        for n in LENGTHS:
            if n <= len(self._said) and (place := self._in_answer.get(tuple(self._said[-n:]))):
                rest = self._said[place:]
                return (rest * (most // len(rest) + 1))[:most]  # as if it went round and round
        last = [*self._prompt[-LENGTHS[0] :], *self._said[-LENGTHS[0] :]][-LENGTHS[0] :]
        place = self._in_prompt.get(tuple(last))
        return [] if place is None else self._prompt[place : place + most]

    def learn(self, guessed: int, right: int) -> None:
        """Adjust the length of the next guess to how many ids were right.

        With 2 more, 90 ids of an order of 20 take LLaMA 45 passes, which read 3.4 ids each; with none more, 56.
        """
        if guessed:
            self._most = min(MOST, 2 * self._most) if right == guessed else right + 2
