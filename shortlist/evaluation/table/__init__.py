"""Stage `table`: results in the layout of a published table, beside its values."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from shortlist.config import NotInJob, load_yaml
from shortlist.data.figures import COLORS, write_svg
from shortlist.data.files import atomic_write, read_json, write_json
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.errors import UserError, unknown
from shortlist.evaluation.formats import csv_table, escaped, latex_table, one_way_to_print

NOT_RUN, NOT_SAID = "not run", "-"
"""Texts for a missing value of ours, and for a value that was not published."""

Cells = list[float | None]
"""A row's values, percent, column by column."""


@dataclass(frozen=True, kw_only=True)
class Config:
    published: str
    """Published table: passage, beir, document, full-or-lora or lengths (of the RepLLaMA paper), cqadupstack, bright,
    litsearch, rerankers, or a YAML file."""
    results: tuple[Path, ...]
    """Results from `shortlist evaluate`, one file for each of the table's sets that was run."""
    sets: tuple[str, ...]
    """The set of the table that each results file is about."""
    rows: tuple[str, ...]
    """Our rows, by the names that the results give them; one without results is printed as not run."""
    label: str = "ours"
    """Name for our rows together, such as the backbone and the data."""
    out: NotInJob[Path]
    """Folder for table.md, table.json and, if the table's columns are numbers, table.svg."""
    json: NotInJob[bool] = False
    """Print JSON instead of a table."""
    csv: NotInJob[bool] = False
    """Print CSV instead of a table."""
    latex: NotInJob[bool] = False
    """Print a LaTeX table (booktabs)."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class Column(NamedTuple):
    """One column of a table: a measure on a set, or a mean.

    The mean is over all other columns.
    """

    name: str
    set: str = ""
    measure: str = ""
    mean: bool = False


class Table(NamedTuple):
    """A published table."""

    title: str
    source: str
    columns: list[Column]
    rows: dict[str, Cells]


def published_tables() -> list[str]:
    """List the names of the tables that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in files(__name__).iterdir() if path.name.endswith(".yaml"))


def read_table(name: str) -> Table:
    """Read a published table by its name, or from a YAML file.

    A file has `title`, `source`, `columns` (`name`, `set`, `measure`; or `name`, `mean`) and `rows`, in percent, null
    where nothing was published.

    Raises:
        UserError: there is no such table, or it is not of this form.
    """
    if name in published_tables():
        name = str(files(__name__) / f"{name}.yaml")
    elif not Path(name).is_file():
        raise unknown("published table", name, published_tables())
    content = load_yaml(Path(name))
    try:
        columns = [Column(**column) for column in content["columns"]]
        table = Table(content["title"], content["source"], columns, {str(row): v for row, v in content["rows"].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: not a table ({error}); expected title, source, columns and rows.") from None
    for row, values in table.rows.items():
        if len(values) != len(columns):
            raise UserError(f"{name}: row {row!r} has {len(values)} values for {len(columns)} columns.")
    return table


def our_rows(
    table: Table, results: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]
) -> dict[str, Cells]:
    """Arrange our values in a table's columns.

    Args:
        results: the rows of `shortlist evaluate` for each set that was run.
        names: names of our rows.

    Returns:
        name -> values in percent, None for what was not run. A mean needs all other columns.
    """

    def value(name: str, column: Column) -> float | None:
        found = [row for row in results.get(column.set, []) if row["name"] == name and column.measure in row]
        return 100 * found[0][column.measure] if found else None

    rows = {}
    for name in names:
        values = [value(name, column) for column in table.columns]
        single = [v for v, column in zip(values, table.columns, strict=True) if not column.mean]
        known = [v for v in single if v is not None]
        mean = fmean(known) if known and len(known) == len(single) else None
        rows[name] = [mean if column.mean else v for v, column in zip(values, table.columns, strict=True)]
    return rows


def run(config: Config) -> None:
    """Make the table, write it and print it."""
    one_way_to_print(json=config.json, csv=config.csv, latex=config.latex)
    table = read_table(config.published)
    if len(config.sets) != len(config.results):
        raise UserError(f"--sets has {len(config.sets)} names for {len(config.results)} results; expected as many.")
    known = {column.set for column in table.columns}
    for name in config.sets:
        if name not in known:
            raise unknown(f"set of {config.published}", name, sorted(known - {""}))
    job = start_job(config, JobSpec("table", {"results": [identity(path) for path in config.results]}, folder=True))
    if not job.done:
        results = {name: _results(path) for name, path in zip(config.sets, config.results, strict=True)}
        ours = our_rows(table, results, config.rows)
        missing = [name for name in config.rows if all(value is None for value in ours[name])]
        content = {**table._asdict(), "columns": [column.name for column in table.columns]}
        with job.result() as folder:
            write_json(folder / "table.json", content | {"label": config.label, "ours": ours})
            with atomic_write(folder / "table.md") as file:
                file.write(markdown(table, ours, config.label))
            if all(column.name.isdigit() for column in table.columns):
                write_svg(folder / "table.svg", partial(draw_table, table, ours))
        job.finish(rows=len(ours), not_run=missing)
    if config.csv or config.latex:
        content = read_json(config.out / "table.json")
        sys.stdout.write((_as_csv if config.csv else _as_latex)(content))
    else:
        name = "table.json" if config.json else "table.md"
        sys.stdout.write((config.out / name).read_text("utf-8"))


def _results(path: Path) -> list[dict[str, Any]]:
    rows = read_json(path).get("rows")
    if not isinstance(rows, list):
        raise UserError(f"{path}: has no rows; expected the output of `shortlist evaluate`.")
    return rows


def markdown(table: Table, ours: Mapping[str, Cells], label: str) -> str:
    """Format the table as text: first the published rows, then ours."""
    heading = ["", *(column.name for column in table.columns)]
    lines = [[f"**published** ({table.source})"], *([name, *_texts(v, NOT_SAID)] for name, v in table.rows.items())]
    lines += [[f"**{label}**"], *([name, *_texts(values, NOT_RUN)] for name, values in ours.items())]
    lines = [[*line, *[""] * (len(heading) - len(line))] for line in [heading, *lines]]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heading))]
    text = [
        "| "
        + " | ".join(f"{cell:{'' if place == 0 else '>'}{widths[place]}}" for place, cell in enumerate(line))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join(
        "-" * (width + 2) if not place else "-" * (width + 1) + ":" for place, width in enumerate(widths)
    )
    return "\n".join([f"# {table.title}", "", text[0], rule + "|", *text[1:]]) + "\n"


def _texts(values: Cells, absent: str) -> list[str]:
    return [absent if value is None else f"{value:.1f}" for value in values]


def _as_csv(content: Mapping[str, Any]) -> str:
    """Write the table as CSV: percent in full, nothing for a missing value."""
    lines = [["rows", "name", *content["columns"]]]
    for label, rows in (("published", content["rows"]), (content["label"], content["ours"])):
        lines += [[label, name, *values] for name, values in rows.items()]
    return csv_table(lines)


def _as_latex(content: Mapping[str, Any]) -> str:
    """Write the table as LaTeX: first the published rows, then ours."""
    parts = [
        [" & ".join([escaped(name), *_texts(values, absent)]) for name, values in rows.items()]
        for rows, absent in ((content["rows"], NOT_SAID), (content["ours"], NOT_RUN))
    ]
    heading = ["", *content["columns"]]
    titles = [f"published ({content['source']})", content["label"]]
    for title, part in zip(titles, parts, strict=True):
        part.insert(0, rf"\multicolumn{{{len(heading)}}}{{l}}{{\emph{{{escaped(title)}}}}}")
    return latex_table(heading, parts)


def draw_table(table: Table, ours: Mapping[str, Cells], figure: Any) -> None:
    """Draw the rows as lines over columns that are numbers.

    Our lines are solid, the published ones dashed.
    """
    axes = figure.add_subplot(xlabel="tokens read", ylabel=f"{table.columns[0].measure}, percent")
    places = range(len(table.columns))
    axes.set_xticks(places, [column.name for column in table.columns])
    axes.grid(color="#dddddd", linewidth=0.5)
    for rows, style, kind in ((table.rows, "--", "published"), (ours, "-", "ours")):
        for number, (name, values) in enumerate(rows.items()):
            points = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
            if points:
                color = COLORS[number % len(COLORS)]
                axes.plot(
                    *zip(*points, strict=True), style, marker="o", markersize=4, color=color, label=f"{name} ({kind})"
                )
    if axes.get_lines():
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
