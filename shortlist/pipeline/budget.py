"""Budgets and targets: the best numbers within a time, or the cheapest good enough.

`shortlist tune` measures both, and writes them as costs.json.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shortlist.data.files import read_json
from shortlist.errors import UserError
from shortlist.pipeline.numbers import with_numbers
from shortlist.pipeline.spec import Description, written
from shortlist.progress import say

COSTS_FILE = "costs.json"
"""The file of `shortlist tune` with costs and the front."""

StepCosts = Mapping[str, Mapping[str, float]]
"""By step: `fixed_ms` and, for rerankers and for `documents`, the fetching of texts, `ms_per_document`."""


def forecast_ms(costs: StepCosts, pairs: Mapping[str, float], k: int) -> float:
    """Forecast the milliseconds of a query.

    Args:
        pairs: number of documents that each reranker reads; one that is not there is left out.
        k: number of documents wanted.
    """
    counts = dict(pairs) | {"documents": max(k, *pairs.values()) if pairs else k}
    return sum(
        cost["fixed_ms"] + cost.get("ms_per_document", 0.0) * counts.get(name, 0)
        for name, cost in costs.items()
        if name in counts or "ms_per_document" not in cost
    )


def steps_without(description: Description, varied: Sequence[str]) -> dict[str, Any]:
    """Write the steps without the numbers that may vary, to recognise a pipeline by."""
    steps = written(description)["steps"]
    return {
        name: {field: value for field, value in step.items() if f"{name}.{field}" not in varied}
        for name, step in steps.items()
    }


class Budget(NamedTuple):
    """A budget or a target, as flags say it."""

    budget_ms: float | None = None
    """Most milliseconds that a query is expected to take."""
    target_quality: float | None = None
    """Least quality."""
    costs: Path | None = None
    """The costs.json of `shortlist tune`."""


def with_budget(description: Description, said: Budget) -> Description:
    """Return a pipeline with the budget or target that flags say, which replaces its own."""
    named = said.budget_ms is not None or said.target_quality is not None
    return description._replace(
        budget_ms=said.budget_ms if named else description.budget_ms,
        target_quality=said.target_quality if named else description.target_quality,
        costs=description.costs if said.costs is None else said.costs,
    )


def within_budget(description: Description) -> Description:
    """Give a pipeline the best numbers within its budget, or the cheapest for its target.

    One without either stays as it is.

    Raises:
        UserError: as for `point_within`.
    """
    best = point_within(description)
    if best is None:
        return description
    budget, target = description.budget_ms, description.target_quality
    say(
        ("target" if budget is None else "budget")
        + f": {best['ms']:.4g}{'' if budget is None else f' of {budget:g}'} ms expected, {best['measure']} "
        + f"{best['held_out']:.4f}{'' if target is None else f' of {target:g} wanted'}: "
        + (", ".join(f"{name} {value}" for name, value in best["numbers"].items()) or "as described")
    )
    chosen = description._replace(budget_ms=None, target_quality=None, costs=None)
    return with_numbers(chosen, best["numbers"], where=str(description.costs))


def point_within(description: Description) -> Mapping[str, Any] | None:
    """Choose the point of the front that a budget or target asks for.

    It has the `measure` of its quality too. None if the pipeline asks for nothing.

    Raises:
        UserError: there are no costs, they are of another pipeline, both a budget and a target are there, or no setting
            is within the budget or reaches the target.
    """
    budget, target, path = description.budget_ms, description.target_quality, description.costs
    if (budget, target, path) == (None, None, None):
        return None
    check_budget(budget, target)
    if path is None or (budget is None and target is None):
        given = "--costs" if path else "--target-quality" if budget is None else "--budget-ms"
        wanted = "--costs" if path is None else "--budget-ms or --target-quality"
        raise UserError(f"{given} without {wanted}: they go together, and `shortlist tune` writes costs.json.")
    costs = read_costs(path)
    if steps_without(description, costs["varied"]) != costs["of"]:
        raise UserError(
            f"{path}: holds the costs of other steps ({', '.join(costs['of'])}); expected those of the pipeline that "
            "`shortlist tune --pipeline` was given, apart from the numbers that it varied."
        )
    best = _best_within(costs, budget, path) if target is None else _cheapest_reaching(costs, target, path)
    return {**best, "measure": costs["measure"]}


def check_budget(budget_ms: float | None, target_quality: float | None) -> None:
    """Refuse a budget or target that is no number above 0, and both together.

    Raises:
        UserError: it is so.
    """
    if budget_ms is not None and target_quality is not None:
        raise UserError(
            "--budget-ms with --target-quality: the one asks for the best within a time, the other for the cheapest "
            "that is good enough; give one of them."
        )
    for flag, value in {"--budget-ms": budget_ms, "--target-quality": target_quality}.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{flag} is {value:g}; expected more than 0.")


def _best_within(costs: Mapping[str, Any], budget: float | None, path: Path) -> Mapping[str, Any]:
    assert budget is not None
    points = [point for point in costs["front"] if point["ms"] <= budget]
    if not points:
        raise UserError(
            f"--budget-ms {budget:g}: no setting in {path} takes so little; the least that is reachable is "
            f"{costs['front'][0]['ms']:g} ms."
        )
    return max(points, key=lambda point: point["held_out"])  # the first, and so the cheapest, of equal ones


def _cheapest_reaching(costs: Mapping[str, Any], target: float, path: Path) -> Mapping[str, Any]:
    place = cheapest_reaching([point["held_out"] for point in costs["front"]], target)
    if place is None:
        raise UserError(f"--target-quality {target:g}: no setting in {path} is so good; {best_reached(costs)}.")
    return costs["front"][place]


def cheapest_reaching(qualities: Sequence[float], target: float) -> int | None:
    """Return the place of the first quality that reaches the target (None: none does).

    Args:
        qualities: those of settings, the cheapest first; they count with four decimals, as tables show them.
    """
    return next((place for place, quality in enumerate(qualities) if round(quality, 4) >= target), None)


def best_reached(costs: Mapping[str, Any]) -> str:
    """Say what the best setting of a front reaches."""
    best = max(costs["front"], key=lambda point: point["held_out"])
    return (
        f"the best that was reached is {costs['measure']} {best['held_out']:.4f}, in "
        f"{best['ms']:.4g} ms, on queries that had no part in the choice"
    )


def read_costs(path: Path) -> Mapping[str, Any]:
    """Read what `shortlist tune` measured.

    Raises:
        UserError: the file is missing, or is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the costs.json of `shortlist tune`.")
    try:
        costs = read_json(path)
    except UserError as error:
        raise UserError(f"{error} Expected the costs.json of `shortlist tune`.") from None
    points = costs.get("front") if isinstance(costs, Mapping) else None
    fields = {"numbers", "ms", "held_out"}
    if (
        not points
        or not {"varied", "of", "measure"} <= costs.keys()
        or not all(fields <= point.keys() for point in points)
    ):
        raise UserError(f"{path}: holds no costs; expected the costs.json of `shortlist tune`.")
    return costs
