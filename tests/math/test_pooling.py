import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shortlist.math.pooling import POOLINGS

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]], [[7.0, 8.0], [9.0, 9.0], [9.0, 9.0]]])
LENGTHS = torch.tensor([3, 1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("last", [[5.0, 1.0], [7.0, 8.0]]),
        ("cls", [[1.0, 2.0], [7.0, 8.0]]),
        ("mean", [[3.0, 3.0], [7.0, 8.0]]),
        ("weighted", [[22 / 6, 17 / 6], [7.0, 8.0]]),  # (1 + 2 * 3 + 3 * 5) / 6, (2 + 2 * 6 + 3 * 1) / 6
    ],
)
def test_a_pooling_gives_the_vectors_worked_out_by_hand(name: str, expected: list[list[float]]):
    torch.testing.assert_close(POOLINGS[name](HIDDEN, LENGTHS), torch.tensor(expected))


@pytest.mark.parametrize("name", POOLINGS)
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), padding=st.integers(0, 4))
def test_padding_changes_nothing_whatever_it_holds(name: str, seed: int, padding: int):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (4,), generator=generator)
    hidden = torch.randn(4, 5, 3, generator=generator)
    padded = torch.cat([hidden, torch.full((4, padding, 3), torch.nan)], dim=1)
    padded[torch.arange(5 + padding) >= lengths[:, None]] = torch.nan
    alone = [POOLINGS[name](row[None, :n], n[None])[0] for row, n in zip(hidden, lengths, strict=True)]
    torch.testing.assert_close(POOLINGS[name](padded, lengths), torch.stack(alone))


@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_commutes_with_the_order_of_texts(name: str):
    swapped = POOLINGS[name](HIDDEN.flip(0), LENGTHS.flip(0))
    torch.testing.assert_close(swapped, POOLINGS[name](HIDDEN, LENGTHS).flip(0))


@pytest.mark.parametrize("name", POOLINGS)
def test_padding_gets_no_gradient(name: str):
    hidden = HIDDEN.clone().requires_grad_()
    POOLINGS[name](hidden, LENGTHS).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[1, 0].tolist() == [1.0, 1.0]
    assert not hidden.grad[1, 1:].any()
