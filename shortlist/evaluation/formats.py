"""Tables of results as CSV, for a spreadsheet, and as LaTeX, for a paper."""

import csv
import io
from collections.abc import Mapping
from typing import Any

SIGNIFICANT = 0.05
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def as_csv(results: Mapping[str, Any]) -> str:
    """Write the results of `evaluate` as CSV, with a line for each run.

    p-values are of the difference from the first run.
    """
    measures, lines = results["measures"], io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    timed = any("ms_per_query" in row for row in results["rows"])
    tests = [f"p {measure}" for measure in measures] if len(results["rows"]) > 1 else []
    head = ["run", *measures, *tests, "queries", f"judged@{results['judged_at']}"]
    writer.writerow([*head, *(["ms/query"] if timed else [])])
    for row in results["rows"]:
        values = [row[measure] for measure in measures]
        chances = [_p(row, measure) for measure in measures] if tests else []
        times = [row.get("ms_per_query", "")] if timed else []
        writer.writerow([row["name"], *values, *chances, row["queries"], row["judged"], *times])
    return lines.getvalue()


def as_latex(results: Mapping[str, Any]) -> str:
    """Write the results of `evaluate` as a LaTeX table, for the package booktabs.

    The best value of each measure is bold; a dagger marks a significant difference from the first run.
    """
    measures, rows = results["measures"], results["rows"]
    best = {measure: max(row[measure] for row in rows) for measure in measures}
    lines = [
        r"\begin{tabular}{l" + "r" * len(measures) + "}",
        r"\toprule",
        " & ".join(["run", *map(_escaped, measures)]) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        cells = [_cell(row, measure, best[measure]) for measure in measures]
        lines.append(" & ".join([_escaped(row["name"]), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if len(rows) > 1:
        lines.append(f"% dagger: p < {SIGNIFICANT}, paired t-test against the first row, Holm-corrected over the rows")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], measure: str, best: float) -> str:
    value = f"{row[measure]:.4f}"
    value = rf"\textbf{{{value}}}" if row[measure] == best else value
    p = _p(row, measure)
    return value + (r"$^\dagger$" if p != "" and p < SIGNIFICANT else "")


def _p(row: Mapping[str, Any], measure: str) -> Any:
    p = row.get("difference", {}).get(measure, {}).get("t_test_holm")
    return "" if p is None else p


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
