"""The terms by which a sparse model has found documents."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from shortlist.pipeline.steps import Step

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
