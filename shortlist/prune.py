"""Stage `prune`: keep the training groups that are worth their cost."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shortlist.config import NotInJob, flag_of
from shortlist.data.collections import open_collection
from shortlist.data.groups import write_groups
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity, read_manifest
from shortlist.errors import UserError
from shortlist.math.projection import GroupGradients, along, gradient_norms, mean_gradient
from shortlist.math.strata import take_from_strata, to_unit


@dataclass(frozen=True, kw_only=True)
class Config:
    groups: Path
    """Training groups to choose from."""
    collection: str
    """Collection with the texts of documents and queries."""
    model: str
    """Retriever by whose vectors groups are judged: folder or hub name; a small one will do."""
    out: NotInJob[Path]
    """JSONL file of the groups that are kept."""
    size: int | None = None
    """Number of groups to keep (None: a fifth)."""
    split: str = "train"
    """Split of the collection with the groups' queries."""
    dev_groups: Path | None = None
    """Groups that the model should get better at, for the influence of each group on them."""
    dev_split: str | None = None
    """Split of the collection with the queries of --dev-groups or, without these, judged pairs to get better at."""
    effort: float = 0.5
    """Weight of a group's effort beside its influence, both scaled to [0, 1]."""
    hardest: float = 0.1
    """Share of the groups, those that score highest, to leave out first: many have wrong labels."""
    strata: int = 25
    """Number of strata of the score that groups are taken from, about as many from each."""
    temperature: float = 0.05
    """Divides scores in the loss, as in training."""
    contract: str | None = None
    """Input contract by name, for a model folder without one."""
    seed: int = 0
    """Seed of the draw within strata."""
    json: NotInJob[bool] = False
    """Print JSON instead of a table."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def group_scores(groups: GroupGradients, dev: GroupGradients | None, *, effort: float) -> np.ndarray:
    """Score groups by what they would change, and what that does for others.

    Effort is the length of a group's gradient, influence its dot product with the mean gradient of the dev groups, the
    first-order form of an influence function.

    https://arxiv.org/abs/2401.17197
    """
    efforts = to_unit(gradient_norms(groups))
    return efforts if dev is None else to_unit(along(groups, mean_gradient(dev))) + effort * efforts


def run(config: Config) -> None:
    """Score the groups, and write those that are kept."""
    _check(config)
    from shortlist.models.folder import open_folder

    collection = open_collection(config.collection)
    folder = open_folder(config.model, wanted="retriever")
    judged = (f"qrels/{config.dev_split}",) if config.dev_split and config.dev_groups is None else ()
    inputs = {
        "groups": identity(config.groups),
        "collection": collection.identity("corpus", "queries", *judged),
        "model": folder.identity,
    }
    if config.dev_groups is not None:
        inputs["dev_groups"] = identity(config.dev_groups)
    job = start_job(config, JobSpec("prune", inputs))
    if not job.done:
        start = time.perf_counter()
        from shortlist.models.group_gradients import gradients_of, group_gradients, open_source
        from shortlist.models.retriever import Retriever

        retriever: Retriever = Retriever.load(folder, contract=config.contract)
        source = open_source(collection, str(config.groups), config.split)
        size = len(source.groups) // 5 if config.size is None else config.size
        left = len(source.groups) - int(config.hardest * len(source.groups))
        if not 1 <= size <= left:
            raise UserError(
                f"--size is {size}; expected 1 to {left}: {config.groups} has {len(source.groups)} groups, and "
                f"--hardest {config.hardest:g} leaves {left}."
            )
        how: dict[str, Any] = {"temperature": config.temperature, "seed": config.seed}
        gradients, dev = group_gradients(retriever, source, collection, **how), None
        if config.dev_groups is not None or config.dev_split is not None:
            named = None if config.dev_groups is None else str(config.dev_groups)
            dev = gradients_of(retriever, config.collection, named, config.dev_split or config.split, **how)
        scores = group_scores(gradients, dev, effort=config.effort)
        draw = {"num_strata": config.strata, "hardest": config.hardest, "seed": config.seed}
        kept, strata = take_from_strata(scores, size, **draw)
        write_groups(job.out, [source.groups[number] for number in kept.tolist()])
        means = {"mean_loss": float(gradients.losses.mean()), "mean_loss_kept": float(gradients.losses[kept].mean())}
        counts = {"groups": len(scores), "kept": len(kept), "hardest_left_out": len(scores) - left}
        seconds = round(time.perf_counter() - start, 3)
        job.finish({**counts, **means}, strata=[stratum._asdict() for stratum in strata], seconds=seconds)
    results = (read_manifest(config.out) or {})["results"]
    print(json.dumps(results) if config.json else _table(results))


def _table(results: dict[str, Any]) -> str:
    lines = [f"{'score from':>10} {'to':>7} {'groups':>7} {'kept':>6}"]
    for stratum in results["strata"]:
        lines.append(f"{stratum['low']:10.3f} {stratum['high']:7.3f} {stratum['size']:7,} {stratum['taken']:6,}")
    return "\n".join(
        [
            *lines,
            f"kept {results['kept']:,} of {results['groups']:,} groups; {results['hardest_left_out']:,} hardest ones "
            f"were left out first; mean loss {results['mean_loss']:.3f}, of kept ones {results['mean_loss_kept']:.3f}",
        ]
    )


def _check(config: Config) -> None:
    if not 0 <= config.hardest < 1:
        raise UserError(f"--hardest is {config.hardest:g}; expected a share from 0 to below 1.")
    if config.strata < 1:
        raise UserError(f"--strata is {config.strata}; expected at least 1.")
    for name in ("effort", "temperature"):
        if not (value := getattr(config, name)) > 0:
            raise UserError(f"{flag_of(name)} is {value:g}; expected more than 0.")
    if config.effort != Config.effort and config.dev_groups is None and config.dev_split is None:
        raise UserError("--effort is beside influence; name what to get better at by --dev-groups or --dev-split.")
