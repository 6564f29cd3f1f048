"""Held-out evaluation while training: MRR@10 over samples of a split and the corpus."""

import heapq
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from shortlist.data.checks import pick
from shortlist.data.collections import Collection
from shortlist.data.groups import groups_from_qrels
from shortlist.data.lines import ignore
from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.math.scoring import reciprocal_ranks
from shortlist.models.outputs import Rows, pair_scores
from shortlist.records import Document, Query
from shortlist.text.inputs import Inputs
from shortlist.train.examples import without_missing
from shortlist.train.similarity import Similarity, apart, by_maxsim, by_terms, dot_products

CUTOFF = 10

CANDIDATES = 20
"""Number of BM25's hits that a reranker orders for each held-out query."""


class Heldout(NamedTuple):
    """A small search task: queries, the documents to search, and the relevant ids."""

    queries: list[Query]
    documents: list[Document]
    """The documents in corpus order, which breaks ties between equal scores."""
    relevant: list[frozenset[str]]
    """Ids of the documents relevant to each query; all of them are among `documents`."""


class Evaluation(NamedTuple):
    """A held-out task prepared for one model.

    The inputs stay the same throughout training; only the outputs change.
    """

    token_ids: list[list[int]]
    """Every input of the model."""
    mrr: Callable[[Rows], float]
    """MRR@10 of the model's outputs for all inputs, in the same order."""


def draw_heldout(
    collection: Collection, split: str, *, num_queries: int, num_docs: int, seed: int, skip_missing: bool = False
) -> Heldout:
    """Draw a sample of a split's queries and of the corpus.

    The documents are all that are relevant to these queries, and others at random. The corpus is read once as a stream,
    and the same seed draws the same sample.

    Args:
        num_queries: most queries, chosen from those with a relevant document.
        num_docs: most documents; relevant ones are always included, even if there are more.
        skip_missing: leave out judged queries and documents that the collection lacks.

    Raises:
        UserError: the split does not exist, has no judgements or nothing relevant, or a relevant document is missing.
    """
    groups, queries = (
        groups_from_qrels(collection.qrels(split)),
        collection.queries(split, ignore if skip_missing else None),
    )
    if skip_missing:
        groups = without_missing(groups, {query.query_id: query for query in queries}, collection)
    positives = {group.query_id: frozenset(group.positives) for group in groups}
    answered = [query for query in queries if query.query_id in positives]
    if not answered:
        raise UserError(f"{collection.name}: split {split!r} has no query with a relevant document to evaluate on.")
    rng = random.Random(seed)
    places = sorted(rng.sample(range(len(answered)), min(num_queries, len(answered))))
    queries = [answered[place] for place in places]
    relevant = [positives[query.query_id] for query in queries]
    needed = frozenset().union(*relevant)

    def lots() -> Iterator[tuple[float, int, Document]]:
        for place, document in enumerate(collection.corpus()):
            yield -1.0 if document.doc_id in needed else rng.random(), place, document

    drawn = heapq.nsmallest(max(num_docs, len(needed)), lots())
    documents = [document for _, _, document in sorted(drawn, key=lambda lot: lot[1])]
    pick(collection.name, "document", sorted(needed), {document.doc_id: document for document in documents})
    return Heldout(queries, documents, relevant)


def retriever_evaluation(inputs: Inputs, heldout: Heldout, *, similarity: Similarity = dot_products) -> Evaluation:
    """Prepare to score every query against every document by their vectors.

    Args:
        similarity: scores documents by their rows and those of queries.
    """
    count = len(heldout.queries)
    relevant = torch.tensor([[d.doc_id in ids for d in heldout.documents] for ids in heldout.relevant])

    def mrr(vectors: Rows) -> float:
        scores = similarity(*apart(vectors, count))
        return reciprocal_ranks(scores, relevant.to(scores.device), cutoff=CUTOFF).mean().item()

    token_ids = inputs.query_ids(heldout.queries) + inputs.document_ids(heldout.documents)
    return Evaluation(token_ids, mrr)


def reranker_evaluation(inputs: Inputs, heldout: Heldout, *, candidates: int = CANDIDATES) -> Evaluation:
    """Prepare to score every query with its relevant documents and BM25's hits.

    Args:
        candidates: number of BM25's hits per query.
    """
    hits = BM25Index.build(heldout.documents).search(heldout.queries, candidates)
    wanted = [
        relevant | {hit.doc_id for hit in hits[query.query_id]}
        for query, relevant in zip(heldout.queries, heldout.relevant, strict=True)
    ]
    found = [[d for d in heldout.documents if d.doc_id in ids] for ids in wanted]
    sizes = [len(documents) for documents in found]
    marks = [
        torch.tensor([d.doc_id in ids for d in documents])
        for documents, ids in zip(found, heldout.relevant, strict=True)
    ]
    relevant = pad_sequence(marks, batch_first=True)

    def mrr(scores: Rows) -> float:
        rows = pad_sequence(list(pair_scores(scores).split(sizes)), batch_first=True, padding_value=-torch.inf)
        return reciprocal_ranks(rows, relevant.to(rows.device), cutoff=CUTOFF).mean().item()

    pairs = [(query, d) for query, documents in zip(heldout.queries, found, strict=True) for d in documents]
    return Evaluation(inputs.pair_ids(pairs), mrr)


EVALUATIONS: dict[str, Callable[[Inputs, Heldout], Evaluation]] = {
    "retriever": retriever_evaluation,
    "late": partial(retriever_evaluation, similarity=by_maxsim),
    "sparse": partial(retriever_evaluation, similarity=by_terms),
    "reranker": reranker_evaluation,
}
"""The evaluation for each kind of model; a language model has none."""
