"""Training objectives: batch -> inputs, and outputs -> ranking and loss."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shortlist.math.guidance import guided
from shortlist.math.matryoshka import nested
from shortlist.math.mixing import draw_mixtures, mixed_scores, with_negatives_of_each
from shortlist.math.ranking import Ranking
from shortlist.models.kinds import for_kind
from shortlist.models.outputs import Rows, pair_scores
from shortlist.records import Document
from shortlist.text.hashes import document_text_hash
from shortlist.text.inputs import Inputs, query_is_first
from shortlist.text.views import masked
from shortlist.train.examples import Batch
from shortlist.train.guide import Guide
from shortlist.train.losses import Term, needs, total_loss
from shortlist.train.similarity import SIMILARITIES, Similarity, apart, by_maxsim, by_terms, dot_products
from shortlist.train.steps import Example, Outcome

Learn = Callable[..., Outcome]
"""Evaluates a batch's outputs: loss and accuracy.

It takes the model's rows for all inputs; as `start_rows` those that the model gave before training, if a loss needs
them; and as `guide_rows` a guide's, for every query and then every document, if there is a guide.
"""


class Objective(NamedTuple):
    """The training objective of a kind of model."""

    token_ids: Callable[..., dict[str, list[list[int]]]]
    """Makes the model's inputs by kind: `token_ids(inputs, batch, **texts)`.

    The kinds are such as queries and documents, in the order of the outputs.
    """
    learn: Callable[..., Learn]
    """Prepares a function of the batch's outputs: `learn(batch, token_ids, terms, **options)`.

    It runs while the previous step still computes.
    """


def make_example(
    kind: str,
    inputs: Inputs,
    batch: Batch,
    terms: Sequence[Term],
    *,
    guide: Guide | None = None,
    texts: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Example:
    """Prepare a batch for a training step of a kind of model.

    Args:
        terms: the losses to add up; a language model has none.
        guide: leave out negatives that it takes for answers.
        texts: further arguments of the objective's `token_ids`, such as `corruption` of `both_orders_ids`.
        options: further arguments of its `learn`, such as `dims` of `rank_batch`.
    """
    objective = for_kind(OBJECTIVES, kind)
    token_ids = [ids for part in objective.token_ids(inputs, batch, **texts).values() for ids in part]
    learn = objective.learn(batch, token_ids, terms, guide=guide, **options)
    guide_ids = [ids for part in text_ids(guide.model.inputs, batch).values() for ids in part] if guide else []
    reads_start = any("start" in needs(term) for term in terms)
    return Example(token_ids, [query.query_id for query in batch.queries], learn, reads_start, guide_ids)


def text_ids(inputs: Inputs, batch: Batch) -> dict[str, list[list[int]]]:
    """Tokenise every query alone, then every document alone."""
    documents = [document for group in batch.documents for document in group]
    return {"queries": inputs.query_ids(batch.queries), "documents": inputs.document_ids(documents)}


def pair_ids(inputs: Inputs, batch: Batch) -> dict[str, list[list[int]]]:
    """Tokenise every query with each document of its group."""
    pairs = [(q, d) for q, group in zip(batch.queries, batch.documents, strict=True) for d in group]
    return {"pairs": inputs.pair_ids(pairs)}


def both_orders_ids(
    inputs: Inputs, batch: Batch, *, corruption: float = 0.0, rng: np.random.Generator | None = None
) -> dict[str, list[list[int]]]:
    """Tokenise every query with its positive, first as a reranker does, then in reverse order.

    All pairs in the reranker's order come first. In one order the query helps to predict the document, in the other the
    document helps to predict the query.

    Args:
        corruption: share of the words of what comes first in a text that are masked.
        rng: chooses these words.
    """
    pairs = [(query, group[0]) for query, group in zip(batch.queries, batch.documents, strict=True)]
    by_query, by_document = pairs, pairs
    if corruption and rng:
        by_query = [(query._replace(text=masked(query.text, rng, share=corruption)), d) for query, d in pairs]
        by_document = [(query, _masked_document(document, rng, corruption)) for query, document in pairs]
    if not query_is_first(inputs.form.pair):
        by_query, by_document = by_document, by_query
    return {"texts": inputs.pair_ids(by_query) + inputs.pair_ids(by_document, turned=True)}


def _masked_document(document: Document, rng: np.random.Generator, share: float) -> Document:
    title, text = (masked(part, rng, share=share) for part in (document.title, document.text))
    return document._replace(title=title, text=text)


def rank_batch(
    batch: Batch,
    token_ids: Sequence[list[int]],
    terms: Sequence[Term],
    *,
    guide: Guide | None = None,
    dims: Sequence[int] = (),
    weights: Sequence[float] = (),
    mixed: int = 0,
    unit: bool = True,
    similarity: Similarity = dot_products,
    versions: int = 1,
    outcome: Callable[[Ranking], Outcome] | None = None,
) -> Learn:
    """Rank all documents of the batch for every query.

    A query's other positives in the batch, and documents with the text of a positive, do not count.

    Args:
        dims: dimensions to cut the vectors to; the loss is the sum over all, the accuracy that of the first.
        weights: the weight of each dimension's loss (default: 1).
        mixed: synthetic negatives for each query, mixtures of two negatives of its group.
        unit: whether the model's vectors have length 1, so that cut and mixed ones get it, too.
        similarity: scores documents by their rows and those of queries.
        versions: how often each query's rows come, all queries after one another, before those of documents.
        outcome: what a ranking comes to, all versions of all queries (None: the sum of all losses).
    """
    count = versions * len(batch.queries)
    texts = [list(map(document_text_hash, group)) for group in batch.documents]
    together = [text for group in texts for text in group]
    columns: dict[int, list[int]] = {}
    for column, text in enumerate(together):
        columns.setdefault(text, []).append(column)
    sizes = torch.tensor([len(group) for group in batch.documents])
    starts = (torch.cumsum(sizes, 0) - sizes).tolist()
    positive_columns = [start if known else None for start, known in zip(starts, _have_positive(batch), strict=True)]
    keep = countable(together, positive_columns, _answers(batch, texts))
    first = [{text: place for place, text in reversed(list(enumerate(group)))} for group in texts]
    places = [  # the first of equal texts in a group says how relevant they are
        [columns[text] if rank == known_at[text] else [] for rank, text in enumerate(group)]
        for group, known_at in zip(texts, first, strict=True)
    ]
    known = _known(batch, places, keep).repeated(versions)
    hard = _negatives_of_each(places, known) if mixed and len(together) > 1 else None

    def parts(rows: Rows | None) -> list[tuple[Rows, Rows]]:
        """Split the rows into queries and documents, at each dimension."""
        cut = nested(rows.values, dims, unit=unit) if rows else []
        return [apart(Rows(part, rows.counts if rows else None), count) for part in cut]

    def learn(rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
        mixtures = None if hard is None else draw_mixtures(hard, mixed)
        similarities = None
        if guide and guide_rows:
            similarities = for_kind(SIMILARITIES, guide.model.kind)(*apart(guide_rows, len(batch.queries)))
        outcomes = []
        for (queries, documents), first in zip_longest(parts(rows), parts(start_rows)):
            start = similarity(*first) if first else None
            ranking = _guided(known.beside(similarity(queries, documents), start=start), guide, similarities)
            if mixtures:
                scores = mixed_scores(queries.values, documents.values, mixtures, unit=unit)
                ranking = with_negatives_of_each(ranking, scores, mixtures.keep)
            outcomes.append(outcome(ranking) if outcome else _outcome(ranking, terms))
        losses = [weight * each.loss for weight, each in zip(weights or [1.0] * len(outcomes), outcomes, strict=True)]
        return outcomes[0]._replace(loss=sum(losses[1:], start=losses[0]))

    return learn


def rank_terms(
    batch: Batch,
    token_ids: Sequence[list[int]],
    terms: Sequence[Term],
    *,
    penalty: Callable[..., tuple[Float[Tensor, ""], Mapping[str, float]]] | None = None,
    **options: Any,
) -> Learn:
    """Rank all documents of the batch by weights of terms, and keep these sparse.

    Args:
        penalty: computes what keeps them sparse, and measures it, from the weights of queries and of documents.
        options: as for `rank_batch`.
    """
    ranked = rank_batch(batch, token_ids, terms, similarity=by_terms, **options)

    def learn(rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
        outcome = ranked(rows, start_rows=start_rows, guide_rows=guide_rows)
        if penalty is None:
            return outcome
        more, measured = penalty(*(part.values for part in apart(rows, len(batch.queries))))
        return outcome._replace(loss=outcome.loss + more, measured=measured)

    return learn


def rank_groups(
    batch: Batch,
    token_ids: Sequence[list[int]],
    terms: Sequence[Term],
    guide: Guide | None = None,
    *,
    outcome: Callable[[Ranking], Outcome] | None = None,
) -> Learn:
    """Rank the documents of each query's group by the scores of its pairs.

    Groups with fewer documents than others stay as they are. Documents with the text of a positive do not count.

    Args:
        outcome: what a ranking comes to (None: the sum of all losses).
    """
    sizes, known = [len(group) for group in batch.documents], known_groups(batch)

    def lists(scores: Float[Tensor, " pairs"]) -> Float[Tensor, "queries docs"]:
        return pad_sequence(list(scores.split(sizes)), batch_first=True)

    def similarities(guide: Guide, rows: Rows) -> Float[Tensor, "queries docs"]:
        matrix = for_kind(SIMILARITIES, guide.model.kind)(*apart(rows, len(sizes)))
        return lists(torch.cat([row.split(sizes)[place] for place, row in enumerate(matrix)]))

    def learn(rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
        ranking = known.beside(lists(pair_scores(rows)), start=lists(pair_scores(start_rows)) if start_rows else None)
        ranking = ranking._replace(yes=lists(rows.values[:, 0]) if rows.values.ndim > 1 else None)
        seen = similarities(guide, guide_rows) if guide and guide_rows else None
        ranking = _guided(ranking, guide, seen)
        return outcome(ranking) if outcome else _outcome(ranking, terms)

    return learn


def known_groups(batch: Batch) -> "KnownRanking":
    """Lay out what is known of each query's own documents.

    Documents with the text of a positive do not count.
    """
    texts = [list(map(document_text_hash, group)) for group in batch.documents]
    positive_columns = [0 if known else None for known in _have_positive(batch)]
    rows = [
        countable(row, [column], [answers])[0]
        for row, column, answers in zip(texts, positive_columns, _answers(batch, texts), strict=True)
    ]
    keep = pad_sequence(rows, batch_first=True)
    return _known(batch, [[[place] for place in range(len(group))] for group in batch.documents], keep)


def foretell_tokens(
    batch: Batch,
    token_ids: Sequence[list[int]],
    terms: Sequence[Term],
    guide: Guide | None = None,
    *,
    stop_id: int | None = None,
) -> Learn:
    """Predict every token but the first of each text, or every token after its stop.

    The loss is the mean over all predicted tokens of the batch.

    Args:
        stop_id: the stop, as the model has it.
    """
    num_tokens = sum(len(ids) - 1 - (0 if stop_id is None else ids.index(stop_id, 1)) for ids in token_ids)

    def learn(rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
        loss, likeliest = rows.values.sum(0) / num_tokens
        return Outcome(loss, likeliest.item())

    return learn


OBJECTIVES: dict[str, Objective] = {
    "retriever": Objective(text_ids, rank_batch),
    "late": Objective(text_ids, partial(rank_batch, similarity=by_maxsim)),
    "sparse": Objective(text_ids, rank_terms),
    "reranker": Objective(pair_ids, rank_groups),
    "language-model": Objective(both_orders_ids, foretell_tokens),
}


def countable(
    texts: Sequence[Hashable], positive_columns: Sequence[int | None], answers: Sequence[Collection[Hashable]]
) -> Bool[Tensor, "queries docs"]:
    """Find which documents of a batch may count for which query.

    For each query, its other positives are left out (pushing them away would unlearn them), and each text counts once,
    however often the batch holds it.

    Args:
        texts: the text of every document of the batch, or something that stands for it.
        positive_columns: column of the positive in each query's group; None for a group without one.
        answers: texts of all documents relevant to each query.
    """
    columns: dict[Hashable, list[int]] = {}
    for column, text in enumerate(texts):
        columns.setdefault(text, []).append(column)
    keep = torch.ones(len(positive_columns), len(texts), dtype=torch.bool)
    for again in columns.values():
        keep[:, again[1:]] = False
    for row, (column, relevant) in enumerate(zip(positive_columns, answers, strict=True)):
        for text in {*relevant, *(() if column is None else (texts[column],))}:
            keep[row, columns.get(text, [])] = False
        if column is not None:
            keep[row, column] = True
    return keep


def _have_positive(batch: Batch) -> list[bool]:
    """Whether each group begins with a document that is relevant to its query."""
    return [group[0].doc_id in ids for group, ids in zip(batch.documents, batch.positives, strict=True)]


def _answers(batch: Batch, texts: Sequence[Sequence[int]]) -> list[frozenset[int]]:
    """Collect the texts of each query's relevant documents, as far as they are known."""
    known = {
        document.doc_id: text
        for group, group_texts in zip(batch.documents, texts, strict=True)
        for document, text in zip(group, group_texts, strict=True)
    }
    outside = batch.answers or [frozenset[int]()] * len(batch.queries)
    return [
        others.union(known[doc_id] for doc_id in known.keys() & positives)
        for positives, others in zip(batch.positives, outside, strict=True)
    ]


class KnownRanking(NamedTuple):
    """A ranking without its scores, known before the model runs."""

    relevance: Float[Tensor, "queries docs"]
    teacher: Float[Tensor, "queries docs"] | None
    keep: Bool[Tensor, "queries docs"]

    def repeated(self, times: int) -> "KnownRanking":
        """Repeat all rows, one after another, this many times."""
        return KnownRanking(*(None if part is None else part.repeat(times, 1) for part in self))  # type: ignore[arg-type]

    def beside(
        self, scores: Float[Tensor, "queries docs"], *, start: Float[Tensor, "queries docs"] | None = None
    ) -> Ranking:
        """Complete the ranking with these scores, on their device."""
        teacher = None if self.teacher is None else self.teacher.to(scores.device)
        return Ranking(scores, self.relevance.to(scores.device), teacher, self.keep.to(scores.device), start)


def _known(
    batch: Batch, columns: Sequence[Sequence[Sequence[int]]], keep: Bool[Tensor, "queries docs"]
) -> KnownRanking:
    """Lay out each group's grades and teacher's scores in the columns of its documents.

    Args:
        columns: all columns of each document of each group; `keep` marks those that count.
    """
    places = [
        (row, column, place)
        for row, group in enumerate(columns)
        for place, repeated in enumerate(group)
        for column in repeated
    ]
    at = torch.tensor([row for row, _, _ in places]), torch.tensor([column for _, column, _ in places])

    def laid_out(values: Sequence[Sequence[int | float]], elsewhere: float) -> Float[Tensor, "queries docs"]:
        laid = torch.full(keep.shape, elsewhere)
        laid[at] = torch.tensor([float(values[row][place]) for row, _, place in places])
        return laid

    binary = [
        (int(known), *[0] * (len(group) - 1))
        for group, known in zip(batch.documents, _have_positive(batch), strict=True)
    ]
    grades = [given or plain for given, plain in zip(batch.grades or binary, binary, strict=True)]
    untaught = [(torch.nan,) * len(group) for group in batch.documents]
    scores = [given or none for given, none in zip(batch.scores or untaught, untaught, strict=True)]
    teacher = laid_out(scores, torch.nan) if any(batch.scores) else None
    return KnownRanking(laid_out(grades, 0.0), teacher, keep)


def _guided(ranking: Ranking, guide: Guide | None, similarities: Float[Tensor, "queries docs"] | None) -> Ranking:
    """Leave out what a guide, if there is one, finds as relevant as the positive."""
    if guide is None or similarities is None:
        return ranking
    bar = {"margin": guide.margin, "relative": guide.relative}
    return ranking._replace(keep=guided(ranking.keep, similarities, ranking.relevance, **bar))


def _negatives_of_each(columns: Sequence[Sequence[Sequence[int]]], known: KnownRanking) -> Bool[Tensor, "queries docs"]:
    """Find the columns of the negatives in each query's own group.

    Args:
        columns: as for `_known`.
    """
    hard = torch.zeros_like(known.keep)
    for row, group in enumerate(columns):
        hard[row, [column for repeated in group for column in repeated]] = True
    return hard & known.keep & (known.relevance == 0)


def _outcome(ranking: Ranking, terms: Sequence[Term]) -> Outcome:
    return Outcome(total_loss(terms, ranking), accuracy(ranking))


def accuracy(ranking: Ranking) -> float:
    """Compute the share of queries whose document of the highest grade scores highest.

    It is among the queries with a relevant document, and 0 if there is none.
    """
    found = ranking.scores.detach().masked_fill(~ranking.keep, -torch.inf).argmax(1)
    grades, wanted = ranking.relevance.masked_fill(~ranking.keep, -torch.inf).max(1)
    right = (found == wanted)[grades > 0].float()
    return right.mean().item() if len(right) else 0.0
