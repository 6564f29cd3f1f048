"""Training of rerankers whose score is what a language model answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from named import load_reranker, reranker_to_train
from tiny import DOCUMENTS, QUERIES, YES_NO, Tiny, shaken, write_speaker
from transformers import AutoModelForCausalLM

from shortlist import export, train
from shortlist.data.files import write_json
from shortlist.data.groups import write_groups
from shortlist.errors import UserError
from shortlist.models.adapter_settings import parse_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.answering import AnsweringModel
from shortlist.models.folder import CONTRACT, open_folder
from shortlist.models.outputs import pair_scores
from shortlist.models.run import score_pairs
from shortlist.models.save import save_model
from shortlist.records import Group
from shortlist.text.batching import pad

PAIRS = [(QUERIES[0], document) for document in DOCUMENTS[:5]]


def answering(folder: Path) -> AnsweringModel:
    return reranker_to_train(str(folder), YES_NO)


def numbers(model: AnsweringModel) -> torch.Tensor:
    return model(*pad(model.inputs.pair_ids(PAIRS), 0)).values


@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_are_the_logits_of_both_answers(tied: bool, tmp_path: Path):
    model = answering(write_speaker(tmp_path, tied=tied))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    yes_and_no = model.inputs.tokenizer.convert_tokens_to_ids(["yes", "no"])  # type: ignore[attr-defined]
    expected = [theirs(torch.tensor([ids])).logits[0, -1, yes_and_no] for ids in model.inputs.pair_ids(PAIRS)]
    torch.testing.assert_close(numbers(model), torch.stack(expected))


@pytest.mark.parametrize("adapter", [None, "lora,r=4,dropout=0,targets=q_proj+v_proj"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_scores_as_it_did_and_is_a_causal_language_model(tied: bool, adapter: str | None, tmp_path: Path):
    speaker = write_speaker(tmp_path / "speaker", tied=tied)
    model = answering(speaker)
    added = add_adapter(model.backbone, parse_adapter(adapter)) if adapter else None
    if adapter and model.output is not None:
        model.output.requires_grad_(False)
    shaken(model)
    save_model(model, tmp_path / "m", adapter=added, base=str(speaker))
    scores = pair_scores(model(*pad(model.inputs.pair_ids(PAIRS), 0))).tolist()
    assert score_pairs(load_reranker(str(tmp_path / "m")), PAIRS) == pytest.approx(scores, abs=1e-5)
    before = pair_scores(answering(speaker)(*pad(model.inputs.pair_ids(PAIRS), 0))).tolist()
    assert scores != pytest.approx(before, abs=1e-3)
    if adapter is None:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
        logits = theirs(torch.tensor([model.inputs.pair_ids(PAIRS)[0]])).logits[0, -1, model.answer]
        assert (logits[0] - logits[1]).item() == pytest.approx(scores[0], abs=1e-5)


def test_a_contract_of_one_answer_gives_a_number(tiny: Tiny):
    one = replace(YES_NO, reading=replace(YES_NO.reading, answer=("yes",)))
    model = reranker_to_train(str(tiny.speaker), one)
    assert numbers(model).tolist() == pytest.approx(numbers(answering(tiny.speaker))[:, 0].tolist())


@pytest.fixture
def speaker(tmp_path: Path) -> Path:
    """A language model whose contract says that it answers with yes or no."""
    folder = write_speaker(tmp_path / "speaker")
    write_json(folder / CONTRACT, YES_NO.to_dict())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "direction"), [("sft", "contrastive"), ("contrastive", "sft")])
def test_a_model_learns_to_answer_with_yes_and_no(
    weight: str, direction: str, speaker: Path, tiny: Tiny, tmp_path: Path
):
    groups = [Group(f"q{i}", (f"d{i}",), tuple(f"d{(i + j) % 12}" for j in range(1, 5))) for i in range(8)]
    write_groups(tmp_path / "groups.jsonl", groups)
    loss = ("yes_no", "yes_no.negatives=all", f"yes_no.weight={weight}", f"yes_no.direction={direction}")
    settings: dict[str, Any] = {"kind": "reranker", "backbone": str(speaker), "collection": str(tiny.collection)}
    settings |= {"groups": str(tmp_path / "groups.jsonl"), "loss": loss, "batch_size": 8, "warmup_steps": 2}
    settings |= {"heldout_split": "test", "heldout_steps": 40}
    train.run(train.Config(**settings, out=tmp_path / "m", steps=80, learning_rate=0.003))
    model = load_reranker(str(tmp_path / "m"))
    pairs = [(QUERIES[i], DOCUMENTS[(i + j) % 12]) for i in range(8) for j in range(5)]
    best = torch.from_numpy(score_pairs(model, pairs)).reshape(8, 5).argmax(1)
    assert (best == 0).sum() >= 7
    assert open_folder(str(tmp_path / "m"), wanted="reranker").own_contract("pair") == model.contract


def test_an_encoder_decoder_is_refused_in_one_line(tmp_path: Path):
    from transformers import T5Config, T5Model

    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 500}
    write_speaker(tmp_path)
    T5Model(T5Config(**shape)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is an encoder-decoder, which is not trained here"):
        reranker_to_train(str(tmp_path), YES_NO)


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_its_whole_weights_are_exported_with_the_output_embedding(tied: bool, answers: bool, tmp_path: Path):
    speaker = write_speaker(tmp_path / "speaker", tied=tied)
    if answers:
        write_json(speaker / CONTRACT, YES_NO.to_dict())
    contract = None if answers else "rankllama"
    export.run(export.Config(model=str(speaker), to="merged", out=tmp_path / "m", dtype="bf16", contract=contract))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    before = AutoModelForCausalLM.from_pretrained(speaker)
    ids = torch.tensor([[1, 50, 60, 70]])
    torch.testing.assert_close(theirs(ids).logits, before(ids).logits, atol=0.1, rtol=0.05)
    assert theirs.config.tie_word_embeddings == tied
    if answers:
        expected = score_pairs(load_reranker(str(speaker)), PAIRS)
        assert score_pairs(load_reranker(str(tmp_path / "m")), PAIRS) == pytest.approx(expected, abs=0.1)
