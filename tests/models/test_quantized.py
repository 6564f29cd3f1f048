import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shortlist.models import quantized
from shortlist.models.quantized import Int8Linear, int8_product, quantize_linears, to_int8


def test_integers_and_scales_are_those_worked_out_by_hand():
    integers, scales = to_int8(torch.tensor([[1.0, -2.54, 0.011], [127.0, 0.5, -0.6]]))
    assert integers.tolist() == [[50, -127, 1], [127, 0, -1]]
    torch.testing.assert_close(scales, torch.tensor([[0.02], [1.0]]))


def test_a_row_of_zeros_stays_zero():
    integers, scales = to_int8(torch.zeros(2, 5))
    assert integers.abs().sum() == 0
    assert scales.isfinite().all()
    assert (scales > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_off_by_half_a_scale_at_most(dtype):
    x = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    integers, scales = to_int8(x)
    assert ((integers * scales - x.float()).abs() <= 0.5001 * scales).all()


def integers(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (rows, columns), generator=generator).to(torch.int8)


@pytest.mark.parametrize("rows", [1, 2, 17, 100])
@pytest.mark.parametrize(("features", "outputs"), [(64, 96), (67, 65), (4096, 64)])
@pytest.mark.parametrize("available", [True, False])
def test_the_integer_product_is_exact(monkeypatch, rows, features, outputs, available):
    if not available:
        monkeypatch.setattr(quantized, "_has_int8_product", lambda device: False)
    x, weight = integers(rows, features, 0), integers(outputs, features, 1)
    assert torch.equal(int8_product(x, weight), (x.long() @ weight.long().T).int())


@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_linear_is_a_linear_of_rounded_inputs_and_weights(bias):
    torch.manual_seed(0)
    plain = nn.Linear(96, 160, bias=bias).requires_grad_(False)
    x = torch.randn(3, 7, 96)
    (rows, row_scales), (weights, weight_scales) = to_int8(x.reshape(-1, 96)), to_int8(plain.weight)
    expected = F.linear(rows * row_scales, weights * weight_scales, plain.bias).view(3, 7, 160)
    actual = Int8Linear(plain)(x)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert 1e-4 < (actual - plain(x)).abs().max() < 0.05


def test_a_row_comes_out_the_same_in_any_batch():
    torch.manual_seed(0)
    layer, x = Int8Linear(nn.Linear(96, 160).requires_grad_(False)), torch.randn(33, 96)
    together = layer(x)
    assert all(torch.equal(layer(x[i : i + 1])[0], together[i]) for i in range(33))


def test_only_plain_wide_linears_are_quantised():
    class Special(nn.Linear):
        pass

    inner = nn.Sequential(nn.Linear(128, 128))
    model = nn.Sequential(nn.Linear(128, 16), Special(128, 128), inner)
    assert quantize_linears(model) == 1
    assert isinstance(inner[0], Int8Linear)
    assert inner[0].weight.dtype == torch.float32
    assert quantize_linears(model) == 0
