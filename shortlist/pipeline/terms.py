"""The terms by which steps search, and by which a sparse model has found documents."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from shortlist.index.protocols import SearchesTerms
from shortlist.pipeline.steps import Step
from shortlist.records import Query

if TYPE_CHECKING:
    from shortlist.index.sparse import TermMatches
    from shortlist.pipeline import Answer


def term_matches(steps: Iterable[Step], question: str, answer: "Answer") -> "TermMatches | None":
    """Return a question's weighted terms, and those that the found documents share with it.

    The last step that searches by term weights tells; the result is None where none does.
    """
    from shortlist.index.sparse import SparseSearch  # late, as it loads PyTorch

    stages = [step.stage for step in steps if step.name in answer.milliseconds]
    sparse = [stage for stage in stages if isinstance(stage, SparseSearch)]
    if not sparse:
        return None
    return sparse[-1].explain(question, [result.chunk or result.document.doc_id for result in answer.results])


def without_terms(step: Step, queries: Sequence[Query]) -> list[Query]:
    """List the queries in which a step finds no term to search by.

    These are queries of stop words alone, or those whose terms a sparse model all gives weight 0. Steps that search by
    vectors have none.
    """
    if not queries or not isinstance(step.stage, SearchesTerms):
        return []
    return [query for query, terms in zip(queries, step.stage.query_terms(queries), strict=True) if not terms]
