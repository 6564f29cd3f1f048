import pytest
import torch

from shortlist.math import products
from shortlist.math.products import float_product, full_precision, packed_product_is_right


@pytest.fixture(params=["as it is", "without oneDNN"])
def machine(request, monkeypatch):
    if request.param == "without oneDNN":
        monkeypatch.setattr(products, "packed_product_is_right", lambda: False)


@pytest.mark.parametrize("num_rows", [1, 5, 300])
@pytest.mark.parametrize("out", [1, 4, 10, 64])
def test_products_equal_double_precision(machine, num_rows, out):
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(num_rows, 48, generator=generator), torch.randn(out, 48, generator=generator)
    expected = (rows.double() @ weight.double().T).float()
    torch.testing.assert_close(float_product(weight)(rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("out", [1, 4, 10, 64])
def test_a_row_gives_the_same_bits_beside_any_others(out):
    generator = torch.Generator().manual_seed(1)
    rows, weight = torch.randn(300, 96, generator=generator), torch.randn(out, 96, generator=generator)
    product = float_product(weight)
    whole = product(rows)
    parts = torch.cat([product(rows[start : start + 37]) for start in range(0, 300, 37)])
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    if packed_product_is_right():
        assert torch.equal(parts, whole)


def test_absent_operators_are_noticed(monkeypatch):
    def absent(weight):
        raise AttributeError("_linear_pointwise")

    packed_product_is_right.cache_clear()
    monkeypatch.setattr(products, "_packed", absent)
    assert not packed_product_is_right()
    monkeypatch.setattr(products, "_packed", lambda weight: lambda rows: rows @ weight.T + 0.01)
    packed_product_is_right.cache_clear()
    assert not packed_product_is_right()
    packed_product_is_right.cache_clear()


def test_full_precision_holds_within_and_only_there():
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_full_precision_holds_until_the_last_thread_leaves():
    torch.set_float32_matmul_precision("medium")
    try:
        first, second = full_precision(), full_precision()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
