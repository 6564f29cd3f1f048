"""Stage `mix`: find out how much of each source to train on for a target."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float

from shortlist.config import NotInJob, load_yaml
from shortlist.data.collections import open_collection
from shortlist.data.files import atomic_write
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity, read_manifest
from shortlist.errors import UserError
from shortlist.math.lasso import positive_lasso
from shortlist.math.projection import GroupGradients, mean_gradient, products_of_means
from shortlist.progress import say
from shortlist.settings.sources import SourceSettings, parse_sources

PENALTIES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.01, 0.0)
"""Penalties to try, as shares of the least one with which no source is used."""


@dataclass(frozen=True, kw_only=True)
class Config:
    sources: Path
    """YAML file of sources, as `train --sources` reads it."""
    model: str
    """Retriever that training would begin with: folder or hub name."""
    collection: str
    """Collection of the target."""
    out: NotInJob[Path]
    """YAML file to write: the sources that help, with their weights, for `train --sources`."""
    groups: Path | None = None
    """Groups of the target (None: the judged pairs of --split)."""
    split: str = "dev"
    """Split of the target's queries; it should not be the one to evaluate on."""
    most: int = 1000
    """Most groups of each source, and of the target, to read, drawn at random."""
    temperature: float = 1.0
    """Divides scores in the loss. With a low one, as in training, the few groups that the model gets wrong decide, and
    their noise hides what a source is about."""
    contract: str | None = None
    """Input contract by name, for a model folder without one."""
    seed: int = 0
    """Seed of the draws."""
    json: NotInJob[bool] = False
    """Print JSON instead of a table."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


_NOISE = 0.9
"""Error above which a mixture says little: half of the blends that lacked their sources had .93, with them .5."""


class Mixed(NamedTuple):
    """Shares of the sources in a mixture for a target."""

    shares: Float[np.ndarray, " sources"]
    """Shares of the sources, which add up to 1; all 0 if none helps."""
    path: list[dict[str, Any]]
    """For each penalty its weights, and the error on the half of the target that they were not fitted to, as a share of
    the squared length of its gradient."""


def mix(sources: list[GroupGradients], target: GroupGradients) -> Mixed:
    """Write the target's mean gradient as a sum of the sources' gradients.

    Few weights are used, and none below 0.

    The penalty on the sum of weights is the one whose weights, fitted to one half of the target's groups, come nearest
    to the gradient of the other half. Distances are those between gradients of endless groups, as far as these groups
    tell: the noise of a source's mean is taken out of its length, and that of the target is in no product of halves.

    https://arxiv.org/abs/2212.00570
    """
    columns = np.stack([mean_gradient(source).ravel() for source in sources], axis=1)
    products, halves = products_of_means(sources), [_half(target, start) for start in (0, 1)]
    length = float(halves[0] @ halves[1])
    length = length if length > 0 else float(sum(half @ half for half in halves))  # all of it is noise
    fits = [columns.T @ half for half in (*halves, mean_gradient(target).ravel())]
    largest, path = max(float(fits[2].max()), 0.0), []
    for penalty in PENALTIES:
        first, second, weights = (positive_lasso(products, fit, penalty * largest) for fit in fits)
        errors = [
            1 + float(fitted @ products @ fitted - 2 * fitted @ other) / max(1e-30, length)
            for fitted, other in ((first, fits[1]), (second, fits[0]))
        ]
        path.append({"penalty": penalty, "weights": weights.tolist(), "error": float(np.mean(errors))})
    best = min(path, key=lambda step: step["error"])
    path = [step | {"error": max(0.0, step["error"])} for step in path]  # below 0 where the length is mostly noise
    total = sum(best["weights"])
    return Mixed(np.array(best["weights"]) / total if total else np.zeros(len(sources)), path)


def _half(target: GroupGradients, start: int) -> Float[np.ndarray, " entries"]:
    return mean_gradient(GroupGradients(*(part[start::2] for part in target))).ravel()


def run(config: Config) -> None:
    """Read the sources and the target, and write the mixture."""
    if config.most < 2 or config.temperature <= 0:
        raise UserError(
            f"--most is {config.most}, --temperature {config.temperature:g}; expected 2 or more, and more than 0."
        )
    from shortlist.models.folder import open_folder

    sources = parse_sources(str(config.sources))
    for name, source in sources.items():
        if source.run is not None:
            raise UserError(f"{config.sources}: source {name!r} is a run without positives; expected groups.")
    folder = open_folder(config.model, wanted="retriever")
    inputs: dict[str, Any] = {"sources": [identity(config.sources), *map(_identity, sources.values())]}
    inputs |= {"model": folder.identity}
    judged = (f"qrels/{config.split}",) if config.groups is None else ()
    inputs |= {"collection": open_collection(config.collection).identity("corpus", "queries", *judged)}
    if config.groups is not None:
        inputs["groups"] = identity(config.groups)
    job = start_job(config, JobSpec("mix", inputs))
    if not job.done:
        start = time.perf_counter()
        from shortlist.models.retriever import Retriever

        retriever = Retriever.load(folder, contract=config.contract)
        named = None if config.groups is None else str(config.groups)
        target, _ = _gradients(config, retriever, config.collection, named, config.split)
        if len(target.losses) < 4:
            raise UserError(f"{named or config.collection}: {len(target.losses)} groups; expected 4 or more.")
        read = [
            _gradients(config, retriever, source.collection, source.groups, source.split or "train")
            for source in sources.values()
        ]
        mixed = mix([gradients for gradients, _ in read], target)
        sizes = [size for _, size in read]
        error = min(step["error"] for step in mixed.path)
        if error == 0 or error > _NOISE:
            what = f"the sources say {1 - error:.1%} of what the target does, which is little"
            what = "the target's gradient is mostly noise, and the error tells nothing" if error == 0 else what
            say(f"mix: {what}. Bring more groups (--most), a model nearer to the texts, or other sources.")
        _write(config, mixed, list(sources), sizes)
        shares = dict(zip(sources, mixed.shares.tolist(), strict=True))
        seconds = round(time.perf_counter() - start, 3)
        job.finish(
            {"shares": shares, "groups": dict(zip(sources, sizes, strict=True))}, path=mixed.path, seconds=seconds
        )
    results = (read_manifest(config.out) or {})["results"]
    print(json.dumps(results) if config.json else _table(results))


def _identity(source: SourceSettings) -> str:
    collection = open_collection(source.collection)
    if source.groups:
        return f"{collection.identity('corpus', 'queries')} {identity(source.groups)}"
    return collection.identity("corpus", "queries", f"qrels/{source.split or 'train'}")


def _gradients(
    config: Config, retriever: Any, collection: str, groups: str | None, split: str
) -> tuple[GroupGradients, int]:
    """Return the gradients of some groups, and the number of all."""
    from shortlist.models.group_gradients import group_gradients, open_source

    opened = open_collection(collection)
    source = open_source(opened, groups, split)
    size = len(source.groups)
    some = np.random.default_rng(config.seed).permutation(size)[: config.most]
    part = source._replace(groups=[source.groups[number] for number in some.tolist()])
    say(f"mix: {groups or f'{collection} {split}'}: {len(some):,} of {size:,} groups.")
    return group_gradients(retriever, part, opened, temperature=config.temperature, seed=config.seed), size


def _write(config: Config, mixed: Mixed, names: list[str], sizes: list[int]) -> None:
    """Write the sources that help, with factors of their numbers of groups."""
    if not mixed.shares.any():
        raise UserError(
            f"no source points where the target does, as far as {config.collection}'s groups tell; bring more of them "
            "(--most), or other sources."
        )
    given = load_yaml(config.sources)
    kept = {
        name: given[name] | {"weight": round(float(share) * sum(sizes) / size, 6)}
        for name, share, size in zip(names, mixed.shares, sizes, strict=True)
        if share > 0
    }
    with atomic_write(config.out) as file:
        yaml.safe_dump(kept, file, sort_keys=False)


def _table(results: dict[str, Any]) -> str:
    names = list(results["shares"])
    width = max(8, *map(len, names))
    lines = ["penalty " + " ".join(f"{name:>{width}}" for name in names) + "   error"]
    for step in results["path"]:
        cells = " ".join(f"{weight:{width}.3f}" if weight else " " * (width - 1) + "-" for weight in step["weights"])
        lines.append(f"{step['penalty']:7.2f} {cells} {step['error']:7.4f}")
    shares = sorted(((share, name) for name, share in results["shares"].items() if share > 0), reverse=True)
    return "\n".join([*lines, "mix: " + " ".join(f"{name}={share:.2f}" for share, name in shares)])
