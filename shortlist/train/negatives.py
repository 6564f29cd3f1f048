"""Negatives for groups that have none, and refusal of groups that cannot teach without them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from shortlist.data.beir import shares_ids
from shortlist.data.collections import Collection
from shortlist.data.groups import GroupSource, negative_counts
from shortlist.data.mining import find_same_text, mine
from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.progress import say, track
from shortlist.records import Group, Run
from shortlist.train.examples import learn_together

NegativesFrom = Literal["random", "bm25"]

MINED_NEGATIVES = 15
"""Negatives that a group gets, as from `mine`; more if a step asks for more."""

MINED_DEPTH = 200
"""Number of BM25's hits to draw from, as in `mine`."""


def with_negatives(
    source: GroupSource, collection: Collection, origin: NegativesFrom, *, negatives: int | None, seed: int
) -> GroupSource:
    """Give negatives to the groups that have none.

    Neither a relevant document nor one with its text becomes a negative.

    Args:
        origin: the documents to draw from: the whole corpus, or each query's best in BM25 (the whole corpus for a query
            that BM25 finds nothing for).
        negatives: the negatives that a step uses (None: all of a group's).
    """
    lacking = {group.query_id for group in source.groups if not group.negatives}
    if not lacking:
        return source
    relevant = {query_id: set(source.judged.get(query_id, ())) for query_id in lacking}
    for group in source.groups:
        if group.query_id in lacking:
            relevant[group.query_id].update(group.positives)
    judged = {query_id: dict.fromkeys(sorted(doc_ids), 1) for query_id, doc_ids in relevant.items()}
    texts = track(collection.corpus(), "reading texts", unit="documents")
    corpus, same_text = find_same_text(texts, frozenset[str]().union(*relevant.values()))
    hits: Run = {}
    if origin == "bm25":
        queries = [source.queries[query_id] for query_id in sorted(lacking)]
        hits = BM25Index.build(track(collection.corpus(), "indexing", unit="documents")).search(queries, MINED_DEPTH)
    options: dict[str, Any] = {"depth": MINED_DEPTH, "negatives": max(MINED_NEGATIVES, negatives or 0), "seed": seed}
    options |= {"exclude_self": shares_ids(collection.name)}
    found = {group.query_id: group.negatives for group in mine([hits], judged, corpus, same_text, **options)[0]}
    if rest := {query_id: row for query_id, row in judged.items() if query_id not in found}:
        drawn, _ = mine([], rest, corpus, same_text, random_share=1.0, **options)
        found |= {group.query_id: group.negatives for group in drawn}
    say(f"train: {len(found):,} of {len(source.groups):,} groups had no negatives and get them from {origin}.")
    return source._replace(groups=[_with(group, found.get(group.query_id, ())) for group in source.groups])


def _with(group: Group, negatives: tuple[str, ...]) -> Group:
    if group.negatives or not negatives:
        return group
    grades = group.grades + (0,) * len(negatives) if group.grades else ()
    return group._replace(negatives=negatives, scores=(), grades=grades)  # a teacher has not seen the new ones


def check_negatives(role: str, groups: Sequence[Group], *, negatives: int | None, batch_size: int, where: str) -> None:
    """Refuse groups from which nothing can be learned, for want of negatives.

    Raises:
        UserError: a reranker's groups have no negatives, or a retriever's have none and no other query beside them.
    """
    ways = "add --negatives-from bm25 (or random), or make groups with `shortlist mine` and give them as --groups."
    if role == "reranker" and negatives == 0:
        raise UserError(
            "--negatives is 0, but a reranker learns to tell a positive from negatives; expected 1 or more."
        )
    without = np.flatnonzero(negative_counts(groups) == 0)
    if role == "reranker" and len(without):
        raise UserError(
            f"{where}: {len(without):,} of {len(groups):,} groups have no negatives, the first that of query "
            f"{groups[int(without[0])].query_id!r}; a reranker learns nothing from them: {ways}"
        )
    if learn_together(role, groups, negatives) and min(batch_size, len(groups)) == 1:
        raise UserError(
            f"{where}: a step has one query, and its group has no negatives, so nothing can be learned; raise "
            f"--batch-size, or {ways}"
        )
