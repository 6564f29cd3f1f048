import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shortlist.models.outputs import Rows, join, offsets, select, split

RAGGED = Rows(torch.arange(12.0).reshape(6, 2), torch.tensor([2, 0, 3, 1]))
EVEN = Rows(torch.arange(8.0).reshape(4, 2))


def numbers(texts: list[Tensor]) -> list[list[list[float]]]:
    return [text.tolist() for text in texts]


def test_each_text_has_the_rows_that_its_count_says():
    first, second, third, fourth = numbers(split(RAGGED))
    assert (first, second) == ([[0, 1], [2, 3]], [])
    assert (third, fourth) == ([[4, 5], [6, 7], [8, 9]], [[10, 11]])
    assert numbers(split(EVEN)) == [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]


def test_offsets_are_the_numbers_of_the_first_rows():
    assert RAGGED.counts is not None
    assert offsets(RAGGED.counts).tolist() == [0, 2, 2, 5]


@pytest.mark.parametrize("rows", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("texts", [[3, 0, 1, 2], [2], [1], [], [0, 2, 2]], ids=str)
def test_selecting_takes_each_texts_rows_in_the_order_asked_for(rows: Rows, texts: list[int]):
    chosen = select(rows, torch.tensor(texts, dtype=torch.long))
    assert numbers(split(chosen)) == [numbers(split(rows))[text] for text in texts]
    assert (chosen.counts is None) == (rows.counts is None)


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=4), st.randoms())
def test_joined_and_put_into_another_order_every_text_keeps_its_rows(counts: list[list[int]], random):
    parts = [Rows(torch.rand(sum(some), 3), torch.tensor(some)) for some in counts]
    together = join(parts)
    expected = [text for part in parts for text in split(part)]
    order = list(range(len(expected)))
    random.shuffle(order)
    assert numbers(split(select(together, torch.tensor(order)))) == numbers([expected[i] for i in order])


def test_rows_of_one_each_stay_without_counts_and_scores_may_be_joined():
    assert join([EVEN, EVEN]).counts is None
    assert join([Rows(torch.ones(2)), Rows(torch.zeros(1))]).values.tolist() == [1, 1, 0]


def test_gradients_come_back_to_the_rows_that_were_selected():
    values = RAGGED.values.clone().requires_grad_()
    select(RAGGED._replace(values=values), torch.tensor([2, 0, 2])).values.sum().backward()
    assert values.grad is not None
    assert values.grad[:, 0].tolist() == [1, 1, 2, 2, 2, 0]
