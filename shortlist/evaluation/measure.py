"""Measures of a run against judgements, query by query, named as in ir_measures."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ir_measures import providers
from ir_measures.measures import SumAgg
from jaxtyping import Int

from shortlist.data.runs import RunColumns, run_columns
from shortlist.errors import UserError, unknown
from shortlist.math.measures import COUNTS, MEASURES, WITHOUT_CUTOFF, JudgedHits, condensed
from shortlist.records import Qrels, Run

ByQuery = dict[str, float]
"""query_id -> value of one measure."""

NO_INSTALLING = ("pytrec_eval", "msmarco", "judged", "accuracy", "compat")
INSTALLED_BY_SOME = ("cwl_eval", "pyndeval", "ranx", "trectools")
PROVIDER = providers.FallbackProvider([providers.registry[name] for name in NO_INSTALLING + INSTALLED_BY_SOME])
"""Computes measures that are not ours, by the first provider that can: those that come with ir_measures, then
others."""

SPELLINGS = {
    **{name.lower(): name for name in sorted(ir_measures.measures.registry, reverse=True)},
    **dict.fromkeys(("mrr", "recip_rank", "reciprocal_rank"), "RR"),
    **dict.fromkeys(("map", "average_precision"), "AP"),
    **dict.fromkeys(("hit", "hits", "hit_rate", "hitrate"), "Success"),
    "ndcg": "nDCG",
    "recall": "R",
    "precision": "P",
    "num_ret": "NumRet",
    "num_rel": "NumRel",
    "num_q": "NumQ",
    "num_rel_ret": "NumRelRet",
}
"""Other names that measures have, in lower case, with ir_measures' own."""

OWN = MEASURES | WITHOUT_CUTOFF | COUNTS
"""The measures that are computed here, by name."""
OWN_PARAMETERS = {"cutoff", "rel", "dcg"}
"""Parameters of our own formulas; a measure with another parameter is computed by ir_measures."""
JUDGED_ONLY = "judged_only"
"""The parameter that drops documents without judgement before anything is counted."""


def parse_measures(names: str | Sequence[str], *, relevance_level: int = 1) -> dict[str, ir_measures.Measure]:
    """Parse the names of measures.

    A measure gets the relevance level if it needs one and its name does not give one.

    Raises:
        UserError: a name that does not exist, or that is written or parametrised wrongly.
    """
    names = [names] if isinstance(names, str) else names
    return {name: _parse_measure(name.strip(), relevance_level) for name in names}


def _parse_measure(name: str, relevance_level: int) -> ir_measures.Measure:
    try:
        measure = ir_measures.parse_measure(name)
        level = measure["rel"] if "rel" in measure.SUPPORTED_PARAMS else None
        if isinstance(level, int) and not re.search(r"\brel\s*=", name):
            measure = measure(rel=relevance_level)
        measure.validate_params()
        supported = (_is_own(measure) or PROVIDER.supports(measure)) and measure.params.get("cutoff", 1) >= 1
    except (NameError, ValueError, AssertionError) as error:
        if (usual := _usual(name)) and usual != name:
            raise UserError(f"unknown measure {name!r}: perhaps {usual!r}?") from None
        if isinstance(error, NameError):
            raise _unknown_measure(name.partition("@")[0].partition("(")[0]) from None
        words = re.sub("invalid param (.*)=<object .*>", r"needs a \1", str(error))
        raise UserError(f"measure {name!r}: {words}. Expected a form such as nDCG@10 or R(rel=2)@100.") from None
    if not supported:
        by = [
            provider.NAME
            for provider in PROVIDER.providers
            if provider.supports(measure) and not provider.is_available()
        ]
        how = f"install {' or '.join(by)}" if by else "try one such as nDCG@10, RR@10, AP or R@1000"
        raise UserError(f"measure {name!r} cannot be computed here; {how}.")
    return measure


def _usual(name: str) -> str | None:
    """Return ir_measures' form of a name such as `mrr@10` or trec_eval's `ndcg_cut_10`."""
    parts = re.fullmatch(r"(\w+?)(?:_cut)?(?:[@_.](\d+))?", name)
    known = SPELLINGS.get(parts[1].lower()) if parts else None
    return known and (f"{known}@{parts[2]}" if parts and parts[2] else known)


def _unknown_measure(name: str) -> UserError:
    registry = ir_measures.measures.registry
    return unknown("measure", name, registry if get_close_matches(name, registry, cutoff=0.5) else MEASURES)


def is_sum(name: str) -> bool:
    """Whether a run's measure is the sum of its queries' values; others are their mean."""
    return isinstance(ir_measures.parse_measure(name.strip()).aggregator(), SumAgg)


def of_run(name: str, values: ByQuery) -> float:
    """Return the measure of a run, from its value for each query."""
    return float((np.sum if is_sum(name) else np.mean)(list(values.values())))


def _is_own(measure: ir_measures.Measure) -> bool:
    return measure.NAME in OWN and measure.params.keys() <= OWN_PARAMETERS | {JUDGED_ONLY}


def with_condensed(names: Sequence[str]) -> list[str]:
    """Add, after each measure that has one, the same over documents with a judgement alone."""
    both = []
    for name in names:
        measure = _parse_measure(name.strip(), 1)
        both.append(name)
        if JUDGED_ONLY in measure.SUPPORTED_PARAMS and not measure.params.get(JUDGED_ONLY):
            start, at, cutoff = name.strip().partition("@")
            head = f"{start[:-1]}, " if start.endswith(")") else f"{start}("
            both.append(f"{head}{JUDGED_ONLY}=True){at}{cutoff}")
    return both


def per_query(
    run: Run | RunColumns,
    qrels: Qrels,
    measures: str | Sequence[str],
    *,
    relevance_level: int = 1,
    complete: bool = False,
) -> dict[str, ByQuery]:
    """Measure each query's hits, in the order in which the run lists them.

    Args:
        run: best first; scores are ignored.
        qrels: documents without judgement count as not relevant.
        measures: names as in ir_measures, or one of them.
        relevance_level: lowest grade that counts as relevant, for measures that know no grades.
        complete: include judged queries that the run lacks, at 0.

    Returns:
        name of the measure -> query_id -> value, over the queries that are both judged and in the run, in the order of
        the judgements.

    Raises:
        UserError: an unknown measure.
    """
    parsed = parse_measures(measures, relevance_level=relevance_level)
    run = run if isinstance(run, RunColumns) else run_columns(run)
    found = set(run.query_ids)
    judged = {query_id: judgements for query_id, judgements in qrels.items() if complete or query_id in found}
    hits = judged_hits(run, judged)
    of_judged = condensed(hits)
    others = [measure for measure in parsed.values() if not _is_own(measure)]
    values = _by_ir_measures(others, run, judged) if others and judged else {measure: {} for measure in others}
    for measure in parsed.values():
        if _is_own(measure):
            params = {name: value for name, value in measure.params.items() if name != JUDGED_ONLY}
            counted = of_judged if measure.params.get(JUDGED_ONLY) else hits
            query_values = OWN[str(measure.NAME)](counted, **params)
            values[measure] = dict(zip(judged, query_values.tolist(), strict=True))
    return {name: values[measure] for name, measure in parsed.items()}


def judged_hits(run: RunColumns, qrels: Qrels) -> JudgedHits:
    """Find the judged documents in a run.

    Queries are numbered in the order of the judgements.
    """
    queries = np.repeat(np.arange(len(qrels)), [len(judgements) for judgements in qrels.values()])
    grades = np.array([grade for judgements in qrels.values() for grade in judgements.values()], dtype=np.int64)
    ranks = judged_ranks(run, qrels)
    found = np.flatnonzero(ranks)
    found = found[np.lexsort((ranks[found], queries[found]))]
    best_first = np.lexsort((-grades, queries))
    num_hits = dict(zip(run.query_ids, np.diff(run.starts).tolist(), strict=True))
    return JudgedHits(
        queries=queries[found],
        ranks=ranks[found],
        grades=grades[found],
        lengths=np.array([num_hits.get(query_id, 0) for query_id in qrels], dtype=np.int64),
        judged_queries=queries,
        judged_grades=grades[best_first],
    )


def judged_ranks(run: RunColumns, qrels: Qrels) -> Int[np.ndarray, " judgements"]:
    """Return the rank of each judged document in a run, 0 if it is absent.

    Ranks start at 1 and are in the order of the judgements.
    """
    codes = {
        doc_id: code
        for code, doc_id in enumerate({doc_id: None for judgements in qrels.values() for doc_id in judgements})
    }
    queries = np.repeat(np.arange(len(qrels)), [len(judgements) for judgements in qrels.values()])
    wanted = queries * len(codes) + np.array(
        [codes[d] for judgements in qrels.values() for d in judgements], dtype=np.int64
    )
    numbers = {query_id: number for number, query_id in enumerate(qrels)}
    number_of = np.array([numbers.get(query_id, -1) for query_id in run.query_ids], dtype=np.int64)

    known = pa.array(codes, pa.string())
    found = pc.index_in(run.doc_ids, known).fill_null(-1).to_numpy()  # type: ignore[attr-defined]
    places = np.flatnonzero(found >= 0)
    hit_queries = run.queries_of(places)
    keys = number_of[hit_queries] * len(codes) + found[places]  # negative for a query without judgements
    order = np.argsort(keys)
    at = np.searchsorted(keys, wanted, sorter=order)
    at = order[np.minimum(at, len(keys) - 1)] if len(keys) else at
    ranks = np.append(places - run.starts[hit_queries] + 1, 0)  # the last one stands for a document that is absent
    return ranks[np.where(np.append(keys, -1)[at] == wanted, at, -1)]


def _by_ir_measures(
    measures: Sequence[ir_measures.Measure], run: RunColumns, qrels: Qrels
) -> dict[ir_measures.Measure, ByQuery]:
    ordered = {
        query_id: {hit.doc_id: -float(rank) for rank, hit in enumerate(run.hits(number))}
        for number, query_id in enumerate(run.query_ids)
        if query_id in qrels
    }
    # what a provider leaves out, a query without an answer, counts as it does in ir_measures' mean
    absent = qrels.keys() - ordered.keys()
    values = {measure: dict.fromkeys(absent, float(measure.DEFAULT)) for measure in measures}
    try:
        for metric in PROVIDER.iter_calc(list(measures), qrels, ordered):
            values[metric.measure][metric.query_id] = float(metric.value)
    except ArithmeticError as error:
        names = ", ".join(str(measure) for measure in measures if _fails(measure, qrels, ordered))
        raise UserError(f"ir_measures cannot compute {names} for this run ({error}); leave it out.") from None
    return {
        measure: {query_id: by_query[query_id] for query_id in qrels if query_id in by_query}
        for measure, by_query in values.items()
    }


def _fails(measure: ir_measures.Measure, qrels: Qrels, run: dict[str, dict[str, float]]) -> bool:
    """Whether a measure cannot be computed.

    Accuracy cannot where everything that was found is relevant.
    """
    try:
        return not all(True for _ in PROVIDER.iter_calc([measure], qrels, run))
    except ArithmeticError:
        return True
