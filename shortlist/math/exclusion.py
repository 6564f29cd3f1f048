"""Removal of the query itself from its hits, where queries are documents too."""

from shortlist.records import Run


def without_own(run: Run, k: int) -> Run:
    """Keep each query's first `k` hits, leaving out the document with the query's id.

    Args:
        run: hits best first, searched one deeper than `k`, since at most one hit is left out.
        k: how many hits to keep.
    """
    return {query_id: [hit for hit in hits if hit.doc_id != query_id][:k] for query_id, hits in run.items()}


def count_own(run: Run) -> int:
    """Count the queries whose hits include the document with the query's id."""
    return sum(any(hit.doc_id == query_id for hit in hits) for query_id, hits in run.items())
