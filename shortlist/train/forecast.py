"""Forecast of a training run: steps, tokens, share of cut texts, and memory.

The model's weights are not needed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from shortlist.data.collections import Collection
from shortlist.data.groups import negative_counts
from shortlist.math.sampling import shortfall
from shortlist.models.kinds import for_kind
from shortlist.models.run import pick_device
from shortlist.models.save import Trainable
from shortlist.records import Group, Query
from shortlist.settings.parts import OpenPart
from shortlist.settings.processes import num_processes
from shortlist.settings.train import Config, views_alone
from shortlist.settings.train_job import open_guide
from shortlist.text.inputs import Inputs
from shortlist.train.asking import Asking, make_askings
from shortlist.train.block_asking import BlockAsking
from shortlist.train.build import weights_dtype
from shortlist.train.examples import Batch, batches, num_steps
from shortlist.train.feedback import Revisions
from shortlist.train.gather import World, own_device
from shortlist.train.loop import TOKENS
from shortlist.train.memory import Memory, Pass, step_memory
from shortlist.train.mixture import Mixture, inputs_of, merges
from shortlist.train.objectives import OBJECTIVES
from shortlist.train.optimizers import parse_optimizer
from shortlist.train.preferred import Preferring
from shortlist.train.prompted import Prompted, make_prompted
from shortlist.train.rollout import Sampler
from shortlist.train.settings import compares
from shortlist.train.steps import deal
from shortlist.train.views import change_of

MOST_BATCHES = 64
MOST_TEXTS = 2000
"""Limits of the sample: it has as many whole batches as stay within both, and at least one."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Forecast of a run; numbers that depend on texts come from a sample of batches."""

    parameters: int
    trainable: int
    groups: int
    short_groups: int
    """Groups with fewer negatives than asked for."""
    steps: int
    epochs: float
    processes: int
    texts_per_step: dict[str, float]
    """Number of texts by kind: queries and documents, pairs, or prompts."""
    tokens_per_step: float
    padding: float
    """Padding tokens per real token."""
    tokens: float
    """Tokens in the whole run, without padding."""
    cut: dict[str, float]
    """Share of the texts of each kind that are too long for the contract."""
    longest: dict[str, int]
    """Tokens of the longest text of each kind, before cutting."""
    sampled_batches: int
    sampled_texts: int
    memory: Memory
    """Memory of one process."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        return values

    def lines(self) -> list[str]:
        """Return the forecast in words, line by line."""
        share = _percent(self.trainable / self.parameters)
        texts = " and ".join(f"{count:,.0f} {kind}" for kind, count in self.texts_per_step.items())
        where = f"for each of {self.processes} processes" if self.processes > 1 else "at most"
        rows = [
            ("parameters", f"{self.parameters:,}; {self.trainable:,} of them train ({share})"),
            ("steps", f"{self.steps:,}, or {self.epochs:,.3g} times through {self.groups:,} groups"),
            ("negatives", f"{self.short_groups:,} groups have fewer than asked for"),
            ("a step", texts),
            ("", f"{self.tokens_per_step:,.0f} tokens, and {_percent(self.padding)} of that again as padding"),
            ("tokens", f"{self.tokens:,.0f} in all"),
            *((f"{kind} cut", self._cut_in_words(kind)) for kind in self.cut),
            ("sample", f"what depends on texts is from {self.sampled_texts:,} in {self.sampled_batches:,} batches"),
            ("memory", f"about {_gib(self.memory.total)} GiB {where}: an estimate; allocators keep more"),
            ("", " + ".join(f"{name} {_gib(size)}" for name, size in asdict(self.memory).items())),
        ]
        return [f"{name:<15}{line}" for name, line in rows]

    def _cut_in_words(self, kind: str) -> str:
        return f"{_percent(self.cut[kind])}; the longest has {self.longest[kind]:,} tokens"


def forecast(
    kind: str,
    model: Trainable,
    groups: Sequence[Group],
    queries: Mapping[str, Query],
    collection: Collection,
    *,
    batch_size: int,
    negatives: int | None,
    steps: int,
    merge: bool = False,
    seed: int,
    token_budget: int,
    processes: int = 1,
    sharded: bool = False,
    cached: bool = False,
    device: torch.device | None = None,
    kept: int = 0,
    change: Callable[[Batch], Batch] | None = None,
    asking: Asking | BlockAsking | Sampler | Preferring | None = None,
    prompted: Prompted | None = None,
    revisions: Revisions | None = None,
    **precision: Any,
) -> Forecast:
    """Forecast a run.

    Args:
        kind: kind of model, which decides the objective.
        merge: as for `num_steps`.
        model: with its adapter, and with its layers checkpointed if they will be; may lie on the device `meta`.
        sharded: divide the model among the processes.
        cached: use the grad-cached step.
        device: device it would run on (None: this machine's).
        kept: bytes of weights beside the model's, such as a guide's.
        change: what becomes of each batch before it is trained on (None: nothing).
        asking: asks about groups with a prompt (None: the inputs are those of the kind of model).
        prompted: writes each group's query with its documents, beside a retriever's inputs.
        revisions: writes queries with their first documents, as a feedback encoder's inputs.
        precision: `bf16`, `dtype`, `four_bit` and `optimizer` of `step_memory`.

    Raises:
        UserError: a text that cannot be trained on, such as a query that leaves no room for its document.
    """
    options = {"batch_size": batch_size, "negatives": negatives, "seed": seed}
    drawn = _sample(groups, queries, collection, **options)
    measure = partial(_measure_prompts, asking) if asking else partial(_measure, kind, model, prompted)
    measure = partial(_measure_revisions, revisions) if revisions else measure
    sample = [measure(change(batch) if change else batch) for batch in drawn]
    shares = [_passes(texts, token_budget, processes) for texts in sample]
    first = [by_process[0] for by_process in shares]  # the first process has the largest passes
    worst = max(first, key=lambda passes: _tokens(passes[:1] if cached else passes))
    real = sum(map(sum, (texts.lengths for texts in sample)))
    num_groups = sum(texts.num_groups for texts in sample)
    visits = _visits(len(groups), batch_size, steps, merge=merge)
    size = min(batch_size, len(groups))
    memory = step_memory(
        model,
        worst,
        device=device or pick_device(),
        cached=cached,
        shards=processes if sharded else 1,
        asked=asking.largest if asking else None,
        **precision,
    )
    uncut, cut = _by_kind([texts.uncut for texts in sample]), _by_kind([texts.cut for texts in sample])
    return Forecast(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        groups=len(groups),
        short_groups=shortfall(negative_counts(groups), negatives),
        steps=steps,
        epochs=visits / len(groups),
        processes=processes,
        texts_per_step={kind: len(cut[kind]) / num_groups * size for kind in cut},
        tokens_per_step=real / num_groups * size,
        padding=sum(_tokens(passes) for by_process in shares for passes in by_process) / real - 1,
        tokens=real / num_groups * visits,
        cut={kind: float((uncut[kind] > cut[kind]).mean()) for kind in cut},
        longest={kind: int(uncut[kind].max()) for kind in cut},
        sampled_batches=len(sample),
        sampled_texts=sum(map(len, cut.values())),
        memory=replace(memory, weights=memory.weights + kept),
    )


def foresee_training(
    config: Config, model: Trainable, mixture: Mixture, world: World, revisions: Revisions | None = None
) -> None:
    """Print what training would take, source by source; the model needs no weights.

    Args:
        revisions: as for `forecast`.
    """
    device, inputs = own_device(world), model.inputs
    none = [None] * len(mixture.parts)
    askings = make_askings(config, mixture.parts, model) or none
    prompted = make_prompted(config, mixture.parts, model) or none
    by_source = zip(mixture.parts, mixture.steps_of_each(range(mixture.steps)), askings, prompted, strict=True)
    for part, steps, asking, beside in by_source:
        if part.name:
            print(f"source {part.name}: {len(steps):,} of {mixture.steps:,} steps")
        model.inputs = inputs_of(part, inputs)
        expected = forecast(
            config.kind,
            model,
            part.source.groups,
            part.source.queries,
            part.collection,
            batch_size=config.batch_size,
            negatives=part.config.negatives,
            steps=len(steps),
            merge=merges(part),
            seed=config.seed,
            token_budget=config.token_budget or TOKENS[device.type],
            processes=num_processes(config) if world.size == 1 else world.size,
            sharded=config.sharded,
            cached=config.grad_cache,
            device=device,
            kept=_kept_bytes(config, model, mixture.parts),
            bf16=config.precision == "bf16",
            dtype=weights_dtype(config, device),
            four_bit=config.four_bit,
            optimizer=parse_optimizer(config.optimizer),
            change=change_of(config, 0) if views_alone(config) else None,
            asking=asking,
            prompted=beside,
            revisions=revisions,
        )
        print("\n".join(expected.lines()))


def _kept_bytes(config: Config, model: Trainable, parts: Sequence[OpenPart]) -> int:
    """Count the bytes of weights beside the model: the guide's and those at the start."""
    guide = open_guide(config, weights=False)
    kept = 4 * guide.num_parameters if guide else 0
    if config.feedback:
        kept += 4 * sum(p.numel() for p in model.backbone.parameters())
    if compares(parts):
        kept += 4 * sum(p.numel() for p in model.parameters() if p.requires_grad or not config.adapter)
    return kept


class _Texts(NamedTuple):
    """Token counts of a batch's inputs, by kind: `queries` and `documents`, `pairs`, or `prompts`."""

    num_groups: int
    uncut: dict[str, list[int]]
    cut: dict[str, list[int]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of all inputs of the model, in the order of a step."""
        return [length for lengths in self.cut.values() for length in lengths]


def _visits(num_groups: int, batch_size: int, steps: int, *, merge: bool = False) -> int:
    """Count the groups trained on in `steps` steps; an epoch's last batch may be short."""
    full_epochs, rest = divmod(steps, num_steps(num_groups, batch_size, 1, merge=merge))
    return full_epochs * num_groups + min(rest * batch_size, num_groups)


def _by_kind(lengths: Sequence[Mapping[str, list[int]]]) -> dict[str, np.ndarray]:
    return {kind: np.concatenate([batch_lengths[kind] for batch_lengths in lengths]) for kind in lengths[0]}


def _sample(
    groups: Sequence[Group],
    queries: Mapping[str, Query],
    collection: Collection,
    *,
    batch_size: int,
    negatives: int | None,
    seed: int,
) -> Iterator[Batch]:
    """Yield batches of groups spread over the whole list, within MOST_BATCHES and MOST_TEXTS."""
    counts = negative_counts(groups)
    used = counts if negatives is None else np.minimum(counts, negatives)
    texts = batch_size * (2 + float(used.mean()))
    count = max(1, min(MOST_BATCHES, int(MOST_TEXTS / texts)))
    places = np.linspace(0, len(groups) - 1, min(len(groups), count * batch_size)).round()
    chosen = [groups[int(place)] for place in places]
    options = {"batch_size": batch_size, "negatives": negatives, "seed": seed}
    return batches(chosen, queries, collection, first_step=0, steps=num_steps(len(chosen), batch_size, 1), **options)


def _measure(kind: str, model: Trainable, prompted: Prompted | None, batch: Batch) -> _Texts:
    form = model.inputs.form.uncut()
    uncut, cut = (
        {part: list(map(len, ids)) for part, ids in for_kind(OBJECTIVES, kind).token_ids(inputs, batch).items()}
        for inputs in (Inputs(form, model.inputs.tokenizer), model.inputs)
    )
    if prompted:
        for lengths, each in ((uncut, prompted.uncut), (cut, prompted)):
            lengths["prompts"] = [len(ids) for ids in each.write(batch, rng=np.random.default_rng(0))]
    return _Texts(len(batch.queries), uncut, cut)


def _measure_prompts(asking: Asking | BlockAsking | Sampler | Preferring, batch: Batch) -> _Texts:
    uncut, cut = (
        [len(one.token_ids) for one in each.write(batch, rng=np.random.default_rng(0))]
        for each in (asking.uncut, asking)
    )
    return _Texts(len(batch.queries), {"prompts": uncut}, {"prompts": cut})


def _measure_revisions(revisions: Revisions, batch: Batch) -> _Texts:
    uncut, cut = (
        [len(ids) for ids in each.write(batch, rng=np.random.default_rng(0))[0]]
        for each in (revisions.uncut, revisions)
    )
    return _Texts(len(batch.queries), {"queries": uncut}, {"queries": cut})


def _passes(texts: _Texts, token_budget: int, processes: int) -> list[list[Pass]]:
    """Return the shapes of each process's forward passes."""
    shares = deal(texts.lengths, token_budget, seed=0, processes=processes)
    lengths = np.array(texts.lengths)
    return [[(len(micro.texts), int(lengths[micro.texts].max())) for micro in share] for share in shares]


def _tokens(passes: Sequence[Pass]) -> int:
    return sum(rows * tokens for rows, tokens in passes)


def _percent(share: float) -> str:
    return f"{share:.2%}" if 0 < share < 0.01 else f"{share:.1%}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}" if size >= 2**30 else f"{size / 2**30:.3f}"
