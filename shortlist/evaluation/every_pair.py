"""Comparison of all pairs of runs, and of runs with the run that they reproduce."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shortlist.data.runs import RunColumns
from shortlist.errors import UserError
from shortlist.evaluation.formats import SIGNIFICANT
from shortlist.evaluation.measure import ByQuery, is_sum
from shortlist.math.all_pairs import (
    PValues,
    SystemValues,
    pairs_of,
    randomisation_tests,
    randomised_tukey,
    t_tests,
    tukey_hsd,
)
from shortlist.math.concordance import rank_biased_overlap
from shortlist.math.significance import holm

PAIR_TESTS: dict[str, tuple[str, Callable[..., PValues]]] = {
    "tukey": ("Tukey's HSD", lambda values, resamples: tukey_hsd(values)),
    "randomised-tukey": ("Tukey's HSD, by randomisation", randomised_tukey),
    "t-test": ("paired t-test, Holm-corrected", lambda values, resamples: np.array(holm(t_tests(values).tolist()))),
    "randomisation": (
        "randomisation test, Holm-corrected",
        lambda values, resamples: np.array(holm(randomisation_tests(values, resamples=resamples).tolist())),
    ),
}
"""The tests of all pairs: the name as printed, and the function of values and resamples. All are corrected for the
number of pairs."""


def compare_pairs(
    values: Mapping[str, Mapping[str, ByQuery]], test: str, *, resamples: int = 10_000
) -> dict[str, list[dict[str, Any]]]:
    """Compare each two runs by each measure, over the queries that all runs have.

    Args:
        values: name of the run -> measure -> query_id -> value.
        test: a key of PAIR_TESTS.
        resamples: random samples, of the tests that draw any.

    Returns:
        measure -> `runs`, the names of both, `difference` of the means (sums, of measures that are added up), and the
        corrected `p`.

    Raises:
        UserError: there are fewer than two runs, or than two queries that all runs have.
    """
    names = list(values)
    if len(names) < 2:
        raise UserError("--pairs with 1 run: expected two or more --runs, each under a name of its own.")
    found = {}
    for measure in values[names[0]]:
        table = _table([values[name][measure] for name in names])
        p_values = PAIR_TESTS[test][1](table, resamples=resamples)
        whole = (np.sum if is_sum(measure) else np.mean)(table, axis=1)
        found[measure] = [
            {"runs": [names[one], names[two]], "difference": float(whole[one] - whole[two]), "p": float(p)}
            for one, two, p in zip(*pairs_of(len(names)), p_values, strict=True)
        ]
    return found


def _table(by_run: Sequence[ByQuery]) -> SystemValues:
    shared = [query_id for query_id in by_run[0] if all(query_id in values for values in by_run)]
    if len(shared) < 2:
        raise UserError(f"--pairs: all runs have {len(shared)} judged query in common; expected two or more.")
    return np.array([[values[query_id] for query_id in shared] for values in by_run])


def better_and_worse(pairs: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Count the other runs that each run is better than, worse than, and neither."""
    counts: dict[str, list[int]] = {}
    for pair in pairs:
        one, two = pair["runs"]
        place = 2 if pair["p"] >= SIGNIFICANT else 0 if pair["difference"] > 0 else 1
        for name, at in ((one, place), (two, (1, 0, 2)[place])):
            counts.setdefault(name, [0, 0, 0])[at] += 1
    return counts


def mean_overlap(original: RunColumns, run: RunColumns) -> float:
    """Compute the mean rank-biased overlap of two runs over the queries that both have.

    The persistence is 0.9.

    Raises:
        UserError: the runs have no query in common.
    """
    numbers = {query_id: number for number, query_id in enumerate(run.query_ids)}
    shared = [(n, numbers[query_id]) for n, query_id in enumerate(original.query_ids) if query_id in numbers]
    if not shared:
        raise UserError("--reproductions: the runs have no query in common; expected runs of the same queries.")
    lists = [([hit.doc_id for hit in original.hits(a)], [hit.doc_id for hit in run.hits(b)]) for a, b in shared]
    return float(np.mean([_overlap(*both) for both in lists]))


def distances(original: Mapping[str, ByQuery], values: Mapping[str, ByQuery]) -> dict[str, float | None]:
    """Compute, for each measure, the root of the mean squared difference of two runs' values.

    Equal means can hide differences of queries, which this shows. None where the runs share no query.
    """
    return {name: _rmse(original[name], by_query) for name, by_query in values.items()}


def _overlap(one: Sequence[str], other: Sequence[str]) -> float:
    numbers: dict[str, int] = {}
    lists = [np.array([numbers.setdefault(doc_id, len(numbers)) for doc_id in ids], dtype=int) for ids in (one, other)]
    return rank_biased_overlap(*lists)


def _rmse(original: ByQuery, values: ByQuery) -> float | None:
    squares = [(original[query_id] - value) ** 2 for query_id, value in values.items() if query_id in original]
    return float(np.sqrt(np.mean(squares))) if squares else None


def pair_tables(results: Mapping[str, Any]) -> list[Any]:
    """Make a table for each measure, with what `better_and_worse` counts."""
    if "pairs" not in results:
        return []
    from rich.table import Table

    tables = []
    for measure, pairs in results["pairs"]["by_measure"].items():
        real = sum(pair["p"] < SIGNIFICANT for pair in pairs)
        test = PAIR_TESTS[results["pairs"]["test"]][0]
        table = Table(
            title=f"{measure}: {real} of {len(pairs)} pairs differ, p < {SIGNIFICANT} ({test})", title_justify="left"
        )
        for heading in ("run", measure, "better than", "worse than", "neither"):
            table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
        counts, means = better_and_worse(pairs), {row["name"]: row[measure] for row in results["rows"]}
        for name in sorted(counts, key=means.__getitem__, reverse=True):
            table.add_row(name, f"{means[name]:.4f}", *map(str, counts[name]))
        tables.append(table)
    return tables


def reproduction_tables(results: Mapping[str, Any]) -> list[Any]:
    """Make a table of how near runs come to the first one."""
    rows = [row for row in results["rows"] if "reproduction" in row]
    if not rows:
        return []
    from rich.table import Table

    title = f"as reproductions of {results['rows'][0]['name']}: overlap (RBO 0.9), and distance of queries (RMSE)"
    table = Table(title=title, title_justify="left")
    for heading in ("run", "overlap", *results["measures"]):
        table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    for row in rows:
        far = row["reproduction"]["rmse"]
        cells = ["-" if far[name] is None else f"{far[name]:.4f}" for name in results["measures"]]
        table.add_row(row["name"], f"{row['reproduction']['rbo']:.4f}", *cells)
    return [table]
