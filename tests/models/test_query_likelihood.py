"""A language model that predicts what comes after a stop, and sees nothing before it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import language_model_to_train
from samples import DECODERS, small
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist import train
from shortlist.errors import UserError
from shortlist.models.language import LanguageModel, as_mask, find_stops, stopped_attention
from shortlist.models.load import language_model_to_train as to_train
from shortlist.text.contract import InputContract
from shortlist.text.inputs import query_is_first, with_stop
from shortlist.train.examples import Batch
from shortlist.train.objectives import make_example

BATCH = Batch(QUERIES[:2], [[DOCUMENTS[0]], [DOCUMENTS[1]]], [frozenset({"d0"}), frozenset({"d1"})])
EOS = 2


def stopped(contract: InputContract) -> InputContract:
    return replace(contract, form=replace(contract.form, pair=with_stop(contract.form.pair)))


@pytest.fixture
def model(tiny: Tiny) -> LanguageModel:
    model = language_model_to_train(str(tiny.llama), adjust=stopped)
    model.stop_id, model.attention_stop = EOS, True
    return model


def test_the_mask_lets_tokens_behind_the_stop_see_it_and_nothing_before_it():
    [[seen]] = stopped_attention(torch.tensor([2]), 5).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # the stop itself sees the text before it
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


def test_the_stop_is_the_first_such_token_behind_the_beginning():
    assert find_stops(torch.tensor([[EOS, 5, EOS, 6, EOS], [1, EOS, 7, EOS, 0]]), EOS).tolist() == [2, 1]


def test_the_template_gets_an_end_token_between_query_and_document():
    pair = ("<bos>", "query: {query} document: {title} {text}", "<eos>")
    assert with_stop(pair) == ("<bos>", "query: {query}", "<eos>", "document: {title} {text}", "<eos>")
    assert with_stop(with_stop(pair)) == with_stop(pair)
    assert query_is_first(pair)
    assert not query_is_first(("{text}", "{query}"))
    with pytest.raises(UserError, match="no place between document and query"):
        with_stop(("{text} {query}",))


def losses(model: LanguageModel, *texts: list[int]) -> torch.Tensor:
    ids = torch.tensor(texts)
    return model(ids, torch.tensor([ids.shape[1]] * len(texts))).values[:, 0]


def test_behind_the_stop_a_changed_token_before_it_only_counts_through_the_stops_own_state(model: LanguageModel):
    ids = torch.tensor([[1, 8, 12, 14, EOS, 9, 20, EOS], [1, 8, 13, 14, EOS, 9, 20, EOS]])
    mask = as_mask(stopped_attention(find_stops(ids, EOS), ids.shape[1]), model.backbone)
    states = model.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert not torch.equal(states[0, 4], states[1, 4])  # the stop has seen the change
    torch.testing.assert_close(states[0, 5:], states[1, 5:])  # this backbone has one layer, so nothing else has
    plain = model.backbone(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(plain[:, :5], states[:, :5])
    assert not torch.allclose(plain[0, 5:], plain[1, 5:])


def test_no_gradient_passes_the_stop_but_through_it(model: LanguageModel):
    ids = torch.tensor([[1, 8, 12, 14, EOS, 9, 20, EOS]])
    embedded = model.backbone.get_input_embeddings()(ids).detach().requires_grad_()
    mask = as_mask(stopped_attention(find_stops(ids, EOS), ids.shape[1]), model.backbone)
    model.backbone(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state[
        0, 6
    ].sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum(2)[0].bool().tolist() == [False] * 4 + [True, True, True, False]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_kind_of_attention_has_the_same_losses(attention: str, tiny: Tiny, model: LanguageModel):
    other = language_model_to_train(str(tiny.llama), adjust=stopped, attention=attention)
    other.stop_id, other.attention_stop = EOS, True
    text = [1, 8, 12, 14, EOS, 9, 20, EOS]
    torch.testing.assert_close(losses(other, text), losses(model, text))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(losses(other, text), losses(model, text), atol=0.1, rtol=0)


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_keeps_to_the_mask(family: str):
    backbone = small(family)
    ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(0))
    mask = as_mask(stopped_attention(torch.tensor([4]), 12), backbone)
    states = []
    for first in (5, 6):
        ids[0, 1] = first
        hidden = backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states.append(hidden.hidden_states[1][0, 5:])  # behind the first layer
    torch.testing.assert_close(states[0], states[1])


def test_only_what_comes_after_the_stop_is_predicted(model: LanguageModel):
    text = [1, 8, 12, 14, EOS, 9, 20, EOS]
    ids = torch.tensor([text])
    mask = as_mask(stopped_attention(find_stops(ids, EOS), len(text)), model.backbone)
    states = model.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    logits = states[0, 4:7] @ model.backbone.get_input_embeddings().weight.T
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 5:], reduction="sum")
    torch.testing.assert_close(losses(model, text)[0], expected)
    padded = torch.tensor([[*text, 0, 0]])
    torch.testing.assert_close(model(padded, torch.tensor([8])).values[:, 0], losses(model, text))


def test_what_comes_first_is_corrupted_and_what_is_predicted_is_not(model: LanguageModel):
    seen: list[list[tuple[str, str]]] = []
    original = model.inputs.pair_ids

    def watched(pairs: Any, **options: Any) -> Any:
        seen.append([(query.text, document.text) for query, document in pairs])
        return original(pairs, **options)

    model.inputs.pair_ids = watched  # type: ignore[method-assign]
    texts = {"corruption": 0.6, "rng": np.random.default_rng(0)}
    example = make_example("language-model", model.inputs, BATCH, [], texts=texts, stop_id=EOS)
    by_query, by_document = seen
    assert all(d == DOCUMENTS[i].text and "_" in q for i, (q, d) in enumerate(by_query))
    assert all(q == QUERIES[i].text and "_" in d.split() for i, (q, d) in enumerate(by_document))
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in example.token_ids], batch_first=True)
    outputs = model(rows, torch.tensor(list(map(len, example.token_ids))))
    predicted = sum(len(ids) - 1 - ids.index(EOS) for ids in example.token_ids)
    expected = outputs.values[:, 0].sum() / predicted
    torch.testing.assert_close(example.objective(outputs).loss, expected)


def test_a_language_model_is_trained_with_stops_and_its_contract_has_them(tiny: Tiny, tmp_path: Path):
    values: dict[str, Any] = {"kind": "language-model", "backbone": str(tiny.llama), "batch_size": 4, "steps": 2}
    config = train.Config(
        **values, collection=str(tiny.collection), out=tmp_path, warmup_steps=0, attention_stop=True, corruption=0.3
    )
    train.run(config)
    from shortlist.models.folder import open_folder

    contract = open_folder(str(tmp_path)).own_contract("pair")
    assert contract is not None
    assert contract.form.pair == with_stop(contract.form.pair)
    assert to_train(open_folder(str(tmp_path))).stop_id is None
