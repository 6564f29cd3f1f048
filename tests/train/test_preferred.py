"""Language models that learn which of two texts to write."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from named import language_model_to_train
from tiny import DOCUMENTS, QUERIES
from transformers import AutoModelForCausalLM, AutoTokenizer

from shortlist import train
from shortlist.data.preferences import Preference, PreferenceFile, Wording, write_preferences
from shortlist.errors import UserError
from shortlist.models.language import LanguageModel
from shortlist.pipeline.compressors import summary
from shortlist.records import Document
from shortlist.rerankers import Candidates
from shortlist.settings.train_job import check_first, has_run
from shortlist.text.prompts import named_prompt
from shortlist.train.log import read_log
from shortlist.train.preferred import Preferring
from shortlist.train.steps import Example, backward

from .test_resume import interrupted, steps, weights

PAIRS = [
    Preference(QUERIES[number], DOCUMENTS[number], f"the {text}", f"the {text} and a lot more of it")
    for number, text in enumerate(("apple", "boat has a price", "cello", "desk"))
]
ASKED = Wording("summary", 4)
COLOR = {"beta": 2.5, "length": "multiplied", "per_token": 0.1}


def file_of(pairs: list[Preference]) -> PreferenceFile:
    return PreferenceFile(Path("pairs.jsonl"), pairs, [3 + number for number in range(len(pairs))], ASKED)


@pytest.fixture(scope="module")
def model(language_model: Path) -> LanguageModel:
    return language_model_to_train(str(language_model))


def preferring(
    model: LanguageModel, pairs: list[Preference] = PAIRS, longest: int = 4096, **options: Any
) -> Preferring:
    prompt = named_prompt("summary").of_words(4)
    return Preferring(prompt, model.inputs.tokenizer, file_of(pairs), {**COLOR, **options}, longest=longest)


def example(model: LanguageModel, *places: int, **options: Any) -> Example:
    return preferring(model, **options)._example(list(map(str, places)))


def run_step(model: LanguageModel, one: Example, **how: Any) -> tuple[Any, list[torch.Tensor]]:
    model.zero_grad()
    outcome = backward(model, one, token_budget=how.pop("token_budget", 4096), bf16=False, seed=0, **how)
    return outcome, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.fixture
def files(tmp_path: Path) -> Any:
    write_preferences(tmp_path / "pairs.jsonl", PAIRS, ASKED)
    write_preferences(tmp_path / "heldout.jsonl", PAIRS[2:], ASKED)
    return tmp_path


@pytest.fixture
def settings(files: Path, language_model: Path) -> Any:
    def make(out: str = "writer", **change: Any) -> train.Config:
        values = {"kind": "language-model", "backbone": str(language_model), "preferences": files / "pairs.jsonl"}
        values |= {"out": files / out, "batch_size": 2, "steps": 3, "learning_rate": 0.01, "warmup_steps": 1}
        return train.Config(**values | change)

    return make


@pytest.mark.parametrize("length", ["none", "multiplied", "added"])
def test_the_loss_of_a_pair_is_orpo_of_the_probabilities_of_its_answers(
    model: LanguageModel, language_model: Path, length: str
):
    causal, tokenizer = (
        AutoModelForCausalLM.from_pretrained(language_model),
        AutoTokenizer.from_pretrained(language_model),
    )
    prompt, means, lengths = preferring(model).renderer.render(PAIRS[1].query, [PAIRS[1].document]).text, [], []
    for answer in (PAIRS[1].chosen, PAIRS[1].rejected):
        before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
        ids = torch.tensor([before + after + [tokenizer.eos_token_id]])
        logs = causal(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[len(before) - 1 :, 0]
        means.append(logs.mean().item())
        lengths.append(len(logs))
    odds = [mean - math.log(1 - math.exp(mean)) for mean in means]
    ratio, shorter = odds[0] - odds[1], 0.1 * (lengths[1] - lengths[0])
    assert shorter > 1
    ratio = {"none": ratio, "multiplied": ratio * shorter, "added": ratio + shorter}[length]
    outcome, _ = run_step(model, example(model, 1, length=length))
    assert outcome.loss.item() == pytest.approx(-means[0] + 2.5 * math.log(1 + math.exp(-ratio)), rel=1e-5)
    assert outcome.measured["chosen"] == pytest.approx(means[0], abs=1e-5)
    assert outcome.measured["rejected"] == pytest.approx(means[1], abs=1e-5)
    assert outcome.measured["answer_length"] == lengths[0]
    assert outcome.accuracy == float(means[0] > means[1])


def test_a_step_down_the_gradient_makes_the_chosen_answer_likelier_beside_the_rejected_one(language_model: Path):
    model = language_model_to_train(str(language_model))
    before, _ = run_step(model, example(model, 0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    after, _ = run_step(model, example(model, 0))
    gain = {name: after.measured[name] - before.measured[name] for name in ("chosen", "rejected")}
    assert gain["chosen"] > max(0, gain["rejected"])
    assert after.loss < before.loss


def test_which_pairs_share_a_pass_changes_nothing(model: LanguageModel):
    together, gradients = run_step(model, example(model, 0, 1, 2))
    alone = [run_step(model, example(model, place)) for place in range(3)]
    assert together.loss.item() == pytest.approx(sum(outcome.loss.item() for outcome, _ in alone) / 3, rel=1e-5)
    for how in ({"token_budget": 200}, {"token_budget": 200, "cached": True}):
        parted, others = run_step(model, example(model, 0, 1, 2), **how)
        assert parted.loss.item() == pytest.approx(together.loss.item(), rel=1e-5)
        torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-5)
    means = [sum(parts) / 3 for parts in zip(*(found for _, found in alone), strict=True)]
    torch.testing.assert_close(means, gradients, rtol=1e-4, atol=1e-5)


def test_a_model_is_trained_on_the_prompts_and_stops_that_it_works_with(model: LanguageModel, language_model: Path):
    stage = summary(model=str(language_model), words=4).open()
    local, tokenizer = stage.writer.model.model, model.inputs.tokenizer
    asked = [(one.query, [one.document]) for one in PAIRS]
    written = preferring(model).write_pairs(range(len(PAIRS)))
    for number, [ids, *_] in enumerate(local.keys(asked)):
        for one, text in zip(written[2 * number :], (PAIRS[number].chosen, PAIRS[number].rejected), strict=False):
            assert one.token_ids[: one.asked.start] == ids
            *answer, end = one.token_ids[one.asked.start : one.asked.end]
            assert one.asked.end == len(one.token_ids)
            assert end in local.stop
            assert tokenizer.decode(answer) == text  # type: ignore[attr-defined]


def test_a_prompt_that_would_be_cut_is_refused_and_one_that_just_fits_keeps_its_end(model: LanguageModel):
    longest = max(len(one.token_ids) for one in preferring(model).write_pairs([1]))
    room = preferring(model).renderer.render(QUERIES[1], [DOCUMENTS[1]])
    longest = max(longest, len(room.ids) + 12)  # the answer of a model that works has 3 tokens for each of 4 words
    for one in preferring(model, longest=longest).write_pairs([1]):
        assert one.token_ids[-1] == model.inputs.tokenizer.eos_token_id
    with pytest.raises(
        UserError, match=r"pairs.jsonl:4: the prompt has \d+ tokens and \d+ for its answer, and the mod"
    ):
        preferring(model, longest=longest - 1).write_pairs([0, 1])


def test_what_a_training_leaves_is_the_writer_of_a_pipeline(settings: Any, files: Path, capsys: Any):
    config = settings(heldout_preferences=files / "heldout.jsonl", heldout_steps=1, policy="orpo,length=added")
    check_first(config)
    train.run(config)
    records = read_log(config.out)
    heldout = [record["heldout_loss"] for record in records if "heldout_loss" in record]
    assert len(heldout) == 3
    assert heldout[-1] < heldout[0]
    results = json.loads((config.out / "manifest.json").read_text())["results"]
    assert results["heldout_loss"] == min(heldout)
    assert results["losses"] == {"orpo": {"beta": 0.1, "length": "added", "per_token": 0.1}}
    assert "chosen" in results
    stage = summary(model=str(config.out), words=4).open()
    assert len(stage.shorten([Candidates(QUERIES[0], DOCUMENTS[:2])])[0]) == 2
    assert stage.costs()["calls"] == 2
    assert has_run(config)
    write_preferences(files / "pairs.jsonl", PAIRS[:3], ASKED)
    assert not has_run(config)


def test_an_interrupted_training_is_resumed_to_the_bit(settings: Any, monkeypatch: pytest.MonkeyPatch):
    how = {"checkpoint_steps": 1, "adapter": "lora,r=2", "steps": 2}
    whole, broken = settings("whole", **how), settings("broken", **how)
    train.run(whole)
    interrupted(monkeypatch, broken, 1)
    train.run(broken)
    assert weights(broken.out) == weights(whole.out)
    assert steps(broken.out) == steps(whole.out)


def test_a_forecast_counts_both_answers(settings: Any, capsys: pytest.CaptureFixture[str]):
    train.run(settings(dry_run=True))
    out = capsys.readouterr().out
    assert "4 prompts" in out
    assert "prompts cut    0.0%" in out


def test_a_document_that_the_model_cannot_read_stops_a_training_before_it_begins(settings: Any, files: Path):
    long = PAIRS[0]._replace(document=Document("d", "apple " * 500))
    write_preferences(files / "heldout.jsonl", [PAIRS[1], long], ASKED)
    with pytest.raises(
        UserError, match=r"heldout.jsonl:2: the prompt has .* the model reads 300, so its document would"
    ):
        train.run(settings(heldout_preferences=files / "heldout.jsonl", max_length=300))
    assert not (files / "writer").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "reranker"}, "--preferences: is for a language model|--preferences: are learned by a language model"),
        ({"collection": "x"}, "--collection: says nothing about --preferences"),
        ({"reward": "ndcg"}, "--reward: says nothing about --preferences"),
        ({"loss": ("lm",)}, "--loss: says nothing about a language model"),
        ({"policy": "grpo"}, "--policy grpo: unknown policy 'grpo': .*orpo"),
        ({"policy": "orpo,updates=2"}, "updates"),
        ({"policy": "orpo,length=shorter"}, "unknown length 'shorter'"),
        ({"prompt": "first"}, "--prompt first: preferences are between texts; take summary"),
        ({"prompt": "summary-alone"}, "pairs.jsonl: was written with the prompt summary; add --prompt summary"),
        ({"preferences": Path("nothing")}, "--preferences nothing: no such file; `shortlist preferences` writes one"),
        (
            {"preferences": None, "collection": "x", "heldout_preferences": Path("y")},
            "--heldout-preferences: is measured",
        ),
        ({"adapter": "prompt"}, "--adapter prompt: a model that writes is loaded with its adapter merged; take lora"),
    ],
)
def test_what_says_nothing_about_preferences_is_refused(settings: Any, change: dict, message: str):
    def begin(config: train.Config) -> None:
        check_first(config)
        train.run(config)

    with pytest.raises(UserError, match=message):
        begin(settings(**change))


def test_held_out_preferences_are_written_for_the_same_prompt(settings: Any, files: Path):
    write_preferences(files / "heldout.jsonl", PAIRS, ASKED._replace(words=9))
    with pytest.raises(UserError, match=r"heldout.jsonl: was asked for other numbers of words than .*pairs.jsonl"):
        train.run(settings(heldout_preferences=files / "heldout.jsonl"))
