"""Searches again, with queries that are revised by the documents that were found for them."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, final

import numpy as np
from jaxtyping import Float

from shortlist.data.allowed import Allowed
from shortlist.data.manifest import read_manifest, same_identity
from shortlist.errors import UserError
from shortlist.index.opening import made_by
from shortlist.index.protocols import (
    FetchDocuments,
    GivesTerms,
    GivesTokens,
    GivesVectors,
    SearchesTerms,
    SearchesVectors,
    TermTotals,
    WeightedTerms,
)
from shortlist.math.feedback import (
    bo1,
    distilled,
    equal_shares,
    rm3,
    rocchio,
    score_chances,
    score_shares,
    vector_average,
)
from shortlist.math.maxsim import TokenVectors
from shortlist.pipeline.loading import Opener
from shortlist.progress import say
from shortlist.records import Document, Hit, Query

if TYPE_CHECKING:
    from shortlist.math.token_feedback import Sample

DISTILLED_AT_ONCE = 256
"""Queries whose documents' vectors are in one array."""
EXPANDED_AT_ONCE = 64
"""Queries whose documents' token vectors are in memory together."""
ScoreWeights = Literal["shares", "softmax", "equal"]
"""How scores weigh feedback documents."""
SCORE_WEIGHTS: dict[str, Callable[..., Any]] = {
    "shares": score_shares,
    "softmax": score_chances,
    "equal": equal_shares,
}


class SearchedAgain(NamedTuple):
    """The first stage that a step searches with other queries."""

    name: str
    stage: Any
    own_scores: bool = False
    """Whether the scores that the step reads are this first stage's."""


class Revision(NamedTuple):
    """Queries to revise, each with the documents that it is revised by."""

    step: str
    searched: SearchedAgain
    queries: Sequence[Query]
    heads: Sequence[Sequence[Hit]]
    """The feedback documents of each query, one at least."""
    texts: FetchDocuments

    @property
    def doc_ids(self) -> list[str]:
        """The ids of all feedback documents, each once."""
        return list(dict.fromkeys(hit.doc_id for head in self.heads for hit in head))

    def scores(self, place: int) -> Float[np.ndarray, " docs"]:
        """Return the scores of a query's feedback documents."""
        return np.array([hit.score for hit in self.heads[place]], dtype=np.float64)


@final
class ByTerms:
    """Revises queries of weighted terms, and searches by them."""

    gives, asks, expected = GivesTerms, SearchesTerms, "terms, as `find: bm25` and `find: sparse` do"

    def __init__(self, revise: Callable[[Revision], list[WeightedTerms]]) -> None:
        self._revise = revise

    def check(self, searched: SearchedAgain) -> None:
        """Accept every first stage, as all of them give terms."""

    def __call__(self, revision: Revision, k: int, allowed: Allowed | None) -> list[list[Hit]]:
        """Find the k best documents for each query."""
        queries, stage = self._revise(revision), revision.searched.stage
        return stage.find_by_terms(queries, k) if allowed is None else stage.find_by_terms(queries, k, allowed=allowed)


@final
class ByVectors:
    """Revises queries' vectors, and searches by them."""

    gives, asks, expected = GivesVectors, SearchesVectors, "one vector of each document, as `find: dense` does"

    def __init__(self, revise: Callable[[Revision], Float[np.ndarray, "queries dim"]]) -> None:
        self._revise = revise

    def check(self, searched: SearchedAgain) -> None:
        """Refuse a first stage that gives no vectors of documents.

        Raises:
            UserError: it gives none.
        """
        searched.stage.document_vectors([])

    def __call__(self, revision: Revision, k: int, allowed: Allowed | None) -> list[list[Hit]]:
        """Find the k best documents for each query."""
        queries, stage = self._revise(revision), revision.searched.stage
        if allowed is None:
            return stage.find_by_vectors(queries, k)
        return stage.find_by_vectors(queries, k, allowed=allowed)


@final
class ByTokens:
    """Adds token vectors to queries, and searches by them.

    Args:
        clusters: clusters of the token vectors of a query's documents.
        centroids: the most centroids to add.
        beta: weight of the rarest possible centroid beside a token of the query.
    """

    gives, asks, expected = GivesTokens, GivesTokens, "token vectors, as `find: late` does"

    def __init__(self, clusters: int, centroids: int, beta: float) -> None:
        self._clusters, self._centroids, self._beta = clusters, centroids, beta
        self._lock, self._sample = threading.Lock(), cast("Sample | None", None)

    def check(self, searched: SearchedAgain) -> None:
        """Refuse a first stage that gives no token vectors of documents.

        Raises:
            UserError: it gives none.
        """
        searched.stage.document_tokens([])

    def __call__(self, revision: Revision, k: int, allowed: Allowed | None) -> list[list[Hit]]:
        """Find the k best documents for each query."""
        stage: GivesTokens = revision.searched.stage
        texts = [vectors for part in _parts(revision, EXPANDED_AT_ONCE) for vectors in self._revised(part)]
        queries = TokenVectors(np.concatenate(texts), np.array(list(map(len, texts))))
        return (
            stage.find_by_tokens(queries, k) if allowed is None else stage.find_by_tokens(queries, k, allowed=allowed)
        )

    def _revised(self, revision: Revision) -> list[Float[np.ndarray, "_ dim"]]:
        """Add centroids of their documents' token vectors to some queries."""
        from shortlist.math.token_feedback import cluster_means, vector_rarity, with_rarest

        stage: GivesTokens = revision.searched.stage
        known = dict(zip(revision.doc_ids, stage.document_tokens(revision.doc_ids), strict=True))
        means = [
            cluster_means(np.concatenate([known[hit.doc_id] for hit in head]), self._clusters)
            for head in revision.heads
        ]
        if not any(map(len, means)):
            return list(stage.query_tokens(revision.queries))
        found = vector_rarity(np.concatenate(means), self._sampled(stage))
        rarities = np.split(found, np.cumsum(list(map(len, means)))[:-1])
        return [
            with_rarest(*one, most=self._centroids, beta=self._beta)
            for one in zip(stage.query_tokens(revision.queries), means, rarities, strict=True)
        ]

    def _sampled(self, stage: GivesTokens) -> "Sample":
        """Sample the collection once."""
        from shortlist.math.token_feedback import sampled

        with self._lock:
            self._sample = self._sample or sampled(stage.sampled_tokens())
        return self._sample


@final
class ByEncoder:
    """Searches by queries that an encoder has read with their documents.

    Args:
        model: the encoder's name.
        open_encoder: loads it.
        trained_beside: the identity of the model whose documents' vectors it was trained with, if known.
    """

    gives, asks, expected = SearchesVectors, SearchesVectors, "one vector of each document, as `find: dense` does"

    def __init__(self, model: str, open_encoder: Callable[[], Any], trained_beside: str | None) -> None:
        self.model, self.trained_beside = model, trained_beside
        self._open, self._lock = open_encoder, threading.Lock()
        self._has_warned = False

    def check(self, searched: SearchedAgain) -> None:
        """Refuse vectors of another model than the encoder was trained beside.

        Raises:
            UserError: these are known to be of another.
        """
        store = getattr(getattr(searched.stage, "vectors", None), "vectors", None)
        folder = getattr(store, "folder", None)
        made = made_by(folder) if isinstance(folder, Path) else None
        if made and self.trained_beside and not same_identity(made, self.trained_beside):
            raise UserError(
                f"{self.model}: was trained beside the vectors of another model than those of {folder}; "
                "search those of the retriever that it started from."
            )

    def __call__(self, revision: Revision, k: int, allowed: Allowed | None) -> list[list[Hit]]:
        """Find the k best documents for each query."""
        texts = revision.texts(revision.doc_ids)
        pairs = [
            (query, [texts[hit.doc_id] for hit in head])
            for query, head in zip(revision.queries, revision.heads, strict=True)
        ]
        with self._lock:  # the inputs tell one caller at a time what was cut
            vectors = self._encoded(pairs, revision.step)
        stage = revision.searched.stage
        if allowed is None:
            return stage.find_by_vectors(vectors, k)
        return stage.find_by_vectors(vectors, k, allowed=allowed)

    def _encoded(
        self, pairs: Sequence[tuple[Query, Sequence[Document]]], step: str
    ) -> Float[np.ndarray, "queries dim"]:
        encoder, cut = self._open(), list[str]()

        def count(kind: str, num_cut: int, num_texts: int) -> None:
            if num_cut:
                cut.append(kind)

        encoder.inputs.on_cut = None if self._has_warned else count
        vectors = encoder.encode_with_feedback(pairs)
        if cut:
            self._has_warned = True
            most = encoder.inputs.form.query_length
            say(
                f"step {step!r}: some {' and '.join(cut)} were cut (said once), so that a query and its documents have "
                f"{most} tokens."
            )
        return vectors


@final
class Feedback:
    """A way to revise queries by the first documents of a run.

    Args:
        method: its name, for messages.
        docs: feedback documents of a query.
        search: revises queries and searches by them.
        reads_scores: whether the documents' scores count, and not only which documents they are.
    """

    def __init__(
        self, method: str, docs: int, search: ByTerms | ByVectors | ByTokens | ByEncoder, *, reads_scores: bool = False
    ) -> None:
        self.method, self.docs, self._search, self.reads_scores = method, docs, search, reads_scores
        self._has_warned = False

    def check(self, step: str, searched: SearchedAgain) -> None:
        """Refuse a first stage that this cannot search again.

        Raises:
            UserError: it searches by something of another kind, or gives nothing of its documents.
        """
        check_searched(f"step {step!r}: `feedback: {self.method}`", searched, self._search.gives, self._search.expected)
        try:
            self._search.check(searched)
        except UserError as error:
            raise UserError(f"step {step!r}: {error}") from None

    def __call__(self, revision: Revision, k: int, allowed: Allowed | None) -> list[list[Hit]]:
        """Find the k best documents for each revised query.

        The first time that queries have fewer documents than wanted, this says so.
        """
        if not revision.queries:
            return []
        few = next((place for place, head in enumerate(revision.heads) if len(head) < self.docs), None)
        if few is not None and not self._has_warned:
            self._has_warned = True
            say(
                f"step {revision.step!r}: query {revision.queries[few].query_id!r} has {len(revision.heads[few]):,} "
                f"feedback documents, and {self.docs} are wanted; such queries are revised by those they have (said "
                "once)."
            )
        try:
            return self._search(revision, k, allowed)
        except UserError as error:
            raise UserError(f"step {revision.step!r}: {error}") from None


def check_searched(where: str, searched: SearchedAgain, protocol: Any, expected: str) -> None:
    """Refuse a first stage that lacks what a protocol asks for.

    Raises:
        UserError: it lacks something.
    """
    if not isinstance(searched.stage, protocol):
        raise UserError(
            f"{where} needs a first stage that searches by {expected}; {searched.name!r} does not. Name another one in "
            "`search`, or choose another method."
        )


def rm3_again(
    opener: Opener, *, docs: int = 10, terms: int = 20, weight: float = 0.5, scores: ScoreWeights | None = None
) -> Feedback:
    """Revise queries by the relevance model of their documents.

    Args:
        docs: feedback documents of a query.
        terms: terms of the relevance model to keep.
        weight: share of the query's own terms.
        scores: how documents are weighed: by their shares of the sum of scores, which suits a search by terms, by the
            softmax of scores, or equally (None: shares if the scores are those of the first stage itself, otherwise
            softmax).

    Raises:
        UserError: a number is out of range.
    """
    _check("rm3", docs=docs, terms=terms, weight=weight)
    return Feedback("rm3", docs, ByTerms(lambda revision: _by_rm3(revision, terms, weight, scores)), reads_scores=True)


def bo1_again(opener: Opener, *, docs: int = 3, terms: int = 10, weight: float = 0.5) -> Feedback:
    """Revise queries by terms that are more frequent in their documents than by chance.

    Args:
        docs: feedback documents of a query.
        terms: terms of these to keep.
        weight: share of the query's own terms.

    Raises:
        UserError: a number is out of range.
    """
    _check("bo1", docs=docs, terms=terms, weight=weight)
    return Feedback("bo1", docs, ByTerms(lambda revision: _by_bo1(revision, terms, weight)))


def average_again(opener: Opener, *, docs: int = 3) -> Feedback:
    """Replace queries' vectors by the means of these and of their documents' vectors.

    Raises:
        UserError: `docs` is below 1.
    """
    _check("average", docs=docs)
    return Feedback("average", docs, ByVectors(lambda revision: _each_vector(revision, vector_average)))


def rocchio_again(opener: Opener, *, docs: int = 5, alpha: float = 0.4, beta: float = 0.6) -> Feedback:
    """Add the mean of their documents' vectors to queries' vectors.

    Args:
        docs: feedback documents of a query.
        alpha: factor of the query's vector.
        beta: factor of the mean.

    Raises:
        UserError: a number is out of range.
    """
    _check("rocchio", docs=docs)
    if not (math.isfinite(alpha) and math.isfinite(beta) and min(alpha, beta) >= 0 < max(alpha, beta)):
        raise UserError(
            f"`feedback: rocchio` with alpha {alpha:g} and beta {beta:g}; expected finite numbers of 0 "
            "or more, one of them above."
        )
    how = {"alpha": alpha, "beta": beta}
    return Feedback("rocchio", docs, ByVectors(lambda revision: _each_vector(revision, rocchio, **how)))


def distilled_again(
    opener: Opener, *, docs: int = 100, steps: int = 10, rate: float = 0.005, temperature: float = 0.05
) -> Feedback:
    """Move queries' vectors so that they order documents as a reranker did.

    Args:
        docs: documents of a query to learn from, of those that the reranker has read.
        steps: steps down the gradient.
        rate: what the gradient is multiplied by at each step.
        temperature: divides the products of queries and documents.

    Raises:
        UserError: a number is out of range.
    """
    _check("distill", docs=docs, steps=steps)
    if not (0 < rate < math.inf and 0 < temperature < math.inf):
        raise UserError(
            f"`feedback: distill` with rate {rate:g} and temperature {temperature:g}; expected finite numbers above 0."
        )
    how = {"steps": steps, "rate": rate, "temperature": temperature}
    return Feedback("distill", docs, ByVectors(lambda revision: _by_distillation(revision, how)), reads_scores=True)


def tokens_again(
    opener: Opener, *, docs: int = 3, clusters: int = 24, centroids: int = 10, beta: float = 1.0
) -> Feedback:
    """Add the rarest centroids of their documents' token vectors to queries' token vectors.

    Args:
        docs: feedback documents of a query.
        clusters: clusters of their token vectors.
        centroids: the most centroids to add.
        beta: weight of a centroid that no document is near, beside a token of the query; others have less.

    Raises:
        UserError: a number is out of range.
    """
    _check("tokens", docs=docs, clusters=clusters, centroids=centroids)
    if centroids > clusters or not 0 <= beta < math.inf:
        raise UserError(
            f"`feedback: tokens` with centroids {centroids}, clusters {clusters} and beta {beta:g}; expected no more "
            "centroids than clusters, and a finite beta of 0 or more."
        )
    return Feedback("tokens", docs, ByTokens(clusters, centroids, beta))


def encoder_again(opener: Opener, *, model: str, docs: int | None = None) -> Feedback:
    """Search by queries that a trained encoder reads with their documents.

    Args:
        model: feedback encoder, of `shortlist train retriever --feedback`.
        docs: feedback documents of a query (None: the most that the encoder was trained with).

    Raises:
        UserError: `docs` is below 1 or more than have room, or the model is no feedback encoder.
    """
    folder = opener.folder(model)
    form = folder.feedback_contract().form
    count = form.feedback_docs if docs is None else docs
    _check("encoder", docs=count)
    if count > form.feedback_docs:
        raise UserError(
            f"`feedback: encoder` with docs {count}; {model} was trained with at most {form.feedback_docs} documents."
        )
    beside = (read_manifest(folder.path) or {}).get("made_from", {}).get("backbone")
    return Feedback("encoder", count, ByEncoder(model, lambda: opener.feedback_encoder(model), beside))


FEEDBACKS: dict[str, Callable[..., Feedback]] = {
    "rm3": rm3_again,
    "bo1": bo1_again,
    "average": average_again,
    "rocchio": rocchio_again,
    "distill": distilled_again,
    "tokens": tokens_again,
    "encoder": encoder_again,
}
"""The ways to revise queries by documents."""


def _check(method: str, *, weight: float = 0.0, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"`feedback: {method}` with {name} {count}; expected 1 or more.")
    if not 0 <= weight <= 1:
        raise UserError(f"`feedback: {method}` with weight {weight:g}; expected the query's share, 0 to 1.")


class _QueryTerms(NamedTuple):
    """A query and its feedback documents over the same terms."""

    names: list[str]
    query: Float[np.ndarray, " terms"]
    documents: Float[np.ndarray, "docs terms"]

    def named(self, weights: Float[np.ndarray, " terms"]) -> WeightedTerms:
        """Return the terms that have weight, by name."""
        used = np.flatnonzero(weights)
        return [
            (self.names[place], weight) for place, weight in zip(used.tolist(), weights[used].tolist(), strict=True)
        ]


def _query_terms(revision: Revision) -> list[_QueryTerms]:
    """Look up the terms of queries, and of their documents, each document once."""
    stage: GivesTerms = revision.searched.stage
    doc_ids = revision.doc_ids
    known = dict(zip(doc_ids, stage.document_terms(doc_ids, revision.texts), strict=True))
    pairs = zip(stage.query_terms(revision.queries), revision.heads, strict=True)
    return [_in_columns([terms, *(known[hit.doc_id] for hit in head)]) for terms, head in pairs]


def _in_columns(rows: Sequence[WeightedTerms]) -> _QueryTerms:
    """Put the terms of a query and of its documents into the same columns."""
    columns: dict[str, int] = {}
    places = [[columns.setdefault(name, len(columns)) for name, _ in row] for row in rows]
    weights = [[weight for _, weight in row] for row in rows]
    found = [np.bincount(np.array(at, np.int64), row, len(columns)) for at, row in zip(places, weights, strict=True)]
    return _QueryTerms(list(columns), found[0].astype(np.float64), np.array(found[1:], np.float64))


def _by_rm3(revision: Revision, terms: int, weight: float, scores: ScoreWeights | None) -> list[WeightedTerms]:
    how = scores or ("shares" if revision.searched.own_scores else "softmax")
    queries = []
    for place, one in enumerate(_query_terms(revision)):
        found = revision.scores(place)
        if how == "shares" and found.min() <= 0:
            raise UserError(
                f"query {revision.queries[place].query_id!r} has a document with score {found.min():g}, and `scores: "
                "shares` takes scores above 0; say `scores: softmax` or `equal`."
            )
        weights = SCORE_WEIGHTS[how](found)
        queries.append(one.named(rm3(one.query, one.documents, weights, terms=terms, weight=weight)))
    return queries


def _by_bo1(revision: Revision, terms: int, weight: float) -> list[WeightedTerms]:
    found = _query_terms(revision)
    names = list(dict.fromkeys(name for one in found for name in one.names))
    known: TermTotals = revision.searched.stage.term_totals(names)
    totals = dict(zip(names, known.totals.tolist(), strict=True))
    queries = []
    for one in found:
        own = np.array([totals[name] for name in one.names], dtype=np.float64)
        how: dict[str, Any] = {"num_docs": known.num_docs, "terms": terms, "weight": weight}
        queries.append(one.named(bo1(one.query, one.documents, own, **how)))
    return queries


class _Vectors(NamedTuple):
    """The vectors of queries, and of all their documents, each once."""

    queries: Float[np.ndarray, "queries dim"]
    documents: Float[np.ndarray, "docs dim"]
    rows: Mapping[str, int]

    def of_hits(self, hits: Sequence[Hit]) -> Float[np.ndarray, "hits dim"]:
        """Return the vectors of some documents."""
        return self.documents[[self.rows[hit.doc_id] for hit in hits]]


def _vectors(revision: Revision) -> _Vectors:
    stage: GivesVectors = revision.searched.stage
    doc_ids = revision.doc_ids
    queries = np.asarray(stage.query_vectors(revision.queries), dtype=np.float32)
    rows = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    return _Vectors(queries, stage.document_vectors(doc_ids), rows)


def _each_vector(
    revision: Revision, revise: Callable[..., Float[np.ndarray, " dim"]], **how: float
) -> Float[np.ndarray, "queries dim"]:
    found = _vectors(revision)
    pairs = zip(found.queries, revision.heads, strict=True)
    return np.stack([revise(query, found.of_hits(head), **how) for query, head in pairs])


def _parts(revision: Revision, count: int) -> Iterator[Revision]:
    """Yield at most `count` queries with their documents at a time."""
    for first in range(0, len(revision.queries), count):
        here = slice(first, first + count)
        yield revision._replace(queries=revision.queries[here], heads=revision.heads[here])


def _by_distillation(revision: Revision, how: Mapping[str, Any]) -> Float[np.ndarray, "queries dim"]:
    parts = []
    for some in _parts(revision, DISTILLED_AT_ONCE):
        found, most = _vectors(some), max(map(len, some.heads))
        documents = np.zeros((len(some.heads), most, found.queries.shape[1]), dtype=np.float32)
        scores = np.full((len(some.heads), most), np.nan)
        for place, head in enumerate(some.heads):
            documents[place, : len(head)], scores[place, : len(head)] = found.of_hits(head), some.scores(place)
        parts.append(distilled(found.queries, documents, scores, **how))
    return np.concatenate(parts)
