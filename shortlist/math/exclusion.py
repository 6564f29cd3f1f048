"""What a run must not hold: the query itself, where queries are documents too."""

from shortlist.records import Run


def without_own(run: Run, k: int) -> Run:
    """The first `k` hits of each query that are not the document of the query's own id.

    Args:
        run: best first, searched one deeper than `k`: at most one hit is left out.
        k: how many to keep.
    """
    return {query_id: [hit for hit in hits if hit.doc_id != query_id][:k] for query_id, hits in run.items()}


def count_own(run: Run) -> int:
    """How many queries have found the document of their own id."""
    return sum(any(hit.doc_id == query_id for hit in hits) for query_id, hits in run.items())
