"""Agreement between the rankings of a narrow number type and of exact scores."""

from dataclasses import replace

import numpy as np
from jaxtyping import Int

from shortlist.errors import UserError
from shortlist.evaluation.measure import per_query
from shortlist.math.concordance import kendall_tau
from shortlist.records import Hit, Qrels, Run
from shortlist.rerank.candidates import CandidateReader, Chunk
from shortlist.rerank.scoring import Scorer
from shortlist.rerankers.prepared import Prepared

SAMPLE_QUERIES, SAMPLE_DEPTH = 16, 32
"""Numbers of queries, and of candidates per query, in the comparison."""


def order_agreement(
    exact: Prepared, narrow: Prepared, candidates: CandidateReader, readable: Int[np.ndarray, " readable"]
) -> str:
    """Compare the order of the first candidates of some queries; returns the result in words."""
    sampled = readable[
        (candidates.run.queries_of(readable) < SAMPLE_QUERIES) & (candidates.ranks[readable] < SAMPLE_DEPTH)
    ]
    sample = replace(candidates, at_once=max(1, len(sampled)))
    chunk = next(sample.chunks(sampled, np.zeros(len(candidates.ranks), dtype=bool)), Chunk(sampled[:0], []))
    if not chunk.lists:
        return "no pairs"
    # one model after the other, and both are freed before the work begins
    runs = [_scores(prepared, candidates, chunk) for prepared in (exact, narrow)]
    taus = [kendall_tau(*(np.array([hit.score for hit in run[query_id]]) for run in runs)) for query_id in runs[0]]
    words = f"{len(chunk.numbers)} pairs of {len(runs[0])} queries: Kendall's tau {np.mean(taus):.4f}"
    try:
        qrels = candidates.collection.qrels(candidates.split)
    except UserError:  # there are no judgements
        return words
    before, after = (mean_ndcg(run, qrels) for run in runs)
    return f"{words}, nDCG@10 {after:.4f} instead of {before:.4f}"


def _scores(prepared: Prepared, candidates: CandidateReader, chunk: Chunk) -> Run:
    """Score each query's candidates and sort them by document id.

    Candidates that the reranker did not look at get the lowest score.
    """
    part, run = Scorer(prepared)(chunk), {}
    scores = np.nan_to_num(part.scores, nan=float(np.finfo(np.float32).min)).tolist()
    for (query_id, doc_id), score in zip(candidates.run.pairs(part.numbers), scores, strict=True):
        run.setdefault(query_id, []).append(Hit(doc_id, score))
    return {query_id: sorted(hits, key=lambda hit: hit.doc_id) for query_id, hits in run.items()}


def mean_ndcg(run: Run, qrels: Qrels) -> float:
    """Compute the mean nDCG@10 of a run's judged queries; 0 if there are none.

    Hits are ranked by their scores.
    """
    ordered = {query_id: sorted(hits, key=lambda hit: -hit.score) for query_id, hits in run.items()}
    values = per_query(ordered, qrels, ["nDCG@10"])["nDCG@10"].values()
    return sum(values) / max(1, len(values))
