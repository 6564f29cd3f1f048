import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import DOCUMENTS
from torch import nn
from transformers import LlamaForCausalLM

from shortlist.errors import UserError
from shortlist.models.backbone import (
    LORAS,
    Lora,
    add_lora,
    is_causal,
    load_backbone,
    merge_adapter,
    parse_lora,
    pooled_states,
)
from shortlist.models.checkpoint import load_retriever, save_model

IDS = torch.tensor([[1, 5, 9, 7, 2], [1, 8, 2, 0, 0]])
LENGTHS = torch.tensor([5, 3])


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


def test_only_the_decoder_is_causal(llama: Path, bert: Path):
    assert is_causal(load_backbone(str(llama)))
    assert not is_causal(load_backbone(str(bert)))


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
    assert parse_lora("paper") == Lora(r=32, alpha=64, dropout=0.1)
    assert set(Lora().targets) == {"q_proj", "v_proj", "o_proj", "down_proj", "up_proj", "gate_proj"}
    assert set(parse_lora("paper+k").targets) == {*Lora().targets, "k_proj"}
    assert set(LORAS) == {"paper", "paper+k"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r=16", Lora(r=16)),
        ("r=16,alpha=8", Lora(r=16, alpha=8)),
        ("dropout=0.05,targets=q_proj+v_proj", Lora(dropout=0.05, targets=("q_proj", "v_proj"))),
    ],
)
def test_what_is_left_out_of_a_lora_is_the_papers(text: str, expected: Lora):
    assert parse_lora(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("papre", "unknown LoRA preset 'papre': perhaps 'paper'"),
        ("", "unknown LoRA preset"),
        ("alhpa=3", "unknown LoRA setting 'alhpa': perhaps 'alpha'"),
        ("r=16,", "unknown LoRA setting ''"),
        ("r=many", "r is 'many'; expected a number"),
        ("r=1.5", "r is '1.5'"),
        ("r=0", "r is 0 and"),
        ("alpha=-1", "alpha is -1"),
        ("dropout=1.5", "dropout is 1.5"),
    ],
)
def test_a_lora_that_makes_no_sense_is_refused(text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_lora(text)


def test_a_lora_trains_nothing_but_its_own_weights(llama: Path):
    backbone = load_backbone(str(llama))
    settings = add_lora(backbone, parse_lora("r=4,alpha=24,dropout=0.3")).peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (4, 24, 0.3)
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 6  # layers, A and B, projections
    assert all("lora_" in name for name in trained)
    assert not any("k_proj" in name for name in trained)


@torch.inference_mode()
def test_a_new_lora_changes_nothing_yet(llama: Path):
    backbone = load_backbone(str(llama))
    before = pooled_states(backbone, IDS, LENGTHS, pooling="last")
    add_lora(backbone, Lora())
    backbone.eval()
    torch.testing.assert_close(pooled_states(backbone, IDS, LENGTHS, pooling="last"), before)


def test_a_layer_that_the_model_lacks_is_refused(llama: Path):
    with pytest.raises(UserError, match="unknown layer for LoRA 'query_proj': perhaps"):
        add_lora(load_backbone(str(llama)), replace(Lora(), targets=("query_proj",)))


def test_an_adapter_of_another_model_is_refused(llama: Path, copy: Path, tmp_path: Path):
    model = load_retriever(str(llama), contract="repllama")
    save_model(model, tmp_path / "lora", adapter=add_lora(model.backbone, Lora(r=4)), base=str(llama))
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
