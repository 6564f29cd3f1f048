"""Groups -> batches of queries and documents for the training steps.

The seed decides which queries share a step, which of their documents are used, and in which order.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, TypeVar, final

import numpy as np

from shortlist.data.collections import Collection
from shortlist.data.groups import changed_groups, negative_counts, query_text_hashes, without_query
from shortlist.errors import UserError
from shortlist.math.sampling import epoch_negatives
from shortlist.progress import say
from shortlist.records import Document, Group, Query
from shortlist.text.hashes import document_text_hash, text_hash

T = TypeVar("T")


class Batch(NamedTuple):
    """The groups of one step: each query with its documents, the positive first."""

    queries: list[Query]
    documents: list[list[Document]]
    positives: list[frozenset[str]]
    """Ids of all documents relevant to each query, including those outside the batch."""
    answers: Sequence[frozenset[int]] = ()
    """Hashes of the texts of the relevant documents outside the batch, if any are known."""
    scores: Sequence[tuple[float, ...]] = ()
    """A teacher's score for each document, if the groups have such scores."""
    grades: Sequence[tuple[int, ...]] = ()
    """How relevant each document is, if the groups have grades; otherwise only the first document is relevant."""


def draw_group(group: Group, number: int, *, epoch: int, seed: int, negatives: int | None) -> Group:
    """Draw one positive and some negatives of a group for an epoch.

    A group without a positive gives some of its documents, all of grade 0.

    Args:
        number: the number of the group among all; each group has a draw of its own.
        negatives: how many (fewer where the group has fewer); None for all. Each epoch takes another slice.
    """
    rng = np.random.default_rng([seed, epoch, number])
    positive = (group.positives[rng.integers(len(group.positives))],) if group.positives else ()
    count = len(group.negatives) if negatives is None else negatives
    chosen = epoch_negatives(group.negatives, count, epoch=epoch, seed=[seed, number])
    drawn = Group(group.query_id, positive, tuple(chosen), grades=() if positive else (0,) * len(chosen))
    if group.scores or group.grades:
        place = {doc_id: place for place, doc_id in enumerate(group.positives + group.negatives)}
        places = [place[doc_id] for doc_id in (*positive, *chosen)]
        drawn = drawn._replace(
            scores=tuple(group.scores[place] for place in places if group.scores),
            grades=tuple(group.grades[place] for place in places if group.grades),
        )
    return drawn


def plan_steps(
    num_groups: int, *, batch_size: int, seed: int, first_step: int, steps: int, merge: bool = False
) -> Iterator[tuple[int, list[int]]]:
    """Yield (epoch, numbers of its groups) of the steps first_step, ..., steps - 1."""
    per_epoch, order = num_steps(num_groups, batch_size, 1, merge=merge), np.zeros(0, dtype=np.int64)
    for step in range(first_step, steps):
        epoch, place = divmod(step, per_epoch)
        if step == first_step or place == 0:
            order = np.random.default_rng([seed, epoch]).permutation(num_groups)
        size = batch_size if place < per_epoch - 1 else batch_size + merge
        yield epoch, order[place * batch_size :][:size].tolist()


def num_steps(num_groups: int, batch_size: int, epochs: int, *, merge: bool = False) -> int:
    """Count the steps of all epochs.

    The last step of an epoch may have fewer queries, but their groups are complete.

    Args:
        merge: one query left over joins the step before it, as alone it would have no negative.
    """
    left_over = merge and num_groups > batch_size and num_groups % batch_size == 1
    return (-(-num_groups // batch_size) - left_over) * epochs


def learn_together(role: str, groups: Sequence[Group], negatives: int | None) -> bool:
    """Whether some queries have no negatives except the other documents of their batch."""
    return role == "retriever" and (negatives == 0 or not negative_counts(groups).all())


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
    merge: bool = False,
    judged: Mapping[str, frozenset[str]] | None = None,
    relevant: "Relevant | None" = None,
    renewed: Mapping[int, tuple[str, ...]] | None = None,
) -> Iterator[Batch]:
    """Yield the batches of steps first_step, ..., steps - 1, with their texts.

    Args:
        merge: as for `num_steps`.
        judged: ids of relevant documents that no group names, for each query.
        relevant: the documents relevant to each query, where they are known already.
        renewed: negatives to take in place of those of the group with this number.
    """
    relevant = relevant or Relevant(groups, queries, collection, judged or {})
    options = {"batch_size": batch_size, "seed": seed, "first_step": first_step, "steps": steps, "merge": merge}
    for epoch, numbers in plan_steps(len(groups), **options):
        chosen = [
            draw_group(
                _renewed(groups[number], number, renewed or {}), number, epoch=epoch, seed=seed, negatives=negatives
            )
            for number in numbers
        ]
        texts = collection.documents({doc_id for group in chosen for doc_id in group.positives + group.negatives})
        positives = [relevant.doc_ids(group) for group in chosen]
        yield Batch(
            queries=[queries[group.query_id] for group in chosen],
            documents=[[texts[doc_id] for doc_id in group.positives + group.negatives] for group in chosen],
            positives=positives,
            answers=relevant.texts([doc_ids - texts.keys() for doc_ids in positives]),
            scores=[group.scores for group in chosen],
            grades=[group.grades for group in chosen],
        )


def _renewed(group: Group, number: int, renewed: Mapping[int, tuple[str, ...]]) -> Group:
    if number not in renewed:
        return group
    negatives = renewed[number]
    grades = group.grades[: len(group.positives)] + (0,) * len(negatives) if group.grades else ()
    return group._replace(negatives=negatives, scores=(), grades=grades)


@final
class Relevant:
    """The documents relevant to each query; queries with equal texts are one query."""

    def __init__(
        self,
        groups: Sequence[Group],
        queries: Mapping[str, Query],
        collection: Collection,
        judged: Mapping[str, frozenset[str]],
    ) -> None:
        self._groups, self._queries, self._collection, self._judged = groups, queries, collection, judged
        hashes = query_text_hashes(groups, queries)
        self._numbers = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._numbers]
        self._texts: dict[str, int] = {}

    def doc_ids(self, group: Group) -> frozenset[str]:
        """Return all documents relevant to a group's query.

        Judgements do not count against what the group itself calls a negative.
        """
        query = np.uint64(text_hash(self._queries[group.query_id].text))
        first, end = (int(np.searchsorted(self._hashes, query, side)) for side in ("left", "right"))
        same = [self._groups[number] for number in self._numbers[first:end].tolist()]  # a query may have several groups
        grouped = frozenset[str]().union(*(other.positives for other in same))
        judged = frozenset[str]().union(*(self._judged.get(other.query_id, ()) for other in same))
        return grouped | judged.difference(group.negatives)

    def texts(self, wanted: Sequence[AbstractSet[str]]) -> list[frozenset[int]]:
        """Return the hashes of documents' texts, without documents that the corpus lacks."""
        new = frozenset[str]().union(*wanted) - self._texts.keys()
        if new:
            there = new.difference(self._collection.missing(new))
            found = self._collection.documents(there)
            self._texts |= {doc_id: document_text_hash(document) for doc_id, document in found.items()}
        return [frozenset(self._texts[doc_id] for doc_id in doc_ids if doc_id in self._texts) for doc_ids in wanted]


def without_missing(groups: Sequence[Group], queries: Mapping[str, Query], collection: Collection) -> Sequence[Group]:
    """Leave out what the collection lacks: documents, groups without a positive, groups without their query.

    What is left out is counted in a message.
    """
    named = dict.fromkeys(doc_id for group in groups for doc_id in group.positives + group.negatives)
    absent = set(collection.missing(named))
    unknown = len(without_query(groups, queries))

    def kept(group: Group) -> Group | None:
        there = _kept(group, absent) if group.query_id in queries else None
        return there if there and (there.positives or (not group.positives and there.negatives)) else None

    left = changed_groups(groups, kept)
    if absent or len(left) < len(groups):
        say(
            f"train: left out {len(absent):,} of {len(named):,} documents and {unknown:,} of "
            f"{len(groups):,} queries, which the collection lacks; {len(left):,} groups have a positive."
        )
    return left


def _kept(group: Group, absent: set[str]) -> Group:
    """Return the group without some documents, their scores and their grades."""
    doc_ids, positives = group.positives + group.negatives, set(group.positives)
    places = [place for place, doc_id in enumerate(doc_ids) if doc_id not in absent]
    if len(places) == len(doc_ids):
        return group
    return group._replace(
        positives=tuple(doc_ids[place] for place in places if doc_ids[place] in positives),
        negatives=tuple(doc_ids[place] for place in places if doc_ids[place] not in positives),
        scores=tuple(group.scores[place] for place in places if group.scores),
        grades=tuple(group.grades[place] for place in places if group.grades),
    )


def check_groups(groups: Sequence[Group], queries: Mapping[str, Query], *, where: str) -> None:
    """Refuse groups that cannot be trained on, before anything is loaded.

    Raises:
        UserError: there are none, or one names a query that the collection lacks.
    """
    if not groups:
        raise UserError(f"{where}: no groups; expected at least one query with a positive.")
    missing = without_query(groups, queries)
    if len(missing):
        raise UserError(
            f"{where}: {len(missing)} of {len(groups)} queries are not in the collection, the first "
            f"{groups[int(missing[0])].query_id!r}; "
            "check --collection and --split, or leave such out with --skip-missing."
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
