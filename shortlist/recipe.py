"""Command `run`: run the stages of a recipe in order.

Every step writes into its own folder, and steps that are done and unchanged are skipped. A recipe is YAML: `settings`
(names for values, which `--set` changes) and `steps`, which have a stage's settings under the step's name. `$name`
stands for a setting, or for the output of an earlier step.
"""

import gc
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import tyro
import yaml

from shortlist.commands import COMMANDS, GONE, gone_settings
from shortlist.config import from_settings, load_yaml, to_flags
from shortlist.data.files import atomic_write
from shortlist.errors import UserError, unknown
from shortlist.progress import say

OUTPUTS = {
    "index": "",
    "functions": "",
    "init": "",
    "train": "",
    "encode": "",
    "search": "run.trec",
    "rerank": "run.trec",
    "fuse": "run.trec",
    "mine": "groups.jsonl",
    "convert": "",
    "evaluate": "results.json",
    "table": "",
    "diagnose": "diagnosis.json",
    "lengths": "",
    "export": "",
}
"""The stages that a recipe may name, and the file that each stage writes in its step's folder (empty: the folder)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: tyro.conf.Positional[Path]
    """YAML file of the recipe; the project's recipes are in recipes/."""
    out: Path
    """Folder for the outputs, with a folder for each step."""
    set: tuple[str, ...] = ()
    """Settings of the recipe to change, as name=value."""
    processes: int = 1
    """Processes on this machine that train together, one per GPU; all other steps run in one."""


class Stage(NamedTuple):
    """A step of a recipe, ready to run."""

    name: str
    stage: str
    config: Any


def plan(recipe: Mapping[str, Any], out: Path, *, where: str) -> list[Stage]:
    """Check a whole recipe and fill in the values of its names, before anything runs.

    Args:
        where: path of the recipe's file, for errors; a step's `recipe:` is relative to its folder.

    Raises:
        UserError: a stage, setting or `$name` does not exist.
    """
    for section in recipe.keys() - {"settings", "steps"}:
        raise UserError(f"{where}: {unknown('section', section, ['settings', 'steps'])}")
    for section in ("settings", "steps"):
        if not isinstance(recipe.get(section) or {}, dict):
            raise UserError(f"{where}: {section} holds {recipe[section]!r}; expected `name: value` lines.")
    values: dict[str, Any] = dict(recipe.get("settings") or {})
    steps = []
    for name, given in (recipe.get("steps") or {}).items():
        at = f"{where}: step {name!r}"
        if not isinstance(given, dict) or len(given.keys() & {"stage", "recipe"}) != 1:
            raise UserError(f"{at}: expected settings with `stage:`, one of {', '.join(OUTPUTS)}, or `recipe:`.")
        if name in values:
            raise UserError(f"{at}: the name is taken by a setting or an earlier step; choose another.")
        settings = {key: _resolve(value, values, at) for key, value in given.items() if key not in ("stage", "recipe")}
        if "recipe" in given:
            inside = _inside(name, Path(where).parent / given["recipe"], settings, out / name)
        else:
            inside = [_step(name, given["stage"], settings, out / name, at)]
        steps += inside
        values |= {step.name: str(step.config.out) for step in inside}
    if not steps:
        raise UserError(f"{where}: has no steps.")
    return steps


def _step(name: str, stage: str, settings: dict[str, Any], folder: Path, at: str) -> Stage:
    if stage in GONE:
        raise UserError(f"{at}: stage `{stage}` is now `{GONE[stage]}`.")
    if stage not in OUTPUTS:
        raise UserError(f"{at}: {unknown('stage', stage, OUTPUTS)}")
    settings |= {"out": str(folder / OUTPUTS[stage]), "overwrite": True}
    return Stage(name, stage, from_settings(_module(stage).Config, settings, where=at, gone=gone_settings(stage)))


def _module(stage: str) -> Any:
    return import_module(f"shortlist.{COMMANDS[stage].module}")


def _inside(name: str, path: Path, settings: Mapping[str, Any], folder: Path) -> list[Stage]:
    """Plan a recipe that is a step of another one.

    The given settings replace those of the recipe, and its steps are called NAME/STEP.
    """
    recipe = load_yaml(path)
    defaults = recipe.get("settings") or {}
    for setting in settings.keys() - defaults.keys():
        raise UserError(f"step {name!r}: {path}: {unknown('setting', setting, defaults)}")
    steps = plan({**recipe, "settings": {**defaults, **settings}}, folder, where=str(path))
    return [step._replace(name=f"{name}/{step.name}") for step in steps]


def _resolve(value: Any, values: Mapping[str, Any], at: str) -> Any:
    """Replace `$name` by its value, in lists too.

    A value may be another `$name`, but not in a circle.
    """
    if isinstance(value, list):
        return [_resolve(item, values, at) for item in value]
    if not isinstance(value, str) or not value.startswith("$"):
        return value
    name = value[1:]
    if name not in values:
        raise UserError(f"{at}: {unknown('setting or earlier step', name, values)}")
    return _resolve(values[name], {other: v for other, v in values.items() if other != name}, at)


def run_steps(steps: list[Stage], *, processes: int = 1) -> None:
    """Run the steps in order.

    A step whose work is done and unchanged says so and does nothing.

    Args:
        processes: number of processes that train together; with more than one, training runs in new processes.
    """
    for number, step in enumerate(steps, start=1):
        say(f"[{number}/{len(steps)}] {step.name}")
        start = time.perf_counter()
        if step.stage == "train" and processes > 1:
            _train_together(step, processes)
        else:
            _module(step.stage).run(step.config)
        gc.collect()  # models are in reference cycles; free one step's memory before the next step
        seconds = time.perf_counter() - start
        if seconds > 1:
            say(f"[{number}/{len(steps)}] {step.name}: {seconds:.0f} s")


def _train_together(step: Stage, processes: int) -> None:
    """Run a training step under torchrun."""
    settings = {name: value for name, value in asdict(step.config).items() if value is not None}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    flags = to_flags(type(step.config), settings, where=step.name)
    if subprocess.run([*launcher, "-m", "shortlist", "train", *flags]).returncode:
        raise UserError(f"step {step.name!r}: training stopped, as said above; the same command continues it.")


def run(config: Config) -> None:
    """Run a recipe file."""
    recipe = load_yaml(config.recipe)
    settings = recipe.get("settings") or {}
    for item in config.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {item}: expected name=value.")
        if name not in settings:
            raise UserError(f"--set {item}: {unknown('setting', name, settings)}")
        settings = {**settings, name: yaml.safe_load(value)}
    run_recipe({**recipe, "settings": settings}, config.out, where=str(config.recipe), processes=config.processes)


def run_recipe(recipe: Mapping[str, Any], out: Path, *, where: str, processes: int = 1) -> None:
    """Run a recipe into a folder and keep a copy of it there."""
    steps = plan(recipe, out, where=where)
    with atomic_write(out / "recipe.yaml") as file:
        yaml.safe_dump(dict(recipe), file, sort_keys=False)
    run_steps(steps, processes=processes)
