"""The job of training: what it reads, whether it is done, and its processes."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shortlist.config import settings_of, to_flags
from shortlist.cores import may_have_gpu
from shortlist.data.collections import check_collection, open_collection
from shortlist.data.jobs import JobSpec, is_done
from shortlist.data.manifest import identity
from shortlist.errors import UserError
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import named_kind
from shortlist.settings.feedback import check_feedback
from shortlist.settings.parts import OpenPart, open_parts, settled, source_parts
from shortlist.settings.processes import num_processes
from shortlist.settings.reward import check_reward, with_reward
from shortlist.settings.sources import decided
from shortlist.settings.train import CHECKPOINTS, DRAWING, EVENTS, LOG, Config, check, views_alone
from shortlist.text.prompts import named_prompt
from shortlist.together import run_together


def check_first(config: Config) -> None:
    """Refuse settings, names and paths before PyTorch is loaded.

    Raises:
        UserError: as for `check`, or the collection, the groups or the backbone are missing.
    """
    config = with_reward(config)
    check(config)
    check_reward(config)
    check_feedback(config)
    if config.feedback is not None and not config.feedback.exists():
        raise UserError(f"--feedback {config.feedback}: no such file; expected a run over the training queries.")
    for part in () if config.preferences else source_parts(config):
        check_collection(part.settings.collection)
        groups = str(part.config.groups or "")
        if groups and not groups.startswith("hf:") and not Path(groups).exists():
            what = f"source {part.name!r}: groups" if part.name else "--groups"
            raise UserError(f"{what} {groups}: no such file; expected groups, such as `shortlist mine` writes.")
    open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=False)
    open_guide(config, weights=False)


def open_guide(config: Config, *, weights: bool = True) -> ModelFolder | None:
    """Open the guide's folder; None without a guide.

    Raises:
        UserError: there is no such model, or it is no retriever.
    """
    return open_folder(config.guide, wanted="retriever", weights=weights) if config.guide else None


def with_names(config: Config, backbone: ModelFolder) -> Config:
    """Complete the names of models, so that one model has one name in the job."""
    guide = open_guide(config, weights=False)
    return replace(config, backbone=backbone.name, guide=guide.name if guide else None)


def job_of(config: Config, backbone: ModelFolder, parts: Sequence[OpenPart]) -> JobSpec:
    """Describe the job of training.

    With --sources, it is known by the settings of each source and the identity of all that it reads.
    """
    guide, found = open_guide(config, weights=False), [_identities(part) for part in parts]
    sources = [[part.name, decided(part.settings) | own] for part, own in zip(parts, found, strict=True)]
    named = [place for part in parts for place in (part.config.collection, part.config.groups, part.settings.run)]
    places = named if config.sources else []
    inputs = {
        "backbone": backbone.identity,
        **({"sources": sources} if config.sources else found[0]),
        **_heldout_identity(config),
        **({"guide": guide.identity} if guide else {}),
        **({"feedback": identity(config.feedback)} if config.feedback else {}),
        **({"prompt": named_prompt(config.prompt).digest()} if config.prompt else {}),
    }
    written = f"{CHECKPOINTS}/step-*"
    aside = [LOG, DRAWING, f"{EVENTS}/events*", written]
    reads = [backbone.whole.path, *([guide.whole.path] if guide else [])]
    reads += [path for path in (config.feedback, config.preferences, config.heldout_preferences) if path]
    reads += [Path(place) for place in places if place and Path(place).exists()]
    return JobSpec("train", inputs, folder=True, parts=written, aside=aside, reads=reads)


def _identities(part: OpenPart) -> dict[str, str]:
    """Return the identities of what a source reads."""
    if part.preferences:
        held = part.config.heldout_preferences
        return {"preferences": part.source.identity} | ({"heldout_preferences": identity(held)} if held else {})
    judgements = {"judgements": part.collection.identity(f"qrels/{part.config.split}")} if part.source.judged else {}
    return {
        "collection": part.collection.identity("corpus", *(() if views_alone(part.config) else ("queries",))),
        "groups": part.source.identity,
        **judgements,
    }


def _heldout_identity(config: Config) -> dict[str, str]:
    if config.heldout_collection is None:
        return {}
    parts = ("corpus", "queries", f"qrels/{config.heldout_split}")
    return {"heldout_collection": open_collection(config.heldout_collection).identity(*parts)}


def has_run(config: Config) -> bool:
    """Whether the output is finished, without PyTorch; if so, this prints a message.

    Of the processes that torchrun starts, the first alone may say so, once all have met.
    """
    left = config.keep == 1 and any((config.out / CHECKPOINTS).glob("step-*"))
    if config.dry_run or left or "RANK" in os.environ:
        return False
    config = with_reward(config)
    parts = open_parts(config)
    config = settled(config, parts)
    backbone = open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=False)
    config = with_names(config, backbone)
    return is_done(config, job_of(config, backbone, parts))


def starts(config: Config) -> bool:
    """Start several processes that train, and wait for them; False if one will do.

    Raises:
        UserError: a process fails.
    """
    config = with_reward(config)
    if config.dry_run or "RANK" in os.environ or (processes := num_processes(config)) == 1:
        return False
    settings = settings_of(config) | {"processes": processes}
    flags = to_flags(Config, {name: value for name, value in settings.items() if value is not None}, where="train")
    run_together(["train", *flags], processes, on_gpus=may_have_gpu())
    return True
