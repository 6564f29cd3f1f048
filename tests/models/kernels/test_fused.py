from typing import Any

import pytest
import torch
from samples import FAMILIES, small
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel

from shortlist.models.backbone import pooled_states
from shortlist.models.kernels.fused import FusedNorm, fuse_layers
from shortlist.models.kernels.last_token import last_mlp_only_at
from shortlist.models.kernels.linear import PackedLinear, PlainLinear, packing_is_right
from shortlist.models.kernels.quantized import Int8Linear

FUSIBLE = ["llama", "mistral", "qwen2", "qwen2-windows"]
IDS = torch.randint(0, 100, (3, 17), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([17, 5, 1])

packable = pytest.mark.skipif(not packing_is_right(), reason="this torch has no oneDNN linears")
linears = pytest.mark.parametrize("linear", [PlainLinear, pytest.param(PackedLinear, marks=packable)])


def prepared(family: str) -> PreTrainedModel:
    """Norms and biases start as ones and zeros, which would hide them."""
    model = small(family).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@torch.inference_mode()
def states(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).last_hidden_state


@torch.inference_mode()
def vectors(model: PreTrainedModel, pooling: str = "last") -> torch.Tensor:
    return pooled_states(model, IDS, LENGTHS, pooling=pooling).float()


@linears
@pytest.mark.parametrize("family", FUSIBLE)
def test_fused_layers_give_the_hidden_states_of_the_models_own(family: str, linear: Any):
    model = prepared(family)
    expected, own = states(model), [vectors(model, pooling) for pooling in ("last", "mean", "cls")]
    assert fuse_layers(model, linear, torch.float32) == 2
    torch.testing.assert_close(states(model), expected, atol=1e-5, rtol=1e-5)
    for pooling, vector in zip(("last", "mean", "cls"), own, strict=True):
        torch.testing.assert_close(vectors(model, pooling), vector, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {*FUSIBLE}))
def test_other_families_keep_their_own_layers(family: str):
    model = prepared(family)
    expected = states(model)
    assert fuse_layers(model, PlainLinear, torch.float32) == 0
    assert torch.equal(states(model), expected)


@linears
def test_at_one_position_the_last_layer_gives_that_position_alone(linear: Any):
    model = prepared("llama")
    expected = states(model)[torch.arange(3), LENGTHS - 1]
    fuse_layers(model, linear, torch.float32)
    with last_mlp_only_at(model, LENGTHS - 1):
        there = states(model)
    assert there.shape == (3, 1, 64)
    torch.testing.assert_close(there[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert states(model).shape == (3, 17, 64), "outside, every token is computed again"


@pytest.mark.parametrize("length", [4, 5, 17])
def test_a_mask_that_a_window_needs_is_kept_for_one_position_too(length: int):
    model = prepared("mistral")
    positions = torch.full((3,), length - 1)
    expected = states(model)[torch.arange(3), positions]
    fuse_layers(model, PlainLinear, torch.float32)
    with last_mlp_only_at(model, positions):
        torch.testing.assert_close(states(model)[:, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("linear", "dtype"), [(PlainLinear, torch.bfloat16), (Int8Linear, torch.float32)])
def test_narrow_fused_layers_are_as_close_as_narrow_ones_of_the_models_own(linear: Any, dtype: torch.dtype):
    model = prepared("llama")
    exact = vectors(model)
    plain = vectors(prepared("llama").bfloat16())
    assert fuse_layers(model, linear, dtype) == 2
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    off = (vectors(model) - exact).norm() / exact.norm()
    bound = 1.5 * (plain - exact).norm() / exact.norm() if dtype == torch.bfloat16 else 0.1
    assert 1e-4 < off < bound


def test_a_layer_that_computes_something_else_is_left_alone():
    model = prepared("llama")
    layer = model.layers[0]
    layer.forward = lambda x, **options: 1.001 * type(layer).forward(layer, x, **options)
    assert fuse_layers(model, PlainLinear, torch.float32) == 1
    assert model.layers[0] is layer


def test_layers_with_other_linears_or_activations_are_left_alone():
    class Special(nn.Linear):
        pass

    model = prepared("llama")
    model.layers[0].self_attn.q_proj.__class__ = Special
    model.layers[1].mlp.act_fn = nn.GELU()
    assert fuse_layers(model, PlainLinear, torch.float32) == 0


def test_a_fused_norm_is_the_formula():
    norm = FusedNorm(small("llama").norm)
    norm.weight = nn.Parameter(torch.tensor([1.0, 2.0, 0.5]), requires_grad=False)
    norm.epsilon = 0.0
    expected = torch.tensor([[1.0, 4.0, 1.0]]) / 3**0.5  # of (1, 2, 2), whose mean square is 3
    torch.testing.assert_close(norm(torch.tensor([[1.0, 2.0, 2.0]])), expected)


def test_wide_heads_shared_by_queries_are_fused():
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=100, num_hidden_layers=1, head_dim=24, initializer_range=0.2, **shape)
    model = LlamaModel(config).eval().requires_grad_(False)
    expected = states(model)
    assert fuse_layers(model, PlainLinear, torch.float32) == 1
    torch.testing.assert_close(states(model), expected, atol=1e-5, rtol=1e-5)


def test_the_same_tokens_are_generated_with_a_cache_and_without_one():
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, initializer_range=0.2, **shape)).eval().requires_grad_(False)
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(IDS, **options)
    assert len(expected[0, 17:].unique()) > 4, "the model says one word only, so any other would say it too"
    fuse_layers(model.model, PlainLinear, torch.float32)
    assert torch.equal(model.generate(IDS, use_cache=False, **options), expected)
    assert torch.equal(model.generate(IDS, **options), expected)
    with pytest.raises(RuntimeError, match="make no key-value cache; pass one"):
        model.model.layers[0](torch.zeros(1, 1, 64), position_embeddings=(torch.ones(1, 1, 16),) * 2, use_cache=True)


def test_an_argument_that_a_fused_layer_does_not_know_is_refused():
    model = prepared("llama")
    fuse_layers(model, PlainLinear, torch.float32)
    with pytest.raises(TypeError, match="head_mask"):
        model(input_ids=IDS, use_cache=False, head_mask=torch.ones(2, 4))
