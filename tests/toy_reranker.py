"""A reranker from outside the package, whose scores depend on the whole list; it keeps account of what it was asked."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shortlist.records import Document, Query
from shortlist.rerankers.prepared import Prepared


class Toy(NamedTuple):
    """Turns a list round and leaves out the last document of it."""

    asked: Path | None

    def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
        if self.asked is not None:
            with open(self.asked, "a") as file:
                file.write(f"{query.query_id} {' '.join(document.doc_id for document in documents)}\n")
        return np.array([*range(len(documents) - 1), np.nan], dtype=np.float32)


def toy(*, model: str | None = None) -> Prepared:
    """Prepare it.

    Args:
        model: file for the account.
    """
    return Prepared(open=partial(Toy, Path(model) if model else None), whole_lists=True)
