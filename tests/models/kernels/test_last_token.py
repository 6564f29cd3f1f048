import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import LlamaConfig, LlamaModel

from shortlist.models.backbone import pooled_states
from shortlist.models.kernels.fused import fuse_layers
from shortlist.models.kernels.last_token import last_mlp_only_at
from shortlist.models.kernels.linear import PlainLinear, pack_linears, packing_is_right

IDS = torch.randint(0, 500, (3, 17), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([17, 5, 1])
packable = pytest.mark.skipif(not packing_is_right(), reason="this torch has no oneDNN linears")


def tiny_llama() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 344}
    return LlamaModel(LlamaConfig(vocab_size=500, **shape)).eval().requires_grad_(False)


def states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).last_hidden_state


def plain(model: nn.Module) -> None:
    """Leave the model as it is."""


def fused(model: nn.Module) -> None:
    assert fuse_layers(model, PlainLinear, torch.float32) == 2


FORMS = pytest.mark.parametrize("prepare", [plain, pytest.param(pack_linears, marks=packable), fused])


@FORMS
def test_threads_that_run_one_model_at_a_time_get_what_they_get_alone(prepare: Callable):
    model = tiny_llama()
    prepare(model)
    asked = [(IDS, LENGTHS, "last"), (IDS, LENGTHS, "mean"), (IDS[:2], torch.tensor([3, 16]), "last")]

    def vectors(ids: torch.Tensor, lengths: torch.Tensor, pooling: str) -> torch.Tensor:
        with torch.inference_mode():
            return pooled_states(model, ids, lengths, pooling=pooling)

    alone = [vectors(*one) for one in asked]
    everybody_is_inside = Barrier(len(asked), timeout=60)
    model.embed_tokens.register_forward_pre_hook(lambda *_: void(everybody_is_inside.wait()))
    with ThreadPoolExecutor(len(asked)) as threads:
        for _ in range(3):
            together = list(threads.map(lambda one: vectors(*one), asked))
            for found, expected in zip(together, alone, strict=True):
                assert torch.equal(found, expected)


def void(_: Any) -> None:
    """Nothing, for a hook whose answer would count."""


def test_an_adapter_added_later_takes_part_in_the_token_that_is_read():
    model, positions, rows = tiny_llama(), torch.tensor([16, 4, 0]), torch.arange(3)
    with torch.inference_mode(), last_mlp_only_at(model, positions):
        model(input_ids=IDS, use_cache=False)
    config = LoraConfig(r=4, target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    model = inject_adapter_in_model(config, model).eval()
    expected = states(model, IDS)
    with last_mlp_only_at(model, positions):
        there = states(model, IDS)
    torch.testing.assert_close(there[rows, positions], expected[rows, positions], atol=1e-5, rtol=0)


def test_a_copy_of_a_model_computes_one_token_too():
    model, positions, rows = tiny_llama(), torch.tensor([16, 4, 0]), torch.arange(3)
    expected = states(model, IDS)
    for each in (model, copy.deepcopy(model)):
        for _ in range(2):
            with last_mlp_only_at(each, positions):
                there = states(each, IDS)
            torch.testing.assert_close(there[rows, positions], expected[rows, positions], atol=1e-6, rtol=0)


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=packable)])
def test_the_last_mlp_at_one_position_gives_the_states_there(packed):
    model = tiny_llama()
    if packed:
        pack_linears(model)
    positions = torch.tensor([16, 4, 0])
    rows = torch.arange(3)
    expected = states(model, IDS)
    with torch.inference_mode(), last_mlp_only_at(model, positions):
        there = states(model, IDS)
    torch.testing.assert_close(there[rows, positions], expected[rows, positions], atol=1e-6, rtol=0)
    assert not torch.allclose(there[0, 3], expected[0, 3], atol=1e-3), "the MLP ran everywhere, nothing was saved"
    assert torch.equal(states(model, IDS), expected), "outside, the MLP runs everywhere again"


def test_the_last_mlp_at_one_position_has_the_gradients_of_one_everywhere():
    positions, rows = torch.tensor([16, 4, 0]), torch.arange(3)
    gradients = []
    for only_there in (False, True):
        model = tiny_llama().requires_grad_(True)
        with last_mlp_only_at(model, positions) if only_there else nullcontext():
            there = model(input_ids=IDS).last_hidden_state[rows, positions]
        (there * torch.linspace(-1, 2, 128)).sum().backward()  # a square would be the same for all weights
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() <= 1e-5 * expected.norm(), name
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())


def test_the_last_mlp_runs_everywhere_where_layers_will_run_again_or_there_is_none():
    model = tiny_llama().train()
    model.gradient_checkpointing_enable()
    expected = states(model.eval(), IDS)
    with last_mlp_only_at(model.train(), torch.tensor([16, 4, 0])):
        torch.testing.assert_close(states(model, IDS), expected)
    with torch.inference_mode(), last_mlp_only_at(nn.Linear(2, 2), torch.tensor([0])):
        pass
