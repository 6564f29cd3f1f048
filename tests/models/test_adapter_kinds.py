"""Every kind of adapter: what it changes at the start, how it is saved and loaded, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import load_reranker, load_retriever, reranker_to_train, retriever_to_train
from peft import PeftModel
from safetensors.torch import load_file
from samples import DECODERS, DOCUMENTS, ENCODERS, PAIRS, small
from tiny import SHAPE, shaken
from torch import Tensor
from transformers import AutoModel, LlamaConfig, LlamaModel

from shortlist import export
from shortlist.errors import UserError
from shortlist.models.adapter_settings import ADAPTERS, make_adapter, parse_adapter
from shortlist.models.adapters import ADDERS, add_adapter, kept_adapter, merge_adapter
from shortlist.models.backbone import pooled_states, see_both_ways
from shortlist.models.folder import open_folder
from shortlist.models.run import embed_documents, for_inference, score_pairs
from shortlist.models.save import save_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
LENGTHS = torch.tensor([6, 3])
KEPT = [kind for kind, settings in ADAPTERS.items() if not settings.merges]


def added(model: Any, kind: str, **options: Any) -> Any:
    """Add an adapter without dropout."""
    torch.manual_seed(3)
    dropout = {"dropout": 0.0} if "dropout" in ADAPTERS[kind].defaults else {}
    return add_adapter(model, make_adapter(kind, **dropout, **options), steps=10)


def saved(base: Path, folder: Path, kind: str, **options: Any) -> tuple[Any, Path]:
    """A retriever with a trained adapter, and the adapter's folder."""
    model = retriever_to_train(str(base), None)
    adapter = added(model.backbone, kind, **options)
    save_model(shaken(model), folder, adapter=adapter, base=str(base))
    return model, folder


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 0.01
    np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=1e-4)


def test_every_kind_has_a_function_that_adds_it():
    assert ADDERS.keys() == ADAPTERS.keys()


@pytest.mark.parametrize("kind", [kind for kind in ADAPTERS if kind not in ("prompt", "prefix")])
def test_a_new_adapter_changes_nothing_and_trains_nothing_else(kind: str):
    model = small("bert")
    before, weights = pooled_states(model, IDS, LENGTHS, pooling="mean"), {id(p) for p in model.parameters()}
    added(model, kind)
    torch.testing.assert_close(pooled_states(model.eval(), IDS, LENGTHS, pooling="mean"), before)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert not weights & {id(p) for p in trained}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_saved_adapter_gives_the_vectors_of_the_trained_one(kind: str, llama: Path, tmp_path: Path):
    model, folder = saved(llama, tmp_path, kind)
    expected = embed_documents(model, DOCUMENTS)
    loaded = load_retriever(str(folder))
    assert (kept_adapter(loaded.backbone) is None) == ADAPTERS[kind].merges
    close(embed_documents(loaded, DOCUMENTS), expected)
    for_inference(loaded, "cpu", packed=True)
    close(embed_documents(loaded, DOCUMENTS), expected)


@pytest.mark.parametrize("kind", KEPT)
def test_a_reranker_keeps_its_head_beside_an_adapter(kind: str, llama: Path, tmp_path: Path):
    model = reranker_to_train(str(llama), seed=0)
    adapter = added(model.backbone, kind)
    save_model(shaken(model), tmp_path, adapter=adapter, base=str(llama))
    close(score_pairs(load_reranker(str(tmp_path)), PAIRS), score_pairs(model, PAIRS))


@pytest.mark.parametrize("kind", [kind for kind in ADAPTERS if kind != "connected"])
def test_peft_opens_what_is_saved(kind: str, llama: Path, tmp_path: Path):
    model, folder = saved(llama, tmp_path, kind)
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(llama), str(folder)).eval()
    with torch.inference_mode():
        expected = theirs(input_ids=IDS[:1], attention_mask=torch.ones_like(IDS[:1])).last_hidden_state[:, -1]
        actual = pooled_states(model.backbone, IDS[:1], LENGTHS[:1], pooling="last")
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
@torch.inference_mode()
def test_padding_changes_nothing_beside_what_is_kept(family: str, kind: str):
    model, pooling = small(family), "last" if family in DECODERS else "mean"
    if kind == "prefix" and family in ENCODERS:
        pytest.skip("an encoder has no prefix")
    before = pooled_states(model, IDS, LENGTHS, pooling=pooling)
    added(model, kind)
    both = pooled_states(shaken(model), IDS, LENGTHS, pooling=pooling)
    alone = pooled_states(model, IDS[1:, :3], LENGTHS[1:], pooling=pooling)
    torch.testing.assert_close(both[1:], alone, atol=2e-5, rtol=1e-4)
    assert (both - before).abs().amax(1).min() > 1e-3


@torch.inference_mode()
def test_a_prompt_of_a_vocabularys_vectors_is_read_as_their_tokens_are():
    model: Any = small("llama")
    words = torch.tensor([[21, 22], [21, 22]])
    expected = pooled_states(model, torch.cat([words, IDS], 1), LENGTHS + 2, pooling="last")
    added(model, "prompt", tokens=2)
    model.virtual.weight.copy_(model.get_input_embeddings().weight[words[0]])
    torch.testing.assert_close(pooled_states(model, IDS, LENGTHS, pooling="last"), expected)


def of_parts(states: list[Tensor], model: Any, layer: str, before: Tensor | None) -> Tensor:
    """The formula of connected adapters, written out."""
    part, x = model.inside[layer], states[int(layer)]
    out = torch.relu(x @ part.down.weight.T + part.down.bias) @ part.up.weight.T + part.up.bias
    if before is None:
        return out
    way = model.aside[layer]
    return out + before + torch.relu(before @ way.down.weight.T + way.down.bias) @ way.up.weight.T + way.up.bias


@torch.inference_mode()
def test_connected_adapters_add_what_their_formula_says():
    model: Any = small("bert")
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for layer in model.encoder.layer:  # before the adapters' own hooks, so it sees the frozen layer's output
        layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
        layer.register_forward_hook(lambda module, args, out: outputs.append(out.clone()))
    added(model, "connected", r=3, aside=2)
    shaken(model)
    states = model(input_ids=IDS[:1]).last_hidden_state
    first = of_parts(outputs, model.connected, "0", None)
    second = of_parts(outputs, model.connected, "1", first)
    torch.testing.assert_close(states, outputs[1] + second)
    torch.testing.assert_close(inputs[1], outputs[0] + first)


def test_without_a_way_aside_outputs_are_handed_on_as_they_are():
    model = small("bert")
    added(model, "connected", r=3, aside=0, layers=(1,))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"connected.inside.1.{part}.{kind}" for part in ("down", "up") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "adalora"])
def test_only_chosen_layers_of_an_encoder_are_updated_and_never_its_pooler(kind: str):
    model = small("bert")
    added(model, kind, layers=(1,))
    trained = {name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 6
    assert all(name.startswith("encoder.layer.1.") for name in trained)


def test_a_bias_that_trains_is_saved_and_merged(tmp_path: Path, bert: Path):
    model, folder = saved(bert, tmp_path, "lora", bias="lora_only", targets=("query", "value"))
    assert sum("bias" in key for key in load_file(folder / "adapter_model.safetensors")) == 4
    close(embed_documents(load_retriever(str(folder)), DOCUMENTS), embed_documents(model, DOCUMENTS))


@pytest.mark.parametrize(
    ("family", "text", "message"),
    [
        ("bert", "prefix", "--adapter prefix: BertModel sees both ways"),
        ("modernbert", "ia3", "--adapter ia3: PEFT knows no layers for models of the kind modernbert; name them"),
        ("bert", "ia3,targets=key+valve", "--adapter ia3: unknown layer 'valve': perhaps 'value'"),
        ("bert", "paper", "--adapter lora: unknown layer 'q_proj'"),
        ("bert", "dora,layers=1-2", "--adapter dora: layers has 2; the model has the layers 0-1"),
        ("bert", "connected,layers=7", "--adapter connected: layers has 7; the model has the layers 0-1"),
        ("bert", "adalora,tinit=6,tfinal=4", "--adapter adalora: tinit 6 and tfinal 4 leave none of 10 steps"),
    ],
)
def test_what_a_backbone_lacks_is_refused_in_one_line(family: str, text: str, message: str):
    with pytest.raises(UserError, match=message) as refusal:
        add_adapter(small(family), parse_adapter(text), steps=10)
    assert "\n" not in str(refusal.value)


def test_a_decoder_that_sees_both_ways_has_no_prefix():
    model = small("llama")
    see_both_ways(model)
    with pytest.raises(UserError, match="sees both ways"):
        add_adapter(model, make_adapter("prefix"))


@pytest.mark.parametrize("kind", KEPT)
def test_nothing_is_trained_from_an_adapter_that_stays_beside_the_weights(kind: str, llama: Path, tmp_path: Path):
    _, folder = saved(llama, tmp_path, kind)
    with pytest.raises(UserError, match=r"is an adapter that cannot be merged .*; start from .*llama"):
        retriever_to_train(str(folder), None)


@pytest.mark.parametrize("kind", KEPT)
def test_a_kept_adapter_of_another_shape_is_refused(kind: str, llama: Path, tmp_path: Path):
    _, folder = saved(llama, tmp_path, kind)
    settings: dict[str, Any] = {**SHAPE, "vocab_size": 50}
    with pytest.raises(UserError, match="the adapter does not fit its base model"):
        merge_adapter(LlamaModel(LlamaConfig(**settings)), folder)


@pytest.mark.parametrize("to", ["merged", "sentence-transformers", "onnx"])
def test_no_layout_of_whole_weights_takes_a_prompt(to: Any, llama: Path, tmp_path: Path):
    _, folder = saved(llama, tmp_path / "prompt", "prompt")
    with pytest.raises(UserError, match=f"--to {to}: .* is an adapter that no weights can hold; use --to peft"):
        export.run(export.Config(model=str(folder), to=to, out=tmp_path / "out"))


def test_a_prompt_is_exported_for_peft_and_connected_adapters_are_not(llama: Path, tmp_path: Path):
    model, folder = saved(llama, tmp_path / "prompt", "prompt")
    export.run(export.Config(model=str(folder), to="peft", out=tmp_path / "peft"))
    close(embed_documents(load_retriever(str(tmp_path / "peft")), DOCUMENTS), embed_documents(model, DOCUMENTS))
    _, folder = saved(llama, tmp_path / "connected", "connected")
    with pytest.raises(UserError, match="its folder is what there is"):
        export.run(export.Config(model=str(folder), to="peft", out=tmp_path / "out"))


def test_virtual_tokens_take_positions(bert: Path, tmp_path: Path):
    _, folder = saved(bert, tmp_path, "prompt", tokens=5)
    positions = open_folder(str(bert)).num_positions
    assert positions
    assert open_folder(str(folder)).num_positions == positions - 5
