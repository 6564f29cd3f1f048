import json
import os
import pickle
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from named import load_retriever
from processes import Started
from samples import DECODERS, DOCUMENTS, FAMILIES, small
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from shortlist.errors import UserError
from shortlist.models.adapter_settings import PAPER, Adapter, make_adapter, parse_adapter
from shortlist.models.adapters import add_adapter, merge_adapter
from shortlist.models.backbone import (
    checkpoint_layers,
    dequantize,
    empty_backbone,
    is_causal,
    is_decoder,
    load_backbone,
    num_positions,
    pooled_states,
    see_both_ways,
)
from shortlist.models.save import save_model

IDS = torch.tensor([[1, 5, 9, 7, 2], [1, 8, 2, 0, 0]])
LENGTHS = torch.tensor([5, 3])

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs shortlist[qlora]")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A LLaMA folder to spoil."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@torch.inference_mode()
def test_a_language_model_is_loaded_without_its_head(llama: Path):
    backbone, whole = load_backbone(str(llama)), LlamaForCausalLM.from_pretrained(llama)
    assert not backbone.training
    assert not hasattr(backbone, "lm_head")
    expected = whole.model(input_ids=IDS[:1]).last_hidden_state
    assert backbone(input_ids=IDS[:1]).last_hidden_state.equal(expected)


def test_loading_says_nothing(llama: Path, bert: Path, capfd: pytest.CaptureFixture[str]):
    for folder in (llama, bert):
        load_backbone(str(folder))
    assert capfd.readouterr() == ("", "")


def test_weights_come_in_the_dtype_asked_for(llama: Path):
    assert {p.dtype for p in load_backbone(str(llama), dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_backbone(str(llama)).parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_decoder_is_causal(family: str):
    assert is_causal(small(family)) == (family in DECODERS)
    assert is_decoder(small(family)) == (family in DECODERS or family == "embedding-gemma")


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("pooling", ["last", "cls", "mean"])
def test_padding_changes_no_state_whatever_its_id(family: str, pooling: str, request: pytest.FixtureRequest):
    backbone = load_backbone(str(request.getfixturevalue(family)))
    alone = torch.cat(
        [pooled_states(backbone, row[None, :n], n[None], pooling=pooling) for row, n in zip(IDS, LENGTHS, strict=True)]
    )
    for pad_id in (0, 2, 77):
        ids = torch.nn.functional.pad(IDS, (0, 3), value=pad_id)
        ids[1, 3:] = pad_id
        together = pooled_states(backbone, ids, LENGTHS, pooling=pooling)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_state_is_that_of_transformers_own_model_with_its_gradients(family: str):
    model = small(family)
    mask = (torch.arange(5) < LENGTHS[:, None]).long()
    found = []
    for states in (
        pooled_states(model, IDS, LENGTHS, pooling="last"),
        model(input_ids=IDS, attention_mask=mask).last_hidden_state[torch.arange(2), LENGTHS - 1],
    ):
        model.zero_grad()
        (states * torch.linspace(-1, 2, states.shape[-1])).sum().backward()
        found.append((states, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (states, gradients), (expected, expected_gradients) = found
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected_gradients[name]).norm() <= 1e-4 * expected_gradients[name].norm() + 1e-6, name


LONG = torch.tensor([[1, 5, 9, 7, 8, 11, 3]])


def first_states(model: PreTrainedModel, *, padding: int) -> tuple[Tensor, Tensor]:
    """The first token's state in a text, and in the same text with another last token."""
    other = LONG.clone()
    other[0, -1] = 50
    ids = torch.nn.functional.pad(torch.cat([LONG, other]), (0, padding), value=77)
    with torch.inference_mode():
        one, two = pooled_states(model, ids, torch.tensor([7, 7]), pooling="cls")
    return one, two


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_first_token_sees_the_last_one_if_the_model_is_not_causal(family: str, attention: str | None):
    model = small(family, attn_implementation=attention)
    for padding in (0, 3):
        one, two = first_states(model, padding=padding)
        assert torch.allclose(one, two, atol=1e-6) == (family in DECODERS)
        torch.testing.assert_close(one, first_states(model, padding=0)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_can_be_made_to_see_both_ways(family: str, attention: str | None):
    model = small(family, attn_implementation=attention)
    see_both_ways(model)
    assert is_decoder(model)
    assert not is_causal(model)
    for padding in (0, 3):
        one, two = first_states(model, padding=padding)
        assert (one - two).abs().max() > 0.01
        torch.testing.assert_close(one, first_states(model, padding=0)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_saved_decoder_that_sees_both_ways_still_does(family: str, tmp_path: Path):
    model = small(family)
    see_both_ways(model)
    model.save_pretrained(tmp_path)
    for padding in (0, 3):
        expected, actual = (first_states(m, padding=padding) for m in (model, load_backbone(str(tmp_path))))
        torch.testing.assert_close(actual, expected)


def test_the_pooler_is_kept_but_does_not_learn(bert: Path):
    backbone = load_backbone(str(bert))
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"pooler.dense.weight", "pooler.dense.bias"}


def test_an_attention_that_does_not_exist_is_refused(llama: Path):
    for load in (load_backbone, empty_backbone):
        with pytest.raises(UserError, match="unknown attention 'spda': perhaps 'sdpa'"):
            load(str(llama), attention="spda")


@pytest.mark.skipif(is_flash_attn_2_available(), reason="needs a machine without flash attention")
def test_an_attention_whose_package_is_missing_is_refused_in_one_line(llama: Path):
    for load in (load_backbone, empty_backbone):
        with pytest.raises(UserError, match=r"--attention: flash_attention_2 cannot be used .* leave it out") as error:
            load(str(llama), attention="flash_attention_2")
        assert "\n" not in str(error.value)


def test_attention_is_computed_as_asked_for(llama: Path):
    eager, sdpa = (load_backbone(str(llama), attention=name) for name in ("eager", "sdpa"))
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    states = [pooled_states(model, IDS, LENGTHS, pooling="last") for model in (eager, sdpa)]
    torch.testing.assert_close(*states, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_an_empty_backbone_has_the_shapes_of_the_loaded_one(family: str, request: pytest.FixtureRequest):
    folder = Path(request.getfixturevalue(family))
    loaded, empty = load_backbone(str(folder)), empty_backbone(str(folder))
    lora = make_adapter("lora", targets=("q_proj", "down_proj") if family == "llama" else ("query", "value"))

    def shapes(model: PreTrainedModel) -> dict[str, tuple[torch.Size, bool]]:
        return {name: (p.shape, p.requires_grad) for name, p in model.named_parameters()}

    assert shapes(loaded) == shapes(empty)
    for model in (loaded, empty):
        add_adapter(model, lora)
    assert shapes(loaded) == shapes(empty)
    assert {p.device.type for p in empty.parameters()} == {"meta"}


def test_an_empty_backbone_needs_no_weights_but_a_config(copy: Path, tmp_path: Path):
    (copy / "model.safetensors").unlink()
    assert empty_backbone(str(copy)).config.num_hidden_layers == 2
    (copy / "config.json").write_text("{}")
    for folder in (copy, tmp_path / "absent"):
        with pytest.raises(UserError, match="cannot load a model"):
            empty_backbone(str(folder))


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """Of a loss over the pooled states, whose length is fixed by the last norm; dropout draws the same each time."""
    model.zero_grad()
    torch.manual_seed(1)
    states = pooled_states(model, IDS, LENGTHS, pooling="last")
    (states * torch.linspace(-1, 2, states.shape[-1])).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3", "bert", "modernbert"])
def test_layers_run_again_in_the_backward_pass_give_the_same_gradients(family: str, lora: bool):
    model = small(family).train()
    if lora:
        targets = {"bert": ("query", "value"), "modernbert": ("Wqkv", "Wo")}.get(family, PAPER)
        add_adapter(model, make_adapter("lora", r=4, dropout=0.0, targets=targets))
        spread_lora(model)
    expected = gradients(model)
    calls: list[None] = []
    layer = next(m for name, m in model.named_modules() if name.endswith(("layers.0", "layer.0")))
    next(layer.children()).register_forward_hook(lambda *_: calls.append(None))
    checkpoint_layers(model)
    actual = gradients(model)
    assert len(calls) == 2
    assert expected.keys() == actual.keys()
    assert all("lora_" in name for name in actual) == lora
    for name in expected:
        assert (actual[name] - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-6, name


def test_a_model_that_cannot_run_layers_again_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = small("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="--gradient-checkpointing: LlamaModel cannot"):
        checkpoint_layers(model)


def spread_lora(model: PreTrainedModel) -> None:
    """Give the B of every LoRA, zero in a new one, something to add."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)


def states(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return pooled_states(model.eval(), IDS, LENGTHS, pooling="last")


@needs_bitsandbytes
def test_four_bit_layers_are_smaller_and_near(llama: Path):
    small_one, exact = load_backbone(str(llama), four_bit=True), load_backbone(str(llama))
    layers = [m for m in small_one.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 2 * 7
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    assert not any(layer.weight.requires_grad for layer in layers)
    assert layers[0].weight.numel() == 64 * 64 / 2
    similarity = torch.cosine_similarity(states(small_one), states(exact))
    assert similarity.min() > 0.8
    assert similarity.max() < 0.9999


@needs_bitsandbytes
def test_dequantised_layers_compute_what_the_four_bit_ones_did(llama: Path):
    expected = states(load_backbone(str(llama), four_bit=True))
    plain = dequantize(load_backbone(str(llama), four_bit=True))
    torch.testing.assert_close(states(plain), expected, atol=1e-5, rtol=0)
    assert {type(m) for m in plain.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert "quantization_config" not in plain.config.to_dict()
    half = dequantize(load_backbone(str(llama), dtype=torch.bfloat16, four_bit=True))
    assert {p.dtype for p in half.parameters()} == {torch.float32}


@needs_bitsandbytes
def test_an_adapter_merged_into_dequantised_layers_scores_as_in_training(llama: Path, tmp_path: Path):
    trained = load_backbone(str(llama), four_bit=True)
    wrapper = add_adapter(trained, make_adapter("lora", r=4))
    spread_lora(trained)
    expected = states(trained)
    wrapper.save_pretrained(tmp_path)
    merged = merge_adapter(dequantize(load_backbone(str(llama), four_bit=True)), tmp_path)
    torch.testing.assert_close(states(merged), expected, atol=1e-5, rtol=0)
    assert (states(merge_adapter(load_backbone(str(llama)), tmp_path)) - expected).abs().max() > 0.01


@needs_bitsandbytes
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_lora_on_four_bit_layers_learns_and_evaluation_leaves_them_alone(llama: Path, checkpointed: bool):
    backbone = load_backbone(str(llama), four_bit=True)
    add_adapter(backbone, make_adapter("lora", r=4, dropout=0.0))
    spread_lora(backbone)
    if checkpointed:
        checkpoint_layers(backbone)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.SGD(trained, lr=0.001), []
    for _ in range(4):
        before = states(backbone)
        output = pooled_states(backbone.train(), IDS, LENGTHS, pooling="last")
        torch.testing.assert_close(output.detach(), before, atol=1e-5, rtol=0)
        losses.append(loss := (output - 1).square().mean())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in trained)
        optimizer.step()
    assert losses == sorted(losses, reverse=True)


def test_four_bits_without_bitsandbytes_are_refused(llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"--four-bit: needs bitsandbytes; pip install 'shortlist\[qlora\]'"):
        load_backbone(str(llama), four_bit=True)


@pytest.mark.slow
@needs_bitsandbytes
def test_four_bits_and_lora_say_nothing(llama: Path, tmp_path: Path):
    """In a process of its own: bitsandbytes speaks when it is imported."""
    files = {"out": tmp_path / "out", "err": tmp_path / "err"}
    code = Started(load_in_four_bits, str(llama), **files).wait()
    assert (code, *(path.read_text() for path in files.values())) == (0, "", "")


def load_in_four_bits(name: str) -> None:
    add_adapter(load_backbone(name, four_bit=True), make_adapter("lora"))


class Trap:
    """Unpickled by a careless reader, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_not_read(copy: Path, tmp_path: Path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    with pytest.raises(UserError, match=r"expected a model folder with config\.json and safetensors"):
        load_backbone(str(copy))
    assert not (tmp_path / "mark").exists()
    pickle.loads((copy / "pytorch_model.bin").read_bytes())  # the trap itself works
    assert (tmp_path / "mark").exists()


def test_code_in_a_folder_is_not_run(copy: Path, tmp_path: Path):
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "trap", "auto_map": {"AutoConfig": "trap.TrapConfig", "AutoModel": "trap.Trap"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "trap.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    with pytest.raises(UserError, match="cannot load a model"):
        load_backbone(str(copy))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "unheard-of"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x20\0\0\0\0\0\0\0not a header"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(name: str, content: bytes, copy: Path):
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot load a model") as error:
        load_backbone(str(copy))
    assert "\n" not in str(error.value)


def test_weights_cut_short_are_refused(copy: Path):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot load a model"):
        load_backbone(str(copy))


def test_weights_that_do_not_fit_the_config_are_refused(copy: Path):
    config = json.loads((copy / "config.json").read_text()) | {"hidden_size": 32}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot load a model"):
        load_backbone(str(copy))


def test_missing_weights_are_not_made_up(copy: Path):
    config = json.loads((copy / "config.json").read_text()) | {"num_hidden_layers": 3, "layer_types": None}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"9 weights are missing, layers\.2\."):
        load_backbone(str(copy))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot load a model"):
        load_backbone(str(tmp_path / "absent"))


def test_the_paper_adapts_every_projection_but_k():
    assert parse_adapter("paper") == make_adapter("lora", r=32, alpha=64, dropout=0.1, targets=PAPER)
    assert set(PAPER) == {"q_proj", "v_proj", "o_proj", "down_proj", "up_proj", "gate_proj"}
    assert set(parse_adapter("paper+k").options["targets"]) == {*PAPER, "k_proj"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r=16", make_adapter("lora", r=16)),
        ("r=16,alpha=8", make_adapter("lora", r=16, alpha=8)),
        ("dropout=0.05,targets=q_proj+v_proj", make_adapter("lora", dropout=0.05, targets=("q_proj", "v_proj"))),
        ("dora", make_adapter("dora")),
        ("rslora,layers=0-2+5", make_adapter("rslora", layers=(0, 1, 2, 5))),
    ],
)
def test_what_is_left_out_of_an_adapter_has_its_default(text: str, expected: Adapter):
    assert parse_adapter(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("papre", "--adapter papre: unknown kind of adapter 'papre': perhaps 'paper'"),
        ("", "unknown kind of adapter"),
        ("dora,alhpa=3", "--adapter dora,alhpa=3: unknown option of dora 'alhpa': perhaps 'alpha'"),
        ("ia3,r=3", "unknown option of ia3 'r'"),
        ("r=16,,", "unknown option of lora ''"),
        ("r=many", "r is 'many'; expected a whole number"),
        ("r=1.5", "r is '1.5'"),
        ("r=2,r=3", "r is said twice"),
        ("r=", "r is ''"),
        ("r=0", "r is 0; expected at least 1"),
        ("alpha=-1", "alpha is -1"),
        ("dropout=1.5", "dropout is 1.5"),
        ("bias=some", "unknown bias 'some'"),
        ("layers=3-1", "layers has '3-1'"),
        ("adalora,init_r=4", "init_r has to be the larger one"),
        ("ia3,targets=a,feedforward=b", "feedforward names layers that targets does not"),
    ],
)
def test_an_adapter_that_makes_no_sense_is_refused(text: str, message: str):
    with pytest.raises(UserError, match=message) as refusal:
        parse_adapter(text)
    assert "\n" not in str(refusal.value)


def test_a_lora_trains_nothing_but_its_own_weights(llama: Path):
    backbone = load_backbone(str(llama))
    settings = add_adapter(backbone, parse_adapter("r=4,alpha=24,dropout=0.3")).peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (4, 24, 0.3)
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 6  # layers, A and B, projections
    assert all("lora_" in name for name in trained)
    assert not any("k_proj" in name for name in trained)


@torch.inference_mode()
def test_a_new_lora_changes_nothing_yet(llama: Path):
    backbone = load_backbone(str(llama))
    before = pooled_states(backbone, IDS, LENGTHS, pooling="last")
    add_adapter(backbone, make_adapter("lora"))
    backbone.eval()
    torch.testing.assert_close(pooled_states(backbone, IDS, LENGTHS, pooling="last"), before)


def test_a_layer_that_the_model_lacks_is_refused(llama: Path):
    with pytest.raises(UserError, match="--adapter lora: unknown layer 'query_proj': perhaps"):
        add_adapter(load_backbone(str(llama)), make_adapter("lora", targets=("query_proj",)))


def test_an_adapter_of_another_model_is_refused(llama: Path, copy: Path, tmp_path: Path):
    model = load_retriever(str(llama), contract="repllama")
    save_model(
        model, tmp_path / "lora", adapter=add_adapter(model.backbone, make_adapter("lora", r=4)), base=str(llama)
    )
    torch.manual_seed(0)
    other = load_backbone(str(llama))
    other.layers[0].mlp.up_proj = nn.Linear(64, 100, bias=False)  # type: ignore[union-attr, index, operator]
    with pytest.raises(UserError, match="the adapter does not fit its base model"):
        merge_adapter(other, tmp_path / "lora")


@torch.inference_mode()
def test_stories260k_gives_the_states_of_its_language_model(stories: Path):
    """Real weights, as a retriever sees them: every state is the one that the next word is predicted from."""
    retriever, whole = load_retriever(str(stories), contract="repllama"), LlamaForCausalLM.from_pretrained(stories)
    [ids] = retriever.inputs.document_ids(DOCUMENTS[:1])
    states = pooled_states(retriever.backbone, torch.tensor([ids]), torch.tensor([len(ids)]), pooling="last")
    logits = states @ whole.lm_head.weight.T
    torch.testing.assert_close(logits[0], whole(torch.tensor([ids])).logits[0, -1], atol=1e-4, rtol=1e-5)


def test_rows_of_positions_kept_for_padding_are_not_counted():
    assert num_positions(small("bert")) == 512
    assert num_positions(small("roberta")) == 512 - 1
    assert num_positions(small("distilbert")) == 512
    for family in ("llama", "modernbert", "gemma3"):
        assert num_positions(small(family)) is None
