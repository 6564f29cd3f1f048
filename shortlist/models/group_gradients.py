"""Gradients of training groups, by the vectors that a retriever gives now."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from shortlist.data.collections import Collection, open_collection
from shortlist.data.groups import GroupSource, groups_from_qrels, open_groups
from shortlist.errors import UserError
from shortlist.math.projection import GroupGradients, concatenated, group_gradient
from shortlist.models.retriever import Retriever
from shortlist.progress import progress
from shortlist.records import Group, Query
from shortlist.text.batching import windows

READ_AT_ONCE = 64
"""Groups whose texts are encoded together."""
OTHERS = 15
"""Positives of other groups that stand in for the negatives of groups that have none."""


def open_source(collection: Collection, groups: str | None, split: str) -> GroupSource:
    """Open groups with the texts of their queries.

    Without a name, groups are made of the judged pairs of the split.

    Raises:
        UserError: a query has no text.
    """
    if groups is None:
        made = groups_from_qrels(collection.qrels(split))
        source = GroupSource(made, {}, collection.identity(f"qrels/{split}", "queries"))
    else:
        source = open_groups(groups)
    queries: Mapping[str, Query] = source.queries
    if missing := [group.query_id for group in source.groups if group.query_id not in queries]:
        queries = {**{query.query_id: query for query in collection.queries(split)}, **queries}
        if lost := [query_id for query_id in missing if query_id not in queries]:
            raise UserError(
                f"{groups or collection.name}: query {lost[0]!r} has no text; split {split!r} of {collection.name} "
                "lacks it. Name the split of the groups' queries."
            )
    return source._replace(queries=queries)


def group_gradients(
    retriever: Retriever, source: GroupSource, collection: Collection, *, temperature: float, seed: int = 0
) -> GroupGradients:
    """Compute the gradient of each group's loss in a layer behind the retriever.

    Groups without negatives get positives of other groups.
    """
    others = _positives_of_others(source.groups, seed)
    parts = []
    with progress("reading groups", len(source.groups), "groups") as advance:
        for some in windows(zip(source.groups, others, strict=True), READ_AT_ONCE):
            parts.append(_some_gradients(retriever, some, source.queries, collection, temperature))
            advance(len(some))
    return concatenated(parts)


def _some_gradients(
    retriever: Retriever,
    some: Sequence[tuple[Group, Sequence[str]]],
    queries: Mapping[str, Query],
    collection: Collection,
    temperature: float,
) -> GroupGradients:
    doc_ids = [(*group.positives, *(group.negatives or others)) for group, others in some]
    wanted = list(dict.fromkeys(doc_id for group_ids in doc_ids for doc_id in group_ids))
    documents = collection.documents(wanted)
    vectors = np.asarray(retriever.encode_documents([documents[doc_id] for doc_id in wanted]), dtype=np.float64)
    rows = {doc_id: row for row, doc_id in enumerate(wanted)}
    asked = retriever.encode_queries([queries[group.query_id] for group, _ in some])
    asked = np.asarray(asked, dtype=np.float64)
    found = [
        group_gradient(
            query, vectors[[rows[doc_id] for doc_id in group_ids]], len(group.positives), temperature=temperature
        )
        for query, group_ids, (group, _) in zip(asked, doc_ids, some, strict=True)
    ]
    return GroupGradients(asked, np.stack([pull for pull, _ in found]), np.array([loss for _, loss in found]))


def _positives_of_others(groups: Sequence[Group], seed: int) -> Iterator[list[str]]:
    """Yield positives of other groups that are not the group's own."""
    random = np.random.default_rng(seed)
    for group in groups:
        if group.negatives:
            yield []
            continue
        chosen = random.choice(len(groups), size=min(len(groups), OTHERS + 1), replace=False).tolist()
        found = dict.fromkeys(groups[number].positives[0] for number in chosen)
        yield [doc_id for doc_id in found if doc_id not in group.positives][:OTHERS]


def gradients_of(
    retriever: Retriever, collection: str, groups: str | None, split: str, *, temperature: float, seed: int = 0
) -> GroupGradients:
    """Open groups of a collection, and compute their gradients."""
    opened = open_collection(collection)
    return group_gradients(retriever, open_source(opened, groups, split), opened, temperature=temperature, seed=seed)
