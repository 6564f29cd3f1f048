"""Queries that look hard before anybody has judged a document."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shortlist.data.runs import RunColumns
from shortlist.evaluation.measure import ByQuery
from shortlist.math.concordance import kendall_tau
from shortlist.math.difficulty import score_spread
from shortlist.records import Query

SPREAD_DEPTH = 100
"""Number of first scores of a query whose spread says how hard it looks."""


def find_hard(run: RunColumns, queries: Mapping[str, Query], values: ByQuery, *, examples: int = 5) -> dict[str, Any]:
    """Find queries that look hard by a run's scores, without any judgement.

    Where the best scores hardly differ, the run cannot tell documents apart. The number is the standard deviation of a
    query's first SPREAD_DEPTH scores over their mean, or the deviation alone if some query has scores that are not
    above 0.

    Args:
        queries: the run's queries that have a text, judged or not.
        values: the measure of the judged ones, to say how far the guess can be trusted.
        examples: number of queries to return.

    Returns:
        `predictor`, what was computed; `tau`, Kendall's tau with the measure over the judged queries (None for fewer
        than two); `hardest`, the queries with the smallest spread.
    """
    heads = {
        query_id: run.scores[start:end][:SPREAD_DEPTH]
        for query_id, start, end in zip(run.query_ids, run.starts[:-1], run.starts[1:], strict=True)
        if query_id in queries and end > start
    }
    of_mean = all(scores[-1] > 0 for scores in heads.values())
    spreads = {query_id: score_spread(scores, of_mean=of_mean) for query_id, scores in heads.items()}
    known = [query_id for query_id in values if query_id in spreads]
    pairs = np.array([(spreads[query_id], values[query_id]) for query_id in known]).reshape(-1, 2)
    hardest = sorted(spreads, key=spreads.__getitem__)[:examples]
    return {
        "predictor": f"deviation of the first {SPREAD_DEPTH} scores" + (" over their mean" if of_mean else ""),
        "tau": kendall_tau(pairs[:, 0], pairs[:, 1]) if len(known) > 1 else None,
        "hardest": [
            {"query_id": q, "query": queries[q].text, "spread": spreads[q], "value": values.get(q)} for q in hardest
        ],
    }
