"""Free numbers of a pipeline: they decide which scores are used and how."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shortlist.errors import UserError, unknown
from shortlist.math.fusion import FUSIONS, weight_grid
from shortlist.pipeline.spec import Description, Part, parse_description, written

Numbers = Mapping[str, Any]
"""Values by `STEP.FIELD`, such as `pairs.depth`; a reranker of depth 0 is left out."""

FREE = {
    "find": ("depth",),
    "fuse": ("depth", "weights", "k"),
    "rank": ("depth", "share", "drop"),
    "cut": ("depth", "at"),
    "diversify": ("depth", "lambda"),
    "compress": ("depth",),
    "feedback": ("depth", "docs", "terms", "weight", "alpha", "beta", "steps", "rate", "temperature"),
    "rewrite": ("depth",),
}
"""The fields of each kind of step that may vary: they change which scores count, and no time but by depths."""
RANK_DEPTHS = (0, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Depths of rerankers to try, up to that in the description."""
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
DROPS = (0.6, 0.8, 1.0)
"""Drops to try, of the first reranker."""
STEPS_OF_WEIGHTS = {2: 10, 3: 5, 4: 4}
"""Steps from 0 to 1 in the grid of weights, by the number of runs."""
FEWEST_STEPS = 3
LISTED = 100_000
"""Most combinations that are listed before some are drawn."""
RANK_DEPTH = 100
"""Depth of a reranker whose description has none."""


def with_numbers(description: Description, numbers: Numbers, *, where: str = "numbers") -> Description:
    """Return the same pipeline with these numbers.

    Args:
        where: where they come from, for errors.

    Raises:
        UserError: a step or field does not exist, or a value does not fit.
    """
    content = written(description)
    steps: dict[str, dict[str, Any]] = content["steps"]
    for name, value in numbers.items():
        step, _, field = name.rpartition(".")
        if step not in steps:
            raise UserError(f"{where}: {name}: {unknown('step', step, steps)}")
        kind = next(part.kind for part in description.steps if part.name == step)
        if field not in FREE.get(kind, ()):
            known = [f"{step}.{free}" for free in FREE.get(kind, ())]
            raise UserError(
                f"{where}: {unknown('number', name, known)} Others would change what models read, and how long they "
                "take."
            )
        steps[step][field] = list(value) if isinstance(value, tuple) else value
    for part in description.steps:
        if part.kind == "rank" and steps[part.name].get("depth") == 0:
            _leave_out(part, steps, where)
    return parse_description(content, where=where)


def _leave_out(part: Part, steps: dict[str, dict[str, Any]], where: str) -> None:
    """Remove a reranker; who read it reads what it read."""
    if any("cut" in step and part.name in step["of"] for step in steps.values()):
        raise UserError(
            f"{where}: {part.name}.depth is 0, and a cut looks at the scores of {part.name}; expected 1 on."
        )
    [before] = steps.pop(part.name)["of"]
    for step in steps.values():
        if "of" in step:
            step["of"] = [before if name == part.name else name for name in step["of"]]


def parse_choices(given: Sequence[str]) -> dict[str, list[Any]]:
    """Parse choices such as `pairs.depth=10,20,50` and `both.weights=0.3:0.7,0.5:0.5`.

    Raises:
        UserError: a choice is not of this form.
    """
    choices: dict[str, list[Any]] = {}
    for choice in given:
        name, equals, values = choice.partition("=")
        try:
            read = [_value(value) for value in values.split(",")]
        except ValueError:
            read = []
        if not equals or "." not in name or not read:
            raise UserError(
                f"--vary {choice}: expected STEP.FIELD=VALUES, such as pairs.depth=10,20,50 or "
                "both.weights=0.3:0.7,0.5:0.5."
            )
        choices[name] = list(dict.fromkeys(read))
    return choices


def _value(text: str) -> Any:
    if ":" in text:
        return tuple(float(part) for part in text.split(":"))
    number = float(text)
    return int(text) if text.strip().isdigit() else number


def usual_choices(description: Description, whole_lists: Callable[[Part], bool]) -> dict[str, list[Any]]:
    """List the values to try of a pipeline's fusion weights, rerankers' depths and shares.

    Where a reranker's scores depend on the whole list, every other list before it costs a new reading: only shares from
    there on vary.
    """
    listwise = [place for place, part in enumerate(description.steps) if part.kind == "rank" and whole_lists(part)]
    choices: dict[str, list[Any]] = {}
    for place, part in enumerate(description.steps):
        if part.kind == "fuse" and part.method in FUSIONS and not listwise:
            steps = STEPS_OF_WEIGHTS.get(len(part.of), FEWEST_STEPS)
            choices[f"{part.name}.weights"] = list(weight_grid(len(part.of), steps))
        if part.kind == "rank" and not listwise:
            if not any(name.endswith(".drop") for name in choices):
                choices[f"{part.name}.drop"] = sorted({*DROPS, part.drop})
            choices[f"{part.name}.depth"] = _depths(part, description)
        if part.kind == "rank" and place >= max(listwise, default=0):
            choices[f"{part.name}.share"] = sorted({*SHARES, part.share})
    return choices


def _depths(part: Part, description: Description) -> list[int]:
    most = part.depth or RANK_DEPTH
    is_cut = any(other.kind == "cut" and part.name in other.of for other in description.steps)
    return [depth for depth in RANK_DEPTHS if depth < most and (depth or not is_cut)] + [most]


def draw_settings(
    description: Description, choices: Mapping[str, Sequence[Any]], *, most: int, seed: int = 0
) -> list[Numbers]:
    """List all combinations of choices or, if there are too many, draw some at random.

    The first setting has no numbers, which is the pipeline as it is described. A reranker that reads deeper than one
    before it in the cascade would reread what was just put behind: such settings are left out.

    Args:
        most: most settings, 2 or more.
    """
    if not choices:
        return [{}]
    values, random = list(choices.values()), np.random.default_rng(seed)
    number = math.prod(map(len, values))
    if number <= LISTED:
        places = map(tuple, random.permutation(list(np.ndindex(*map(len, values)))).tolist())
    else:
        places = (tuple(int(random.integers(len(some))) for some in values) for _ in range(50 * most))
    found: dict[Any, tuple[int, ...]] = {}
    for place in places:
        numbers = _numbers_at(choices, place)
        if _narrows(description, numbers):
            found.setdefault(tuple(numbers.items()), place)
        if len(found) == most - 1:
            break
    return [{}, *(_numbers_at(choices, place) for place in sorted(found.values()))]


def _numbers_at(choices: Mapping[str, Sequence[Any]], places: Sequence[int]) -> Numbers:
    """Pick one value of each choice, without other numbers of rerankers that are left out."""
    numbers = {name: values[place] for (name, values), place in zip(choices.items(), places, strict=True)}
    gone = {name.rpartition(".")[0] for name, value in numbers.items() if name.endswith(".depth") and value == 0}
    return {
        name: value for name, value in numbers.items() if name.endswith(".depth") or name.rpartition(".")[0] not in gone
    }


def _narrows(description: Description, numbers: Numbers) -> bool:
    """Whether no reranker reads deeper than the one whose list it reads."""
    parts = {part.name: part for part in description.steps}
    depths = {
        name: numbers.get(f"{name}.depth", part.depth or RANK_DEPTH)
        for name, part in parts.items()
        if part.kind == "rank"
    }
    return all(depths[later] <= depths[before] for later, before in _in_a_row(parts, depths))


def _in_a_row(parts: Mapping[str, Part], depths: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield each reranker with the one before it, passing over those that are left out."""
    for name, depth in depths.items():
        if depth == 0:
            continue
        before = parts[name].of[0]
        while before in depths and depths[before] == 0:
            before = parts[before].of[0]
        if before in depths:
            yield name, before
