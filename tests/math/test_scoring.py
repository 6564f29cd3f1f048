import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortlist.evaluate import per_query
from shortlist.math.scoring import NOWHERE, above, merge_top_k, reciprocal_ranks, top_k
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


@given(tied_scores(), st.integers(1, 70), st.integers(0, 60))
def test_merging_two_parts_in_any_order_equals_the_whole(scores, k, cut):
    cut = min(cut, scores.shape[1])
    first, first_indices = top_k(scores[:, :cut], k)
    rest, rest_indices = top_k(scores[:, cut:], k)
    expected = by_the_book(scores, k)
    for merged in (
        merge_top_k(first, first_indices, rest, rest_indices + cut, k),
        merge_top_k(rest, rest_indices + cut, first, first_indices, k),
    ):
        assert tuple(part.tolist() for part in merged) == expected


def test_above_keeps_only_what_beats_the_threshold():
    scores = torch.tensor([[1.0, 5.0, 3.0, 4.0], [0.0, 2.0, 9.0, 2.0]])
    values, indices = above(scores, torch.tensor([2.5, 2.0]))
    assert values.tolist() == [[5.0, 3.0, 4.0], [9.0, -torch.inf, -torch.inf]]
    assert indices.tolist() == [[1, 2, 3], [2, NOWHERE, NOWHERE]]


def test_above_an_unreachable_threshold_is_nothing():
    values, indices = above(torch.zeros(2, 3), torch.zeros(2))
    assert values.shape == indices.shape == (2, 0)


def test_a_place_without_document_loses_to_a_document_of_minus_infinity():
    nothing = torch.full((1, 1), -torch.inf)
    merged = merge_top_k(nothing, torch.tensor([[NOWHERE]]), nothing, torch.tensor([[7]]), 1)
    assert merged[1].tolist() == [[7]]


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
