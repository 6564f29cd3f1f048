import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from named import language_model_to_train, load_reranker, load_retriever
from safetensors.torch import load_file, save_file
from samples import PAIRS
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.models.language import LOGIT_ROWS, next_tokens
from shortlist.models.save import save_model
from shortlist.text.batching import pad
from shortlist.text.contract import named_contract

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GENERATOR = torch.Generator().manual_seed(0)


def write(folder: Path, llama: Path, *, bare: bool = False, **change: Any) -> Path:
    """A LLaMA as its makers save one, or without a head as `init` does, with the tokenizer of another."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=300, initializer_range=0.2, **(SHAPE | {"tie_word_embeddings": True} | change))
    model = LlamaForCausalLM(config)
    (model.model if bare else model).save_pretrained(folder)
    open_folder(str(llama)).tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tied(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tied"), llama, bare=True, tie_word_embeddings=False)


def test_the_loss_of_a_token_equals_the_value_worked_out_by_hand():
    embedding = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    losses, likeliest = next_tokens(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), embedding, torch.tensor([1, 2])).T
    total = math.e + math.e**2 + math.e**3
    assert losses.tolist() == pytest.approx([math.log(total / math.e**2), math.log(total / math.e**3)], rel=1e-6)
    assert likeliest.tolist() == [0, 1]


@pytest.mark.parametrize("tokens", [0, 1, LOGIT_ROWS, 2 * LOGIT_ROWS + 3])
def test_losses_and_gradients_are_pytorchs_own(tokens: int):
    states, embedding = torch.randn(tokens, 8, generator=GENERATOR), torch.randn(40, 8, generator=GENERATOR)
    targets, weights = torch.randint(40, (tokens,), generator=GENERATOR), torch.rand(tokens, generator=GENERATOR)
    inputs = [states.requires_grad_(), embedding.requires_grad_()]
    losses = next_tokens(states, embedding, targets)[:, 0]
    expected = F.cross_entropy(states @ embedding.T, targets, reduction="none")
    torch.testing.assert_close(losses, expected)
    actual = torch.autograd.grad(losses @ weights, inputs)
    torch.testing.assert_close(actual, torch.autograd.grad(expected @ weights, inputs))


def test_half_the_precision_changes_losses_and_gradients_a_little():
    states, embedding = torch.randn(50, 32, generator=GENERATOR), torch.randn(40, 32, generator=GENERATOR)
    targets, inputs = torch.arange(50) % 40, [states.requires_grad_(), embedding.requires_grad_()]
    exact = next_tokens(states, embedding, targets)[:, 0].mean()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = next_tokens(states, embedding, targets)[:, 0].mean()
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(exact.item(), rel=0.01)
    assert narrow.item() != exact.item()
    for one, other in zip(torch.autograd.grad(narrow, inputs), torch.autograd.grad(exact, inputs), strict=True):
        assert one.dtype == torch.float32
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


def test_a_saved_model_is_transformers_own_with_the_same_losses(tied: Path, tmp_path: Path):
    model = language_model_to_train(str(tied))
    save_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    token_ids = model.inputs.pair_ids(PAIRS) + model.inputs.pair_ids(PAIRS, turned=True)
    assert len({*map(len, token_ids)}) > 1  # so there is padding
    for ids, (loss, likeliest) in zip(token_ids, model(*pad(token_ids, 7)).values.tolist(), strict=True):
        row = torch.tensor([ids])
        out = theirs(input_ids=row, labels=row)
        assert loss == pytest.approx(out.loss.item() * (len(ids) - 1), rel=1e-5)
        assert likeliest == (out.logits[0, :-1].argmax(1) == row[0, 1:]).sum()


def test_an_output_embedding_of_its_own_is_trained_and_saved(llama: Path, tmp_path: Path):
    model = language_model_to_train(str(write(tmp_path / "untied", llama, tie_word_embeddings=False)))
    token_ids = model.inputs.pair_ids(PAIRS)
    losses = model(*pad(token_ids, 7)).values[:, 0]
    losses.sum().backward()
    assert model.output is not None
    assert model.output.grad is not None
    with torch.no_grad():
        model.output -= 0.1
        model.output[3] += 1.0
    save_model(model, tmp_path / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    expected = model(*pad(token_ids, 7)).values[:, 0].tolist()
    assert expected != pytest.approx(losses.tolist())
    for ids, loss in zip(token_ids, expected, strict=True):
        row = torch.tensor([ids])
        assert loss == pytest.approx(theirs(input_ids=row, labels=row).loss.item() * (len(ids) - 1), rel=1e-5)


def test_an_embedding_that_is_saved_twice_is_one_where_the_two_are_tied(llama: Path, tmp_path: Path):
    folder = write(tmp_path, llama)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert language_model_to_train(str(folder)).output is None


def test_a_text_of_one_token_has_nothing_to_predict(tied: Path):
    assert language_model_to_train(str(tied))(*pad([[1]], 0)).values.tolist() == [[0, 0]]


def test_a_language_model_is_neither_a_retriever_nor_a_reranker(tied: Path, tmp_path: Path):
    save_model(language_model_to_train(str(tied)), tmp_path)
    with pytest.raises(UserError, match="is a reranker; a retriever is wanted"):
        load_retriever(str(tmp_path))
    with pytest.raises(UserError, match="has no head for scores"):
        load_reranker(str(tmp_path))


def test_what_sees_the_words_to_come_is_refused(tied: Path, bert: Path):
    with pytest.raises(UserError, match="nothing to predict"):
        language_model_to_train(str(bert), named_contract("bert-pair"))
    with pytest.raises(UserError, match="nothing to predict"):
        language_model_to_train(str(tied), named_contract("rankllama"), adjust=both_ways)


def both_ways(contract):
    return replace(contract, reading=replace(contract.reading, bidirectional=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"final_logit_softcapping": 30.0}, "final_logit_softcapping"), ({"logit_scale": 0.5}, "logit_scale")],
)
def test_logits_that_are_made_otherwise_are_refused(llama: Path, tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=f"has {message}"):
        language_model_to_train(str(write(tmp_path, llama, **change)))
