"""Conversion from records of ir_datasets and ir_measures to ours, and back.

Any objects with the same fields, such as `query_id`, can be converted. Our `Qrels` need no way back: ir_measures takes
them as they are.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from ir_measures import ScoredDoc

from shortlist.data.formats import add_judgement, to_grade, to_id
from shortlist.data.hub import irds_document, irds_query
from shortlist.data.lines import parse_records
from shortlist.data.seen import checked
from shortlist.errors import UserError
from shortlist.math.ordering import strictly_decreasing
from shortlist.records import Document, Hit, Qrels, Query, Run


def to_documents(records: Iterable[Any]) -> Iterator[Document]:
    """Convert documents of ir_datasets (`dataset.docs_iter()`), in their order.

    Title and url are kept apart from the text.

    Raises:
        UserError: a record that cannot be used, such as an id with white space or one that occurs twice.
    """
    return parse_records("documents", records, checked(irds_document, allow_empty=True))


def to_queries(records: Iterable[Any]) -> Iterator[Query]:
    """Convert queries of ir_datasets (`dataset.queries_iter()`), in their order.

    Raises:
        UserError: a record that cannot be used, such as a query without text.
    """
    return parse_records("queries", records, irds_query)


def to_qrels(judgements: Iterable[Any]) -> Qrels:
    """Convert judgements of ir_datasets (`dataset.qrels_iter()`) or ir_measures.

    Raises:
        UserError: a pair has two different judgements.
    """
    qrels: Qrels = {}

    def add(row: Any) -> None:
        query_id, doc_id = to_id(row.query_id, "query"), to_id(row.doc_id, "document")
        add_judgement(qrels, query_id, doc_id, to_grade(row.relevance))

    for _ in parse_records("judgements", judgements, add):
        pass
    return qrels


def to_run(scored_docs: Iterable[Any]) -> Run:
    """Convert scored documents of ir_datasets or ir_measures to a run.

    In ir_datasets they come from `dataset.scoreddocs_iter()`. The hits are in trec_eval's order.

    Raises:
        UserError: a document twice for one query, or a score that is not finite.
    """
    found: dict[str, dict[str, float]] = {}
    for scored in scored_docs:
        where, scores = f"query {scored.query_id!r}, document {scored.doc_id!r}", found.setdefault(scored.query_id, {})
        if scored.doc_id in scores:
            raise UserError(f"{where}: is scored twice; a run names a document once per query.")
        if not np.isfinite(scored.score):
            raise UserError(f"{where}: the score is {scored.score!r}; expected a finite number.")
        scores[scored.doc_id] = float(scored.score)
    ordered = {query_id: sorted(scores.items(), key=_rank, reverse=True) for query_id, scores in found.items()}
    return {query_id: [Hit(*pair) for pair in pairs] for query_id, pairs in ordered.items()}


def _rank(pair: tuple[str, float]) -> tuple[np.float32, str]:
    """Return a sort key: the score as a 32-bit float, then the document id.

    In reverse order, equal scores are sorted by document id from last to first.
    """
    doc_id, score = pair
    return np.float32(score), doc_id


def scored_docs(run: Run) -> Iterator[ScoredDoc]:
    """Convert a run to scored documents of ir_measures.

    The scores are the ones that `write_run` would write: no two hits of a query have the same score.

    Raises:
        ValueError: hits that are not best first, or a score that is not finite.
    """
    for query_id, hits in run.items():
        scores = strictly_decreasing(np.array([hit.score for hit in hits], dtype=np.float64)).tolist()
        yield from (ScoredDoc(query_id, hit.doc_id, score) for hit, score in zip(hits, scores, strict=True))
