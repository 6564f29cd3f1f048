import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist.math.cur import (
    AskScores,
    ItemsRead,
    Prior,
    fit_scores,
    read_in_rounds,
    spread_items,
    with_prior,
)

RANDOM = np.random.default_rng(3)
LOW_RANK = RANDOM.standard_normal((12, 4)) @ RANDOM.standard_normal((4, 30))
"""Scores of 12 anchor queries for 30 documents."""
QUERY = RANDOM.standard_normal(12) @ LOW_RANK
"""A query's scores, which lie in the same space."""
NONE = np.empty(0, dtype=np.int64)


def answered(plan: AskScores, scores: np.ndarray) -> tuple[ItemsRead, list[list[int]]]:
    """Answer a search from known scores, and keep account of what it asked for."""
    asked: list[list[int]] = []
    answer: np.ndarray | None = None
    while True:
        try:
            positions = plan.send(answer)  # type: ignore[arg-type]  # nothing at first
        except StopIteration as done:
            return done.value, asked
        asked.append(positions.tolist())
        answer = scores[positions]


def test_approximate_scores_are_those_worked_out_by_hand():
    """The pseudo-inverse of items 0 and 2 is [[1, 0], [-1/2, 1/2]], so item 1 is 3 x item 0 + 1/2 x item 2."""
    scores = np.array([[1.0, 3.0, 0.0], [1.0, 4.0, 2.0]])
    found = fit_scores(scores, np.array([0, 2]), np.array([2.0, 10.0])) @ scores
    np.testing.assert_allclose(found, [2, 11, 10], atol=1e-12)


def test_at_full_rank_the_anchor_items_keep_their_own_scores():
    scores, known = RANDOM.standard_normal((8, 30)), RANDOM.standard_normal(6)
    anchors = np.array([1, 4, 9, 16, 25, 29])
    np.testing.assert_allclose((fit_scores(scores, anchors, known) @ scores)[anchors], known, atol=1e-10)


def test_scores_of_low_rank_are_found_exactly():
    anchors = spread_items(LOW_RANK, 4)
    np.testing.assert_allclose(fit_scores(LOW_RANK, anchors, QUERY[anchors]) @ LOW_RANK, QUERY, atol=1e-9)


def test_items_that_hardly_differ_do_not_explode():
    scores = LOW_RANK.copy()
    scores[:, 1] = scores[:, 0] + 1e-6 * RANDOM.standard_normal(12)
    known = QUERY[[0, 1, 7]] + np.array([0.01, -0.01, 0.0])
    anchors = np.array([0, 1, 7])
    assert np.abs(fit_scores(scores, anchors, known) @ scores).max() < 10 * np.abs(QUERY).max()
    assert np.abs(fit_scores(scores, anchors, known, rcond=1e-12) @ scores).max() > 100 * np.abs(QUERY).max()


def test_the_items_that_tell_most_are_chosen_first():
    scores = np.array([[1.0, 9.0, 8.9, 0.0], [0.0, 0.0, 0.1, 2.0]])
    assert spread_items(scores, 1).tolist() == [1]
    assert spread_items(scores, 2).tolist() == [1, 3]
    assert spread_items(scores, 9).tolist() == [0, 1, 2, 3]


def test_the_shortest_of_all_vectors_that_fit_is_found():
    items = np.array([[1.0, 0.0, 5.0], [1.0, 0.0, 7.0], [0.0, 1.0, 9.0]])
    np.testing.assert_allclose(fit_scores(items, np.array([0, 1]), np.array([4.0, 3.0])), [2, 2, 3], atol=1e-12)


def test_one_round_is_the_approximation_by_anchors():
    scores, anchors = RANDOM.standard_normal((9, 30)), np.array([2, 11, 17, 20])
    query = RANDOM.standard_normal(30)
    found, asked = answered(read_in_rounds(scores, anchors=anchors, budget=10, rounds=1), query)
    promised = query[anchors] @ np.linalg.pinv(scores[:, anchors]) @ scores
    promised[anchors] = -np.inf
    assert asked == [anchors.tolist(), np.sort(np.argsort(-promised)[:6]).tolist()]
    assert found.positions.tolist() == sorted([*asked[0], *asked[1]], key=lambda place: -query[place])
    np.testing.assert_array_equal(found.scores, query[found.positions])


def test_each_round_asks_for_what_the_scores_so_far_promise():
    scores, anchors = RANDOM.standard_normal((9, 30)), np.array([2, 11, 17])
    query = RANDOM.standard_normal(30)
    _, asked = answered(read_in_rounds(scores, anchors=anchors, budget=10, rounds=3), query)
    assert [len(some) for some in asked] == [3, 3, 2, 2]
    read = [place for some in asked[:3] for place in some]
    promised = fit_scores(scores, np.array(read), query[read]) @ scores
    promised[read] = -np.inf
    assert asked[3] == np.sort(np.argsort(-promised)[:2]).tolist()


def test_the_best_of_30_documents_are_those_of_reading_them_all():
    found, _ = answered(read_in_rounds(LOW_RANK, anchors=spread_items(LOW_RANK, 4), budget=9, rounds=1), QUERY)
    assert found.positions[:5].tolist() == np.argsort(-QUERY)[:5].tolist()


@given(budget=st.integers(3, 40), rounds=st.integers(1, 9), kept=st.lists(st.booleans(), min_size=30, max_size=30))
def test_no_item_is_read_twice_nor_more_than_the_budget_nor_what_is_left_out(budget, rounds, kept):
    keep, anchors = np.array(kept), np.array([0, 5, 6])
    found, asked = answered(read_in_rounds(LOW_RANK, anchors=anchors, budget=budget, rounds=rounds, keep=keep), QUERY)
    read = [place for some in asked for place in some]
    others = int(keep.sum() - keep[anchors].sum())
    assert len(set(read)) == len(read) == len(found.positions) == min(budget, 3 + others)
    assert keep[read[3:]].all()
    assert len(asked) <= 1 + rounds


@pytest.mark.parametrize("rounds", [1, 4])
def test_with_the_querys_own_vector_alone_the_nearest_items_are_read(rounds: int):
    vectors, own, scores = RANDOM.standard_normal((6, 30)), RANDOM.standard_normal(6), RANDOM.standard_normal(30)
    plan = read_in_rounds(vectors, anchors=NONE, budget=12, rounds=rounds, prior=Prior(own, 1.0))
    found, _ = answered(plan, scores)
    nearest = np.argsort(-(own @ vectors))[:12]
    assert found.positions.tolist() == sorted(nearest.tolist(), key=lambda place: -scores[place])


def test_scores_in_any_unit_mix_with_the_querys_own_vector_alike():
    vectors, own, read = RANDOM.standard_normal((6, 30)), RANDOM.standard_normal(6), np.array([1, 2, 8])
    known = np.array([1.0, 3.0, 2.0])
    mixed = with_prior(vectors, read, known, Prior(own, 0.3))
    np.testing.assert_allclose(with_prior(vectors, read, 50 * known - 7, Prior(own, 0.3)), mixed)
    products = own @ vectors[:, read]
    scaled = (known - 2) / known.std() * products.std() + products.mean()
    np.testing.assert_allclose(mixed, 0.7 * fit_scores(vectors, read, scaled) + 0.3 * own)
    assert np.isfinite(with_prior(vectors, read, np.ones(3), Prior(own, 0.3))).all()


def test_nothing_to_begin_with_is_refused():
    with pytest.raises(ValueError, match="neither anchors nor a prior"):
        next(read_in_rounds(LOW_RANK, anchors=NONE, budget=3, rounds=1))
