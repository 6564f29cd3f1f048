"""Forecast of a recipe: steps that are left, names to fetch, free disk space."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shortlist.data.jobs import recorded
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.models.shipped import shipped_folder
from shortlist.progress import duration, size
from shortlist.settings.sources import parse_sources

STATES = {"new": "to do", "other": "to do again: its settings changed", "begun": "to be finished"}
MODELS = ("model", "backbone", "reranker", "guide")
"""Settings of stages that name a model."""


def foresee(steps: Sequence[Any], out: Path, estimate: Callable[[Any], None]) -> None:
    """Print what is done, what is left, and what must be fetched.

    Args:
        steps: the recipe's steps, with name, stage and config.
        out: folder of the recipe's outputs.
        estimate: prints what a training step would take.
    """
    left = dict(unfinished(steps))
    for step in steps:
        print(f"{step.name:24} {step.stage:10} {left.get(step.name) or _done(step)}")
    wanted = [step for step in steps if step.name in left]
    outputs = {str(step.config.out) for step in steps}
    for name, where in named(wanted, outputs).items():
        print(f"needs {name}: {where}")
    folder = next(path for path in (out.resolve(), *out.resolve().parents) if path.exists())
    print(f"disk: {size(shutil.disk_usage(folder).free)} free in {folder}")
    for step in wanted:
        if step.stage == "train":
            print(f"\n{step.name}, estimated:")
            try:
                estimate(replace(step.config, dry_run=True))
            except UserError as error:
                print(f"  not known before the steps that it reads from are done ({error})")


def unfinished(steps: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield the steps to run, each with its state or the step before it."""
    redone: dict[str, str] = {}
    for step in steps:
        state = recorded(step.config, stage=step.stage)
        before = next((name for value in _values(step.config) if (name := _from(value, redone))), None)
        if state != "done" or before:
            redone[str(step.config.out)] = step.name
            yield step.name, STATES[state] if state != "done" else f"to do again: {before} comes before it"


def named(steps: Sequence[Any], outputs: set[str]) -> Mapping[str, str]:
    """Find the collections and models that the steps name, and where they are."""
    found = {}
    for step in steps:
        settings = asdict(step.config)
        mixed = _collections(settings["sources"]) if step.stage == "train" else []
        collections = [settings.get("collection"), *mixed]
        names = [(name, _where_collection) for name in collections]
        names += [(settings.get(field), _where_model) for field in MODELS]
        for name, where in names:
            if isinstance(name, str) and not any(name == each or Path(each) in Path(name).parents for each in outputs):
                found[name] = where(name)
    return found


def _collections(sources: Any) -> list[str]:
    """Return the collections that a mapping or a file of sources names."""
    return [source.collection for source in parse_sources(sources).values()] if sources else []


def _values(config: Any) -> Iterator[str]:
    for name, value in asdict(config).items():
        if name != "out":
            yield from map(str, _leaves(value))


def _leaves(value: Any) -> list[Any]:
    """Return the settings inside lists and mappings, some of them JSON in a Config."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return [value] if values is None else [leaf for inner in values for leaf in _leaves(inner)]


def _from(value: str, redone: Mapping[str, str]) -> str | None:
    """Return the step that makes this path anew, if one does."""
    return next((name for out, name in redone.items() if value == out or Path(out) in Path(value).parents), None)


def _done(step: Any) -> str:
    seconds = (read_manifest(Path(step.config.out)) or {}).get("results", {}).get("seconds")
    return f"done, in {duration(seconds)}" if seconds else "done"


def _where_collection(name: str) -> str:
    if name.startswith(("irds:", "hf:")):
        return "fetched by its name, unless it is on this machine already"
    return "here" if Path(name).is_dir() else "missing: no such folder"


def _where_model(name: str) -> str:
    if Path(name).is_dir() or shipped_folder(name):
        return "here"
    if name.count("/") > 1 or name.startswith((".", "/")):
        return "missing: no such folder"
    from huggingface_hub import try_to_load_from_cache

    cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    return "here, in the hub's cache" if cached else "to be fetched from the hub"
