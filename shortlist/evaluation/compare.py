"""Stage `compare`: what runs are worth and what they cost, side by side, by their manifests."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shortlist.config import NotInJob
from shortlist.data.figures import COLORS, write_svg
from shortlist.data.files import atomic_write
from shortlist.data.judgements import Judgements, run_names
from shortlist.data.manifest import identity, stages, start_job
from shortlist.data.runs import read_run_columns
from shortlist.errors import UserError
from shortlist.evaluation.measure import parse_measures, per_query
from shortlist.math.pareto import frontier
from shortlist.progress import say, size

FILES = {"json": "compare.json", "csv": "compare.csv", "svg": "pareto.svg"}
COSTS = ("ms_per_query", "tokens_per_second", "index_bytes", "peak_bytes", "num_parameters")
"""What a manifest may say a run costs; in the order of the table's columns."""


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[Path, ...]
    """Run files with the manifests beside them that `shortlist` writes."""
    qrels: Path | None = None
    """Judgements; or name a collection."""
    collection: str | None = None
    """Folder, `irds:` or `hf:` name, whose judgements to use."""
    split: str = "test"
    """Split of the collection."""
    measures: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    """Names as in `shortlist evaluate`; the figure shows the first."""
    relevance_level: int = 1
    """Lowest grade that counts as relevant, for measures that know no grades."""
    ties: Literal["trec", "rank"] = "trec"
    """How a run is put in order, as in `shortlist evaluate`."""
    complete: bool = False
    """Count judged queries that a run lacks as 0 instead of leaving them out."""
    names: tuple[str, ...] | None = None
    """What to call the runs, one name per run; their paths by default."""
    json: NotInJob[bool] = False
    """Print one JSON object per run instead of a table."""
    out: NotInJob[Path | None] = None
    """Folder for the table as compare.json and compare.csv, and the figure pareto.svg."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def costs(made_by: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run costs over all its stages (see data.manifest.stages); what they do not say is left out.

    Time per query is that of all stages, memory the most that one of them held, the index all that the first stages
    read, the parameters those of every model once, tokens per second those of the last stage that counts them.
    """
    models = {stage["model"]: stage["num_parameters"] for stage in made_by if "num_parameters" in stage}
    speeds = [stage["tokens_per_second"] for stage in made_by if "tokens_per_second" in stage]
    found = {
        "ms_per_query": round(sum(stage["ms"] for stage in made_by), 3),
        "tokens_per_second": speeds[-1] if speeds else None,
        "index_bytes": sum(stage.get("index_bytes", 0) for stage in made_by),
        "peak_bytes": max((stage.get("peak_bytes", 0) for stage in made_by), default=0),
        "num_parameters": sum(models.values()),
    }
    return {name: value for name, value in found.items() if value}


def run(config: Config) -> None:
    """Print the comparison, and write it where --out says."""
    names = run_names(config.names, config.runs)
    if not config.runs or not config.measures:
        raise UserError("--runs and --measures each need at least one value.")
    _judgements(config).check()
    rows = _compare(config, names) if config.out is None else _compare_once(config, names, config.out)
    _print(rows, config)


def _compare_once(config: Config, names: Sequence[str], out: Path) -> list[dict[str, Any]]:
    made_from = {"runs": [identity(path) for path in config.runs], "stages": json.dumps(list(map(stages, config.runs)))}
    made_from |= _judgements(config).identity()
    job = start_job(config, stage="compare", inputs=made_from, folder=True)
    if job.done:
        return json.loads((out / FILES["json"]).read_text("utf-8"))
    rows = _compare(config, names)
    with atomic_write(out / FILES["json"]) as file:
        json.dump(rows, file, indent=2, ensure_ascii=False)
        file.write("\n")
    with atomic_write(out / FILES["csv"]) as file:
        file.write(_csv(rows, config.measures))
    timed = [row for row in rows if row.get("ms_per_query")]
    if timed:
        write_svg(out / FILES["svg"], partial(draw_pareto, timed, config.measures[0]))
    else:
        say(f"compare: no manifest says how long a query took, so there is no {FILES['svg']}.")
    job.finish(runs=len(rows))
    return rows


def _compare(config: Config, names: Sequence[str]) -> list[dict[str, Any]]:
    parse_measures(config.measures)  # before big files are read
    qrels = _judgements(config).read()
    rows = []
    for name, path in zip(names, config.runs, strict=True):
        values = per_query(
            read_run_columns(path, ties=config.ties),
            qrels,
            config.measures,
            relevance_level=config.relevance_level,
            complete=config.complete,
        )
        if not next(iter(values.values())):
            raise UserError(f"{path}: none of its queries is judged; expected a run of the judged queries.")
        made_by = stages(path)
        if not made_by:
            say(f"{path}: no manifest beside it says what it cost.")
        means = {measure: float(np.mean(list(each.values()))) for measure, each in values.items()}
        row = {"name": name, "run": str(path), "queries": len(next(iter(values.values()))), **means, **costs(made_by)}
        rows.append(row | {"stages": made_by})
    return rows


def _judgements(config: Config) -> Judgements:
    return Judgements(config.qrels, config.collection, config.split)


def draw_pareto(rows: Sequence[Mapping[str, Any]], measure: str, figure: Any) -> None:
    """Draw quality against milliseconds per query; a line joins the runs that no other one beats in both."""
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


def _csv(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> str:
    columns = ["name", "run", "queries", *measures, *COSTS]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _print(rows: Sequence[Mapping[str, Any]], config: Config) -> None:
    if config.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("run", overflow="fold")
    headings = [
        *config.measures,
        "queries",
        "ms/query by stage",
        "ms/query",
        "tokens/s",
        "index",
        "peak memory",
        "model",
    ]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        values = [f"{row[measure]:.4f}" for measure in config.measures]
        table.add_row(row["name"], *values, str(row["queries"]), *_cells(row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 180).print(table)


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    by_stage = [f"{stage['stage']} {stage['ms']:,.1f}" for stage in row["stages"]]
    yield "\n".join(by_stage) or "-"
    yield _known(row, "ms_per_query", lambda value: f"{value:,.1f}")
    yield _known(row, "tokens_per_second", lambda value: f"{value:,.0f}")
    yield _known(row, "index_bytes", size)
    yield _known(row, "peak_bytes", size)
    yield _known(row, "num_parameters", lambda value: f"{value / 1e6:,.1f}M")


def _known(row: Mapping[str, Any], name: str, words: Any) -> str:
    return words(row[name]) if name in row else "-"
