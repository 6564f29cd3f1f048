"""Descriptions of pipelines, read from YAML, with every field checked."""

import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from shortlist.config import keyword_types, load_yaml
from shortlist.data.rules import read_rule
from shortlist.errors import UserError, unknown
from shortlist.pipeline.steps import STEPS, StepKind

TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}
OPTIONS = {"of": tuple[str, ...], "depth": int, "share": float, "drop": float, "search": str}
"""Options of a step, besides the settings of its method."""
BUDGETS = ("budget_ms", "target_quality", "costs")
"""Fields of a description that choose its numbers."""


class Part(NamedTuple):
    """A step of a description."""

    name: str
    kind: str
    """A key of `STEPS`."""
    method: str
    """Method of the kind, such as `bm25` in `find: bm25`."""
    settings: Mapping[str, Any] = {}
    """Settings of the method."""
    of: tuple[str, ...] = ()
    depth: int | None = None
    share: float = 1.0
    drop: float = 1.0
    search: str | None = None
    """The first stage that the step searches, with other queries."""


OWN_WORDS = Part("bm25", "find", "bm25")
"""The step that searches the words of a collection's own index."""


class Description(NamedTuple):
    """A pipeline as it is written in a YAML file.

    A step that finds documents but names no index searches the collection's own (`pipeline.own`).
    """

    steps: tuple[Part, ...]
    """The steps in order; they may read earlier steps, and the last step's run is the answer."""
    collection: str | None = None
    """Folder, `irds:` or `hf:` name."""
    budget_ms: float | None = None
    """Most milliseconds that a query is expected to take (None: as the steps are described)."""
    target_quality: float | None = None
    """Least quality, as `shortlist tune` measures it, to be had for as little time as possible (None: no least)."""
    costs: Path | None = None
    """With a budget or a target: costs.json of `shortlist tune`, which says what can be had for how much."""


def read_description(path: str | Path, *, collection: str | None = None) -> Description:
    """Read the description in a YAML file.

    Args:
        path: the file, or what would be in it as JSON, as steps of a recipe have it.
        collection: replaces the collection in the file.

    Raises:
        UserError: a field is missing, unknown, or does not fit.
    """
    if str(path).lstrip().startswith("{"):
        try:
            content = json.loads(str(path))
        except json.JSONDecodeError as error:
            raise UserError(f"pipeline {str(path)[:40]!r}...: is not JSON ({error}); expected a YAML file.") from None
        return parse_description(content, where="pipeline", collection=collection)
    return parse_description(load_yaml(Path(path)), where=str(path), collection=collection)


def parse_description(content: Mapping[str, Any], *, where: str, collection: str | None = None) -> Description:
    """Parse a description from a mapping.

    Args:
        where: the mapping's name in errors.
        collection: replaces the collection in the mapping.

    Raises:
        UserError: as for `read`.
    """
    for name in content:
        if name not in Description._fields:
            raise UserError(f"{where}: {unknown('field', str(name), Description._fields)}")
    found, steps = content.get("collection"), content.get("steps")
    if not isinstance(found, str | None):
        raise UserError(f"{where}: collection is {found!r}; expected a folder, `irds:` or `hf:` name.")
    budget = _budget(content, where)
    if "steps" not in content and (collection or found):
        return Description((OWN_WORDS,), collection or found, *budget)
    if not isinstance(steps, Mapping) or not steps:
        raise UserError(f"{where}: steps is {steps!r}; expected names with a step each, see docs/pipelines.md.")
    parts: list[Part] = []
    for name, given in steps.items():
        parts.append(_part(str(name), given, parts, f"{where}: steps.{name}"))
    return _checked(Description(tuple(parts), collection or found, *budget), where)


def _budget(content: Mapping[str, Any], where: str) -> tuple[float | None, float | None, Path | None]:
    """Read the budget or the target, and the file of costs that goes with it."""
    wanted = {"budget_ms": float, "target_quality": float, "costs": Path}
    budget, target, costs = (
        None if content.get(name) is None else convert(content[name], wanted[name], f"{where}: {name}")
        for name in wanted
    )
    return budget, target, costs


def written(description: Description) -> dict[str, Any]:
    """Write a description as a mapping that `parse` reads back."""
    steps = {}
    for part in description.steps:
        said: dict[str, Any] = {part.kind: part.method}
        said |= {name: _plain(value) for name, value in part.settings.items()}
        said |= {"of": list(part.of)} if part.of else {}
        said |= {"search": part.search} if part.search else {}
        said |= {"depth": part.depth} if part.depth is not None else {}
        said |= {name: value for name in ("share", "drop") if (value := getattr(part, name)) != 1}
        steps[part.name] = said
    said = {name: _plain(getattr(description, name)) for name in ("collection", *BUDGETS)}
    return {name: value for name, value in said.items() if value is not None} | {"steps": steps}


def _part(name: str, fields: Any, earlier: Sequence[Part], where: str) -> Part:
    if not isinstance(fields, Mapping):
        raise UserError(f"{where} is {fields!r}; expected settings, such as {{find: bm25, index: work/bm25}}.")
    kinds = [field for field in fields if field in STEPS]
    if fields and not kinds:
        raise UserError(f"{where}: {unknown('kind of step', str(next(iter(fields))), STEPS)}")
    if len(kinds) != 1:
        found = ", ".join(map(str, fields)) or "nothing"
        raise UserError(f"{where}: found {found}; expected one of {', '.join(STEPS)}, and its settings.")
    kind, method = STEPS[kinds[0]], fields[kinds[0]]
    methods = kind.methods()
    if not isinstance(method, str) or method not in methods:
        raise UserError(f"{where}: {unknown(kinds[0], str(method), methods)}")
    what = f"{kinds[0]}: {method}"
    known = known_settings(methods[method])
    options = {option: OPTIONS[option] for option in _options(kind, method) if option not in known}
    values: dict[str, Any] = {}
    for field, value in fields.items():
        if field == kinds[0]:
            continue
        if field not in known and field not in options:
            raise UserError(f"{where}: {unknown(f'setting of `{what}`', str(field), [*known, *options])}")
        wanted = known[field][0] if field in known else options[field]
        values[field] = convert(value, wanted, f"{where}: {field}")
    for field, (_, needed) in known.items():
        if needed and field not in values:
            raise UserError(f"{where}: {field} is missing; `{what}` takes it.")
    chosen = {option: values.pop(option) for option in options if option in values}
    chosen["of"] = _read_by(kind, chosen.get("of"), earlier, where)
    if method in kind.searching:
        chosen["search"] = _searched_by(chosen.get("search"), chosen["of"], earlier, where)
    return Part(name, kinds[0], method, values, **chosen)


def _options(kind: StepKind, method: str) -> list[str]:
    """List the options of a step, besides the settings of its method."""
    reads, mixes = [] if kind.num_read == 0 else ["of"], ["share", "drop"] if kind.mixes else []
    return [*reads, "depth", *mixes, *(["search"] if method in kind.searching else [])]


def known_settings(method: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """List a method's settings, with their types and whether they are required."""
    return {name: found for name, found in keyword_types(method).items() if can_be_written(found[0])}


def can_be_written(wanted: Any) -> bool:
    """Whether a value of this type can stand in a description."""
    origin, choices = get_origin(wanted), [choice for choice in get_args(wanted) if choice not in (type(None), ...)]
    if origin in (Union, types.UnionType):
        return any(map(can_be_written, choices))
    if origin in (tuple, Sequence):
        return all(map(can_be_written, choices))
    return origin is Literal or wanted in TYPE_NAMES


def convert(value: Any, wanted: Any, where: str) -> Any:
    """Convert a value from YAML to the wanted type.

    Raises:
        UserError: the value does not fit the type.
    """
    origin, choices = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        return convert(value, next(choice for choice in choices if can_be_written(choice)), where)
    if origin is Literal:
        if value not in choices:
            raise UserError(f"{where}: {unknown('value', str(value), map(str, choices))}")
        return value
    if origin is not None and issubclass(origin, Sequence):  # of numbers, or of names
        if isinstance(value, str) and choices[0] is str:
            return (value,)
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            raise UserError(f"{where} is {value!r}; expected a list, such as [a, b].")
        return tuple(convert(item, choices[0], where) for item in value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise UserError(f"{where} is {value!r}; expected {TYPE_NAMES[wanted]}.")
    return value


def _read_by(kind: StepKind, of: Sequence[str] | None, earlier: Sequence[Part], where: str) -> tuple[str, ...]:
    """Find the steps that a step reads.

    By default it reads the step before it or, if its kind reads several, all steps that no other step reads yet.
    """
    names = [part.name for part in earlier]
    if of is None:
        unread = [name for name in names if not any(name in part.of for part in earlier)]
        of = () if kind.num_read == 0 else unread if kind.num_read is None else names[-1:]
    for name in of:
        if name not in names:
            raise UserError(f"{where}: of: {unknown('earlier step', name, names)}")
    expected = "two or more earlier steps" if kind.num_read is None else f"{kind.num_read} earlier step"
    if len(set(of)) != len(of) or (len(of) < 2 if kind.num_read is None else len(of) != kind.num_read):
        raise UserError(f"{where}: reads {', '.join(of) or 'no step'}; expected {expected}, each once, in `of`.")
    return tuple(of)


def _searched_by(search: str | None, of: Sequence[str], earlier: Sequence[Part], where: str) -> str:
    """Find the first stage that a step searches with other queries.

    It is the one named, or the only one that the step's run came from. A step that reads no run searches the first
    stage before it.
    """
    names = [part.name for part in earlier if _can_be_searched(part)]
    if search is not None:
        if search not in names:
            raise UserError(f"{where}: search: {unknown('earlier step that finds documents', search, names)}")
        return search
    found = sources_of(of, earlier) if of else names[-1:]
    if len(found) != 1:
        raise UserError(
            f"{where}: search is missing: its documents come from {' and '.join(found) or 'no step'}; say which first "
            f"stage to search ({', '.join(names) or 'there is none'})."
        )
    return found[0]


def sources_of(names: Sequence[str], steps: Sequence[Part]) -> list[str]:
    """List the first stages that the runs of some steps came from."""
    named, queue = {part.name: part for part in steps}, list(names)
    for name in queue:
        part = named[name]
        others = [part.search] if part.search and STEPS[part.kind].searches_again else part.of
        queue += [other for other in others if other not in queue]
    return [name for name in queue if _can_be_searched(named[name])]


def _can_be_searched(part: Part) -> bool:
    return STEPS[part.kind].num_read == 0 and not STEPS[part.kind].searching


def _checked(description: Description, where: str) -> Description:
    """Check numbers and cuts, and that all steps lead to the last one."""
    for part in description.steps:
        check_ranges(part, lambda field, name=part.name: f"{where}: steps.{name}: {field}")
        _check_cut(part, description.steps, f"{where}: steps.{part.name}")
    read = {name for part in description.steps for name in (*part.of, part.search)}
    for part in description.steps[:-1]:
        if part.name not in read:
            raise UserError(f"{where}: steps.{part.name} is read by no later step; fuse it, or leave it out.")
    return description


def _check_cut(part: Part, steps: Sequence[Part], where: str) -> None:
    """Refuse a cut by scores that only count down."""
    before = part
    while before.kind == "cut":
        before = next(step for step in steps if step.name == before.of[0])
    if before != part and STEPS[before.kind].counts_down and _cuts_by(part) != "rank":
        raise UserError(
            f"{where}: `cut: {part.method}` looks at scores, and those of {before.name} (`{before.kind}`) only count "
            "down; cut before that step, or by rank."
        )


def before(part: Part, steps: Sequence[Part]) -> list[Part]:
    """Return the steps that a step builds on."""
    named, needed = {step.name: step for step in steps}, list(part.of)
    for name in needed:
        needed += [other for other in named[name].of if other not in needed]
    return [named[name] for name in needed]


def _cuts_by(part: Part) -> str:
    """Return what a cut looks at, one of `data.rules.CUT_BY`."""
    return part.method if part.method != "rule" else read_rule(part.settings["rule"]).by


def check_ranges(part: Part, called: Callable[[str], str]) -> None:
    """Refuse numbers out of range, from a file or from flags."""
    weights: Any = part.settings.get("weights")
    if part.depth is not None and part.depth < 1:
        raise UserError(f"{called('depth')} is {part.depth}; expected 1 or more.")
    for field in ("share", "drop"):
        if not 0 <= getattr(part, field) <= 1:
            raise UserError(f"{called(field)} is {getattr(part, field)}; expected 0 to 1.")
    if weights is None:
        return
    if len(weights) != len(part.of):
        found = f"{len(weights)} numbers for {len(part.of)} first stages"
        raise UserError(f"{called('weights')} has {found}; expected as many.")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        numbers = ", ".join(f"{weight:g}" for weight in weights)
        raise UserError(f"{called('weights')} is {numbers}; expected finite numbers, none below 0.")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
