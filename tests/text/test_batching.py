import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortlist.errors import UserError
from shortlist.text.batching import batches_by_size, pad, token_batches

texts = st.lists(st.integers(0, 300), max_size=200)


@given(texts, st.integers(1, 2000))
def test_every_text_is_in_exactly_one_batch(lengths, budget):
    batches = token_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


@given(texts, st.integers(1, 2000))
def test_no_batch_is_over_the_budget_but_a_single_text(lengths, budget):
    for batch in token_batches(lengths, budget):
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= budget


@given(texts, st.integers(1, 2000))
def test_a_batch_ends_only_where_the_next_text_would_not_fit(lengths, budget):
    for batch in token_batches(lengths, budget)[:-1]:
        assert max(lengths[batch[0]], 1) * (len(batch) + 1) > budget


def test_batches_go_from_long_to_short_and_equal_lengths_keep_their_order():
    batches = token_batches([2, 5, 2, 9, 5, 2], token_budget=10)
    assert [batch.tolist() for batch in batches] == [[3], [1, 4], [0, 2, 5]]
    many = np.arange(1000) % 2
    assert np.concatenate(token_batches(many, 10)).tolist() == [*range(1, 1000, 2), *range(0, 1000, 2)]


def test_almost_nothing_is_padding_where_texts_are_many():
    lengths = np.random.default_rng(0).lognormal(np.log(60), 0.6, 100_000).astype(int).clip(4, 512)
    batches = token_batches(lengths, 2048)
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert padded / lengths.sum() - 1 < 0.005


def test_a_budget_without_room_for_a_token_is_refused():
    with pytest.raises(UserError, match="token_budget is 0, expected at least 1"):
        token_batches([1], 0)


def test_padding_is_on_the_right():
    ids, lengths = pad([[5, 6, 7], [], [8]], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert lengths.tolist() == [3, 0, 1]
    assert ids.dtype == lengths.dtype == torch.int64


def test_no_texts_make_an_empty_rectangle():
    ids, lengths = pad([], pad_id=0)
    assert ids.shape == (0, 0)
    assert lengths.shape == (0,)


@given(st.lists(st.lists(st.integers(0, 99), max_size=20), max_size=20), st.integers(0, 99))
def test_unpadding_gives_the_texts_back(texts, pad_id):
    ids, lengths = pad(texts, pad_id)
    assert [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)] == texts
    assert all((row[length:] == pad_id).all() for row, length in zip(ids, lengths, strict=True))


def test_parts_are_bounded_in_number_and_size_and_hold_every_item_once():
    sizes = [1, 1, 9, 1, 3, 3, 3, 20, 1]
    parts = list(batches_by_size(range(9), sizes, most=9, count=3))
    assert [list(part) for part in parts] == [[0, 1], [2], [3, 4, 5], [6], [7], [8]]
    assert list(batches_by_size([], [], most=9, count=3)) == []
