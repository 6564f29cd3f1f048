import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortlist.evaluation.measure import per_query
from shortlist.math.scoring import (
    LAST_POSITION,
    at_least,
    best_of,
    contenders,
    from_keys,
    recall_at,
    reciprocal_ranks,
    to_keys,
    top_k,
    top_keys,
)
from shortlist.records import Hit


def by_the_book(scores, k):
    """The definition: sort (score descending, index ascending), cut at k."""
    rows = [sorted(enumerate(row), key=lambda item: (-item[1], item[0]))[:k] for row in scores.tolist()]
    return [[score for _, score in row] for row in rows], [[index for index, _ in row] for row in rows]


@st.composite
def tied_scores(draw):
    """Few different values, so that ties are everywhere, the k-th place included."""
    queries, docs = draw(st.integers(1, 4)), draw(st.integers(1, 60))
    values = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
    return torch.tensor(
        draw(st.lists(st.lists(values, min_size=docs, max_size=docs), min_size=queries, max_size=queries))
    )


def test_top_k_equals_the_order_worked_out_by_hand():
    scores, indices = top_k(torch.tensor([[1.0, 3.0, 1.0, 2.0, 1.0]]), 4)
    assert scores.tolist() == [[3.0, 2.0, 1.0, 1.0]]
    assert indices.tolist() == [[1, 3, 0, 2]]


@given(tied_scores(), st.integers(1, 70))
def test_equal_scores_stay_in_index_order_at_the_last_place_too(scores, k):
    values, indices = top_k(scores, k)
    assert (values.tolist(), indices.tolist()) == by_the_book(scores, k)


def test_many_duplicates_of_one_score_give_the_first_of_them():
    scores = torch.zeros(3, 10_000)
    scores[:, 9_000] = 1.0
    assert top_k(scores, 100)[1].tolist() == [[9_000, *range(99)]] * 3


def test_top_k_without_ties_equals_torch():
    scores = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    expected = scores.topk(37)
    values, indices = top_k(scores, 37)
    assert torch.equal(values, expected.values)
    assert torch.equal(indices, expected.indices)


def test_more_places_than_documents_give_all_documents():
    assert top_k(torch.tensor([[1.0, 2.0]]), 5)[1].tolist() == [[1, 0]]
    assert top_k(torch.empty(2, 0), 5)[0].shape == (2, 0)
    assert top_k(torch.ones(2, 3), 0)[1].shape == (2, 0)


def test_keys_equal_the_values_worked_out_by_hand():
    one = 0x3F800000  # 1.0 as IEEE 754 writes it
    assert to_keys(torch.tensor([0.0, 1.0]), torch.tensor([0, 3])).tolist() == [2**32 - 1, (one << 32) + 2**32 - 4]


@pytest.mark.slow
@given(st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, LAST_POSITION)), min_size=1))
def test_keys_order_like_score_then_position_and_can_be_taken_apart(pairs):
    scores = torch.tensor([score for score, _ in pairs])
    positions = torch.tensor([position for _, position in pairs])
    keys = to_keys(scores, positions)
    again = from_keys(keys)
    assert torch.equal(again[0], scores)
    assert torch.equal(again[1], positions)
    best_first = sorted(zip(keys.tolist(), pairs, strict=True), reverse=True)
    assert [(-score, position) for _, (score, position) in best_first] == sorted((-s, p) for s, p in pairs)


def test_a_zero_of_either_sign_is_the_same_score():
    keys = to_keys(torch.tensor([-0.0, 0.0]), torch.tensor([5, 5]))
    assert keys[0] == keys[1]


@given(tied_scores(), st.integers(1, 70), st.randoms(use_true_random=False))
def test_the_best_of_candidates_in_any_order_equals_the_whole(scores, k, random):
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    found = best_of(scores[:, order], torch.tensor(order).expand(scores.shape), k)
    assert tuple(part.tolist() for part in found) == by_the_book(scores, k)


def test_largest_keys_in_any_order_are_the_same_keys():
    keys = torch.randint(100, (3, 50), generator=torch.Generator().manual_seed(0))
    expected = keys.topk(7).values
    assert torch.equal(top_keys(keys, 7), expected)
    assert torch.equal(top_keys(keys, 7, ordered=False).sort(descending=True).values, expected)
    assert top_keys(keys, 0).shape == (3, 0)


def test_at_least_finds_what_reaches_its_querys_threshold():
    scores = torch.tensor([[1.0, 0.0], [5.0, 2.0], [2.5, 9.0], [4.0, 1.9]])
    places, columns = at_least(scores, torch.tensor([2.5, 2.0]))
    assert places.tolist() == [2, 3, 4, 5, 6]
    assert columns.tolist() == [0, 1, 0, 1, 0]


@given(tied_scores(), st.sampled_from([-2.0, 0.0, 0.5, 3.0]))
def test_at_least_equals_looking_at_every_score(scores, threshold):
    expected = (threshold <= scores.T).nonzero()
    places, columns = at_least(scores.T.contiguous(), torch.full((len(scores),), threshold))
    assert (places // len(scores)).tolist() == expected[:, 0].tolist()
    assert columns.tolist() == expected[:, 1].tolist()


def test_contenders_are_those_within_the_error_of_the_scores_below_the_kth():
    scores = torch.tensor([[8.0, 7.0, 6.0, 5.0, 4.0, 3.0], [8.0, 7.0, 6.0, 5.9, 5.8, 3.0]])
    exact = torch.tensor([[4.0, 3.5, 3.0], [4.2, 3.3, 3.0]])  # half the scores; those of the second but nearly
    assert contenders(scores, exact, 2).tolist() == [3, 5]
    assert contenders(scores, exact, 2, deviations=0.0).tolist() == [3, 3]
    assert contenders(scores, exact, 3, deviations=100.0).tolist() == [3, 6]
    assert contenders(scores[:, :3], exact, 5).tolist() == [3, 3]


def test_contenders_do_not_depend_on_the_unit_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(5, 400, generator=generator)
    scores, order = (exact + 0.3 * torch.randn(5, 400, generator=generator)).sort(descending=True)
    exact = exact.gather(1, order)
    expected = contenders(scores, exact[:, :110], 100)
    assert contenders(1000 * scores, exact[:, :110], 100).tolist() == expected.tolist()
    assert ((expected > 110) & (expected < 400)).all()


def test_recall_equals_the_value_worked_out_by_hand():
    found, exact = torch.tensor([[3, 1, 2], [9, 8, 7]]), torch.tensor([[1, 3, 5], [7, 8, 9]])
    assert recall_at(found, exact, 3) == pytest.approx((2 / 3 + 1) / 2)
    assert recall_at(found, exact, 2) == pytest.approx((1 + 1 / 2) / 2)
    assert recall_at(exact, exact, 10) == 1.0


def test_reciprocal_ranks_equal_the_values_worked_out_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.9, 0.5, 0.1]])
    relevant = torch.tensor([[True, False, True], [False, True, False], [False, False, True]])
    torch.testing.assert_close(reciprocal_ranks(scores, relevant, cutoff=2), torch.tensor([1 / 2, 1.0, 0.0]))
    torch.testing.assert_close(reciprocal_ranks(scores, relevant, cutoff=9), torch.tensor([1 / 2, 1.0, 1 / 3]))


def test_reciprocal_ranks_of_equal_scores_follow_the_columns():
    relevant = torch.eye(3, dtype=torch.bool)
    expected = torch.tensor([1.0, 1 / 2, 1 / 3])
    torch.testing.assert_close(reciprocal_ranks(torch.zeros(3, 3), relevant, cutoff=10), expected)


def test_reciprocal_ranks_equal_those_of_ir_measures():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(20, (50, 40), generator=generator).float()
    relevant = torch.rand(50, 40, generator=generator) < 0.05
    order = [sorted(range(40), key=lambda column: (-row[column], column)) for row in scores.tolist()]
    run = {f"q{i}": [Hit(f"d{column}", -rank) for rank, column in enumerate(row)] for i, row in enumerate(order)}
    qrels = {f"q{i}": {f"d{j}": int(grade) for j, grade in enumerate(row)} for i, row in enumerate(relevant.tolist())}
    expected = per_query(run, qrels, ["RR@10"])["RR@10"]
    actual = reciprocal_ranks(scores, relevant, cutoff=10).tolist()
    assert actual == pytest.approx([expected[f"q{i}"] for i in range(50)], abs=1e-6)
    assert 0 < sum(actual) < 50
