from collections.abc import Sequence

import pytest
import torch
from named import load_retriever, reranker_to_train
from tiny import Tiny
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from shortlist.models.adapter_settings import ADAPTERS, make_adapter, parse_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.backbone import checkpoint_layers
from shortlist.models.dense import DenseModel
from shortlist.models.language import LanguageModel, Wanted
from shortlist.text.contract import Reading
from shortlist.text.inputs import Inputs
from shortlist.train.memory import Memory, _Alive, step_memory
from shortlist.train.optimizers import parse_optimizer
from shortlist.train.steps import Example, Outcome, backward, deal

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
LENGTHS = [24] * 3 + [23] * 3 + [11] * 7
BUDGET = 72


@pytest.fixture(scope="module")
def inputs(tiny: Tiny) -> Inputs:
    return load_retriever(str(tiny.retriever)).inputs


def llama(inputs: Inputs, *, device: str = "meta") -> DenseModel:
    with torch.device(device):
        return DenseModel(LlamaModel(LlamaConfig(vocab_size=50, **SHAPE)), inputs, Reading())


def passes() -> list[tuple[int, int]]:
    return [(len(m.texts), max(LENGTHS[row] for row in m.texts)) for m in deal(LENGTHS, BUDGET, seed=0)[0]]


def foreseen(model: DenseModel, **options) -> Memory:
    return step_memory(model, passes(), device=CPU, **options)


def counted(model: DenseModel | LanguageModel, *, asked: Sequence[Wanted] = (), **options) -> int:
    """Most bytes alive in a real step, gradients included, weights not."""
    token_ids = [[5] * length for length in LENGTHS]
    example = Example(token_ids, ["q"] * len(LENGTHS), lambda vectors: Outcome(vectors.values.square().sum(), 0.0))
    example = example._replace(asked=asked)
    with _Alive() as alive:
        for p in model.parameters():
            alive._seen.add(p.untyped_storage()._cdata)
            if p.requires_grad:
                p.grad = torch.zeros_like(p)
        backward(model.train(), example, token_budget=BUDGET, seed=0, **({"bf16": False} | options))
    return alive.most


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_so_it_is_of_a_language_model_whose_logits_are_most_of_it(inputs: Inputs, bf16: bool, cached: bool):
    backbone = LlamaModel(LlamaConfig(vocab_size=4000, **SHAPE))
    model = LanguageModel(backbone, inputs, Reading())
    memory = step_memory(model, passes(), device=CPU, bf16=bf16, cached=cached)
    assert memory.gradients + memory.activations == pytest.approx(counted(model, bf16=bf16, cached=cached), rel=0.1)


@pytest.mark.slow
def test_so_it_is_of_a_language_model_that_is_asked_for_answers(inputs: Inputs):
    def asked(rows: int, tokens: int) -> list[Wanted]:
        return [Wanted(tokens - 3, tokens, tokens - 4, (5, 6, 7))] * rows

    model = LanguageModel(LlamaModel(LlamaConfig(vocab_size=4000, **SHAPE)), inputs, Reading())
    memory = step_memory(model, passes(), device=CPU, asked=asked)
    wanted = [asked(1, length)[0] for length in LENGTHS]
    found = counted(model, asked=wanted)
    assert memory.gradients + memory.activations == pytest.approx(found, rel=0.1)
    assert memory.activations < step_memory(model, passes(), device=CPU).activations


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora", "checkpointed", "bf16"])
def test_the_estimate_is_what_a_real_step_holds(inputs: Inputs, kind: str, cached: bool):
    model = llama(inputs, device="cpu")
    if kind == "lora":
        add_adapter(model.backbone, parse_adapter("paper"))
    if kind == "checkpointed":
        checkpoint_layers(model.backbone)
    options = {"cached": cached, "bf16": kind == "bf16"}
    memory = foreseen(model, **options)
    assert memory.gradients + memory.activations == pytest.approx(counted(model, **options), rel=0.1)


@pytest.mark.slow
def test_weights_gradients_and_moments_equal_the_values_worked_out_by_hand(inputs: Inputs):
    layer = 4 * 64 * 64 + 3 * 64 * 160 + 2 * 64
    weights = 4 * (50 * 64 + 3 * layer + 64)
    memory = foreseen(llama(inputs))
    assert (memory.weights, memory.gradients, memory.optimizer) == (weights, weights, 2 * weights)
    assert memory.total == 4 * weights + memory.activations


def lora(inputs: Inputs) -> DenseModel:
    model = llama(inputs)
    add_adapter(model.backbone, make_adapter("lora", r=8, targets=("q_proj",)))
    return model


@pytest.mark.slow
def test_only_what_trains_has_gradients_and_only_what_does_not_is_narrow(inputs: Inputs):
    adapter = 4 * 3 * 2 * 8 * 64
    frozen = foreseen(llama(inputs)).weights
    memory = foreseen(lora(inputs), dtype=torch.bfloat16)
    assert (memory.gradients, memory.optimizer) == (adapter, 2 * adapter)
    assert memory.weights == frozen / 2 + adapter
    assert foreseen(llama(inputs), dtype=torch.bfloat16).weights == frozen


@pytest.mark.slow
def test_an_optimizer_says_what_it_holds(inputs: Inputs):
    model, adamw = llama(inputs), foreseen(llama(inputs))
    weights = sum(p.numel() for p in model.parameters())
    eight = foreseen(model, optimizer=parse_optimizer("adamw-8bit,min_8bit_size=1"))
    assert 2 * weights < eight.optimizer < 2.1 * weights
    galore = foreseen(model, optimizer=parse_optimizer("galore,rank=8"))
    assert galore.optimizer < 0.3 * adamw.optimizer
    assert (galore.weights, galore.gradients, galore.activations) == (adamw.weights, adamw.gradients, adamw.activations)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ADAPTERS if kind != "lora"])
def test_every_kind_of_adapter_is_foreseen(inputs: Inputs, kind: str):
    model = llama(inputs)
    add_adapter(model.backbone, make_adapter(kind), steps=5)
    memory = foreseen(model)
    assert memory.gradients == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.activations > 0


@pytest.mark.slow
def test_four_bits_are_about_half_a_byte_of_every_linear_weight(inputs: Inputs):
    linear, adapter = 3 * (4 * 64 * 64 + 3 * 64 * 160), 4 * 3 * 2 * 8 * 64
    rest = foreseen(llama(inputs)).weights - 4 * linear
    memory = foreseen(lora(inputs), four_bit=True)
    assert memory.weights == round(linear * (0.5 + 1 / 64) + rest + adapter)


@pytest.mark.slow
def test_the_cached_step_holds_no_more_for_more_passes_and_the_plain_one_does(inputs: Inputs):
    def activations(count: int, *, cached: bool) -> int:
        return step_memory(llama(inputs), [(4, 20)] * count, device=CPU, cached=cached).activations

    assert activations(1, cached=True) == activations(9, cached=True)
    one, two, three, nine = (activations(count, cached=False) for count in (1, 2, 3, 9))
    assert nine - three == pytest.approx(6 * (three - two), rel=0.01)
    assert 0.9 * one < three - two < one


@pytest.mark.slow
def test_checkpointed_layers_keep_little(inputs: Inputs):
    model = llama(inputs)
    checkpoint_layers(model.backbone)
    assert foreseen(model).activations < 0.5 * foreseen(llama(inputs)).activations


@pytest.mark.slow
def test_shards_divide_the_model_but_for_the_layers_at_work(inputs: Inputs):
    whole, quarter = foreseen(llama(inputs)), foreseen(llama(inputs), shards=4)
    layer = 4 * (4 * 64 * 64 + 3 * 64 * 160 + 2 * 64)
    assert quarter.optimizer == whole.optimizer / 4
    assert quarter.weights == quarter.gradients == whole.weights / 4 + whole.weights - 3 * layer + 2 * layer
    assert quarter.activations == whole.activations


@pytest.mark.slow
def test_an_encoder_and_a_reranker_are_foreseen_too(inputs: Inputs, tiny: Tiny):
    with torch.device("meta"):
        encoder = DenseModel(BertModel(BertConfig(vocab_size=50, **SHAPE)), inputs, Reading())
    assert foreseen(encoder).activations > 0
    assert step_memory(reranker_to_train(str(tiny.llama), None, seed=0), passes(), device=CPU).activations > 0


@pytest.mark.slow
def test_nothing_is_left_on_the_model(inputs: Inputs):
    model = llama(inputs)
    foreseen(model)
    assert all(p.is_meta and p.grad is None and type(p) is nn.Parameter for p in model.parameters())


def test_what_is_alive_is_counted_once_and_forgotten_when_it_goes():
    with _Alive() as alive:
        one = torch.zeros(10)
        view = one[2:]
        assert alive.now == 40
        two = torch.zeros(5)
        assert alive.now == 60
        del one, two
        assert alive.now == 40
        del view
    assert (alive.now, alive.most) == (0, 60)
