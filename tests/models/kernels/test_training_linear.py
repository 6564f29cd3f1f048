import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from samples import small
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaModel

from shortlist.models.adapter_settings import make_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.kernels import training_linear
from shortlist.models.kernels.training_linear import (
    FastLinear,
    FastLora,
    SparseEmbedding,
    draw_kept,
    products_are_right,
    speed_up_training,
)

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN linears"
)

IDS = torch.randint(0, 500, (3, 17), generator=torch.Generator().manual_seed(0))


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(expected.abs().max().item(), 1e-30))


def fast_copy(module: Any) -> Any:
    fast = copy.deepcopy(module)
    assert speed_up_training(fast) > 0
    return fast


def tiny_llama(**options) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 160}
    model = LlamaModel(LlamaConfig(vocab_size=500, **(shape | options))).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)  # norms of one and biases of zero would hide mistakes
    return model


def tiny_lora(dropout: float = 0.0) -> Any:
    model = tiny_llama()
    add_adapter(model, make_adapter("lora", r=8, alpha=16, dropout=dropout))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)  # zero at first, which would hide the other factor's gradient
    return model.train()


def gradients(model, *, seed=0, ids=IDS, bf16=False) -> dict[str, torch.Tensor]:
    """Of a loss in which every hidden state counts; the loss itself is under `loss`."""
    model.zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = model(input_ids=ids, use_cache=False).last_hidden_state.float()
    loss = hidden.square().mul(torch.linspace(-1, 1, hidden.shape[-1])).sum()
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(fast, plain, *, tolerance=1e-5, **options):
    actual, expected = gradients(fast, **options), gradients(plain, **options)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype
        close(actual[name], expected[name], tolerance)


LAYOUTS = {
    "2-D": torch.randn(30, 96),
    "3-D": torch.randn(5, 6, 96),
    "transposed": torch.randn(96, 30).T,
    "permuted": torch.randn(5, 96, 6).transpose(1, 2),
    "every other row": torch.randn(60, 96)[::2],
    "part of each row": torch.randn(30, 200)[:, 50:146],
    "one row": torch.randn(1, 96),
    "one vector": torch.randn(96),
    "no rows": torch.randn(0, 96),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [64, 160])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_fast_linear_has_the_output_and_gradients_of_nn_linear(layout, width, bias, frozen):
    plain = nn.Linear(96, width, bias=bias).requires_grad_(not frozen)
    fast = fast_copy(plain)
    assert type(fast) is FastLinear
    results = []
    for module in (fast, plain):
        x = LAYOUTS[layout].clone(memory_format=torch.preserve_format).requires_grad_()
        out = module(x)
        weights = torch.linspace(-1, 1, width)
        (out * weights).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in module.parameters() if not frozen)])
    for actual, expected in zip(*results, strict=True):
        assert actual.shape == expected.shape
        if expected.numel():
            close(actual, expected)
    assert all(p.grad is None for p in fast.parameters()) == frozen


@pytest.mark.parametrize("width", [64, 160])
def test_a_gradient_that_is_one_number_everywhere_is_no_trap(width):
    plain = nn.Linear(96, width)
    fast, x = fast_copy(plain), torch.randn(7, 96)
    fast(x).sum().backward()  # expands, so its strides are zero
    plain(x).sum().backward()
    close(fast.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 1}])
def test_a_fast_llama_has_the_loss_and_gradients_of_the_plain_one(options):
    plain = tiny_llama(**options)
    fast = fast_copy(plain)
    assert_same_gradients(fast, plain)
    assert any(isinstance(module, FastLinear) for module in fast.modules())
    assert isinstance(fast.embed_tokens, SparseEmbedding)


def test_parameters_stay_the_same_objects_under_the_same_names():
    model = tiny_llama()
    before = dict(model.named_parameters())
    speed_up_training(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert model.state_dict().keys() == tiny_llama().state_dict().keys()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_fast_linear_keeps_its_input_only_where_its_weight_trains(frozen):
    fast, x, kept = nn.Linear(96, 64), torch.randn(7, 96, requires_grad=True), []
    speed_up_training(fast.requires_grad_(not frozen))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), lambda _: x):
        fast(x)
    assert (x.data_ptr() in kept) != frozen


CHANGES = {
    "optimizer": lambda layer, new: torch.optim.AdamW(layer.parameters(), lr=0.1).step(),
    "copy_": lambda layer, new: layer.weight.detach().copy_(new),
    "data": lambda layer, new: setattr(layer.weight, "data", new.clone()),
    "load_state_dict": lambda layer, new: layer.load_state_dict({"weight": new}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_forward_and_backward_see_a_changed_weight(change):
    fast, x = nn.Linear(96, 64, bias=False), torch.randn(7, 96, requires_grad=True)
    speed_up_training(fast)
    before = fast(x)
    before.square().sum().backward()
    CHANGES[change](fast, torch.randn(64, 96))
    after = fast(x)
    close(after, F.linear(x, fast.weight))
    assert not torch.allclose(after, before)
    (gradient,) = torch.autograd.grad(after.sum(), x)
    close(gradient, fast.weight.detach().sum(0).expand_as(x))


def test_micro_batches_add_up_to_one_dense_embedding_gradient():
    plain = tiny_llama()
    fast = fast_copy(plain)
    for model in (plain, fast):
        model.zero_grad()
        outputs = [model(input_ids=ids).last_hidden_state.square().sum() for ids in (IDS[:1], IDS[1:])]
        sum(outputs).backward()  # both in one graph, as in the plain step
        model(input_ids=IDS[:, :5]).last_hidden_state.square().sum().backward()  # and one more, as in the cached step
    assert not fast.embed_tokens.weight.grad.is_sparse
    close(fast.embed_tokens.weight.grad, plain.embed_tokens.weight.grad)


def test_the_padding_row_of_an_embedding_still_has_no_gradient():
    fast = nn.Embedding(10, 4, padding_idx=0)
    speed_up_training(fast)
    fast(torch.tensor([[0, 1, 1]])).sum().backward()
    torch.testing.assert_close(fast.weight.grad[:3], torch.tensor([[0.0] * 4, [2.0] * 4, [0.0] * 4]))


def test_lora_has_the_loss_and_gradients_that_peft_gives_it():
    plain = tiny_lora()
    fast = fast_copy(plain)
    assert sum(isinstance(module, FastLora) for module in fast.modules()) == 12
    assert_same_gradients(fast, plain)
    assert_same_gradients(fast.eval(), plain.eval())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_of_lora_keep_pefts_own_forward_over_fast_linears(options):
    plain = tiny_llama(attention_bias=True)
    get_peft_model(plain, LoraConfig(r=8, target_modules=["q_proj", "o_proj"], **options))
    fast = fast_copy(plain.train())
    assert not any(isinstance(module, FastLora) for module in fast.modules())
    assert_same_gradients(fast, plain)


def test_lora_over_a_base_that_trains_keeps_pefts_own_forward():
    plain = tiny_lora().requires_grad_()
    fast = fast_copy(plain)
    assert not any(isinstance(module, FastLora) for module in fast.modules())
    assert_same_gradients(fast, plain)


def test_lora_without_training_or_gradients_has_no_dropout():
    plain = tiny_lora(dropout=0.5).eval()
    fast = fast_copy(plain)
    with torch.no_grad():
        close(fast(input_ids=IDS).last_hidden_state, plain(input_ids=IDS).last_hidden_state)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_a_share_of_p_and_scales_the_rest_up(p):
    torch.manual_seed(0)
    x, eye = torch.ones(2000, 128), torch.eye(128)
    out = training_linear._LoraLinear.apply(x, torch.zeros(128, 128), None, eye, eye, 1.0, p, torch.float32)
    kept = out != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=5 * math.sqrt(p * (1 - p) / out.numel()) + 1 / 256)
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - p)), rtol=1e-4, atol=0)


def test_the_gradients_of_lora_with_dropout_are_those_of_its_forward():
    torch.manual_seed(0)
    x, w, a, b = (torch.randn(*shape).mul(0.3).requires_grad_() for shape in ((40, 64), (96, 64), (8, 64), (96, 8)))
    seed = torch.random.get_rng_state()
    out = training_linear._LoraLinear.apply(x, w.detach(), None, a, b, 2.0, 0.25, torch.float32)
    torch.random.set_rng_state(seed)
    kept = draw_kept(x.shape, 0.25)
    plain = x @ w.detach().T + (x * kept / 0.75) @ a.T @ b.T * 2.0
    close(out, plain)
    factor = torch.randn_like(out)
    for actual, expected in zip(
        torch.autograd.grad(out, (x, a, b), factor), torch.autograd.grad(plain, (x, a, b), factor), strict=True
    ):
        close(actual, expected)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.001])
def test_masks_drop_with_probability_p_and_follow_the_seed(p):
    torch.manual_seed(1)
    masks = [draw_kept(torch.Size([100, 33]), p) for _ in range(300)]
    torch.manual_seed(1)
    assert torch.equal(draw_kept(torch.Size([100, 33]), p), masks[0])
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 50
    drawn = torch.stack(masks).float()
    # a mask's own rate is one of two that are 1/256 apart
    tolerance = 5 * math.sqrt(p * (1 - p) / drawn.numel() + (0.5 / 256) ** 2 / len(masks))
    assert drawn.mean().item() == pytest.approx(1 - p, abs=tolerance)


def test_lora_still_can_be_switched_off_and_merged():
    model = tiny_llama()
    adapter = add_adapter(model, make_adapter("lora", r=8, alpha=16, dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.detach().normal_(std=0.1)
    plain = copy.deepcopy(adapter)
    speed_up_training(model)
    with torch.no_grad():
        with adapter.disable_adapter(), plain.disable_adapter():
            close(adapter(input_ids=IDS).last_hidden_state, plain(input_ids=IDS).last_hidden_state)
        expected = plain(input_ids=IDS).last_hidden_state
        close(adapter.merge_and_unload()(input_ids=IDS).last_hidden_state, expected, 1e-4)


@pytest.mark.parametrize("make", [tiny_llama, lambda: tiny_lora(dropout=0.2)], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing(make):
    fast = fast_copy(make())
    expected = gradients(fast)
    fast.gradient_checkpointing_enable({"use_reentrant": False})
    fast.enable_input_require_grads()
    actual = gradients(fast)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_single_checkpointed_layer_has_the_same_gradient():
    fast, x = nn.Linear(96, 64), torch.randn(7, 96)
    speed_up_training(fast)
    checkpoint(fast, x, use_reentrant=False).square().sum().backward()
    expected = torch.autograd.grad(F.linear(x, fast.weight, fast.bias).square().sum(), fast.weight)[0]
    close(fast.weight.grad, expected)


@pytest.mark.parametrize("make", [tiny_llama, tiny_lora], ids=["full", "lora"])
def test_under_autocast_the_products_are_in_bf16_and_the_gradients_as_autocasts(make):
    plain = make()
    fast, exact = fast_copy(plain), gradients(plain)
    actual, expected = gradients(fast, bf16=True), gradients(plain, bf16=True)
    for name in exact:
        error = (expected[name] - exact[name]).norm()
        assert (actual[name] - exact[name]).norm() <= 1.3 * error + 1e-6 * exact[name].norm()
    linear = next(m for m in fast.modules() if isinstance(m, FastLora if make is tiny_lora else FastLinear))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(3, 64)).dtype == torch.bfloat16


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("make", [tiny_llama, lambda: tiny_lora(dropout=0.2)], ids=["full", "lora"])
def test_two_runs_are_equal_to_the_bit(make, bf16):
    fast = fast_copy(make())
    first = {name: gradient.clone() for name, gradient in gradients(fast, bf16=bf16).items()}
    second = gradients(fast, bf16=bf16)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if make is not tiny_llama:
        assert not torch.equal(gradients(fast, seed=1)["loss"], second["loss"])


def test_lora_keeps_less_for_the_backward_pass_than_peft_does():
    def kept_bytes(model):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(input_ids=torch.zeros(64, 32, dtype=torch.long)).last_hidden_state
        assert out.requires_grad
        return sum(storages.values())

    plain = tiny_lora(dropout=0.1)
    assert kept_bytes(fast_copy(plain)) < 0.8 * kept_bytes(plain)  # with norms and attention


@pytest.mark.parametrize(("family", "fast"), [("llama", True), ("qwen3", True), ("gemma2", False)])
def test_norms_become_faster_unless_they_are_of_another_kind(family, fast):
    plain = small(family)
    ours = fast_copy(plain)
    norms = [module for module in ours.modules() if "Norm" in type(module).__name__]
    assert len(norms) > 3
    assert all(isinstance(norm, training_linear.FastNorm) == fast for norm in norms)
    x = torch.randn(5, plain.config.hidden_size, dtype=torch.bfloat16)
    assert torch.equal(ours.norm(x), plain.norm(x))


def test_heads_subclasses_other_dtypes_and_frozen_embeddings_stay_as_they_are():
    class Special(nn.Linear):
        pass

    frozen = nn.Embedding(10, 64).requires_grad_(False)
    model = nn.Sequential(nn.Linear(128, 1), Special(128, 128), nn.Linear(128, 128).bfloat16(), frozen)
    assert speed_up_training(model) == 0


def test_doing_it_twice_is_doing_it_once():
    model = tiny_lora()
    speed_up_training(model)
    kinds = [type(module) for module in model.modules()]
    assert speed_up_training(model) == 0
    assert [type(module) for module in model.modules()] == kinds


def missing(*_):
    raise AttributeError("no such operator")


def wrong(x, weight, *_):
    return x.new_ones(*x.shape[:-1], weight.shape[0])


@pytest.mark.parametrize("operator", [missing, wrong])
@pytest.mark.parametrize("name", ["_multiply", "_multiply_and_add"])
def test_no_linear_changes_where_the_private_operators_fail(monkeypatch, name, operator):
    monkeypatch.setattr(training_linear, name, operator)
    products_are_right.cache_clear()
    try:
        model = tiny_lora()
        speed_up_training(model)
        assert not any(isinstance(module, FastLinear | FastLora) for module in model.modules())
    finally:
        products_are_right.cache_clear()


def test_looking_leaves_the_random_numbers_of_the_caller_alone():
    products_are_right.cache_clear()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    assert products_are_right()
    assert torch.equal(torch.rand(1), expected)
