"""Negatives for training groups, drawn from runs and from the corpus."""

import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from shortlist.data.exclusions import NO_EXCLUSIONS, Exclusions
from shortlist.data.groups import graded
from shortlist.errors import UserError
from shortlist.math.sampling import draw_negatives, highest_allowed, interleave
from shortlist.progress import say
from shortlist.records import Document, Group, Qrels, Run
from shortlist.text.hashes import document_text_hash


def mine(
    runs: Sequence[Run],
    qrels: Qrels,
    corpus: Sequence[str],
    same_text: Mapping[str, Collection[str]],
    *,
    depth: int,
    negatives: int,
    random_share: float = 0.0,
    seed: int = 0,
    exclude_self: bool = False,
    positives_from: int = 1,
    scores: Run | None = None,
    max_score_ratio: float | None = None,
    max_score_margin: float | None = None,
    every: int = 1,
    exclude: Exclusions = NO_EXCLUSIONS,
) -> tuple[list[Group], Counter[str]]:
    """Draw negatives for every query that has a relevant document.

    Neither a relevant document nor one with the text of a relevant document becomes a negative. A query's negatives
    depend only on the seed and on the query's id, lists and judgements.

    Args:
        runs: runs to blend rank by rank.
        qrels: judgements; documents of grade `positives_from` or higher are the positives.
        corpus: ids of the whole collection.
        same_text: relevant document -> the documents with the same text, itself included.
        depth: number of top ranks of the blended run to draw from.
        negatives: number of negatives to draw per query.
        random_share: share of the negatives to draw from the whole corpus.
        seed: seed for the draw.
        exclude_self: never draw the document with the query's id, as it is the query itself.
        positives_from: lowest grade of a positive. A document of a lower grade may be drawn, and keeps its grade.
        scores: a run whose scores are compared with the positive's. A document that it lacks gets its lowest score for
            the query.
        max_score_ratio: leave out candidates above this share of the positive's score, as in `highest_allowed`.
        max_score_margin: leave out candidates that score less than this below the positive.
        every: draw from every n-th of the candidates that are left, in the order of their ranks.
        exclude: ids of documents that are never drawn for a query.

    Returns:
        The groups, in the order of the qrels, and counts of queries and documents left out.

    Raises:
        UserError: a run names a document that the corpus lacks.
    """
    known, groups, counts = set(corpus), [], Counter(queries=len(qrels))
    for query_id, judgements in qrels.items():
        positives = [doc_id for doc_id, relevance in judgements.items() if relevance >= positives_from]
        lists = [[hit.doc_id for hit in run.get(query_id, [])] for run in runs]
        candidates = interleave(lists, depth)
        for doc_id in candidates:
            if doc_id not in known:
                raise UserError(f"query {query_id!r}: document {doc_id!r} of the runs is not in the collection.")
        excluded = {doc_id for positive in positives for doc_id in same_text[positive]}
        blocked = {*excluded, query_id} if exclude_self else excluded
        if unwanted := exclude.get(query_id):
            counts["excluded_by_list"] += len(unwanted.difference(blocked).intersection(candidates))
            blocked = blocked | unwanted
        if scores is not None and (max_score_ratio is not None or max_score_margin is not None):
            known_scores = {hit.doc_id: hit.score for hit in scores.get(query_id, [])}
            above = too_near(positives, known_scores, ratio=max_score_ratio, margin=max_score_margin)
            counts["excluded_by_score"] += len(above.difference(blocked).intersection(candidates))
            blocked = blocked | above
        eligible = [doc_id for doc_id in candidates if doc_id not in blocked][::every]
        rng = np.random.default_rng([seed, zlib.crc32(query_id.encode())])
        drawn = draw_negatives(eligible, corpus, blocked, rng, number=negatives, random_share=random_share)
        counts["without_positives"] += not positives
        counts["without_candidates"] += bool(positives) and not drawn
        counts["with_fewer_negatives"] += bool(positives) and 0 < len(drawn) < negatives
        counts["excluded_equal_texts"] += len(excluded.difference(positives).intersection(candidates))
        if positives and drawn:
            groups.append(graded(Group(query_id, tuple(positives), tuple(drawn)), judgements))
    return groups, counts


def too_near(
    positives: Collection[str], scores: Mapping[str, float], *, ratio: float | None, margin: float | None
) -> set[str]:
    """Find the documents that score above a query's positives, or too near them.

    A positive without a score has the lowest of all.

    Args:
        positives: ids of the query's positives.
        scores: scores of the query's documents.
        ratio: as for `highest_allowed`, and so is `margin`.
    """
    if not positives or not scores:
        return set()
    lowest = min(scores.values())
    allowed = highest_allowed([scores.get(doc_id, lowest) for doc_id in positives], ratio=ratio, margin=margin)
    return {doc_id for doc_id, score in scores.items() if score > allowed}


def find_same_text(
    corpus: Iterable[Document], doc_ids: Collection[str], *, skip_missing: bool = False
) -> tuple[list[str], dict[str, list[str]]]:
    """Read a corpus once, and find documents with equal texts.

    Returns all ids of the corpus and, for each of `doc_ids`, the documents with the same text, itself included.

    Args:
        skip_missing: leave out ids that the corpus lacks.

    Raises:
        UserError: the corpus lacks one of the ids, without `skip_missing`.
    """
    ids, prints = [], array("Q")  # 8 bytes per document, as all texts would not fit into memory
    for document in corpus:
        ids.append(document.doc_id)
        prints.append(document_text_hash(document))
    wanted = set(doc_ids)
    print_of = {doc_id: number for doc_id, number in zip(ids, prints, strict=True) if doc_id in wanted}
    if missing := sorted(wanted - print_of.keys()):
        found = f"{len(missing)} of {len(wanted)} relevant documents are not in the corpus, the first {missing[0]!r}"
        if not skip_missing:
            raise UserError(f"{found}; expected judgements of this collection, or leave such out with --skip-missing.")
        say(f"{found}: left out.")
    numbers, same = set(print_of.values()), defaultdict(list)
    for doc_id, number in zip(ids, prints, strict=True):
        if number in numbers:
            same[number].append(doc_id)
    return ids, {doc_id: same[number] for doc_id, number in print_of.items()}
