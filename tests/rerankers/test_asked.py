"""The reranker that asks by a plan, with a model that knows what is right."""

from typing import Any

import numpy as np
import pytest
from oracle import Oracles, best_first, coarse, grade, put_in_place

from shortlist.records import Document, Query
from shortlist.rerankers import Candidates, ListsRanker
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.kinds import RERANKERS, load_reranker, prepare
from shortlist.rerankers.limits import CallLimits
from shortlist.text.prompts import named_prompt

SERVER = {"model": "http://127.0.0.1:1/v1", "model_name": "oracle"}
LISTS = [
    Candidates(Query(f"q{number}", "text"), [Document(f"d{number}-{rank}", "text") for rank in range(size)])
    for number, size in enumerate([1, 2, 3, 5, 9, 10, 11, 19, 20, 21, 25, 29, 30, 31, 37, 40, 45, 50])
]


@pytest.fixture
def oracles(monkeypatch: pytest.MonkeyPatch) -> Oracles:
    return put_in_place(monkeypatch)


def opened(method: str, *, limits: CallLimits | None = None, **settings: Any) -> AskingReranker:
    ranker = prepare(method, SERVER | settings).open(limits=limits)
    assert isinstance(ranker, AskingReranker)
    return ranker


def orders(ranker: AskingReranker) -> dict[str, list[str]]:
    """For each query, the documents that were placed, best first."""
    documents = [document for _, listed in LISTS for document in listed]
    scores = np.full(len(documents), np.nan)
    for part in ranker.score_lists(LISTS):
        assert np.isnan(scores[part.numbers]).all()
        scores[part.numbers] = part.scores
    found: dict[str, list[str]] = {}
    start = 0
    for query, listed in LISTS:
        own = scores[start : start + len(listed)]
        start += len(listed)
        placed = np.flatnonzero(~np.isnan(own))
        assert len(set(own[placed].tolist())) == len(placed)
        found[query.query_id] = [listed[place].doc_id for place in placed[np.argsort(-own[placed])]]
    return found


EXACT = [
    ("listwise", {}, 10),
    ("listwise", {"window": 8}, 4),
    ("listwise", {"window": 7, "stride": 2}, 5),
    ("listwise", {"window": 6, "stride": 3, "passes": 2}, 6),
    ("listwise", {"prompt": "first"}, 10),
    ("listwise", {"prompt": "first", "answers": "text"}, 10),
    ("listwise", {"prompt": "rankgpt"}, 10),
    ("pairwise", {}, 10),
    ("pairwise", {"answers": "text"}, 10),
    ("pairwise", {"sort": "bubble", "top": 4}, 4),
    ("pairwise", {"sort": "sliding", "passes": 3}, 3),
    ("pairwise", {"sort": "all"}, 99),
    ("setwise", {}, 10),
    ("setwise", {"answers": "text", "window": 7, "top": 5}, 5),
    ("setwise", {"sort": "bubble"}, 10),
    ("setwise", {"sort": "insertion", "window": 2}, 10),
    ("setwise", {"prompt": "rank-r1"}, 10),
    ("exclusion", {}, 8),
    ("exclusion", {"window": 3}, 2),
    ("exclusion", {"window": 12}, 11),
]


@pytest.mark.parametrize(("method", "settings", "top"), EXACT)
def test_with_right_answers_the_best_come_first_for_many_queries_at_once(
    oracles: Oracles, method: str, settings: dict[str, Any], top: int
):
    for (query, documents), order in zip(LISTS, orders(opened(method, **settings)).values(), strict=True):
        if len(documents) > 1:
            assert order[:top] == best_first(query, documents)[: min(top, len(order))]
            assert len(order) >= min(top, len(documents) - 1)


def test_the_best_two_win_every_tournament(oracles: Oracles):
    ranker = opened("tournament", seed=3)
    for (query, documents), order in zip(LISTS, orders(ranker).values(), strict=True):
        if len(documents) != 3:  # of three, two survive, but half of three are asked for
            assert set(order[:2]) == set(best_first(query, documents)[:2])
        assert len(order) == len(documents)
    assert ranker.questions.tally.malformed == 0  # half of a group is what the prompt asks for


@pytest.mark.parametrize("answers", ["text", "logits"])
def test_grades_of_single_documents_are_their_order(oracles: Oracles, answers: str):
    grades = named_prompt("graded").grades
    for (query, documents), order in zip(LISTS, orders(opened("graded", answers=answers)).values(), strict=True):
        expected = sorted(documents, key=lambda document: -coarse(query, document, grades))
        assert order == [document.doc_id for document in expected]  # equal ones in first-stage order


def test_grades_of_groups_are_their_order(oracles: Oracles):
    grades = named_prompt("grouprank").grades
    found = orders(opened("groupwise", window=6, repeats=2))
    for (query, documents), order in zip(LISTS[1:], [*found.values()][1:], strict=True):
        expected = sorted(documents, key=lambda document: -coarse(query, document, grades))
        assert order == [document.doc_id for document in expected]


def test_all_lists_advance_together(oracles: Oracles):
    [*opened("listwise", window=10, stride=5).score_lists(LISTS)]
    [oracle] = oracles.opened
    assert oracle.rounds == 9  # the windows of the longest list, of 50


def test_documents_that_are_not_placed_have_no_score(oracles: Oracles):
    query, documents = LISTS[-1]
    scores = opened("setwise", top=3).score(query, documents)
    assert np.isfinite(scores).sum() == 3
    assert [documents[place].doc_id for place in np.argsort(-scores)[:3]] == best_first(query, documents)[:3]


def test_texts_do_for_queries_and_documents(oracles: Oracles):
    ranker = load_reranker("listwise", **SERVER)
    assert isinstance(ranker, ListsRanker)
    scores = ranker.score("a query", ["one text", "another"])
    assert sorted(scores) == [1, 2]


def test_lists_that_a_limit_leaves_unfinished_have_no_scores_and_the_others_all(oracles: Oracles):
    whole = orders(opened("listwise"))
    found = orders(opened("listwise", limits=CallLimits(max_calls=20)))
    finished = {query_id for query_id, order in found.items() if order}
    assert 0 < len(finished) < len(LISTS)
    assert {query_id: whole[query_id] for query_id in finished} == {q: found[q] for q in finished}
    assert len(oracles.opened[-1].asked) == 20


def test_each_list_says_how_many_tokens_it_took(oracles: Oracles):
    ranker = opened("listwise")
    counted = sum(part.num_tokens for part in ranker.score_lists(LISTS))
    costs = ranker.costs()
    assert counted == costs["prompt_tokens"] + costs["answer_tokens"] > 0


def test_methods_of_language_models_ask_and_need_whole_lists():
    for method in RERANKERS:
        if method not in ("pointwise", "late", "attention", "block", "embedding", "likelihood"):
            prepared = prepare(method, SERVER | ({"answers": "text"} if method == "context" else {}))
            assert (prepared.asks, prepared.whole_lists) == (True, True)


def test_no_two_documents_of_these_tests_are_equally_good():
    for query, documents in LISTS:
        assert len({grade(query, document) for document in documents}) == len(documents)


def test_the_oracle_answers_in_the_words_of_every_prompt():
    from oracle import Oracle

    from shortlist.text.prompts import UNPARSED, prompts

    query, documents = LISTS[3]
    for name in prompts():
        prompt = named_prompt(name)
        if prompt.asks in (*UNPARSED, "blocks"):  # an answer names only what is relevant
            continue
        shown = documents[: {"pair": 2, "grade": 1}.get(prompt.asks, 5)]
        said = Oracle(prompt).text(query, shown)
        assert prompt.parsed(said, len(shown)).malformed == (), name
