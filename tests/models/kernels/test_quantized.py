import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shortlist.math.quantize import from_int8, to_int8
from shortlist.models.kernels.quantized import Int8Linear, quantize_linears


@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_linear_is_a_linear_of_rounded_inputs_and_weights(bias):
    torch.manual_seed(0)
    plain = nn.Linear(96, 160, bias=bias).requires_grad_(False)
    x = torch.randn(3, 7, 96)
    rounded = from_int8(*to_int8(x.reshape(-1, 96)))
    expected = F.linear(rounded, from_int8(*to_int8(plain.weight)), plain.bias).view(3, 7, 160)
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
