import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from shortlist.models.kernels import linear
from shortlist.models.kernels.linear import PackedGatedMLP, PackedLinear, PlainLinear, pack_linears

packable = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN linears"
)


def tiny_llama(**options) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 344}
    return LlamaModel(LlamaConfig(vocab_size=500, **(shape | options))).eval().requires_grad_(False)


def states(model, ids):
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).last_hidden_state


IDS = torch.randint(0, 500, (3, 17), generator=torch.Generator().manual_seed(0))


@packable
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_equals_f_linear_for_any_number_of_rows(bias):
    torch.manual_seed(0)
    plain = nn.Linear(96, 160, bias=bias).requires_grad_(False)
    packed = PackedLinear(plain)
    for rows in (0, 1, 2, 7, 64, 513, 2048):
        x = torch.randn(rows, 96)
        torch.testing.assert_close(packed(x), F.linear(x, plain.weight, plain.bias), atol=1e-5, rtol=0)


@packable
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "swish"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_does_what_stands_next_to_it(dtype, activation, bias):
    torch.manual_seed(0)
    plain = nn.Linear(96, 160, bias=bias).requires_grad_(False).to(dtype)
    x, times, add = (torch.randn(2, 5, size).to(dtype) for size in (96, 160, 160))
    product = F.linear(x, plain.weight, plain.bias).float()
    product = F.silu(product) if activation == "swish" else product
    atol = 1e-5 if dtype == torch.float32 else 0.05
    for layer in (PackedLinear(plain, activation), PlainLinear(plain, activation)):
        torch.testing.assert_close(layer(x).float(), product, atol=atol, rtol=0)
        torch.testing.assert_close(layer(x, times=times).float(), product * times, atol=atol, rtol=0)
        torch.testing.assert_close(layer(x, add=add).float(), product + add, atol=atol, rtol=0)
        torch.testing.assert_close(layer(x, times=times, add=add).float(), product * times + add, atol=atol, rtol=0)


@packable
def test_packing_in_bf16_is_as_close_as_bf16_itself():
    model = tiny_llama().float()
    exact = states(model, IDS)
    plain = states(model.bfloat16(), IDS)
    assert pack_linears(model) == 14
    assert (states(model, IDS) - exact).norm() < 1.2 * (plain - exact).norm()


@packable
def test_a_packed_linear_takes_any_leading_axes_and_strides():
    plain = nn.Linear(96, 160).requires_grad_(False)
    x = torch.randn(5, 96, 3).transpose(1, 2)
    torch.testing.assert_close(PackedLinear(plain)(x), plain(x), atol=1e-5, rtol=0)


@packable
def test_a_packed_linear_refuses_to_lose_a_gradient_silently():
    x = torch.randn(3, 96, requires_grad=True)
    packed = PackedLinear(nn.Linear(96, 160))
    with pytest.raises(RuntimeError, match="no gradient"):
        packed(x)
    with torch.no_grad():
        packed(x)


@packable
@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 1}])
def test_packing_leaves_the_hidden_states_of_a_llama_as_they_were(options):
    model = tiny_llama(**options)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)  # biases start at zero, which would hide them
    expected = states(model, IDS)
    assert pack_linears(model) == 14
    assert sum(isinstance(module, PackedGatedMLP) for module in model.modules()) == 2
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    torch.testing.assert_close(states(model, IDS), expected, atol=1e-5, rtol=0)


@packable
def test_packing_leaves_the_hidden_states_of_a_bert_as_they_were():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    model = BertModel(config).eval().requires_grad_(False)
    expected = states(model, IDS)
    assert pack_linears(model) == 2 * 6 + 1
    torch.testing.assert_close(states(model, IDS), expected, atol=1e-5, rtol=0)


@packable
def test_packing_lets_the_original_weights_go_but_not_their_dtype():
    model = tiny_llama()
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    before = sum(parameter.numel() for parameter in model.parameters())
    pack_linears(model)
    assert before - sum(parameter.numel() for parameter in model.parameters()) == weights
    left = model.layers[0].self_attn.q_proj.weight
    assert (left.dtype, left.device.type) == (torch.float32, "meta")


@packable
def test_a_gated_mlp_that_computes_something_else_is_not_fused():
    model = tiny_llama()
    mlp = model.layers[0].mlp
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)
    expected = states(model, IDS)
    pack_linears(model)
    assert model.layers[0].mlp is mlp
    assert isinstance(model.layers[1].mlp, PackedGatedMLP)
    torch.testing.assert_close(states(model, IDS), expected, atol=1e-5, rtol=0)


@packable
def test_a_gated_mlp_with_another_activation_is_packed_but_not_fused():
    model = tiny_llama(hidden_act="gelu")
    expected = states(model, IDS)
    assert pack_linears(model) == 14
    assert not any(isinstance(module, PackedGatedMLP) for module in model.modules())
    torch.testing.assert_close(states(model, IDS), expected, atol=1e-5, rtol=0)


def test_heads_subclasses_and_other_dtypes_stay_as_they_are():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(128, 1), nn.Linear(128, 16), Special(128, 128), nn.Linear(128, 128).double())
    assert pack_linears(model) == 0


@packable
def test_packing_twice_is_packing_once():
    model = tiny_llama()
    pack_linears(model)
    once = copy.copy(dict(model.named_modules()))
    assert pack_linears(model) == 0
    assert dict(model.named_modules()) == once


def broken(*_):
    raise RuntimeError("operator changed")


def missing(*_):
    raise AttributeError("no such operator")


def wrong(*_):
    return torch.zeros(512, 512)


@pytest.mark.parametrize("name", ["_multiply", "_multiply_and"])
@pytest.mark.parametrize("operator", [broken, missing, wrong])
def test_nothing_is_replaced_where_the_private_operators_fail(monkeypatch, name, operator):
    monkeypatch.setattr(linear, name, operator)
    linear.packing_is_right.cache_clear()
    linear.packing_pays.cache_clear()
    model = tiny_llama()
    try:
        assert pack_linears(model) == 0
        assert not linear.packing_pays()
    finally:
        linear.packing_is_right.cache_clear()
        linear.packing_pays.cache_clear()
    assert type(model.layers[0].self_attn.q_proj) is nn.Linear


AMD, INTEL, OLDER = (
    linear.Processor("AuthenticAMD", frozenset({"avx2", "avx512f", "avx512_bf16"})),
    linear.Processor("GenuineIntel", frozenset({"avx2", "avx512f", "amx_bf16"})),
    linear.Processor("AuthenticAMD", frozenset({"avx2"})),
)


@pytest.fixture
def forgetful():
    """Forget before and after what was decided for this processor."""
    for decide in (linear.packing_pays, linear.bf16_pays):
        decide.cache_clear()
    yield
    for decide in (linear.packing_pays, linear.bf16_pays):
        decide.cache_clear()


@packable
@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("processor", "pays"), [(AMD, True), (INTEL, False), (OLDER, False), (linear.Processor(), False)]
)
def test_packing_is_a_rule_of_the_processor(monkeypatch, processor, pays):
    monkeypatch.setattr(linear, "_processor", lambda: processor)
    assert linear.packing_pays() is pays


@pytest.mark.usefixtures("forgetful")
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about CPUs")
@pytest.mark.parametrize(
    ("processor", "pays"), [(AMD, True), (INTEL, True), (OLDER, False), (linear.Processor(), False)]
)
def test_bfloat16_is_a_rule_of_the_processor(monkeypatch, processor, pays):
    monkeypatch.setattr(linear, "_processor", lambda: processor)
    assert linear.bf16_pays() is pays
