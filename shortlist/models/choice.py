"""Choice of an answer's next token: the best that may follow, or one drawn."""

from collections.abc import Callable, Collection, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.models.heads import OutputHead

AllowedIds = Callable[[int, Sequence[int]], Collection[int] | None]
"""Given a prompt's number and the ids of its answer so far, returns the ids that may follow; None for any."""

Name = tuple[int, int]
"""The number of an answer's prompt, and of the sample."""


@final
class Choice:
    """Chooses the next id of each answer.

    Args:
        head: the model's head.
        temperature: divides the logits before an id is drawn; 0 takes the best one.
        seed: seed of what is drawn.
        allowed: restricts what may follow.
        stop: ids that end an answer.
        most: most ids of an answer.
    """

    def __init__(
        self,
        head: OutputHead,
        *,
        temperature: float,
        seed: int,
        allowed: AllowedIds | None,
        stop: frozenset[int],
        most: int,
    ) -> None:
        self.head, self.temperature, self.seed, self.allowed = head, temperature, seed, allowed
        self.stop, self.most = stop, most

    def has_ended(self, said: Sequence[int]) -> bool:
        """Whether nothing follows in an answer."""
        return len(said) >= self.most or bool(said and said[-1] in self.stop)

    def forced(self, name: Name, said: Sequence[int]) -> list[int]:
        """Return the ids that are next because no other may follow."""
        ids: list[int] = []
        while self.allowed and not self.has_ended(whole := [*said, *ids]):
            following = self.allowed(name[0], whole)
            if following is None or len(following) != 1:
                break
            ids += following
        return ids

    def __call__(
        self, states: Float[Tensor, "answers dim"], names: Sequence[Name], said: Sequence[Sequence[int]]
    ) -> list[int]:
        """Choose an id for each answer.

        Args:
            states: the model's states after what was said.
            names: whose answers they are.
            said: the ids of each answer so far.
        """
        tokens, mask = self._following(names, said)
        logits = self.head(states, None if tokens is None else tokens.to(states.device)).cpu()
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        if self.temperature:
            noise = [self._noise(name, len(ids)) for name, ids in zip(names, said, strict=True)]
            drawn = torch.stack([part if tokens is None else part[tokens] for part in noise])
            logits = logits / self.temperature + drawn
        best = logits.argmax(-1)
        return (best if tokens is None else tokens[best]).tolist()

    def _following(
        self, names: Sequence[Name], said: Sequence[Sequence[int]]
    ) -> tuple[Int[Tensor, " tokens"] | None, Bool[Tensor, "answers tokens"] | None]:
        """Find the tokens that may follow in any answer (None: all), and in each."""
        if self.allowed is None:
            return None, None
        each = [self.allowed(number, ids) for (number, _), ids in zip(names, said, strict=True)]
        if all(ids is None for ids in each):
            return None, None
        every = range(len(self.head.weight))
        tokens = None if any(ids is None for ids in each) else torch.tensor(sorted(set().union(*each)))  # type: ignore[arg-type]
        columns = torch.arange(len(every)) if tokens is None else tokens
        masks = [torch.isin(columns, torch.tensor(sorted(every if ids is None else ids))) for ids in each]
        return tokens, torch.stack(masks)

    def _noise(self, name: Name, place: int) -> Float[Tensor, " vocabulary"]:
        """Draw Gumbel noise: the argmax of logits and noise is a sample of the softmax."""
        numbers = np.random.default_rng([self.seed, *name, place])
        return torch.from_numpy(numbers.gumbel(size=len(self.head.weight)).astype(np.float32))
