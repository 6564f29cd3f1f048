"""Tables of results as CSV, for a spreadsheet, and as LaTeX, for a paper."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shortlist.errors import UserError

SIGNIFICANT = 0.05
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def one_way_to_print(*, json: bool, csv: bool, latex: bool) -> None:
    """Refuse more than one of three flags."""
    if json + csv + latex > 1:
        raise UserError("--json, --csv and --latex are three ways to print; give one of them.")


def csv_table(lines: Iterable[Sequence[Any]]) -> str:
    """Write lines of cells as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def latex_table(heading: Sequence[str], parts: Sequence[Sequence[str]]) -> str:
    r"""Write a LaTeX table, for the package booktabs.

    Args:
        heading: names of the columns, as plain text.
        parts: LaTeX of the lines, without the closing `\\`; a rule is drawn before each part.
    """
    lines = [r"\begin{tabular}{l" + "r" * (len(heading) - 1) + "}", r"\toprule"]
    lines.append(" & ".join(map(escaped, heading)) + r" \\")
    for part in parts:
        lines += [r"\midrule", *(rf"{line} \\" for line in part)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escaped(text: str) -> str:
    """Escape what LaTeX would read as commands."""
    return "".join(LATEX.get(character, character) for character in text)


def as_csv(results: Mapping[str, Any]) -> str:
    """Write the results of `evaluate` as CSV, with a line for each run.

    p-values are of the difference from the first run.
    """
    measures, rows = results["measures"], results["rows"]
    timed = any("ms_per_query" in row for row in rows)
    tests = [f"p {measure}" for measure in measures] if len(rows) > 1 else []
    lines = [["run", *measures, *tests, "queries", f"judged@{results['judged_at']}", *(["ms/query"] if timed else [])]]
    for row in rows:
        values = [row[measure] for measure in measures]
        chances = [_p(row, measure) for measure in measures] if tests else []
        times = [row.get("ms_per_query", "")] if timed else []
        lines.append([row["name"], *values, *chances, row["queries"], row["judged"], *times])
    return csv_table(lines)


def as_latex(results: Mapping[str, Any]) -> str:
    """Write the results of `evaluate` as a LaTeX table, for the package booktabs.

    The best value of each measure is bold; a dagger marks a significant difference from the first run.
    """
    measures, rows = results["measures"], results["rows"]
    best = {measure: max(row[measure] for row in rows) for measure in measures}
    lines = [
        " & ".join([escaped(row["name"]), *(_cell(row, measure, best[measure]) for measure in measures)])
        for row in rows
    ]
    note = f"% dagger: p < {SIGNIFICANT}, paired t-test against the first row, Holm-corrected over the rows\n"
    return latex_table(["run", *measures], [lines]) + (note if len(rows) > 1 else "")


def _cell(row: Mapping[str, Any], measure: str, best: float) -> str:
    value = f"{row[measure]:.4f}"
    value = rf"\textbf{{{value}}}" if row[measure] == best else value
    p = _p(row, measure)
    return value + (r"$^\dagger$" if p != "" and p < SIGNIFICANT else "")


def _p(row: Mapping[str, Any], measure: str) -> Any:
    p = row.get("difference", {}).get(measure, {}).get("t_test_holm")
    return "" if p is None else p
