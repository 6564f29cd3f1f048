from dataclasses import replace
from pathlib import Path

import pytest
import torch
from samples import DECODERS, FAMILIES, PAIRS, small
from tiny import tokenizer
from transformers import AutoModel, LlamaForSequenceClassification

from shortlist.errors import UserError
from shortlist.models.backbone import apply_reading, load_backbone
from shortlist.models.folder import open_folder
from shortlist.models.load import open_backbone
from shortlist.models.pointwise import PointwiseModel, new_head
from shortlist.models.run import score_pairs
from shortlist.text.batching import pad
from shortlist.text.contract import Reading, named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.tokenizer import load_tokenizer

HEAD = torch.randn(1, 64, generator=torch.Generator().manual_seed(7))


def make(folder: Path, contract: str, dtype: torch.dtype = torch.float32) -> PointwiseModel:
    backbone = load_backbone(str(folder), dtype=dtype)
    named = named_contract(contract)
    return PointwiseModel(backbone, Inputs(named.form, load_tokenizer(folder)), named.reading, HEAD)


def classifier(folder: Path) -> LlamaForSequenceClassification:
    """transformers' own model with the same head."""
    model = LlamaForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    model.score.weight.data.copy_(HEAD)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("contract", ["rankllama", "rankllama-v1", "rankllama-v2"])
def test_scores_are_those_of_transformers_own_classifier(contract: str, llama: Path):
    reranker, reference = make(llama, contract), classifier(llama)
    ids = reranker.inputs.pair_ids(PAIRS)
    padded, lengths = pad(ids, 0)
    scores = reranker(padded, lengths).values
    alone = torch.stack([reference(torch.tensor([row])).logits[0, 0] for row in ids])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-6)
    reference.config.pad_token_id = 0
    together = reference(padded, attention_mask=(padded != 0)).logits[:, 0]
    torch.testing.assert_close(scores, together, atol=1e-5, rtol=1e-6)
    assert scores.std() > 0.1  # else any two would be close


@torch.inference_mode()
def test_an_encoder_scores_by_its_first_token(bert: Path):
    reranker, reference = make(bert, "bert-pair"), AutoModel.from_pretrained(bert).eval()
    ids = reranker.inputs.pair_ids(PAIRS)
    alone = [reference(torch.tensor([row])).last_hidden_state[0, 0] @ HEAD[0] for row in ids]
    torch.testing.assert_close(torch.from_numpy(score_pairs(reranker, PAIRS)), torch.stack(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_to_score_and_its_padding_changes_nothing(family: str, bidirectional: bool):
    contract = named_contract("rankllama" if family in DECODERS else "bert-pair")
    reading = replace(contract.reading, bidirectional=bidirectional)
    backbone = small(family)
    apply_reading(backbone, reading)
    reranker = PointwiseModel(backbone, Inputs(contract.form, tokenizer()), reading, HEAD)
    rows = [[1, 5, 9, 7, 8, 11, 2], [1, 12, 14, 2]]
    scores = reranker(*pad(rows, 0)).values
    alone = torch.cat([reranker(*pad([row], 0)).values for row in rows])
    torch.testing.assert_close(scores, alone, atol=1e-4, rtol=0)
    scores.sum().backward()
    learning = {name: p for name, p in reranker.named_parameters() if "pooler" not in name}
    assert {name for name, p in learning.items() if p.grad is None or not p.grad.isfinite().all()} == set()


def test_a_bidirectional_contract_lets_the_query_see_the_document(llama: Path):
    backbone, (first, second) = load_backbone(str(llama)), ([1, 5, 9, 2], [1, 5, 7, 2])
    for both_ways in (False, True):
        inputs = Inputs(named_contract("rankllama").form, load_tokenizer(llama))
        reading = Reading(pooling="cls", bidirectional=both_ways)
        apply_reading(backbone, reading)
        reranker = PointwiseModel(backbone, inputs, reading, HEAD)
        one, two = reranker(*pad([first, second], 0)).values.tolist()
        assert (one == pytest.approx(two, abs=1e-5)) != both_ways


def test_a_pooling_that_does_not_exist_is_refused(llama: Path):
    with pytest.raises(UserError, match="unknown pooling 'lats': perhaps 'last'"):
        open_backbone(open_folder(str(llama)), Reading(pooling="lats"))


def test_the_head_and_the_backbone_learn(llama: Path):
    reranker = make(llama, "rankllama")
    reranker(*pad(reranker.inputs.pair_ids(PAIRS[:2]), 0)).values.sum().backward()
    first = next(reranker.backbone.parameters())
    for parameter in (reranker.head, first):
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_scores_and_head_are_float32_whatever_the_backbone_is(llama: Path):
    exact, half = make(llama, "rankllama"), make(llama, "rankllama", torch.bfloat16)
    assert half.head.dtype == torch.float32
    batch = pad(exact.inputs.pair_ids(PAIRS), 0)
    with torch.inference_mode():
        assert half(*batch).values.dtype == torch.float32
        assert torch.corrcoef(torch.stack([half(*batch).values, exact(*batch).values]))[0, 1] > 0.99


def test_a_new_head_is_the_seeds_and_as_small_as_the_backbones_first_weights(llama: Path):
    backbone = load_backbone(str(llama))
    first, again, other = (new_head(backbone, seed=seed) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    assert first.shape == (1, 64)
    assert first.std().item() == pytest.approx(0.2, rel=0.4)


def test_a_new_head_leaves_the_callers_random_numbers_alone(llama: Path):
    backbone = load_backbone(str(llama))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    new_head(backbone, seed=0)
    assert torch.rand(1).equal(expected)
