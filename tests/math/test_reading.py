import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shortlist.math.cur import fit_scores, promise_by_inverse, spread_items
from shortlist.math.reading import AskScores, ItemsRead, read_in_rounds

RANDOM = np.random.default_rng(3)
LOW_RANK = RANDOM.standard_normal((12, 4)) @ RANDOM.standard_normal((4, 30))
QUERY = RANDOM.standard_normal(12) @ LOW_RANK


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


def test_each_round_asks_for_what_the_scores_so_far_promise():
    scores, first = RANDOM.standard_normal((9, 30)), np.array([2, 11, 17])
    query = RANDOM.standard_normal(30)
    plan = read_in_rounds(promise_by_inverse(scores), 30, first=first, budget=10, rounds=3)
    found, asked = answered(plan, query)
    assert [len(some) for some in asked] == [3, 3, 2, 2]
    read = [place for some in asked[:3] for place in some]
    promised = fit_scores(scores, np.array(read), query[read]) @ scores
    promised[read] = -np.inf
    assert asked[3] == np.sort(np.argsort(-promised)[:2]).tolist()
    every = [place for some in asked for place in some]
    assert found.positions.tolist() == sorted(every, key=lambda place: -query[place])
    np.testing.assert_array_equal(found.scores, query[found.positions])


def test_the_best_of_30_documents_are_those_of_reading_them_all():
    first, promise = spread_items(LOW_RANK, 4), promise_by_inverse(LOW_RANK)
    found, _ = answered(read_in_rounds(promise, 30, first=first, budget=9, rounds=1), QUERY)
    assert found.positions[:5].tolist() == np.argsort(-QUERY)[:5].tolist()


@given(budget=st.integers(3, 40), rounds=st.integers(1, 9), kept=st.lists(st.booleans(), min_size=30, max_size=30))
def test_no_item_is_read_twice_nor_more_than_the_budget_nor_what_is_left_out(budget, rounds, kept):
    keep, first = np.array(kept), np.array([0, 5, 6])
    plan = read_in_rounds(promise_by_inverse(LOW_RANK), 30, first=first, budget=budget, rounds=rounds, keep=keep)
    found, asked = answered(plan, QUERY)
    read = [place for some in asked for place in some]
    others = int(keep.sum() - keep[first].sum())
    assert len(set(read)) == len(read) == len(found.positions) == min(budget, 3 + others)
    assert keep[read[3:]].all()
    assert len(asked) <= 1 + rounds


def test_with_nothing_read_first_the_first_round_reads_what_is_promised_of_nothing():
    order = RANDOM.permutation(30)
    promise = lambda read, known: -np.argsort(order).astype(float)  # noqa: E731
    none = np.empty(0, dtype=np.int64)
    _, asked = answered(read_in_rounds(promise, 30, first=none, budget=12, rounds=4), QUERY)
    assert [{*some} for some in asked] == [{*order[first : first + 3].tolist()} for first in (0, 3, 6, 9)]
