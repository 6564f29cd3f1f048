"""The printed form of `shortlist evaluate`."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from shortlist.evaluation.costs import cost_cells, cost_columns, cost_headings
from shortlist.evaluation.every_pair import pair_tables, reproduction_tables


def machine_note(results: Mapping[str, Any]) -> str:
    """Say what of the judgements a machine made; empty if nothing says that one did."""
    if "machine_made" not in results:
        return ""
    return f"{results.get('machine_part', 'queries and judgements')} were made by a machine"


def print_results(results: Mapping[str, Any], *, details: bool) -> None:
    """Print a table of the results.

    Args:
        details: also print intervals, differences and tests, as a second table.
    """
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200 if _costly(results) else 160)
    console.print(_table(results))
    if details:
        console.print(_details(results))
    for table in pair_tables(results) + reproduction_tables(results):
        console.print(table)


def _costly(results: Mapping[str, Any]) -> bool:
    return any("stages" in row for row in results["rows"])


def _table(results: Mapping[str, Any]) -> Any:
    from rich.table import Table

    measures, rows = results["measures"], results["rows"]
    costly, columns = _costly(results), cost_columns(rows)
    timed = not costly and any("ms_per_query" in row for row in rows)
    caption = f"relevant: grade {results['relevance_level']} and above, where a measure knows no grades"
    if len(rows) > 1:
        caption += "; p: paired two-sided t-test against the first row, Holm-corrected over the rows"
    if note := machine_note(results):
        caption += f"; {note}"
    table = Table(caption=caption, caption_justify="left")
    table.add_column("run", overflow="fold", min_width=min(24, max(len(row["name"]) for row in rows)))
    headings = ["ms/query"] if timed else cost_headings(columns) if costly else []
    for heading in [*measures, "queries", f"judged@{results['judged_at']}", *headings]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        values = [_cell(row[measure], row.get("difference", {}).get(measure)) for measure in measures]
        cells = [f"{row['ms_per_query']:.1f}" if "ms_per_query" in row else "-"] if timed else []
        cells += cost_cells(row, columns) if costly else []
        table.add_row(row["name"], *values, str(row["queries"]), f"{row['judged']:.0%}", *cells)
    return table


def _details(results: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(caption="intervals: 95%, by bootstrap; p: two-sided, (Holm-corrected)", caption_justify="left")
    for heading in ("run", "measure", "mean", "interval", "minus first", "interval", "p t-test", "p randomisation"):
        table.add_column(heading, justify="left" if heading in ("run", "measure") else "right", no_wrap=True)
    for row in results["rows"]:
        for measure in results["measures"]:
            mean = [f"{row[measure]:.4f}", _span(row["interval"][measure])]
            table.add_row(row["name"], measure, *mean, *_compared(row.get("difference", {}).get(measure)))
    return table


def _compared(comparison: Mapping[str, Any] | None) -> list[str]:
    if comparison is None or comparison["mean"] is None:
        return ["-"] * 4
    tests = [
        f"{comparison[test]:.4f} ({comparison[f'{test}_holm']:.4f})" if comparison[test] is not None else "-"
        for test in ("t_test", "randomisation")
    ]
    return [f"{comparison['mean']:+.4f}", _span(comparison["interval"]), *tests]


def _span(interval: Sequence[float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _cell(value: float, compared: Mapping[str, Any] | None) -> str:
    p = (compared or {}).get("t_test_holm")
    if p is None:
        return f"{value:.4f}"
    return f"{value:.4f} ({f'p={p:.3f}' if p >= 0.001 else 'p<0.001'})"
