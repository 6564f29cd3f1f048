"""Adapters in the layouts in which they were published, made here with random weights."""

import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import load_reranker, load_retriever
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from samples import DOCUMENTS, PAIRS
from tiny import shaken
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from shortlist import export
from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.models.run import embed_documents, score_pairs
from shortlist.models.save import save_model

SETTINGS: dict[str, Any] = {"r": 3, "lora_alpha": 12, "target_modules": ["q_proj", "k_proj", "up_proj"]}


def pickled(folder: Path) -> Path:
    """The adapter's weights as older versions of PEFT wrote them."""
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    return folder


def published_retriever(llama: Path, folder: Path, kind: Any = AutoModel) -> tuple[Path, Any]:
    """RepLLaMA as its authors released it: an adapter on the backbone, and no tokenizer."""
    model = shaken(get_peft_model(kind.from_pretrained(llama), LoraConfig(**SETTINGS)))
    model.save_pretrained(folder)
    return folder, model


def published_reranker(llama: Path, folder: Path) -> tuple[Path, Any]:
    """RankLLaMA as its authors released it: an adapter on a sequence classifier, head inside."""
    base = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    model = shaken(get_peft_model(base, LoraConfig(**SETTINGS, task_type=TaskType.SEQ_CLS)))
    model.save_pretrained(folder)
    return folder, model


@torch.inference_mode()
def last_states(model: Any, rows: list[list[int]]) -> np.ndarray:
    """The last position's state, one text at a time, of length 1."""
    states = [model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1] for row in rows]
    return np.stack([(state / state.norm()).numpy() for state in states])


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", [AutoModel, AutoModelForCausalLM], ids=["backbone", "language-model"])
def test_a_published_retriever_gives_the_vectors_of_peft(form: str, kind: Any, llama: Path, tmp_path: Path):
    folder, model = published_retriever(llama, tmp_path, kind)
    if form == "bin":
        pickled(folder)
    retriever = load_retriever(str(folder), contract="repllama")
    close(embed_documents(retriever, DOCUMENTS), last_states(model, retriever.inputs.document_ids(DOCUMENTS)))


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("contract", ["rankllama", "rankllama-v1", "rankllama-v2"])
def test_a_published_reranker_gives_the_scores_of_peft(form: str, contract: str, llama: Path, tmp_path: Path):
    folder, model = published_reranker(llama, tmp_path)
    if form == "bin":
        pickled(folder)
    reranker = load_reranker(str(folder), contract=contract)
    rows = reranker.inputs.pair_ids(PAIRS)
    with torch.inference_mode():
        expected = [float(model(input_ids=torch.tensor([row])).logits) for row in rows]
    close(score_pairs(reranker, PAIRS), np.array(expected))


Q0 = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r"model\.layers\.\d+\.self_attn\.(q|v)_proj"},
        {"rank_pattern": {Q0: 6}, "alpha_pattern": {Q0: 64}},
        {"alpha_pattern": {"q_proj": 64}, "use_rslora": True},
        {"layers_to_transform": [1]},
        {"exclude_modules": [Q0]},
        {"exclude_modules": r"model\.layers\.0\..*"},
        {"use_dora": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_layers_are_named_as_in_the_model_that_an_adapter_was_made_for(
    kind: Any, settings: dict[str, Any], llama: Path, tmp_path: Path
):
    options = {"num_labels": 1} if kind is AutoModelForSequenceClassification else {}
    task = TaskType.SEQ_CLS if options else TaskType.CAUSAL_LM
    model = shaken(
        get_peft_model(kind.from_pretrained(llama, **options), LoraConfig(**SETTINGS | settings, task_type=task))
    )
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings(action="error", category=UserWarning):
        retriever = load_retriever(str(tmp_path), contract="repllama")
    close(embed_documents(retriever, DOCUMENTS), last_states(model, retriever.inputs.document_ids(DOCUMENTS)))


def test_an_adapter_without_a_tokenizer_has_its_bases(llama: Path, tmp_path: Path):
    folder, _ = published_retriever(llama, tmp_path)
    assert not (folder / "tokenizer.json").exists()
    assert open_folder(str(folder)).tokenizer.get_vocab() == open_folder(str(llama)).tokenizer.get_vocab()


def test_our_rerankers_adapter_opens_in_peft_with_its_head(llama: Path, tmp_path: Path):
    from named import reranker_to_train
    from peft import PeftModel

    from shortlist.models.adapter_settings import make_adapter
    from shortlist.models.adapters import add_adapter

    model = reranker_to_train(str(llama), seed=0)
    adapter = add_adapter(model.backbone, make_adapter("lora", r=4, alpha=8))
    save_model(shaken(model), tmp_path, adapter=adapter, base=str(llama))
    base = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    rows = model.inputs.pair_ids(PAIRS)
    with torch.inference_mode():
        expected = [float(theirs(input_ids=torch.tensor([row])).logits) for row in rows]
    close(score_pairs(load_reranker(str(tmp_path)), PAIRS), np.array(expected))


def test_an_adapter_without_a_head_is_no_reranker(llama: Path, tmp_path: Path):
    folder, _ = published_retriever(llama, tmp_path)
    with pytest.raises(UserError, match="has no head for scores"):
        load_reranker(str(folder), contract="rankllama")


def other_llama(llama: Path, folder: Path, **changes: int) -> Path:
    """A backbone of another shape."""
    config = AutoModel.from_pretrained(llama).config
    config.update(changes)
    AutoModel.from_config(config).save_pretrained(folder)
    open_folder(str(llama)).tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "size mismatch|Error"),
        ({"num_hidden_layers": 1}, r"no place for 6 of its weights, base_model.model.layers.1"),
        ({"num_hidden_layers": 3}, r"it lacks 6 of its weights, base_model.model.layers.2"),
    ],
)
def test_an_adapter_of_another_base_is_refused(changes: dict[str, int], message: str, llama: Path, tmp_path: Path):
    folder, _ = published_retriever(llama, tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    base = other_llama(llama, tmp_path / "other", **changes)
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    with pytest.raises(UserError, match=rf"does not fit its base model .*other \(.*({message})") as refusal:
        load_retriever(str(folder), contract="repllama")
    assert "\n" not in str(refusal.value)


def test_an_adapter_whose_weights_are_gone_is_refused(llama: Path, tmp_path: Path):
    folder, _ = published_retriever(llama, tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights; expected adapter_model\.safetensors or adapter_model\.bin"):
        load_retriever(str(folder), contract="repllama")


@pytest.mark.parametrize("content", [b"", b"\x80\x04nonsense", pickle.dumps([1, 2]), pickle.dumps({"a": "b"})])
def test_a_pickle_of_anything_but_tensors_is_refused(content: bytes, llama: Path, tmp_path: Path):
    folder, _ = published_retriever(llama, tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(content)
    with pytest.raises(UserError, match="the adapter cannot be read"):
        load_retriever(str(folder), contract="repllama")


def test_a_damaged_adapter_is_refused(llama: Path, tmp_path: Path):
    folder, _ = published_retriever(llama, tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="the adapter cannot be read"):
        load_retriever(str(folder), contract="repllama")


def test_weights_under_other_names_are_refused(llama: Path, tmp_path: Path):
    folder, _ = published_retriever(llama, tmp_path)
    path = folder / "adapter_model.safetensors"
    save_file({key.replace("q_proj", "query"): value for key, value in load_file(path).items()}, path)
    with pytest.raises(UserError, match="no place for 4 of its weights"):
        load_retriever(str(folder), contract="repllama")


def moved(llama: Path, tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A retriever's adapter of ours and its base, both moved into another folder, and the vectors from before."""
    from named import retriever_to_train

    from shortlist.models.adapter_settings import make_adapter
    from shortlist.models.adapters import add_adapter

    before, after = tmp_path / "before", tmp_path / "after"
    base = shutil.copytree(llama, before / "models/base")
    model = retriever_to_train(str(base))
    adapter = add_adapter(model.backbone, make_adapter("lora", r=4, alpha=8))
    save_model(shaken(model), before / "adapter", adapter=adapter, base=str(base))
    vectors = embed_documents(load_retriever(str(before / "adapter")), DOCUMENTS)
    before.rename(after)
    return after / "adapter", after / "models/base", vectors


@pytest.mark.slow
def test_a_base_that_moves_together_with_its_adapter_is_found(llama: Path, tmp_path: Path):
    adapter, _, vectors = moved(llama, tmp_path)
    close(embed_documents(load_retriever(str(adapter)), DOCUMENTS), vectors)


def test_a_base_that_moves_alone_is_named_once_and_for_all(llama: Path, tmp_path: Path):
    adapter, base, vectors = moved(llama, tmp_path)
    base = base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"adapter: is an adapter, and its base model cannot be opened: .*--base BASE"):
        load_retriever(str(adapter))
    export.run(export.Config(model=str(adapter), to="peft", base=str(base), out=tmp_path / "mended"))
    close(embed_documents(load_retriever(str(tmp_path / "mended")), DOCUMENTS), vectors)
    with pytest.raises(UserError, match=r"--base: .* is a whole model"):
        export.run(export.Config(model=str(base), to="merged", contract="repllama", base="x", out=tmp_path / "no"))


def test_an_adapter_that_is_its_own_base_is_refused(llama: Path, tmp_path: Path):
    folder, _ = published_retriever(llama, tmp_path)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(folder)}))
    with pytest.raises(UserError, match="names its own folder as its base model"):
        load_retriever(str(folder), contract="repllama")
