"""Command `run`: run the stages of a recipe in order.

Every step writes into its own folder, and steps that are done and unchanged are skipped. A recipe is YAML: `settings`
(names for values, which `--set` changes) and `steps`, which have a stage's settings under the step's name. `$name`
stands for a setting, or for the output of an earlier step.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import tyro
import yaml

from shortlist.commands import COMMANDS, GONE, carry_out, gone_settings
from shortlist.config import from_settings, load_yaml
from shortlist.data.claims import claim_output
from shortlist.data.files import atomic_write
from shortlist.errors import UserError, unknown
from shortlist.foresight import foresee
from shortlist.late import late
from shortlist.progress import say

OUTPUTS = {
    "index": "",
    "functions": "",
    "init": "",
    "train": "",
    "average": "",
    "encode": "",
    "search": "run.trec",
    "rerank": "run.trec",
    "heads": "heads.json",
    "fuse": "run.trec",
    "follow": "run.trec",
    "cut": "run.trec",
    "diversify": "run.trec",
    "tune": "",
    "mine": "groups.jsonl",
    "convert": "",
    "queries": "",
    "preferences": "preferences.jsonl",
    "aspects": "",
    "select": "",
    "prune": "groups.jsonl",
    "mix": "sources.yaml",
    "evaluate": "results.json",
    "table": "",
    "agree": "agreement.json",
    "pool": "pool.tsv",
    "judge": "judgements.tsv",
    "diagnose": "diagnosis.json",
    "lengths": "",
    "export": "",
    "report": "report.html",
}
"""The stages that a recipe may name, and the file that each stage writes in its step's folder (empty: the folder)."""

OF_ACTIONS = {("cut", "calibrate"): "rule.json"}
"""The files of stages that write another one for some action."""

COPY = "recipe.yaml"
"""The file in --out that keeps the recipe as it was run."""


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: tyro.conf.Positional[Path]
    """YAML file of the recipe; the project's recipes are in recipes/."""
    out: Path
    """Folder for the outputs, with a folder for each step."""
    set: tuple[str, ...] = ()
    """Settings of the recipe to change, as name=value."""
    processes: int | None = None
    """Processes on this machine that train together, one per GPU (None: as `train` chooses); all other steps run in
    one."""
    dry_run: bool = False
    """Print which steps are done, which data and models are here or must be fetched, the free disk space and the
    estimates of training, without running or writing anything."""


class Stage(NamedTuple):
    """A step of a recipe, ready to run."""

    name: str
    stage: str
    config: Any


def plan(recipe: Mapping[str, Any], out: Path, *, where: str, within: tuple[Path, ...] = ()) -> list[Stage]:
    """Check a whole recipe and fill in the values of its names, before anything runs.

    Args:
        where: path of the recipe's file, for errors; a step's `recipe:` is relative to its folder.
        within: the recipes that this one is a part of, and this one.

    Raises:
        UserError: a stage, setting or `$name` does not exist, or a step would write outside of `out`.
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
        _check_name(name, at)
        if not isinstance(given, dict) or len(given.keys() & {"stage", "recipe"}) != 1:
            raise UserError(f"{at}: expected settings with `stage:`, one of {', '.join(OUTPUTS)}, or `recipe:`.")
        if name in values:
            raise UserError(f"{at}: the name is taken by a setting or an earlier step; choose another.")
        settings = {key: _resolve(value, values, at) for key, value in given.items() if key not in ("stage", "recipe")}
        if "recipe" in given:
            path = Path(where).parent / str(given["recipe"])
            if path.resolve() in within:
                raise UserError(f"{at}: {path} has itself among its steps; a recipe cannot be part of itself.")
            inside = _inside(name, path, settings, out / name, (*within, path.resolve()))
        else:
            inside = [_step(name, given["stage"], settings, out / name, at)]
        steps += inside
        values |= {step.name: str(step.config.out) for step in inside}
    if not steps:
        raise UserError(f"{where}: has no steps.")
    return steps


def _check_name(name: Any, at: str) -> None:
    """Refuse a step whose name cannot be a folder inside --out."""
    plain = isinstance(name, str) and name.isprintable() and Path(name).name == name != ""
    if not plain or name.startswith(".") or name == COPY:
        raise UserError(f"{at}: is the name of its folder in --out; expected a word without / and not {COPY}.")


def _step(name: str, stage: str, settings: dict[str, Any], folder: Path, at: str) -> Stage:
    if stage in GONE:
        raise UserError(f"{at}: stage `{stage}` is now `{GONE[stage]}`.")
    if stage not in OUTPUTS:
        raise UserError(f"{at}: {unknown('stage', stage, OUTPUTS)}")
    if "out" in settings:
        raise UserError(f"{at}: `out` cannot be set; a step writes into the folder of its name in --out.")
    settings = {"overwrite": True} | settings | {"out": str(folder / written_by(stage, settings))}
    config = import_module(COMMANDS[stage].light).Config
    return Stage(name, stage, from_settings(config, settings, where=at, gone=gone_settings(stage)))


def written_by(stage: str, settings: Mapping[str, Any]) -> str:
    """Return the name of the file that a step writes; empty: its folder."""
    return OF_ACTIONS.get((stage, str(settings.get("action"))), OUTPUTS[stage])


def _inside(name: str, path: Path, settings: Mapping[str, Any], folder: Path, within: tuple[Path, ...]) -> list[Stage]:
    """Plan a recipe that is a step of another one.

    The given settings replace those of the recipe, and its steps are called NAME/STEP.
    """
    recipe = load_yaml(path)
    defaults = recipe.get("settings") or {}
    for setting in settings.keys() - defaults.keys():
        raise UserError(f"step {name!r}: {path}: {unknown('setting', setting, defaults)}")
    steps = plan({**recipe, "settings": {**defaults, **settings}}, folder, where=str(path), within=within)
    return [step._replace(name=f"{name}/{step.name}") for step in steps]


def _resolve(value: Any, values: Mapping[str, Any], at: str) -> Any:
    """Replace `$name` by its value, in lists and mappings too.

    A value may be another `$name`, but not in a circle.
    """
    if isinstance(value, list):
        return [_resolve(item, values, at) for item in value]
    if isinstance(value, dict):
        return {key: _resolve(item, values, at) for key, item in value.items()}
    if not isinstance(value, str) or not value.startswith("$"):
        return value
    name = value[1:]
    if name not in values:
        raise UserError(f"{at}: {unknown('setting or earlier step', name, values)}")
    return _resolve(values[name], {other: v for other, v in values.items() if other != name}, at)


def check_folders(steps: list[Stage], out: Path) -> None:
    """Check that every step's folder is inside `out` and the recipe's own.

    Within it a step may replace what a step of the same name has left there, and nothing else.

    Raises:
        UserError: a step's folder is a link, or is there although no recipe was run into `out`.
    """
    for step in steps:
        parts = step.name.split("/")
        folders = [out.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
        if links := [folder for folder in folders if folder.is_symlink()]:
            raise UserError(f"step {step.name!r}: {links[0]} is a link; a step writes into a folder of its own.")
        if folders[0].exists() and not (out / COPY).exists() and (folders[0].is_file() or any(folders[0].iterdir())):
            raise UserError(
                f"step {step.name!r}: {folders[0]} is there already, and no recipe has made it (there is no "
                f"{out / COPY}); move it away, or choose another --out."
            )


def run_steps(steps: list[Stage], *, processes: int | None = None) -> None:
    """Run the steps in order.

    A step whose work is done and unchanged says so and does nothing.

    Args:
        processes: number of processes that train together (None: as each step says).
    """
    with collecting() as collect:
        for number, step in enumerate(steps, start=1):
            say(f"[{number}/{len(steps)}] {step.name}")
            start = time.perf_counter()
            together = step.stage == "train" and processes is not None
            carry_out(step.stage, replace(step.config, processes=processes) if together else step.config)
            collect()
            seconds = time.perf_counter() - start
            if seconds > 1:
                say(f"[{number}/{len(steps)}] {step.name}: {seconds:.0f} s")


@contextmanager
def collecting() -> Iterator[Callable[[], None]]:
    """Yield a function that frees what was made since its last call.

    Models are in reference cycles. Only what is new is looked at, as all that was imported takes long to look at.
    """
    frozen = gc.get_freeze_count()  # which counts them one by one
    gc.freeze()

    def collect() -> None:
        gc.collect()
        gc.freeze()

    try:
        yield collect
    finally:
        if not frozen:
            gc.unfreeze()


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
    recipe = {**recipe, "settings": settings}
    if config.dry_run:
        foresee(plan_of(recipe, config.out, where=str(config.recipe)), config.out, late("train", "run"))
        return
    run_recipe(recipe, config.out, where=str(config.recipe), processes=config.processes)


def plan_of(recipe: Mapping[str, Any], out: Path, *, where: str) -> list[Stage]:
    """Plan a whole recipe and check its folders.

    Raises:
        UserError: as for `plan` and `check_folders`.
    """
    steps = plan(recipe, out, where=where, within=(Path(where).resolve(),))
    check_folders(steps, out)
    return steps


def run_recipe(recipe: Mapping[str, Any], out: Path, *, where: str, processes: int | None = None) -> None:
    """Run a recipe into a folder and keep a copy of it there."""
    steps = plan_of(recipe, out, where=where)
    with claim_output(out, folder=True, stage="run"):
        with atomic_write(out / COPY) as file:
            yaml.safe_dump(dict(recipe), file, sort_keys=False)
        run_steps(steps, processes=processes)
