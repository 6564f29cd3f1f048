"""Stage `report`: one page about all outputs in some folders, to read, print and send."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import tyro

from shortlist.config import NotInJob
from shortlist.data.claims import claim_output
from shortlist.data.files import atomic_write, read_json
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.evaluation.costs import cost_cells, cost_columns, cost_headings
from shortlist.evaluation.printing import machine_note
from shortlist.evaluation.report.html import BEGINNING, drawing, folded, heading, page, paragraph, table
from shortlist.evaluation.report.summary import in_short, probability
from shortlist.math.outcomes import OUTCOMES
from shortlist.progress import say


@dataclass(frozen=True, kw_only=True)
class Config:
    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with outputs of `shortlist`, such as those of `shortlist run`; folders inside them are searched too. An
    output that is a file may be named itself."""
    out: NotInJob[Path]
    """HTML file to write, complete in itself."""
    title: str = "Report"
    """Heading of the page."""
    overwrite: NotInJob[bool] = False
    """Replace the file if it is there."""


MOST_CHARACTERS = 120
"""Most characters of a document in a table."""


class Output(NamedTuple):
    """An output of a stage, finished or not."""

    name: str
    """Its path inside the folder that was searched."""
    path: Path
    manifest: dict[str, Any]


def run(config: Config) -> None:
    """Write the page."""
    if not config.folders:
        raise UserError("no folder is named; expected one or more with outputs of `shortlist`.")
    if config.out.exists():
        if not _is_page(config.out):
            raise UserError(f"--out {config.out}: is no page of `shortlist report`; choose another name.")
        if not config.overwrite:
            raise UserError(f"--out {config.out}: exists; choose another name or --overwrite.")
    outputs = [output for folder in config.folders for output in find_outputs(folder)]
    if not outputs:
        raise UserError(f"{', '.join(map(str, config.folders))}: no output of `shortlist` is there.")
    with claim_output(config.out, folder=False, stage="report"), atomic_write(config.out) as file:
        file.write(page(config.title, sections(outputs)))
    say(f"report: wrote {config.out}")


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(BEGINNING)) == BEGINNING.encode()


def find_outputs(folder: Path) -> Iterator[Output]:
    """Yield everything with a manifest in a folder and below, in order of path.

    Raises:
        UserError: no such folder, or a file without a manifest.
    """
    if folder.is_file() and (manifest := read_manifest(folder)) is not None:
        yield Output(f"{folder.parent.name}/{folder.name}", folder, manifest)
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with outputs of `shortlist`.")
    for path in sorted(folder.rglob("*manifest.json")):
        out = path.parent if path.name == "manifest.json" else path.with_name(path.name.removesuffix(".manifest.json"))
        if out.exists() and (manifest := read_manifest(out)) is not None:
            yield Output(str(out.relative_to(folder)) if out != folder else folder.name, out, manifest)


def sections(outputs: Sequence[Output]) -> list[tuple[str, str]]:
    """Return the heading and HTML of every kind of output found, and of the manifests."""
    parts = _in_short(outputs)
    for title, stage, show in SECTIONS:
        finished = [output for output in outputs if output.manifest["stage"] == stage and output.manifest["complete"]]
        if finished:
            parts.append((title, "".join(heading(output.name) + show(output) for output in finished)))
    return [*parts, ("Manifests", show_manifests(outputs))]


def _in_short(outputs: Sequence[Output]) -> list[tuple[str, str]]:
    """Return the section that says what won; empty without results of `evaluate`."""
    measured = [output for output in outputs if output.manifest["stage"] == "evaluate" and output.manifest["complete"]]
    told = []
    for output in measured:
        others = [other.manifest for other in outputs if other.manifest["stage"] in ("encode", "search", "rerank")]
        told.append(in_short(read_json(output.path), [output.manifest, *others]))
    return [("In short", "".join(map(paragraph, dict.fromkeys(told))))] if told else []


def show_results(output: Output) -> str:
    """Show the table of `evaluate`.

    It has values, intervals, p-values against the first run, and the costs if there are any.
    """
    results = read_json(output.path)
    rows, costly, columns = [], any("stages" in row for row in results["rows"]), cost_columns(results["rows"])
    for row in results["rows"]:
        cells = []
        for measure in results["measures"]:
            low, high = row["interval"][measure]
            lines = [f"{row[measure]:.4f}", f"{low:.4f} to {high:.4f}"]
            compared = row.get("difference", {}).get(measure, {})
            if compared.get("t_test") is not None:
                tests = (compared["t_test_holm"], compared["randomisation_holm"])
                lines.append(f"p {', '.join(map(probability, tests))}")
            cells.append("\n".join(lines))
        cells += [str(row["queries"]), f"{row['judged']:.0%}\n{row['holes']} holes"]
        rows.append([row["name"], *cells, *(cost_cells(row, columns) if costly else [])])
    caption = (
        "95% bootstrap intervals; p: paired t-test and randomisation test against the first row, Holm-corrected. "
        f"Relevant: grade {results['relevance_level']} and above, where a measure knows no grades. "
        f"Ties: {results['ties']}."
    )
    if note := machine_note(results):
        caption += f" Note: {note} ({results['machine_made']})."
    headings = ["run", *results["measures"], "queries", f"judged@{results['judged_at']}"]
    headings += cost_headings(columns) if costly else []
    figure = output.path.with_suffix(".svg").name
    return table(headings, rows, caption=caption) + (_drawing(output, figure) if costly else "")


def show_table(output: Output) -> str:
    """Show published rows and ours."""
    content = read_json(output.path / "table.json")
    rows = [[f"published: {content['source']}"]]
    rows += [[name, *("-" if v is None else f"{v:.1f}" for v in values)] for name, values in content["rows"].items()]
    rows += [[content["label"]]]
    rows += [[name, *("not run" if v is None else f"{v:.1f}" for v in v_)] for name, v_ in content["ours"].items()]
    return paragraph(content["title"]) + table(["", *content["columns"]], rows) + _drawing(output, "table.svg")


def show_training(output: Output) -> str:
    """Show the numbers and the curve of a training run."""
    results = output.manifest["results"]
    numbers = ", ".join(f"{name} {value}" for name, value in results.items() if isinstance(value, int | float))
    return paragraph(numbers) + _drawing(output, "loss.svg")


def show_lengths(output: Output) -> str:
    """Show statistics of the lengths of texts."""
    lengths = read_json(output.path / "lengths.json")
    columns = {"texts": f"{lengths['count']:,}", "mean": f"{lengths['mean']:,.1f}"}
    columns |= {name: f"{value:,}" for name, value in lengths["quantiles"].items()} | {
        "longest": f"{lengths['longest']:,}"
    }
    columns |= {f"<= {limit}": f"{share:.1%}" for limit, share in lengths["at_most"].items()}
    return table(list(columns), [list(columns.values())], caption="tokens") + _drawing(output, "lengths.svg")


def show_diagnosis(output: Output) -> str:
    """Show how relevant documents were lost, and the queries won and lost most."""
    found = read_json(output.path)
    kinds = {kind: by for kind, by in found["fates"].items() if isinstance(by, dict)}
    known = [
        outcome for outcome in OUTCOMES if any(outcome in counts for by in kinds.values() for counts in by.values())
    ]
    rows = []
    for kind, by in kinds.items():
        for name, counts in by.items():
            total = sum(counts.values())
            shares = [f"{counts.get(outcome, 0) / total:.1%}" for outcome in known]
            rows.append([name if kind == "all" else f"{kind} {name}", f"{total:,}", *shares])
    caption = f"The top is {found['k']}, the depth {found['depth']}; lengths in {found['unit']}."
    markup = table(["relevant documents", "number", *known], rows, caption=caption)
    duplicates, unjudged = found["duplicates"], found["unjudged"]
    markup += paragraph(
        f"Duplicates among the candidates: {duplicates['duplicates']:,} in {duplicates['queries_with_duplicates']} of "
        f"{duplicates['queries_read']} queries. Not judged in the top: {unjudged['unjudged']:,} of "
        f"{unjudged['shown']:,} ({unjudged['share']:.1%}), {unjudged['above_a_relevant_one']:,} of "
        "them above a relevant document."
    )
    return markup + _queries(found["queries"])


def _queries(queries: Mapping[str, Any]) -> str:
    rows = []
    for kind in ("won", "lost", "lowest"):
        for query in queries.get(kind, []):
            sides = [query[side] for side in ("before", "after") if side in query]
            values = " to ".join(f"{side['value']:.4f}" for side in sides)
            places = " to ".join(str(side["first_relevant"] or "none") for side in sides)
            first = sides[-1]["first"]
            text = shorten(first["text"], MOST_CHARACTERS, placeholder=" ...")
            rows.append([kind, query["query"], values, places, f"{first['doc_id']}\n{text}"])
    headings = ["", "query", queries["measure"], "first relevant at", "first document"]
    return table(headings, rows, text=(1, 4)) if rows else ""


def show_manifests(outputs: Sequence[Output]) -> str:
    """List every output with its stage and state; the whole manifest unfolds."""
    rows = [
        [
            output.name,
            output.manifest["stage"],
            "finished" if output.manifest["complete"] else "not finished",
            output.manifest.get("finished") or "-",
            output.manifest.get("version") or "-",
            (output.manifest.get("commit") or "-")[:12],
        ]
        for output in outputs
    ]
    markup = table(["output", "stage", "state", "finished", "version", "commit"], rows, text=range(1, 6))
    return markup + "".join(
        folded(output.name, json.dumps(output.manifest, indent=2, ensure_ascii=False)) for output in outputs
    )


def _drawing(output: Output, name: str) -> str:
    path = (output.path if output.path.is_dir() else output.path.parent) / name
    return drawing(path.read_text("utf-8"), f"{output.name} {path.stem}") if path.exists() else ""


SECTIONS: tuple[tuple[str, str, Callable[[Output], str]], ...] = (
    ("Published tables", "table", show_table),
    ("Results", "evaluate", show_results),
    ("Failures", "diagnose", show_diagnosis),
    ("Lengths", "lengths", show_lengths),
    ("Training", "train", show_training),
)
"""Heading of a section, the stage whose outputs it shows, and the function that shows one."""
