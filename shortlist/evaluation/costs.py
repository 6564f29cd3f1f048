"""Costs of runs, from the manifests beside them, and a figure of quality against time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shortlist.data.figures import COLORS
from shortlist.math.pareto import frontier
from shortlist.progress import duration, size

COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "ms_per_query": ("ms/query", lambda value: f"{value:,.1f}"),
    "tokens_per_second": ("tokens/s", lambda value: f"{value:,.0f}"),
    "pairs_per_query": ("pairs/query", lambda value: f"{value:,.0f}"),
    "tokens_per_query": ("tokens/query", lambda value: f"{value:,.0f}"),
    "quality_per_token": ("per 1,000 tokens", lambda value: f"{value:.4f}"),
    "index_bytes": ("index", size),
    "peak_bytes": ("peak memory", size),
    "num_parameters": ("model", lambda value: f"{value / 1e6:,.1f}M"),
    "training_seconds": ("training", duration),
    "training_bytes": ("memory to train", size),
    "calls": ("calls", lambda value: f"{value:,}"),
    "prompt_tokens": ("tokens read", lambda value: f"{value:,}"),
    "answer_tokens": ("generated", lambda value: f"{value:,}"),
    "malformed": ("malformed", lambda value: f"{value:,}"),
}
"""Costs that a manifest may state: the heading of the column, and the function that formats a value."""
ASKING = ("calls", "prompt_tokens", "answer_tokens", "malformed")
"""Those of them that have a column only where a language model was asked."""
OF_RERANKERS = ("pairs_per_query", "tokens_per_query", "quality_per_token")
"""Those that have a column only where a reranker said how much it read."""


def costs(made_by: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the costs of a run over all its stages.

    The stages come from `data.manifest.stages`; costs that they do not state are left out. Time per query is summed
    over all stages, memory is the peak of any stage, the index size sums all that the first stages read, parameters
    and the time of training count every model once, memory to train is that of the model that took most, and tokens per
    second are taken from the last stage that counts them. Calls of language models and their tokens are summed.
    """
    models = {stage["model"]: stage for stage in made_by if "model" in stage}.values()
    speeds = [stage["tokens_per_second"] for stage in made_by if "tokens_per_second" in stage]
    found = {
        "ms_per_query": round(sum(stage["ms"] for stage in made_by), 3),
        "tokens_per_second": speeds[-1] if speeds else None,
        "pairs_per_query": round(sum(stage.get("pairs_per_query", 0) for stage in made_by), 1),
        "tokens_per_query": round(sum(stage.get("tokens_per_query", 0) for stage in made_by), 1),
        "index_bytes": sum(stage.get("index_bytes", 0) for stage in made_by),
        "peak_bytes": max((stage.get("peak_bytes", 0) for stage in made_by), default=0),
        "num_parameters": sum(model.get("num_parameters", 0) for model in models),
        "training_seconds": sum(model.get("training_seconds", 0) for model in models),
        "training_bytes": max((model.get("training_bytes", 0) for model in models), default=0),
    }
    asked = {name: sum(stage.get(name, 0) for stage in made_by) for name in ASKING}
    return {name: value for name, value in found.items() if value} | (asked if asked["calls"] else {})


def cost_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choose the costs that have a column in a table of these rows."""
    return [name for name in COSTS if name not in (*ASKING, *OF_RERANKERS) or any(name in row for row in rows)]


def quality_per_token(value: float, costs: Mapping[str, Any]) -> dict[str, float]:
    """Return a measure's value for every 1,000 tokens that rerankers read, where known."""
    tokens = costs.get("tokens_per_query")
    return {"quality_per_token": round(1000 * value / tokens, 6)} if tokens else {}


def cost_headings(columns: Sequence[str]) -> list[str]:
    """Return the headings of the cost columns."""
    return ["ms/query by stage", *(COSTS[name][0] for name in columns)]


def cost_cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Return the cells of a row in the cost columns."""
    by_stage = [f"{stage['stage']} {stage['ms']:,.1f}" for stage in row["stages"]]
    cells = [COSTS[name][1](row[name]) if name in row else "-" for name in columns]
    return ["\n".join(by_stage) or "-", *cells]


def draw_pareto(rows: Sequence[Mapping[str, Any]], measure: str, figure: Any) -> None:
    """Draw quality against milliseconds per query.

    A line joins the runs that no other run beats in both.
    """
    times, values = (np.array([row[name] for row in rows], dtype=float) for name in ("ms_per_query", measure))
    best = np.flatnonzero(frontier(times, values))
    best = best[np.argsort(times[best])]
    axes = figure.add_subplot(xlabel="milliseconds per query, all stages", ylabel=measure, xscale="log")
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.step(
        times[best], values[best], where="post", color=COLORS[0], linewidth=1.2, label="no other is better and faster"
    )
    axes.scatter(times, values, color=[COLORS[0] if i in best else COLORS[-1] for i in range(len(rows))], zorder=3)
    for row, time, value in zip(rows, times, values, strict=True):
        axes.annotate(row["name"], (time, value), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.2, y=0.15)
    figure.legend(loc="outside upper center", frameon=False)
