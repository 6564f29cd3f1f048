"""Training on documents alone: two views of a document are a query and its positive."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from shortlist.data.collections import Collection
from shortlist.models.outputs import Rows, select
from shortlist.settings.parts import documents_source
from shortlist.settings.train import Config
from shortlist.text.views import VIEWS, View
from shortlist.train.examples import Batch, batches
from shortlist.train.settings import view_rng
from shortlist.train.steps import Example, Outcome


def change_of(config: Config, step: int) -> Callable[[Batch], Batch]:
    """Return the function that makes a batch of documents one of views."""
    if config.views is None:
        return lambda batch: batch
    return partial(viewed, view=VIEWS[config.views], rng=view_rng(config, step))


def view_batches(config: Config, collection: Collection, steps: range) -> Iterator[Batch]:
    """Yield a batch of views of documents for each step."""
    source = documents_source(collection)
    drawn = batches(
        source.groups,
        source.queries,
        collection,
        batch_size=config.batch_size,
        negatives=None,
        seed=config.seed,
        first_step=steps.start,
        steps=steps.stop,
    )
    return (change_of(config, step)(batch) for step, batch in enumerate(drawn, steps.start))


def viewed(batch: Batch, view: View, rng: np.random.Generator) -> Batch:
    """Replace each query by one view of its document, and the document by another.

    A title stays with the document.
    """
    texts = [group[0].text for group in batch.documents]
    return batch._replace(
        queries=[query._replace(text=view(text, rng)) for query, text in zip(batch.queries, texts, strict=True)],
        documents=[
            [group[0]._replace(text=view(text, rng))] for group, text in zip(batch.documents, texts, strict=True)
        ],
    )


def joined_examples(first: Example, second: Example, *, weight: float) -> Example:
    """Join two examples into one step, with the first one's accuracy.

    Args:
        weight: the weight of the second one's loss beside the first one's.
    """
    count, total = len(first.token_ids), len(first.token_ids) + len(second.token_ids)

    def objective(rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
        def part(texts: torch.Tensor, guide_rows: Rows | None) -> dict[str, Rows | None]:
            return {"start_rows": None if start_rows is None else select(start_rows, texts), "guide_rows": guide_rows}

        here, there = torch.arange(count), torch.arange(count, total)
        one = first.objective(select(rows, here), **part(here, guide_rows))
        other = second.objective(select(rows, there), **part(there, None))
        return one._replace(loss=one.loss + weight * other.loss)

    return first._replace(
        token_ids=first.token_ids + second.token_ids, query_ids=first.query_ids + second.query_ids, objective=objective
    )
