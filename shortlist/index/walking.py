"""Searches that walk a tree by a reranker or a language model."""

import math
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, final

import numpy as np

from shortlist.data.allowed import Allowed
from shortlist.index.protocols import FetchDocuments, ReadHits
from shortlist.index.tree import TreeIndex
from shortlist.math.permutation import PlanPart, Question, Verdict, run_plans
from shortlist.math.tree import Walked, walk_by_scores, walk_in_slates
from shortlist.records import Document, Hit, Query
from shortlist.rerankers import Candidates, Ranker
from shortlist.rerankers.asking import Questions
from shortlist.rerankers.lists import score_lists

SlateTexts = tuple[Query, list[Document]]
"""A query with the texts of a slate's nodes and documents."""
Judge = Callable[[Sequence[SlateTexts]], list[Verdict]]
"""Scores the texts of each slate."""


@final
class TreeSearch:
    """A first stage that walks a tree by a model that reads texts.

    Args:
        index: the tree.
        walk: makes the walk of a query, given the tree and which documents may be found.
        judge: scores the texts of slates.
        reader: what scores them, which may state its costs.
    """

    def __init__(
        self, index: TreeIndex, walk: Callable[..., PlanPart[Walked]], judge: Judge, *, reader: Any = None
    ) -> None:
        self.index, self.walk, self.judge, self.reader = index, walk, judge, reader

    def __repr__(self) -> str:
        return f"<TreeSearch with {self.reader!r} over {self.index!r}>"

    @property
    def doc_ids(self) -> Sequence[str]:
        """The ids of the documents, in corpus order."""
        return self.index.vectors.doc_ids

    def search_by_reading(
        self, queries: Sequence[Query], k: int, documents: FetchDocuments, *, allowed: Allowed | None = None
    ) -> ReadHits:
        """Find the at most k best of the documents that are read.

        All queries advance together.

        Args:
            documents: fetches texts by id.
            allowed: the only documents to find, and to read (None: all).
        """
        keep = None if allowed is None else allowed.mask(self.doc_ids)
        walks = [self.walk(self.index.tree, keep=keep) for _ in queries]
        run, num_read = {query.query_id: list[Hit]() for query in queries}, {query.query_id: 0 for query in queries}

        def answer(asked: Sequence[tuple[int, Question]]) -> list[Verdict]:
            nodes = list(dict.fromkeys(chain.from_iterable(question for _, question in asked)))
            texts = self._texts(nodes, documents)
            return self.judge([(queries[number], [texts[node] for node in question]) for number, question in asked])

        for number, walked in run_plans(walks, answer):
            query_id = queries[number].query_id
            names = [self.doc_ids[int(place)] for place in walked.positions[:k]]
            run[query_id], num_read[query_id] = list(map(Hit, names, walked.scores.tolist())), walked.num_read
        return ReadHits(run, num_read)

    def _texts(self, nodes: Sequence[int], documents: FetchDocuments) -> dict[int, Document]:
        """Return the texts of inner nodes and documents, by their numbers in the tree."""
        tree = self.index.tree
        names = {
            node: self.doc_ids[int(tree.leaves[node - tree.num_inner])] for node in nodes if node >= tree.num_inner
        }
        fetched = documents(list(names.values())) if names else {}
        inner = self.index.texts([node for node in nodes if node < tree.num_inner], documents)
        return inner | {node: fetched[name] for node, name in names.items()}

    def costs(self) -> dict[str, int]:
        """Return what a language model was asked so far, by the names of `data.manifest.stages`."""
        return self.reader.costs() if isinstance(self.reader, Questions) else {}


def by_ranker(index: TreeIndex, ranker: Ranker, *, beam: int, budget: int) -> TreeSearch:
    """Walk by a pointwise reranker, whose scores of the documents are the hits'.

    Args:
        beam: nodes whose children are read together.
        budget: most nodes and documents to read for a query.
    """

    def judge(asked: Sequence[SlateTexts]) -> list[Verdict]:
        lists = [Candidates(query, texts) for query, texts in asked]
        scores = np.full(sum(len(texts) for _, texts in asked), np.nan)
        for part in score_lists(ranker, lists):
            scores[part.numbers] = part.scores
        ends = np.cumsum([len(texts) for _, texts in asked])
        return [part.tolist() for part in np.split(scores, ends[:-1])]

    def walk(tree: Any, **given: Any) -> PlanPart[Walked]:
        return walk_by_scores(tree, beam=beam, budget=budget, **given)

    return TreeSearch(index, walk, judge, reader=ranker)


def by_questions(index: TreeIndex, questions: Questions, **settings: Any) -> TreeSearch:
    """Walk by a language model that grades slates, or puts them in order.

    Args:
        questions: asks the language model.
        settings: of `math.tree.walk_in_slates`.
    """
    grades, lock = questions.prompt.grades, threading.Lock()

    def judge(asked: Sequence[SlateTexts]) -> list[Verdict]:
        with lock:  # searches of a server share the questions
            verdicts = questions(asked)
        return [[score / grades[-1] for score in verdict] if grades else to_shares(verdict) for verdict in verdicts]

    def walk(tree: Any, **given: Any) -> PlanPart[Walked]:
        return walk_in_slates(tree, **settings, **given)

    return TreeSearch(index, walk, judge, reader=questions)


def to_shares(verdict: Verdict) -> list[float]:
    """Turn scores that mean only an order into even steps down from 1; NaN stays."""
    known = sorted({score for score in verdict if not math.isnan(score)}, reverse=True)
    share = {score: 1 - rank / len(known) for rank, score in enumerate(known)}
    return [share.get(score, math.nan) for score in verdict]
