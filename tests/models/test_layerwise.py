"""Heads behind several layers: scores of each, as a plain loop over layers computes them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import DOCUMENTS, QUERIES, Tiny, write_layerwise
from torch import Tensor

from shortlist import Reranker
from shortlist.cli import main
from shortlist.data.runs import read_run, write_run
from shortlist.errors import UserError
from shortlist.models.backbone import transformer_layers
from shortlist.models.folder import ModelFolder
from shortlist.models.kernels.fused import FusedLayer
from shortlist.models.published import check_layout
from shortlist.records import Hit
from shortlist.rerankers.kinds import load_reranker

LAYERS, START = 4, 2
CONTRACT = "bge-reranker-v2-minicpm-layerwise"


@pytest.fixture(scope="module", params=["minicpm", "llama"])
def layerwise(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layerwise(tmp_path_factory.mktemp("layerwise") / "model", request.param)


def norm(states: Tensor, weight: Tensor) -> Tensor:
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def turned(states: Tensor) -> Tensor:
    """Rotary positions, written down: pairs of numbers half a vector apart turn by position x frequency."""
    size = states.shape[-1]
    angles = torch.arange(states.shape[-2])[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    return states * cos + torch.cat([-states[..., size // 2 :], states[..., : size // 2]], -1) * sin


def score(folder: Path, ids: list[int], layers: int) -> float:
    """MiniCPM's forward pass up to a layer, step by step, and its head there."""
    config = json.loads((folder / "config.json").read_text())
    w = load_file(folder / "model.safetensors")
    depth = config.get("scale_depth", math.sqrt(LAYERS)) / math.sqrt(LAYERS)
    x = w["model.embed_tokens.weight"][ids] * config.get("scale_emb", 1)
    heads, size = 2, 16
    for number in range(layers):
        own = {name.split(f"layers.{number}.")[1]: value for name, value in w.items() if f"layers.{number}." in name}
        read = norm(x, own["input_layernorm.weight"])
        q, k, v = (read @ own[f"self_attn.{name}_proj.weight"].T for name in "qkv")
        q, k, v = (part.view(len(ids), -1, size).transpose(0, 1).expand(heads, -1, -1) for part in (q, k, v))
        logits = turned(q) @ turned(k).transpose(1, 2) / math.sqrt(size)
        shares = logits.masked_fill(~torch.ones(len(ids), len(ids)).tril().bool(), -torch.inf).softmax(-1)
        x = x + depth * (shares @ v).transpose(0, 1).flatten(1) @ own["self_attn.o_proj.weight"].T
        read = norm(x, own["post_attention_layernorm.weight"])
        gate, up, down = (own[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + depth * (F.silu(read @ gate.T) * (read @ up.T)) @ down.T
    return float(norm(x, w["model.norm.weight"])[-1] @ w[f"lm_head.{layers - START}.linear_head.weight"][0])


@pytest.mark.parametrize("layers", [2, 3, 4, None])
def test_scores_are_those_of_the_layer(layerwise: Path, layers: int | None):
    reranker = Reranker.load(str(layerwise), contract=CONTRACT, layers=layers, device="cpu")
    documents = DOCUMENTS[:4]
    ids = reranker.inputs.pair_ids([(QUERIES[0], document) for document in documents])
    expected = [score(layerwise, each, layers or LAYERS) for each in ids]
    assert len({round(each, 3) for each in expected}) == 4
    np.testing.assert_allclose(reranker.score(QUERIES[0], documents), expected, rtol=1e-4, atol=1e-4)


def test_layers_above_are_not_there_to_be_computed(layerwise: Path, monkeypatch: pytest.MonkeyPatch):
    reranker, passes = Reranker.load(str(layerwise), contract=CONTRACT, layers=3, device="cpu"), []
    forward = FusedLayer.forward
    monkeypatch.setattr(FusedLayer, "forward", lambda self, *a, **k: passes.append(1) or forward(self, *a, **k))
    reranker.score(QUERIES[0], DOCUMENTS[:1])
    assert len(passes) == len(transformer_layers(reranker.model.backbone)) == 3


def test_the_command_reads_the_layer_and_models_without_such_heads_refuse_it(
    layerwise: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_run(tmp_path / "run.trec", {"q0": [Hit(document.doc_id, -1.0) for document in DOCUMENTS[:3]]})
    place = ["--run", str(tmp_path / "run.trec"), "--collection", str(tiny.collection)]
    command = ["rerank", *place, "--out", str(tmp_path / "out.trec"), "--layers"]
    assert not main([*command, "2", "--model", str(layerwise), "--contract", CONTRACT])
    found = {hit.doc_id: hit.score for hit in read_run(tmp_path / "out.trec")["q0"]}
    expected = Reranker.load(str(layerwise), contract=CONTRACT, layers=2).score(QUERIES[0], DOCUMENTS[:3])
    np.testing.assert_allclose([found[document.doc_id] for document in DOCUMENTS[:3]], expected, atol=1e-4)
    assert main([*command, "5", "--model", str(layerwise), "--contract", CONTRACT]) == 1
    assert "--layers is 5; " in (error := capsys.readouterr().err)
    assert "has heads behind its layers 2 to 4" in error
    assert main([*command, "1", "--model", str(tiny.reranker)]) == 1
    assert "has one head, behind the last of 1 layers; leave it out" in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown setting of the method 'attention' 'layers'"):
        load_reranker("attention", model=str(tiny.speaker), layers=2)


def test_a_head_over_the_vocabulary_missing_weights_and_scaled_positions_are_refused(tmp_path: Path):
    folder = write_layerwise(tmp_path / "model", "minicpm")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"lm_head.2.linear_head.weight": torch.randn(5, 32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"has one of 5 rows of the heads .* behind layer 4; expected one row"):
        Reranker.load(str(folder), contract=CONTRACT)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 weights are missing, layers\.0\.mlp\.up_proj\.weight among them"):
        Reranker.load(str(folder), contract=CONTRACT)
    scaled = write_layerwise(tmp_path / "scaled", "minicpm", rope_scaling={"type": "linear", "factor": 2})
    with pytest.raises(UserError, match="has rope_scaling or pretraining_tp"):
        Reranker.load(str(scaled), contract=CONTRACT)


def test_other_models_that_bring_code_are_still_refused(tmp_path: Path):
    folder = write_layerwise(tmp_path / "model", "minicpm", head_multi=False)
    with pytest.raises(UserError, match="is of the kind 'minicpm', which transformers has not"):
        check_layout("some", folder)
    assert ModelFolder("some", folder).has_tensor("norm.weight")
