import pytest
import torch

from shortlist.math import quantize
from shortlist.math.quantize import from_int8, int8_product, to_int8


def test_integers_equal_the_values_worked_out_by_hand():
    rows, scales = to_int8(torch.tensor([[12.7, -6.35, 0.04], [0.0, 0.0, 0.0]]))
    assert rows.tolist() == [[127, -64, 0], [0, 0, 0]]  # -63.5 rounds to the even -64
    torch.testing.assert_close(scales, torch.tensor([0.1, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_to_within_half_a_scale(dtype: torch.dtype):
    vectors = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 50)[:, None]
    rows, scales = to_int8(vectors.to(dtype))
    assert ((from_int8(rows, scales) - vectors.to(dtype).float()).abs() <= 0.5001 * scales[:, None]).all()


def test_the_largest_number_of_a_row_comes_back_exactly():
    vectors = torch.randn(20, 9, generator=torch.Generator().manual_seed(1))
    back = from_int8(*to_int8(vectors))
    torch.testing.assert_close(back.abs().amax(1), vectors.abs().amax(1), rtol=1e-6, atol=0)


def test_a_power_of_two_scales_the_scales_and_nothing_else():
    vectors = torch.randn(20, 9, generator=torch.Generator().manual_seed(2))
    rows, scales = to_int8(vectors)
    larger, larger_scales = to_int8(4 * vectors)
    assert torch.equal(larger, rows)
    assert torch.equal(larger_scales, 4 * scales)


@pytest.mark.parametrize("num_rows", [1, 40])
@pytest.mark.parametrize("dim", [64, 2047])
@pytest.mark.parametrize("out", [1, 7, 64])
@pytest.mark.parametrize("there", [True, False], ids=["processor", "slowly"])
def test_integer_products_are_exact(num_rows, dim, out, there, monkeypatch):
    if not there:
        monkeypatch.setattr(quantize, "_has_int8_product", lambda device: False)
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-127, 128, (num_rows, dim), generator=generator, dtype=torch.int8)
    weight = torch.randint(-127, 128, (out, dim), generator=generator, dtype=torch.int8)
    weight[0], x[0] = 127, 127  # 33 million: more than float32 counts in ones
    assert torch.equal(int8_product(x, weight), (x.long() @ weight.long().T).int())
