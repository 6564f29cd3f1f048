"""Budgets: the best numbers of a pipeline within a time per query.

`shortlist tune` measures both, and writes them as costs.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def with_budget(description: Description, budget_ms: float | None, costs: Path | None) -> Description:
    """Return a pipeline with the budget that flags say, which replaces its own."""
    return description._replace(
        budget_ms=description.budget_ms if budget_ms is None else budget_ms,
        costs=description.costs if costs is None else costs,
    )


def within_budget(description: Description) -> Description:
    """Give a pipeline the best numbers within its budget.

    One without a budget stays as it is.

    Raises:
        UserError: there are no costs, they are of another pipeline, or the budget is less than any setting takes.
    """
    budget, path = description.budget_ms, description.costs
    if budget is None and path is None:
        return description
    if budget is None or path is None:
        found, wanted = ("--costs", "--budget-ms") if budget is None else ("--budget-ms", "--costs")
        raise UserError(f"{found} without {wanted}: a budget takes both, and `shortlist tune` writes costs.json.")
    if budget <= 0:
        raise UserError(f"--budget-ms is {budget:g}; expected more than 0.")
    costs = read_costs(path)
    if steps_without(description, costs["varied"]) != costs["of"]:
        raise UserError(
            f"{path}: holds the costs of other steps ({', '.join(costs['of'])}); expected those of the pipeline that "
            "`shortlist tune --pipeline` was given, apart from the numbers that it varied."
        )
    points = [point for point in costs["front"] if point["ms"] <= budget]
    if not points:
        raise UserError(
            f"--budget-ms {budget:g}: no setting in {path} takes so little; the least that is reachable is "
            f"{costs['front'][0]['ms']:g} ms."
        )
    best = max(points, key=lambda point: point["held_out"])  # the first, and so the cheapest, of equal ones
    say(
        f"budget: {best['ms']:.4g} of {budget:g} ms expected, {costs['measure']} {best['held_out']:.4f}: "
        + (", ".join(f"{name} {value}" for name, value in best["numbers"].items()) or "as described")
    )
    return with_numbers(description._replace(budget_ms=None, costs=None), best["numbers"], where=str(path))


def read_costs(path: Path) -> Mapping[str, Any]:
    """Read what `shortlist tune` measured.

    Raises:
        UserError: the file is missing, or is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the costs.json of `shortlist tune`.")
    costs = read_json(path)
    points = costs.get("front") if isinstance(costs, Mapping) else None
    fields = {"numbers", "ms", "held_out"}
    if (
        not points
        or not {"varied", "of", "measure"} <= costs.keys()
        or not all(fields <= point.keys() for point in points)
    ):
        raise UserError(f"{path}: holds no costs; expected the costs.json of `shortlist tune`.")
    return costs
