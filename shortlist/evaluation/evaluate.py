"""Stage `evaluate`: quality measures of runs, and whether their differences could be chance."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from shortlist.config import NotInJob, refuse_idle
from shortlist.data.exclusions import Excluded, find_excluded, judged_without
from shortlist.data.figures import write_svg
from shortlist.data.files import atomic_write
from shortlist.data.headers import read_run_header
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.judgements import Judgements, run_names
from shortlist.data.manifest import identity, ms_per_query, read_manifest, stages
from shortlist.data.runs import RunColumns
from shortlist.errors import UserError
from shortlist.evaluation.aspects import (
    Aspects,
    by_aspect,
    is_of_aspects,
    read_aspects,
    without_aspects,
)
from shortlist.evaluation.costs import COSTS, costs, draw_pareto, quality_per_token
from shortlist.evaluation.every_pair import (
    compare_pairs,
    distances,
    mean_overlap,
)
from shortlist.evaluation.formats import as_csv, as_latex, one_way_to_print
from shortlist.evaluation.measure import (
    ByQuery,
    is_sum,
    judged_hits,
    of_run,
    parse_measures,
    per_query,
    with_condensed,
)
from shortlist.evaluation.printing import machine_note, print_results
from shortlist.math.aspects import ASPECT_MEASURES
from shortlist.math.measures import JudgedHits, judged
from shortlist.math.significance import bootstrap_interval, holm, paired_t_test, randomisation_test
from shortlist.progress import say
from shortlist.records import Qrels


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[Path, ...]
    """Run files, in TREC format or with three columns; all others are compared with the first."""
    qrels: Path | None = None
    """Judgements in TREC, BEIR or MS MARCO format; or name a collection."""
    collection: str | None = None
    """BEIR or MS MARCO folder, `irds:` or `hf:` name, whose judgements to use."""
    split: str = "test"
    """Split of the collection."""
    measures: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    """Names as in ir_measures: nDCG@10, RR@10 (or MRR@10), R@1000, AP, P@5, Success@10, R(rel=2)@100, ..."""
    relevance_level: int = 1
    """Lowest grade that counts as relevant, for measures that know no grades (2 for TREC DL)."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of a run's hits: `trec` by score and id as trec_eval does, `rank` by the run's rank column."""
    complete: bool = False
    """Count judged queries that a run lacks as 0 instead of leaving them out."""
    judged_at: int = 10
    """Number of top ranks of each run in which documents without judgement are counted."""
    resamples: int = 10_000
    """Random samples of the randomisation test; the bootstrap interval takes a tenth as many."""
    details: NotInJob[bool] = False
    """Print intervals, differences and both tests as a second table."""
    costs: bool = False
    """Also report what the runs cost, from the manifests that `shortlist` writes beside them. With --out, the costs are
    also written under the same name, as a table (.csv) and a figure of quality against time (.svg), which shows the
    first measure."""
    per_query: NotInJob[Path | None] = None
    """File for the value of every query: JSON if the name ends in .json, otherwise tab-separated columns run, measure,
    query_id, value."""
    condensed: bool = False
    """Also print each measure over judged documents alone, beside the plain one, which is to be believed where
    judged@10 is high: condensed lists favour runs that find what nobody judged."""
    pairs: Literal["none", "tukey", "randomised-tukey", "t-test", "randomisation"] = "none"
    """Compare all pairs of runs, and not only each with the first. Tukey's test of honestly significant differences
    takes all pairs together, by the normal distribution or by randomisation; the other two tests are Holm-corrected."""
    reproductions: bool = False
    """The other runs reproduce the first: also print the rank-biased overlap with it, and how far the values of
    queries are from its (root of the mean square)."""
    aspects: Path | None = None
    """Judgements with an aspect of the query in their second column, as TREC's diversity tasks have them, for the
    measures alpha_nDCG@10, ERR_IA@10, StRecall@10, AP_IA and NRBP. With neither --qrels nor --collection, a document
    counts for all other measures with its highest grade."""
    exclude: Path | None = None
    """Documents that do not count for a query, neither in runs nor in judgements: lines `query document`, or JSON lines
    with `id` and `excluded_ids` as in BRIGHT (None: what the collection says, in exclude/SPLIT.tsv or .jsonl)."""
    names: tuple[str, ...] | None = None
    """Names of the runs, one per run; their paths by default. `{weights}` in a name stands for the weights that
    `shortlist fuse` chose for the run."""
    json: NotInJob[bool] = False
    """Print one JSON object per run instead of a table, and with --pairs one more."""
    csv: NotInJob[bool] = False
    """Print CSV instead of a table."""
    latex: NotInJob[bool] = False
    """Print a LaTeX table (booktabs) with the best values bold and significant differences marked."""
    out: NotInJob[Path | None] = None
    """JSON file to write the results to, besides printing them."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def run(config: Config) -> None:
    """Print the measurements, and write them where --out and --per-query say."""
    names = [
        _with_weights(name, path) for name, path in zip(run_names(config.names, config.runs), config.runs, strict=True)
    ]
    by_name = {"per-query": config.per_query, "pairs": config.pairs != "none", "reproductions": config.reproductions}
    if any(by_name.values()) and len(set(names)) < len(names):
        flag = next(flag for flag, given in by_name.items() if given)
        raise UserError(f"--{flag}: two runs have the same name; tell them apart with --names.")
    if config.collection is None:
        refuse_idle(config, ("split",), "is for --collection, and there is none")
    _check_aspects(config)
    if not config.runs or not config.measures:
        raise UserError("--runs and --measures each need at least one value.")
    if config.resamples < 100 or config.judged_at < 1:
        raise UserError(
            f"--resamples is {config.resamples} and --judged-at {config.judged_at}; expected at least 100 and 1."
        )
    if config.costs and config.out is not None and config.out.suffix in (".csv", ".svg"):
        raise UserError(f"--out {config.out}: is for the results as JSON; --costs writes .csv and .svg beside it.")
    one_way_to_print(json=config.json, csv=config.csv, latex=config.latex)
    judgements = Judgements(config.qrels, config.collection, config.split)
    if config.aspects is None or config.qrels is not None or config.collection is not None:
        judgements.check()
    excluded = find_excluded(config.exclude, config.collection, config.split)
    if config.out is None:
        results = _results(config, names, judgements, excluded)
    else:
        results = _results_once(config, names, judgements, excluded, config.out)
    if (config.json or config.csv or config.latex) and (note := machine_note(results)):
        say(f"evaluate: {note} ({results['machine_made']}).")
    if config.json:
        marked = {name: results[name] for name in ("machine_made", "machine_part") if name in results}
        for row in results["rows"]:
            print(json.dumps({"run": row["run"]} | row | marked, ensure_ascii=False))
        if "pairs" in results:
            print(json.dumps({"pairs": results["pairs"]}, ensure_ascii=False))
    elif config.csv or config.latex:
        print((as_csv if config.csv else as_latex)(results), end="")
    else:
        print_results(results, details=config.details)


def _with_weights(name: str, run: Path) -> str:
    if "{weights}" not in name:
        return name
    weights = (read_manifest(run) or {}).get("results", {}).get("weights")
    if weights is None:
        raise UserError(
            f"{run}: has no weights for the name {name!r}; expected what `shortlist fuse --dev-runs` wrote."
        )
    return name.replace("{weights}", " : ".join(f"{weight:g}" for weight in weights))


def _check_aspects(config: Config) -> None:
    """Refuse measures of aspects without judgements by aspect, and these without such measures."""
    wanted = [name for name in config.measures if is_of_aspects(name)]
    if bool(wanted) == (config.aspects is not None):
        return
    if wanted:
        raise UserError(f"measure {wanted[0]!r} needs judgements by aspect; name their file with --aspects.")
    raise UserError(f"--aspects without a measure that reads them; name one of {', '.join(ASPECT_MEASURES)} with @10.")


def _results_once(
    config: Config, names: Sequence[str], judgements: Judgements, excluded: Excluded, out: Path
) -> dict[str, Any]:
    """Evaluate into a file, or read the file if that is done already."""
    inputs = {"runs": [identity(path) for path in config.runs]}
    inputs |= {} if judgements == Judgements(None, None, config.split) else judgements.identity()
    inputs |= {} if config.aspects is None else {"aspects": identity(config.aspects)}
    inputs |= excluded.inputs
    inputs |= {"stages": json.dumps([stages(path) for path in config.runs])} if config.costs else {}
    job = start_job(config, JobSpec("evaluate", inputs))
    if job.done and config.per_query is None:
        return json.loads(out.read_text("utf-8"))
    results = _results(config, names, judgements, excluded)
    with atomic_write(job.out) as file:
        json.dump(results, file, indent=2, ensure_ascii=False)
        file.write("\n")
    if config.costs:
        write_costs(out, results)
    job.finish(**results)
    return results


def _results(config: Config, names: Sequence[str], judgements: Judgements, excluded: Excluded) -> dict[str, Any]:
    plain = [name for name in config.measures if not is_of_aspects(name)]
    parse_measures(plain)  # before big files are read
    judged = _judged(config, judgements, excluded)
    if config.relevance_level == 1:
        _hint_at_grades(judged.qrels, plain)
    measures, overlaps = _measures(config), list[float]()
    rows, values = evaluate(
        _runs(config, names, judged, excluded, overlaps),
        judged.qrels,
        measures,
        relevance_level=config.relevance_level,
        complete=config.complete,
        judged_at=config.judged_at,
        resamples=config.resamples,
        aspects=judged.aspects,
    )
    if config.per_query is not None:
        write_values(config.per_query, values)
    for row, overlap in zip(rows[1:], overlaps, strict=False):
        row["reproduction"] = {"rbo": overlap, "rmse": distances(values[rows[0]["name"]], values[row["name"]])}
    made_by = judgements.made_by()
    pairs = {} if config.pairs == "none" else compare_pairs(values, config.pairs, resamples=config.resamples)
    return {
        "measures": measures,
        "relevance_level": config.relevance_level,
        "ties": config.ties,
        "judged_at": config.judged_at,
        "queries": len(judged.qrels),
        **({"machine_made": made_by, "machine_part": judgements.made_part()} if made_by else {}),
        **({"pairs": {"test": config.pairs, "by_measure": pairs}} if pairs else {}),
        "rows": [
            {"name": row["name"], "run": str(path)}
            | row
            | _header(path)
            | _cost(path, row[measures[0]], by_stage=config.costs)
            for row, path in zip(rows, config.runs, strict=True)
        ],
    }


class CountedJudgements(NamedTuple):
    """The judgements that count."""

    qrels: Qrels
    aspects: Aspects | None
    where: str
    """Where the judgements are, in messages."""


def _judged(config: Config, judgements: Judgements, excluded: Excluded) -> CountedJudgements:
    """Read the judgements, except of excluded documents."""
    aspects = None if config.aspects is None else read_aspects(config.aspects)
    if aspects is not None and judgements == Judgements(None, None, config.split):
        qrels, where = without_aspects(aspects), str(config.aspects)
    else:
        qrels, where = judgements.read(), judgements.where
    left = None if aspects is None else judged_without(aspects, excluded.by_query)
    return CountedJudgements(judged_without(qrels, excluded.by_query), left, where)


def _measures(config: Config) -> list[str]:
    """List the measures, with those over condensed lists where they are wanted."""
    if not config.condensed:
        return list(config.measures)
    return [m for name in config.measures for m in ([name] if is_of_aspects(name) else with_condensed([name]))]


def _runs(
    config: Config, names: Sequence[str], judged: CountedJudgements, excluded: Excluded, overlaps: list[float]
) -> Iterator[tuple[str, RunColumns, JudgedHits]]:
    """Read each run with its judged hits, without excluded documents.

    Args:
        overlaps: list to which the overlap of each other run with the first is added, if the runs are reproductions.
    """
    first = None
    for name, path in zip(names, config.runs, strict=True):
        run = excluded.left_of(path, ties=config.ties)
        hits = _common(run, judged.qrels, path, judged.where, complete=config.complete)
        if config.reproductions and first is not None:
            overlaps.append(mean_overlap(first, run))
        first = run if first is None and config.reproductions else first
        yield name, run, hits


def _header(run: Path) -> dict[str, Any]:
    """Return what the header of a run file says."""
    return {"ir_metadata": found} if (found := read_run_header(run)) else {}


def _cost(run: Path, value: float, *, by_stage: bool) -> dict[str, Any]:
    """Return the cost of a run, and of its value of the first measure."""
    known: dict[str, Any] = {"ms_per_query": milliseconds} if (milliseconds := ms_per_query(run)) else {}
    if not by_stage:
        return known
    made_by = stages(run)
    if not made_by:
        say(f"{run}: no manifest beside it says what it cost.")
    found = costs(made_by)
    return known | found | quality_per_token(value, found) | {"stages": made_by}


def evaluate(
    runs: Iterable[tuple[str, RunColumns, JudgedHits]],
    qrels: Qrels,
    measures: Sequence[str],
    *,
    relevance_level: int = 1,
    complete: bool = False,
    judged_at: int = 10,
    resamples: int = 10_000,
    aspects: Aspects | None = None,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, ByQuery]]]:
    """Measure runs, given by name with their judged hits; one is held at a time.

    Args:
        relevance_level: as for `per_query`, like `measures` and `complete`.
        judged_at: number of top ranks in which documents without judgement are counted.
        resamples: random samples of the randomisation test; the bootstrap interval takes a tenth as many.
        aspects: judgements by aspect, for the measures that need them.

    Returns:
        One row per run: means (sums of measures such as NumRet), intervals, and for all but the first run the
        difference from the first. Then name of the run -> name of the measure -> query_id -> value.
    """
    values: dict[str, dict[str, ByQuery]] = {}
    rows: list[dict[str, Any]] = []
    first = None
    for name, run, hits in runs:
        found = _per_query(run, qrels, aspects, measures, relevance_level=relevance_level, complete=complete)
        values[name] = found
        first = first or found
        row: dict[str, Any] = {"name": name}
        row |= {measure: of_run(measure, found[measure]) for measure in found}
        row |= {"queries": len(next(iter(found.values()))), **_holes(hits, judged_at)}
        row["interval"] = {measure: _interval(found[measure], resamples, summed=is_sum(measure)) for measure in found}
        if rows:
            row["difference"] = {
                m: difference(found[m], first[m], resamples=resamples, summed=is_sum(m)) for m in found
            }
        rows.append(row)
    _correct(rows, measures)
    return rows, values


def _per_query(
    run: RunColumns, qrels: Qrels, aspects: Aspects | None, measures: Sequence[str], **options: Any
) -> dict[str, ByQuery]:
    """Measure a run's queries, by documents or by aspects as each measure wants it."""
    plain, varied = ([name for name in measures if is_of_aspects(name) == kind] for kind in (False, True))
    found = per_query(run, qrels, plain, **options) if plain else {}
    if varied and aspects is not None:
        found |= by_aspect(run, aspects, varied, **options)
    return {name: found[name] for name in measures}


def difference(values: ByQuery, baseline: ByQuery, *, resamples: int = 10_000, summed: bool = False) -> dict[str, Any]:
    """Compare a run's values with the values of a baseline.

    Only queries that both have are compared.

    Args:
        resamples: random samples of the randomisation test; the bootstrap interval takes a tenth as many.
        summed: whether the measure of a run is the sum of the values, so that the differences are added up too.

    Returns:
        `mean`, the mean difference, and its 95% bootstrap `interval`; `t_test` and `randomisation`, the p-values of the
        paired two-sided tests; `queries`, the number of queries. Where there are too few queries for a value, it is
        None.
    """
    shared = [query_id for query_id in baseline if query_id in values]
    differences = np.array([values[query_id] - baseline[query_id] for query_id in shared])
    found = {query_id: float(value) for query_id, value in zip(shared, differences, strict=True)}
    return {
        "queries": len(shared),
        "mean": float(differences.sum() if summed else differences.mean()) if shared else None,
        "interval": _interval(found, resamples, summed=summed) if shared else None,
        "t_test": paired_t_test(differences),
        "randomisation": randomisation_test(differences, resamples=resamples),
    }


def _interval(values: ByQuery, resamples: int, *, summed: bool) -> tuple[float, float]:
    low, high = bootstrap_interval(np.array(list(values.values())), resamples=max(100, resamples // 10))
    return (low * len(values), high * len(values)) if summed else (low, high)


def _correct(rows: Sequence[dict[str, Any]], measures: Sequence[str]) -> None:
    """Add the Holm-corrected p-value to each p-value.

    The correction is over all runs that are compared by the same measure.
    """
    for measure in measures:
        for test in ("t_test", "randomisation"):
            tested = [d for row in rows[1:] if (d := row["difference"][measure])[test] is not None]
            for comparison, corrected in zip(tested, holm([comparison[test] for comparison in tested]), strict=True):
                comparison[f"{test}_holm"] = corrected


def write_values(path: Path, values: Mapping[str, Mapping[str, ByQuery]]) -> None:
    """Write run -> measure -> query_id -> value to a file.

    The format is JSON if the name ends in .json, otherwise tab-separated columns.
    """
    with atomic_write(path) as file:
        if path.name.removesuffix(".gz").endswith(".json"):
            json.dump(values, file, indent=2, ensure_ascii=False)
            file.write("\n")
            return
        file.write("run\tmeasure\tquery_id\tvalue\n")
        for name, by_measure in values.items():
            for measure, by_query in by_measure.items():
                file.writelines(f"{name}\t{measure}\t{query_id}\t{value!r}\n" for query_id, value in by_query.items())


def write_costs(out: Path, results: Mapping[str, Any]) -> None:
    """Write a table and a figure of quality and costs beside the results.

    The figure is written only if some manifest says how long a query took.
    """
    rows, measures = results["rows"], results["measures"]
    with atomic_write(out.with_suffix(".csv")) as file:
        columns = ["name", "run", "queries", *measures, *COSTS]
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    timed = [row for row in rows if row.get("ms_per_query")]
    if timed:
        write_svg(out.with_suffix(".svg"), partial(draw_pareto, timed, measures[0]))
    else:
        say(f"evaluate: no manifest says how long a query took, so there is no {out.with_suffix('.svg').name}.")


def _hint_at_grades(qrels: Qrels, measures: Sequence[str]) -> None:
    parsed = parse_measures(measures, relevance_level=0).values()
    level_counts = any(measure.params.get("rel") == 0 for measure in parsed)
    highest = max(grade for judged in qrels.values() for grade in judged.values())
    if highest > 1 and level_counts:
        say(
            f"evaluate: grades go up to {highest}, and measures without grades count 1 as relevant; TREC DL counts "
            "from 2 (--relevance-level 2)."
        )


def _common(run: RunColumns, qrels: Qrels, path: Path, where: str, *, complete: bool) -> JudgedHits:
    """Return the judged hits of the queries that the run and the judgements share.

    The number of other queries is reported on stderr.

    Raises:
        UserError: the run and the judgements have no query in common.
    """
    found = set(run.query_ids)
    shared = {query_id: judgements for query_id, judgements in qrels.items() if query_id in found}
    if not shared:
        raise UserError(
            f"{path}: none of its query ids (first {run.query_ids[0]!r}) is judged in {where} "
            f"(first {next(iter(qrels))!r}); expected a run of the same queries."
        )
    if missing := len(qrels) - len(shared):
        treated = "counted as 0" if complete else "left out (--complete counts them as 0)"
        say(f"{path}: {missing} of {len(qrels)} judged queries are not in the run: {treated}.")
    if others := len(found) - len(shared):
        say(f"{path}: {others} of {len(found)} queries are not judged: left out.")
    hits = judged_hits(run, shared)
    if not len(hits.ranks):
        examples = f"{run.doc_ids[0].as_py()!r} in the run, {min(min(shared.values(), key=min))!r} judged"
        say(f"{path}: none of its documents is judged in {where} ({examples}); are the ids of one collection?")
    return hits


def _holes(hits: JudgedHits, depth: int) -> dict[str, Any]:
    """Count the documents without judgement in the top ranks of the queries.

    The mean share of judged documents is returned too.
    """
    num_holes = np.minimum(hits.lengths, depth).sum() - (hits.ranks <= depth).sum()
    return {"judged": float(judged(hits, cutoff=depth).mean()), "holes": int(num_holes)}
