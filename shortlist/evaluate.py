"""Stage `evaluate`: how well runs agree with judgements, and whether their difference could be chance."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import ir_measures
from ir_measures import providers

from shortlist.data.collections import open_collection
from shortlist.data.files import atomic_write
from shortlist.data.formats import read_qrels
from shortlist.data.manifest import identity, read_manifest, start_job
from shortlist.data.runs import read_run
from shortlist.errors import UserError, unknown
from shortlist.progress import say
from shortlist.records import Qrels, Run

Values = dict[str, float]
"""query_id -> value of one measure."""

# Those that compute here, in this process; ir_measures' others start a perl script or need packages of their own.
PROVIDER = providers.FallbackProvider(
    [providers.registry[name] for name in ("pytrec_eval", "msmarco", "judged", "accuracy", "compat")]
)


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[Path, ...]
    """TREC run files; all others are compared with the first."""
    qrels: Path | None = None
    """Judgements, TREC or BEIR; or name a collection."""
    collection: str | None = None
    """BEIR or MS MARCO folder, `irds:` or `hf:` name, whose judgements to use."""
    split: str = "test"
    """Split of the collection."""
    measures: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    """Names as in ir_measures: nDCG@10, RR@10 (or MRR@10), R@1000, AP, P@5, Success@10, R(rel=2)@100, ..."""
    relevance_level: int = 1
    """Lowest grade that counts as relevant, for measures that know no grades (2 for TREC DL)."""
    ties: Literal["trec", "rank"] = "trec"
    """How a run is put in order: by score and id as trec_eval does, or by its own rank column."""
    complete: bool = False
    """Count judged queries that a run lacks as 0 instead of leaving them out."""
    names: tuple[str, ...] | None = None
    """What to call the runs, one name per run; their paths by default."""
    json: bool = False
    """Print one JSON object per run instead of a table."""
    out: Path | None = None
    """JSON file to write as well."""
    overwrite: bool = False
    """Replace an output of another job instead of refusing."""


def parse_measures(names: Sequence[str], *, relevance_level: int = 1) -> dict[str, ir_measures.Measure]:
    """The measures of these names, each with the relevance level if it takes one and its name does not give one.

    Raises:
        UserError: a name that does not exist, or that is written or parametrised wrongly.
    """
    return {name: _parse_measure(name.strip(), relevance_level) for name in names}


def _parse_measure(name: str, relevance_level: int) -> ir_measures.Measure:
    try:
        measure = ir_measures.parse_measure(name)
        if "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params:
            measure = measure(rel=relevance_level)
        measure.validate_params()
        supported = PROVIDER.supports(measure) and measure.params.get("cutoff", 1) >= 1
    except NameError:
        raise unknown("measure", name.partition("@")[0].partition("(")[0], ir_measures.measures.registry) from None
    except (ValueError, AssertionError) as error:
        raise UserError(f"measure {name!r}: {error}. Expected a form such as nDCG@10 or R(rel=2)@100.") from None
    if not supported:
        raise UserError(f"measure {name!r} cannot be computed here; try one such as nDCG@10, RR@10, AP or R@1000.")
    return measure


def per_query(
    run: Run, qrels: Qrels, measures: Sequence[str], *, relevance_level: int = 1, complete: bool = False
) -> dict[str, Values]:
    """Measure each query's hits, in the order in which the run lists them.

    Args:
        run: best first; scores are not looked at.
        qrels: what is not judged counts as not relevant.
        measures: names as in ir_measures.
        relevance_level: lowest grade that counts as relevant, for measures that know no grades.
        complete: include judged queries that the run lacks, at 0.

    Returns:
        name of the measure -> query_id -> value, over the queries that are both judged and in the run.

    Raises:
        UserError: an unknown measure.
    """
    parsed = parse_measures(measures, relevance_level=relevance_level)
    ranks = [-float(rank) for rank in range(max(map(len, run.values()), default=0))]
    ordered = {
        query_id: dict(zip([hit.doc_id for hit in run[query_id]], ranks, strict=False))
        for query_id in qrels
        if query_id in run
    }
    judged = {query_id: qrels[query_id] for query_id in (qrels if complete else ordered)}
    values: dict[ir_measures.Measure, Values] = {measure: {} for measure in parsed.values()}
    if judged:
        for metric in PROVIDER.iter_calc(list(values), judged, ordered):
            values[metric.measure][metric.query_id] = float(metric.value)
    return {name: values[measure] for name, measure in parsed.items()}


def p_value(values: Values, baseline: Values) -> float | None:
    """How likely a difference of the means at least this large is by chance: paired two-sided t-test over the
    queries that both have; None for fewer than two."""
    shared = [query_id for query_id in baseline if query_id in values]
    differences = [values[query_id] - baseline[query_id] for query_id in shared]
    if len(shared) < 2:
        return None
    if max(differences) == min(differences):  # no variance: the test divides by it
        return 1.0 if differences[0] == 0 else 0.0
    from scipy.stats import ttest_rel

    p = ttest_rel([values[query_id] for query_id in shared], [baseline[query_id] for query_id in shared]).pvalue
    return float(p)


def run(config: Config) -> None:
    """Print the measurements, and write them where --out says."""
    names = config.names or tuple(map(str, config.runs))
    if len(names) != len(config.runs):
        raise UserError(f"--names has {len(names)} names for {len(config.runs)} runs; expected one per run.")
    if not config.runs or not config.measures:
        raise UserError("--runs and --measures each need at least one value.")
    if (config.qrels is None) == (config.collection is None):
        raise UserError("expected either --qrels FILE or --collection C, and not both.")
    results = _evaluate(config, names) if config.out is None else _evaluate_once(config, names, config.out)
    _print(results, as_json=config.json)


def _evaluate_once(config: Config, names: Sequence[str], out: Path) -> dict[str, Any]:
    """Evaluate into a file, or read the file where that is done already."""
    inputs = {"runs": [identity(path) for path in config.runs], **_judgements_identity(config)}
    job = start_job(config, stage="evaluate", inputs=inputs)
    if job.done:
        return json.loads(out.read_text("utf-8"))
    results = _evaluate(config, names)
    with atomic_write(job.out) as file:
        json.dump(results, file, indent=2, ensure_ascii=False)
        file.write("\n")
    job.finish(**results)
    return results


def _judgements_identity(config: Config) -> dict[str, str]:
    if config.qrels is not None:
        return {"qrels": identity(config.qrels)}
    return {"collection": open_collection(str(config.collection)).identity(f"qrels/{config.split}")}


def _evaluate(config: Config, names: Sequence[str]) -> dict[str, Any]:
    parse_measures(config.measures)  # before big files are read
    if config.qrels is not None:
        qrels, where = read_qrels(config.qrels), str(config.qrels)
    else:
        qrels = open_collection(str(config.collection)).qrels(config.split)
        where = f"{config.collection} ({config.split})"
    rows, first = [], None
    for name, path in zip(names, config.runs, strict=True):
        run = read_run(path, ties=config.ties)
        _say_what_is_missing(run, qrels, path, where, complete=config.complete)
        values = per_query(
            run, qrels, config.measures, relevance_level=config.relevance_level, complete=config.complete
        )
        row: dict[str, Any] = {"name": name, "run": str(path)}
        row |= {measure: fmean(values[measure].values()) for measure in values}
        row |= {"queries": len(next(iter(values.values()))), **_milliseconds(path)}
        if first is not None:
            row["p"] = {measure: p_value(values[measure], first[measure]) for measure in values}
        first = first or values
        rows.append(row)
    return {"measures": list(config.measures), "queries": len(qrels), "rows": rows}


def _say_what_is_missing(run: Run, qrels: Qrels, path: Path, where: str, *, complete: bool) -> None:
    """Tell on stderr which queries the averages leave out.

    Raises:
        UserError: the run and the judgements have no query in common.
    """
    missing, unjudged = qrels.keys() - run.keys(), run.keys() - qrels.keys()
    if len(missing) == len(qrels):
        raise UserError(
            f"{path}: none of its query ids (first {next(iter(run), 'none')!r}) is judged in {where} "
            f"(first {next(iter(qrels), 'none')!r}); expected a run of the same queries."
        )
    if missing:
        treated = "counted as 0" if complete else "left out (--complete counts them as 0)"
        say(f"{path}: {len(missing)} of {len(qrels)} judged queries are not in the run: {treated}.")
    if unjudged:
        say(f"{path}: {len(unjudged)} of {len(run)} queries are not judged: left out.")
    found = {hit.doc_id for query_id in qrels.keys() & run.keys() for hit in run[query_id]}
    judged = {doc_id for judgements in qrels.values() for doc_id in judgements}
    if found.isdisjoint(judged):
        examples = f"{min(found, default='none')!r} in the run, {min(judged, default='none')!r} judged"
        say(f"{path}: none of its documents is judged in {where} ({examples}); are the ids of one collection?")


def _milliseconds(path: Path) -> dict[str, float]:
    """What making the run took per query, where its manifest tells."""
    manifest = read_manifest(path) or {}
    value = manifest.get("results", {}).get("ms_per_query")
    return {} if value is None else {"ms_per_query": value}


def _print(results: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        for row in results["rows"]:
            print(json.dumps({"run": row["run"]} | row, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    measures, rows = results["measures"], results["rows"]
    compared, timed = len(rows) > 1, any("ms_per_query" in row for row in rows)
    table = Table(caption="p: paired two-sided t-test against the first row" if compared else None)
    table.add_column("run", overflow="fold")
    for heading in [*measures, "queries", *(["ms/query"] if timed else [])]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row[measure], row.get("p", {}).get(measure)) for measure in measures]
        times = [f"{row['ms_per_query']:.1f}" if "ms_per_query" in row else "-"] if timed else []
        table.add_row(row["name"], *cells, str(row["queries"]), *times)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: float, p: float | None) -> str:
    if p is None:
        return f"{value:.4f}"
    return f"{value:.4f} ({f'p={p:.3f}' if p >= 0.001 else 'p<0.001'})"
