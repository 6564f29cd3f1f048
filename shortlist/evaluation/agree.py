"""Stage `agree`: how far sets of judgements agree, and whether on the same runs."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shortlist.config import NotInJob, refuse_idle
from shortlist.data.files import read_json, write_json
from shortlist.data.formats import read_qrels
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.judgements import run_names
from shortlist.data.manifest import identity
from shortlist.data.runs import read_run_columns
from shortlist.errors import UserError
from shortlist.evaluation.formats import SIGNIFICANT
from shortlist.evaluation.measure import parse_measures, per_query
from shortlist.math.all_pairs import SystemValues, pairs_of, randomisation_tests, randomised_tukey, t_tests, tukey_hsd
from shortlist.math.concordance import kendall_tau, rank_moves, tau_ap, top_tau
from shortlist.math.judges import confusion, in_two, kappa, ordinal_alpha
from shortlist.math.significance import holm
from shortlist.progress import say
from shortlist.records import Qrels

SYSTEM_TESTS = {
    "t_test": "paired t-test",
    "t_test_holm": "paired t-test, Holm-corrected",
    "randomisation": "randomisation test",
    "tukey": "Tukey's HSD",
    "randomised_tukey": "Tukey's HSD, by randomisation",
}
"""The tests of pairs of runs, with their names as printed. A randomisation test has no line with Holm's correction: its
p-values end at 1 in `resamples`, which times hundreds of pairs is above any level."""
PAIR_CELLS = ("both", "missed", "false", "neither", "opposite")
"""What becomes of a pair of runs: real under both sets of judgements with the same run ahead, under the reference
alone, under the other alone, under neither, or under both with another run ahead."""


@dataclass(frozen=True, kw_only=True)
class Config:
    judgements: tuple[Path, ...]
    """Files of judgements, in TREC, BEIR or MS MARCO format: first the reference, usually made by people, then one or
    more to compare with it."""
    runs: tuple[Path, ...] = ()
    """Runs to order by each set of judgements, two or more."""
    measure: str = "nDCG@10"
    """Measure that orders the runs, as in `shortlist evaluate`. A judged query that a run lacks counts as 0."""
    relevance_level: int = 1
    """Lowest grade that counts as relevant (2 for TREC DL), for the binary kappa and for measures that know no
    grades."""
    top: int = 10
    """Number of the reference's best runs whose order is also compared alone."""
    resamples: int = 10_000
    """Random samples of the randomisation tests."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of a run's hits, as in `shortlist evaluate`."""
    names: tuple[str, ...] | None = None
    """Names of the runs, one per run; their paths by default."""
    details: NotInJob[bool] = False
    """Also print how often each pair of grades was given, and the runs that move most."""
    json: NotInJob[bool] = False
    """Print JSON instead of tables."""
    out: NotInJob[Path | None] = None
    """JSON file to write the results to, besides printing them."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def run(config: Config) -> None:
    """Compare, print the result, and write it to --out."""
    if len(config.judgements) < 2:
        raise UserError(f"--judgements names {len(config.judgements)} file; expected the reference and one or more.")
    if len(config.runs) == 1:
        raise UserError("--runs names 1 file; expected two or more runs to order, or none.")
    for flag, value, least in (("top", config.top, 2), ("resamples", config.resamples, 100)):
        if value < least:
            raise UserError(f"--{flag} is {value}; expected {least} or more.")
    if not config.runs:
        refuse_idle(config, ("measure", "top", "resamples", "ties", "names"), "is for --runs, and there are none")
    names = run_names(config.names, config.runs)
    parse_measures([config.measure])
    if config.out is None:
        found = _results(config, names)
    else:
        inputs = {field: [identity(path) for path in getattr(config, field)] for field in ("judgements", "runs")}
        job = start_job(config, JobSpec("agree", inputs))
        if not job.done:
            write_json(job.out, _results(config, names))
            job.finish()
        found = read_json(config.out)
    if config.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print_agreement(found, details=config.details)


def _results(config: Config, names: Sequence[str]) -> dict[str, Any]:
    sets = [read_qrels(path) for path in config.judgements]
    where = [str(path) for path in config.judgements]
    rows = [
        {"judgements": name, **compare_judgements(sets[0], other, level=config.relevance_level, where=(where[0], name))}
        for name, other in zip(where[1:], sets[1:], strict=True)
    ]
    if config.runs:
        values = _values(config, sets)
        for row, (reference, other) in zip(rows, values, strict=True):
            row["runs"] = compare_runs(reference, other, names, top=config.top, resamples=config.resamples)
    return {
        "reference": where[0],
        "relevance_level": config.relevance_level,
        "measure": config.measure,
        "top": config.top,
        "num_runs": len(config.runs),
        "rows": rows,
    }


def compare_judgements(reference: Qrels, other: Qrels, *, level: int = 1, where: Sequence[str] = ("", "")) -> dict:
    """Compare the grades that two judges gave to the same pairs of query and document.

    Args:
        level: the lowest grade that counts as relevant.
        where: names of both sets, for errors.

    Returns:
        `pairs` and `queries` that both judged; `only_reference` and `only_other`, pairs that one judged alone;
        `grades`, and `confusion` with a row for each grade of the reference and a column for each grade of the other;
        `mean_grades` of both; `kappa` over all grades, `kappa_binary` over relevant and not, `alpha` (ordinal), and
        `by_query` with both kappas of each query. A value is None where all grades are the same.

    Raises:
        UserError: no pair is judged by both.
    """
    pairs = [
        (number, judged[doc_id], grade)
        for number, (query_id, judged) in enumerate(reference.items())
        for doc_id, grade in other.get(query_id, {}).items()
        if doc_id in judged
    ]
    if not pairs:
        raise UserError(
            f"{where[1]}: judges no document that {where[0]} judges for the same query; expected the same collection."
        )
    queries, one, two = np.array(pairs).T
    grades = np.unique(np.concatenate([one, two]))
    counts = confusion(
        np.searchsorted(grades, one),
        np.searchsorted(grades, two),
        queries,
        num_grades=len(grades),
        num_groups=len(reference),
    )
    relevant = int(np.searchsorted(grades, level))
    binary = in_two(counts, relevant) if 0 < relevant < len(grades) else np.zeros((len(counts), 2, 2), dtype=np.int64)
    seen, all_counts = np.unique(queries), counts.sum(0)
    query_ids, by_query = list(reference), zip(kappa(counts).tolist(), kappa(binary).tolist(), strict=True)
    known = list(by_query)
    return {
        "pairs": len(pairs),
        "queries": len(seen),
        "only_reference": sum(map(len, reference.values())) - len(pairs),
        "only_other": sum(map(len, other.values())) - len(pairs),
        "grades": grades.tolist(),
        "confusion": all_counts.tolist(),
        "mean_grades": [float(one.mean()), float(two.mean())],
        "kappa": _known(kappa(all_counts)),
        "kappa_binary": _known(kappa(binary.sum(0))),
        "alpha": _known(ordinal_alpha(all_counts)),
        "by_query": {
            query_ids[n]: {"kappa": _known(known[n][0]), "kappa_binary": _known(known[n][1])} for n in seen.tolist()
        },
    }


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _values(config: Config, sets: Sequence[Qrels]) -> list[tuple[SystemValues, SystemValues]]:
    """Measure all runs by the reference and by each other set.

    The queries are those that both judge.
    """
    shared = [
        [{query_id: judged[query_id] for query_id in sets[0] if query_id in other} for judged in (sets[0], other)]
        for other in sets[1:]
    ]
    found: list[tuple[list, list]] = [([], []) for _ in shared]
    for path in config.runs:
        columns = read_run_columns(path, ties=config.ties)
        missing = sets[0].keys() - set(columns.query_ids)
        if len(missing) == len(sets[0]):
            raise UserError(f"{path}: none of its query ids (first {columns.query_ids[0]!r}) is judged.")
        if missing:
            say(f"{path}: {len(missing)} of {len(sets[0])} judged queries are not in the run: counted as 0.")
        for both, values in zip(shared, found, strict=True):
            for qrels, side in zip(both, values, strict=True):
                options: dict[str, Any] = {"relevance_level": config.relevance_level, "complete": True}
                side.append(list(per_query(columns, qrels, [config.measure], **options)[config.measure].values()))
    return [(np.array(one), np.array(other)) for one, other in found]


def compare_runs(
    reference: SystemValues, other: SystemValues, names: Sequence[str], *, top: int = 10, resamples: int = 10_000
) -> dict[str, Any]:
    """Compare the order and the significant differences of runs under two sets of judgements.

    Args:
        reference: a value of each run for each query, by the reference.
        other: the same by the other judgements.
        names: names of the runs.
        top: number of the reference's best runs whose order is also compared alone.
        resamples: random samples of the randomisation tests.

    Returns:
        `tau`, `tau_ap` and `tau_top` of the orders; `moves` with the means and ranks of each run, largest move first;
        `significance`: for each test in SYSTEM_TESTS, the number of pairs in each of PAIR_CELLS.
    """
    means = reference.mean(1), other.mean(1)
    ranks = rank_moves(*means)
    order = np.argsort(-np.abs(ranks[1] - ranks[0]), kind="stable").tolist()
    moves = [
        {"run": names[n], "means": [float(m[n]) for m in means], "ranks": [int(r[n]) for r in ranks]} for n in order
    ]
    return {
        "tau": kendall_tau(*means),
        "tau_ap": tau_ap(*means),
        "tau_top": top_tau(*means, top),
        "moves": moves,
        "significance": significance_cells(reference, other, resamples=resamples),
    }


def significance_cells(
    reference: SystemValues, other: SystemValues, *, resamples: int = 10_000
) -> dict[str, dict[str, int]]:
    """Count the pairs of runs that differ significantly under both sets, one or neither."""
    first, second = pairs_of(len(reference))
    ahead = [np.sign(values.mean(1)[first] - values.mean(1)[second]) for values in (reference, other)]
    p_values = [_p_values(values, resamples) for values in (reference, other)]
    cells = {}
    for test in SYSTEM_TESTS:
        real, told = (p[test] < SIGNIFICANT for p in p_values)
        same = ahead[0] == ahead[1]
        masks = (real & told & same, real & ~told, ~real & told, ~real & ~told, real & told & ~same)
        cells[test] = {cell: int(mask.sum()) for cell, mask in zip(PAIR_CELLS, masks, strict=True)}
    return cells


def _p_values(values: SystemValues, resamples: int) -> dict[str, np.ndarray]:
    if values.shape[1] < 2:
        raise UserError("--runs with 1 judged query: a test of significance needs two or more.")
    by_chance = [test(values, resamples=resamples) for test in (randomisation_tests, randomised_tukey)]
    t = t_tests(values)
    return dict(
        zip(SYSTEM_TESTS, (t, np.array(holm(t.tolist())), by_chance[0], tukey_hsd(values), by_chance[1]), strict=True)
    )


def print_agreement(found: Mapping[str, Any], *, details: bool) -> None:
    """Print the tables of what `agree` found.

    Args:
        details: also print the confusion of grades, and the runs that move most.
    """
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(_judges_table(found))
    for row in found["rows"]:
        if "runs" in row:
            console.print(_significance_table(row))
        if details:
            console.print(_confusion_table(row))
        if details and "runs" in row:
            console.print(_moves_table(row, found["measure"]))


def _judges_table(found: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"agreement with {found['reference']}",
        caption=f"relevant: grade {found['relevance_level']} and above; alpha: Krippendorff's, ordinal; by query: "
        f"lowest, middle and highest kappa of a query; tau: order of {found['num_runs']} runs by {found['measure']}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("judgements", overflow="fold")
    orders = ["tau", "tau AP", f"tau top {found['top']}"] if found["num_runs"] else []
    headings = ["pairs", "one side only", "mean grades", "kappa", "by query", "binary kappa", "alpha", *orders]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found["rows"]:
        one_side = row["only_reference"] + row["only_other"]
        known = [value for by in row["by_query"].values() if (value := by["kappa"]) is not None]
        spread = " ".join(f"{np.quantile(known, share):.2f}" for share in (0, 0.5, 1)) if known else "-"
        cells = [f"{row['pairs']:,}", f"{one_side:,}", " ".join(f"{mean:.2f}" for mean in row["mean_grades"])]
        cells += [_shown(row["kappa"]), spread, _shown(row["kappa_binary"]), _shown(row["alpha"])]
        cells += [_shown(row["runs"][name]) for name in ("tau", "tau_ap", "tau_top")] if orders else []
        table.add_row(row["judgements"], *cells)
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _significance_table(row: Mapping[str, Any]) -> Any:
    from rich.table import Table

    pairs = sum(next(iter(row["runs"]["significance"].values())).values())
    table = Table(
        title=f"{row['judgements']}: pairs of runs that differ at p < {SIGNIFICANT}, of {pairs:,}",
        caption="missed: by the reference alone; false: by the others alone; opposite: by both, another run ahead",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("test")
    for cell in PAIR_CELLS:
        table.add_column(cell, justify="right")
    for test, cells in row["runs"]["significance"].items():
        table.add_row(SYSTEM_TESTS[test], *(f"{cells[cell]:,}" for cell in PAIR_CELLS))
    return table


def _confusion_table(row: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"{row['judgements']}: grades, the reference's in rows", title_justify="left")
    for heading in ("", *map(str, row["grades"])):
        table.add_column(heading, justify="right")
    for grade, counts in zip(row["grades"], row["confusion"], strict=True):
        table.add_row(str(grade), *(f"{count:,}" for count in counts))
    return table


def _moves_table(row: Mapping[str, Any], measure: str) -> Any:
    from rich.table import Table

    table = Table(title=f"{row['judgements']}: the runs that move most, by {measure}", title_justify="left")
    for heading in ("run", "reference", "rank", "others", "rank"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for move in row["runs"]["moves"][:10]:
        pairs = zip(move["means"], move["ranks"], strict=True)
        table.add_row(move["run"], *(cell for mean, rank in pairs for cell in (f"{mean:.4f}", str(rank))))
    return table
