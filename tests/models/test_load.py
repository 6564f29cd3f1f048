import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import load_reranker, load_retriever, reranker_to_train, retriever_to_train
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples import DOCUMENTS, PAIRS, QUERIES
from tiny import shaken
from transformers import AutoModel, AutoModelForSequenceClassification

from shortlist.data.files import sha256
from shortlist.errors import UserError
from shortlist.models.adapter_settings import make_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.run import embed_documents, embed_queries, score_pairs
from shortlist.models.save import save_model
from shortlist.text.batching import pad
from shortlist.text.contract import Reading, named_contract


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def vectors(name: str | Path, **options: Any) -> np.ndarray:
    retriever = load_retriever(str(name), **options)
    return np.concatenate([embed_documents(retriever, DOCUMENTS), embed_queries(retriever, QUERIES)])


def scores(name: str | Path, **options: Any) -> np.ndarray:
    return score_pairs(load_reranker(str(name), **options), PAIRS)


@pytest.fixture(scope="module")
def retriever(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever's folder, to read."""
    folder = tmp_path_factory.mktemp("retriever")
    save_model(retriever_to_train(str(llama), None), folder)
    return folder


@pytest.fixture(scope="module")
def reranker(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker's folder, to read."""
    folder = tmp_path_factory.mktemp("reranker")
    save_model(reranker_to_train(str(llama), None, seed=0), folder)
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a folder, to spoil."""
    return lambda source: Path(shutil.copytree(source, tmp_path / "copy"))


def lora_folder(model: Any, base: Path, folder: Path) -> Path:
    """The model's folder after LoRA training that has moved every weight it may move."""
    adapter = add_adapter(model.backbone, make_adapter("lora", r=4, alpha=8))
    save_model(shaken(model), folder, adapter=adapter, base=str(base))
    return folder


def test_a_saved_retriever_gives_the_same_vectors(llama: Path, retriever: Path):
    assert np.array_equal(vectors(retriever), vectors(llama, contract="repllama"))


def test_a_saved_reranker_gives_the_same_scores(llama: Path, reranker: Path):
    assert np.array_equal(scores(reranker), score_pairs(reranker_to_train(str(llama), None, seed=0), PAIRS))


def test_an_encoder_survives_a_folder(bert: Path, tmp_path: Path):
    model = reranker_to_train(str(bert), None, seed=0)
    save_model(model, tmp_path / "reranker")
    close(scores(tmp_path / "reranker"), score_pairs(model, PAIRS))
    save_model(retriever_to_train(str(bert), None), tmp_path / "retriever")
    close(vectors(tmp_path / "retriever"), vectors(bert, contract="bert"))


@torch.inference_mode()
def test_a_saved_retriever_opens_in_transformers(retriever: Path):
    ours, theirs = load_retriever(str(retriever)), AutoModel.from_pretrained(retriever).eval()
    [ids] = ours.inputs.query_ids(QUERIES[:1])
    state = theirs(torch.tensor([ids])).last_hidden_state[0, -1]
    close(embed_queries(ours, QUERIES[:1])[0], (state / state.norm()).numpy())


@torch.inference_mode()
def test_a_saved_reranker_opens_in_transformers_with_the_same_scores(reranker: Path):
    ours = load_reranker(str(reranker))
    theirs, loaded = AutoModelForSequenceClassification.from_pretrained(reranker, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert load_file(reranker / "model.safetensors").keys() == theirs.state_dict().keys()
    ids = ours.inputs.pair_ids(PAIRS)
    alone = torch.cat([theirs(torch.tensor([row])).logits[:, 0] for row in ids])
    close(score_pairs(ours, PAIRS), alone.numpy())
    padded, lengths = pad(ids, ours.inputs.pad_id)
    real = torch.arange(padded.shape[1]) < lengths[:, None]
    close(score_pairs(ours, PAIRS), theirs(padded, attention_mask=real).logits[:, 0].numpy())


@torch.inference_mode()
def test_a_saved_reranker_whose_pad_is_eos_is_not_scored_elsewhere_by_transformers(llama: Path, tmp_path: Path):
    model = reranker_to_train(str(llama), None, seed=0)
    model.inputs.tokenizer.pad_token = model.inputs.tokenizer.eos_token  # type: ignore[attr-defined]
    model.inputs.pad_id = 2
    save_model(model, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    alone = torch.cat([theirs(torch.tensor([row])).logits[:, 0] for row in model.inputs.pair_ids(PAIRS)])
    close(scores(tmp_path), alone.numpy())


def test_a_saved_folder_holds_no_pickle(retriever: Path, reranker: Path):
    names = {path.name for folder in (retriever, reranker) for path in folder.rglob("*")}
    expected = {"config.json", "contract.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == expected


def test_an_adapter_gives_a_retriever_the_same_vectors(llama: Path, tmp_path: Path):
    model = retriever_to_train(str(llama), None)
    folder = lora_folder(model, llama, tmp_path / "lora")
    trained = np.concatenate([embed_documents(model, DOCUMENTS), embed_queries(model, QUERIES)])
    close(vectors(folder), trained)
    assert np.abs(trained - vectors(llama, contract="repllama")).max() > 0.05


def test_an_adapter_gives_a_reranker_the_same_scores_with_the_head_it_learned(llama: Path, tmp_path: Path):
    model = reranker_to_train(str(llama), None, seed=0)
    fresh = model.head.detach().clone()
    folder = lora_folder(model, llama, tmp_path / "lora")
    assert (model.head - fresh).abs().max() > 0.05
    assert load_reranker(str(folder)).head.equal(model.head)
    close(scores(folder), score_pairs(model, PAIRS))


def test_an_adapter_folder_holds_the_updates_and_the_head_alone(llama: Path, tmp_path: Path):
    before = sha256(*sorted(llama.iterdir()))
    folder = lora_folder(reranker_to_train(str(llama), None, seed=0), llama, tmp_path / "lora")
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {name for name in names if "lora_" not in name} == {"base_model.model.score.weight"}
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["inference_mode"]  # PEFT's mark of a finished one
    assert sha256(*sorted(llama.iterdir())) == before


def test_an_adapter_opens_in_peft(llama: Path, tmp_path: Path):
    from peft import PeftModel

    model = retriever_to_train(str(llama), None)
    folder = lora_folder(model, llama, tmp_path / "lora")
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(llama), str(folder)).eval()
    [ids] = model.inputs.query_ids(QUERIES[:1])
    with torch.inference_mode():
        state = theirs(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    close(embed_queries(model, QUERIES[:1])[0], (state / state.norm()).numpy())


def test_an_adapter_can_be_trained_on_top_of_another(llama: Path, tmp_path: Path):
    first = lora_folder(retriever_to_train(str(llama), None), llama, tmp_path / "first")
    model = reranker_to_train(str(first), None, seed=0)
    second = lora_folder(model, first, tmp_path / "second")
    close(scores(second), score_pairs(model, PAIRS))


def test_an_adapter_finds_its_base_from_another_working_folder(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(llama.parent)
    model = retriever_to_train(llama.name, None)
    lora_folder(model, Path(llama.name), tmp_path / "lora")
    monkeypatch.chdir(tmp_path)
    close(vectors(tmp_path / "lora")[: len(DOCUMENTS)], embed_documents(model, DOCUMENTS))


def test_an_adapter_without_its_base_is_refused(llama: Path, tmp_path: Path):
    folder = lora_folder(retriever_to_train(str(llama), None), llama, tmp_path / "lora")
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match="gone: cannot load a model"):
        load_retriever(str(folder))
    path.write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base model"):
        load_retriever(str(folder))


def test_a_pickled_adapter_runs_no_code(llama: Path, tmp_path: Path):
    folder = lora_folder(retriever_to_train(str(llama), None), llama, tmp_path / "lora")
    (folder / "adapter_model.safetensors").unlink()
    mark = tmp_path / "mark"

    class Trap:
        def __reduce__(self):
            return Path.mkdir, (mark,)

    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="the adapter"):
        load_retriever(str(folder))
    assert not mark.exists()


def test_a_model_without_a_head_is_no_reranker(llama: Path, reranker: Path, copied: Callable):
    with pytest.raises(UserError, match=r"no 'score\.weight', no classifier"):
        load_reranker(str(llama), contract="rankllama")
    folder = copied(reranker)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "score.weight"}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no 'score\.weight', no classifier"):
        load_reranker(str(folder))


def test_a_folder_without_a_contract_asks_for_one(llama: Path):
    for load in (load_retriever, load_reranker):
        with pytest.raises(UserError, match=r"has no contract\.json .* --contract"):
            load(str(llama))


def test_an_unknown_contract_names_the_near_ones(llama: Path):
    with pytest.raises(UserError, match="perhaps 'repllama'"):
        load_retriever(str(llama), contract="repllam")


def test_a_model_of_the_other_kind_is_refused(retriever: Path, reranker: Path):
    with pytest.raises(UserError, match="is a retriever; a reranker is wanted"):
        load_reranker(str(retriever))
    with pytest.raises(UserError, match="is a reranker; a retriever is wanted"):
        load_retriever(str(reranker))


def test_a_contract_of_the_other_kind_is_refused(llama: Path, reranker: Path):
    with pytest.raises(UserError, match="'rankllama' is for a reranker; a retriever is wanted"):
        load_retriever(str(llama), contract="rankllama")
    with pytest.raises(UserError, match="'repllama' is for a retriever; a reranker is wanted"):
        load_reranker(str(reranker), contract="repllama")


def test_a_contract_that_is_named_goes_before_the_folders_own(reranker: Path):
    named = load_reranker(str(reranker), contract="rankllama-v1")
    assert named.contract == named_contract("rankllama-v1")
    assert np.abs(score_pairs(named, PAIRS) - scores(reranker)).max() > 0.01


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON"), (b'{"poling": "mean"}', "unknown contract setting"), (b"[]", "holds a list, expected a dict")],
)
def test_a_damaged_contract_is_refused(content: bytes, message: str, retriever: Path, copied: Callable):
    folder = copied(retriever)
    (folder / "contract.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"contract\.json: {message}"):
        load_retriever(str(folder))


def test_damaged_weights_are_refused(reranker: Path, copied: Callable):
    folder = copied(reranker)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_reranker(str(folder))


def test_training_starts_from_the_papers_contract_for_the_architecture(llama: Path, bert: Path):
    assert retriever_to_train(str(llama), None).contract == named_contract("repllama")
    assert retriever_to_train(str(bert), None).contract == named_contract("bert")
    assert reranker_to_train(str(llama), None, seed=0).contract == named_contract("rankllama")
    assert reranker_to_train(str(bert), None, seed=0).contract == named_contract("bert-pair")


def test_training_keeps_the_folders_contract_unless_another_is_given(llama: Path, tmp_path: Path):
    own = named_contract("repllama").with_lengths(query=9)
    save_model(retriever_to_train(str(llama), own), tmp_path)
    assert retriever_to_train(str(tmp_path), None).contract == own
    other = replace(own, reading=Reading(pooling="mean"))
    assert retriever_to_train(str(tmp_path), other).contract == other


def test_a_reranker_starts_from_the_head_there_is(retriever: Path, reranker: Path):
    head = load_reranker(str(reranker)).head
    assert reranker_to_train(str(reranker), None, seed=9).head.equal(head)
    assert not reranker_to_train(str(retriever), None, seed=9).head.equal(head)
