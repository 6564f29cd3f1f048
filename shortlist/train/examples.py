"""Groups -> batches of queries and documents for the training steps.

The seed decides which queries share a step, which of their documents are used, and in which order.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np

from shortlist.data.collections import Collection
from shortlist.errors import UserError
from shortlist.math.sampling import epoch_negatives
from shortlist.records import Document, Group, Query

T = TypeVar("T")


class Batch(NamedTuple):
    """The groups of one step: each query with its documents, the positive first."""

    queries: list[Query]
    documents: list[list[Document]]
    positives: list[frozenset[str]]
    """Ids of all documents relevant to each query, including those outside the batch."""
    scores: Sequence[tuple[float, ...]] = ()
    """A teacher's score for each document, if the groups have such scores."""
    grades: Sequence[tuple[int, ...]] = ()
    """How relevant each document is, if the groups have grades; otherwise only the first document is relevant."""


def draw_groups(
    groups: Sequence[Group], *, epoch: int, seed: int, negatives: int | None, first: int = 0
) -> Iterator[Group]:
    """Draw one epoch's groups in order, with one positive and some negatives each.

    Args:
        negatives: how many per query (fewer where a query has fewer); None for all. Each epoch takes another slice.
        first: how many groups to skip at the beginning of the epoch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(groups))
    for i in order[first:]:
        group = groups[i]
        rng = np.random.default_rng([seed, epoch, int(i)])
        positive = group.positives[rng.integers(len(group.positives))]
        count = len(group.negatives) if negatives is None else negatives
        chosen = epoch_negatives(group.negatives, count, epoch=epoch, seed=[seed, int(i)])
        drawn = Group(group.query_id, (positive,), tuple(chosen))
        if group.scores or group.grades:
            place = {doc_id: place for place, doc_id in enumerate(group.positives + group.negatives)}
            places = [place[doc_id] for doc_id in (positive, *chosen)]
            drawn = drawn._replace(
                scores=tuple(group.scores[place] for place in places if group.scores),
                grades=tuple(group.grades[place] for place in places if group.grades),
            )
        yield drawn


def num_steps(num_groups: int, batch_size: int, epochs: int) -> int:
    """Count the steps of all epochs.

    The last step of an epoch may have fewer queries, but their groups are complete.
    """
    return -(-num_groups // batch_size) * epochs


def batches(
    groups: Sequence[Group],
    queries: Mapping[str, Query],
    collection: Collection,
    *,
    batch_size: int,
    negatives: int | None,
    seed: int,
    first_step: int,
    steps: int,
) -> Iterator[Batch]:
    """Yield the batches of steps first_step, ..., steps - 1, with their texts."""
    relevant: dict[str, frozenset[str]] = {}
    for group in groups:  # a query may have several groups
        relevant[group.query_id] = relevant.get(group.query_id, frozenset()) | frozenset(group.positives)
    per_epoch = num_steps(len(groups), batch_size, 1)
    drawn: Iterator[Group] = iter(())
    for step in range(first_step, steps):
        epoch, place = divmod(step, per_epoch)
        if step == first_step or place == 0:
            drawn = draw_groups(groups, epoch=epoch, seed=seed, negatives=negatives, first=place * batch_size)
        chosen = list(islice(drawn, batch_size))
        texts = collection.documents({doc_id for group in chosen for doc_id in group.positives + group.negatives})
        yield Batch(
            queries=[queries[group.query_id] for group in chosen],
            documents=[[texts[doc_id] for doc_id in group.positives + group.negatives] for group in chosen],
            positives=[relevant[group.query_id] for group in chosen],
            scores=[group.scores for group in chosen],
            grades=[group.grades for group in chosen],
        )


def check_groups(groups: Sequence[Group], queries: Mapping[str, Query], *, where: str) -> None:
    """Refuse groups that cannot be trained on, before anything is loaded.

    Raises:
        UserError: there are none, or one names a query that the collection lacks.
    """
    if not groups:
        raise UserError(f"{where}: no groups; expected at least one query with a positive.")
    missing = [group.query_id for group in groups if group.query_id not in queries]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(groups)} queries are not in the collection, the first {missing[0]!r}; "
            "check --collection and --split."
        )


def ahead(items: Iterator[T], *, depth: int = 2) -> Iterator[T]:
    """Yield items that a thread prepares up to `depth` items ahead.

    Exceptions in the thread are raised here.
    """
    waiting: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, error), timeout=0.1)
                break

    def work() -> None:
        try:
            for item in items:
                put(item, None)
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
