"""The steps of a training over its sources: each step is of one source."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, final

import numpy as np
from jaxtyping import Int

from shortlist.math.sampling import draw_sources, mixing_shares
from shortlist.models.kinds import named_kind
from shortlist.settings.parts import OpenPart
from shortlist.settings.train import Config
from shortlist.text.contract import Form
from shortlist.text.inputs import Inputs
from shortlist.train.examples import Batch, Relevant, batches, learn_together, num_steps, plan_steps

Renewed = Sequence[Mapping[int, tuple[str, ...]]]
"""For each source, new negatives by the number of the group."""


@final
class Mixture:
    """The sources of a training, and which of them each step takes its queries from.

    A source goes through its own groups epoch by epoch, whenever its turn comes.

    Attributes:
        parts: the sources.
        shares: probability of each source.
        turns: the source of each step, by its number.

    Args:
        config: the training's settings; its steps are as many as the batches of --epochs passes over all sources.
    """

    def __init__(self, config: Config, parts: Sequence[OpenPart]) -> None:
        self.parts, self._config = parts, config
        self.shares = mixing_shares(
            [len(part.source.groups) * part.settings.weight for part in parts], temperature=config.mix_temperature
        )
        one_pass = sum(num_steps(len(part.source.groups), config.batch_size, 1, merge=merges(part)) for part in parts)
        self.turns = draw_sources(self.shares, config.steps or one_pass * config.epochs, seed=config.seed)

    @property
    def steps(self) -> int:
        """Number of steps of the training."""
        return len(self.turns)

    @cached_property
    def relevant(self) -> list[Relevant]:
        """The relevant documents of each source's queries."""
        return [
            Relevant(part.source.groups, part.source.queries, part.collection, part.source.judged)
            for part in self.parts
        ]

    def steps_of_each(self, steps: range) -> list[range]:
        """Return the steps that each source takes in these steps, counted within the source."""
        before, after = (self._counts(self.turns[:end]).tolist() for end in (steps.start, steps.stop))
        return [range(*pair) for pair in zip(before, after, strict=True)]

    def batches(self, steps: range, renewed: Renewed = ()) -> Iterator[tuple[int, Batch]]:
        """Yield the source and the batch of each of these steps."""
        streams = [
            batches(
                part.source.groups,
                part.source.queries,
                part.collection,
                **self._order(part, own),
                negatives=part.config.negatives,
                relevant=self.relevant[number],
                renewed=renewed[number] if renewed else None,
            )
            for number, (part, own) in enumerate(zip(self.parts, self.steps_of_each(steps), strict=True))
        ]
        for number in self.turns[steps.start : steps.stop].tolist():
            yield number, next(streams[number])

    def groups_of_each(self, steps: range) -> list[list[int]]:
        """Return the numbers of the groups of each source in these steps, ascending."""
        return [
            sorted(self._numbers(part, own)) for part, own in zip(self.parts, self.steps_of_each(steps), strict=True)
        ]

    def results(self) -> dict[str, Any]:
        """Return what each named source had of the training, for the manifest."""
        counts = self._counts(self.turns).tolist()
        return {
            part.name: {"num_groups": len(part.source.groups), "share": round(share, 6), "steps": count}
            for part, share, count in zip(self.parts, self.shares.tolist(), counts, strict=True)
            if part.name
        }

    def _counts(self, turns: Int[np.ndarray, " some"]) -> Int[np.ndarray, " sources"]:
        return np.bincount(turns, minlength=len(self.parts))

    def _numbers(self, part: OpenPart, own: range) -> set[int]:
        steps = plan_steps(len(part.source.groups), **self._order(part, own))
        return {number for _, numbers in steps for number in numbers}

    def _order(self, part: OpenPart, own: range) -> dict[str, Any]:
        options = {"batch_size": self._config.batch_size, "seed": self._config.seed, "merge": merges(part)}
        return options | {"first_step": own.start, "steps": own.stop}


def merges(part: OpenPart) -> bool:
    """Whether a query left over in a source's epoch joins the step before it."""
    return learn_together(named_kind(part.config.kind).role, part.source.groups, part.config.negatives)


def inputs_of(part: OpenPart, inputs: Inputs) -> Inputs:
    """Return the model's inputs with the prompts of a source."""
    settings = part.settings
    form: Form = inputs.form.with_instruction(settings.instruction)
    form = form.with_prompts(query=settings.queries_prompt, document=settings.documents_prompt)
    return inputs if form == inputs.form else Inputs(form, inputs.tokenizer)
