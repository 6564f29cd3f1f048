"""Training by reward: settings, rankings and answers sampled on policy."""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import language_model_to_train
from tiny import DOCUMENTS, QUERIES, Tiny, shaken, write_speaker
from transformers import AutoModelForCausalLM

from shortlist import train
from shortlist.errors import UserError
from shortlist.math.losses.policy import LENGTH_TERMS, draw_rankings, policy, ranked
from shortlist.math.losses.policy import POLICIES as LOSSES
from shortlist.math.losses.policy import REWARDS as RANKING_REWARDS
from shortlist.math.ranking import Ranking
from shortlist.math.rewards import ANSWER_REWARDS, LIST_REWARDS
from shortlist.models.folder import open_folder
from shortlist.models.generator import Generator
from shortlist.models.heads import OutputHead
from shortlist.models.language import LanguageModel, Wanted, output_embedding
from shortlist.models.load import load_generator
from shortlist.records import Group
from shortlist.settings.reward import LENGTH_CHOICES, POLICY_OPTIONS, REWARD_KINDS, parse_rewarded, with_reward
from shortlist.settings.train_job import check_first
from shortlist.text.batching import pad
from shortlist.text.contract import named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.prompts import named_prompt
from shortlist.text.rendering import Renderer
from shortlist.train import loop, rollout
from shortlist.train.examples import Batch
from shortlist.train.heldout import Heldout
from shortlist.train.log import read_log
from shortlist.train.rollout import RankingRollout, Sampler, answers_of, check_rewards, heldout_batch

BATCH = Batch(
    queries=QUERIES[:2],
    documents=[DOCUMENTS[:3], DOCUMENTS[4:7]],
    positives=[frozenset({"d0"}), frozenset({"d4"})],
)


def settings(tiny: Tiny, out: Path = Path("out"), **change: Any) -> train.Config:
    backbone = tiny.reranker if set(change) <= {"reward", "policy", "loss"} else tiny.speaker
    values = {"kind": "reranker", "backbone": str(backbone), "collection": str(tiny.collection), "out": out}
    values |= {"batch_size": 3, "steps": 3, "learning_rate": 0.003, "warmup_steps": 1}
    return train.Config(**(values | change))


@pytest.fixture
def model(tiny: Tiny) -> LanguageModel:
    return shaken(language_model_to_train(str(tiny.speaker)))


def sampler(model: Any, reward: str, prompt: str | None = None, policy: str | None = None) -> Sampler:
    config = train.Config(
        kind="reranker", backbone="", collection="", out=Path("out"), reward=reward, prompt=prompt, policy=policy
    )
    config = with_reward(config)
    rewarded = parse_rewarded(config)
    assert rewarded is not None
    prompt_of = named_prompt(str(config.prompt))
    num_docs = 1 if prompt_of.asks == "grade" else 3
    return Sampler(prompt_of, model.inputs.tokenizer, rewarded, num_docs=num_docs, longest=4096)


def graded(scores: list[float], grades: list[float]) -> Ranking:
    """One query, every document counted; the scores take gradients."""
    values = torch.tensor([scores], requires_grad=True)
    return Ranking(values, torch.tensor([grades]).float(), None, torch.ones(1, len(scores), dtype=torch.bool))


# Settings


def test_lengths_that_may_be_named_are_those_of_the_loss():
    assert tuple(LENGTH_TERMS) == LENGTH_CHOICES


@pytest.mark.parametrize("name", POLICY_OPTIONS)
def test_a_policys_options_are_those_of_its_loss(name: str):
    found = inspect.signature(LOSSES[name]).parameters.values()
    options = {one.name: one.default for one in found if one.kind is one.KEYWORD_ONLY}
    assert {key: value for key, value in POLICY_OPTIONS[name].items() if key != "updates"} == options


def test_every_reward_has_a_function_and_its_prompt_fits():
    assert set(REWARD_KINDS) == {*ANSWER_REWARDS, *LIST_REWARDS} > set(RANKING_REWARDS)
    for name, kind in REWARD_KINDS.items():
        assert (kind.prompt is None) == (name in RANKING_REWARDS)
        assert kind.prompt is None or named_prompt(kind.prompt).asks in kind.asks


def test_a_reranker_that_answers_is_trained_as_the_language_model_that_it_is(tiny: Tiny):
    found = with_reward(settings(tiny, reward="label,tokens=9"))
    assert (found.kind, found.prompt) == ("language-model", "rank-r1")
    assert with_reward(found) == found
    assert with_reward(settings(tiny, reward="label", prompt="setwise")).prompt == "setwise"
    assert with_reward(settings(tiny, reward="ndcg")) == settings(tiny, reward="ndcg")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reward": "ndgc"}, "unknown reward 'ndgc'"),
        ({"reward": "ndcg,tokens=3"}, "unknown option of ndcg 'tokens'"),
        ({"reward": "label,k=3"}, "unknown option of label 'k'"),
        ({"reward": "ndcg,samples=1"}, "samples is 1; expected at least 2"),
        ({"reward": "ndcg,temperature=0"}, "temperature is 0.0; expected more than 0"),
        ({"reward": "ndcg", "policy": "ppo"}, "unknown policy 'ppo'"),
        ({"reward": "ndcg", "policy": "pg,kl=1"}, "unknown option of pg 'kl'"),
        ({"reward": "ndcg", "policy": "grpo,clip=0.1"}, "there is one; add updates=2"),
        ({"reward": "ndcg", "policy": "grpo,updates=0"}, "updates is 0; expected at least 1"),
        ({"reward": "ndcg", "policy": "orpo,length=aded"}, "unknown length 'aded': perhaps 'added'"),
        ({"policy": "grpo"}, "--policy: says how rewards are learned from; add --reward"),
        ({"reward": "ndcg", "loss": ("policy",)}, "--loss policy: rewards rankings as --reward does"),
        ({"reward": "label", "loss": ("anchor=0.1",)}, "--loss anchor=0.1: is not for sampled answers"),
        ({"reward": "ndcg", "kind": "retriever"}, "--reward ndcg: rewards the rankings or the answers of a reranker"),
        ({"reward": "ndcg", "kind": "language-model"}, "none are asked for; add --prompt"),
        (
            {"reward": "label", "prompt": "erank"},
            "does not read its answers; take another, such as rank-r1",
        ),
        ({"reward": "ndcg", "prompt": "core"}, "--reward ndcg does not read its answers"),
        ({"reward": "label", "negatives": 20}, "the prompt rank-r1 shows at most 20 documents"),
        ({"reward": "label", "sharded": True}, "--sharded: answers are sampled with whole models"),
        ({"reward": "label", "adapter": "prefix"}, "--adapter prefix: answers are not generated with it"),
        ({"reward": "label", "pooling": "mean"}, "--pooling: says nothing about a language model"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(tiny: Tiny, change: dict, words: str):
    with pytest.raises(UserError) as refused:
        check_first(settings(tiny, **change))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_groups_without_what_the_reward_needs_are_refused(tiny: Tiny, tmp_path: Path):
    with pytest.raises(UserError, match=r"--reward group: none of the 8 groups .* has grades other than relevant"):
        train.run(settings(tiny, tmp_path / "out", reward="group", negatives=2))
    rewarded = parse_rewarded(settings(tiny, reward="ndcg"))
    assert rewarded is not None
    with pytest.raises(UserError, match=r"1 of 2 groups of here have no relevant document, so nothing is rewarded"):
        check_rewards(rewarded, [Group("q0", ("d0",), ("d1",)), Group("q1", (), ("d1", "d2"))], where="here")


def test_a_backbone_without_a_head_generates_nothing(tiny: Tiny, tmp_path: Path):
    for backbone, words in ((tiny.llama, "has no language-model head"), (tiny.bert, "its tokens see what comes after")):
        with pytest.raises(UserError, match=words):
            train.run(settings(tiny, tmp_path / "out", reward="binary", negatives=2, backbone=str(backbone)))


# Rankings


def test_a_rewarded_ranking_has_the_loss_of_the_policy_loss_and_its_measures(tiny: Tiny):
    given = graded([0.4, -0.3, 0.9, 0.0], [2, 0, 1, 0])
    torch.manual_seed(0)
    expected = policy(given, samples=4, k=3)
    rewarded = parse_rewarded(settings(tiny, reward="ndcg,samples=4,k=3"))
    assert rewarded is not None
    torch.manual_seed(0)
    outcome = RankingRollout(rewarded, [])(given)
    assert outcome.loss.item() == expected.item()
    gradients = [torch.autograd.grad(loss, given.scores)[0].tolist() for loss in (outcome.loss, expected)]
    assert gradients[0] == gradients[1]
    assert outcome.measured["reward"] == pytest.approx(-expected.item(), abs=1e-6)
    torch.manual_seed(0)
    sampled = ranked(given, draw_rankings(given, samples=4, k=3))
    assert outcome.measured["entropy"] == pytest.approx(-sampled.log_probs.mean().item(), abs=1e-6)
    assert "kl" not in outcome.measured


def test_later_updates_learn_from_the_same_samples_as_they_were_drawn(tiny: Tiny):
    rewarded = parse_rewarded(settings(tiny, reward="ndcg,samples=4", policy="grpo,updates=2,kl=0"))
    assert rewarded is not None
    assert rewarded.updates == 2
    rolled = RankingRollout(rewarded, [])
    first = rolled(graded([0.4, -0.3, 0.9], [2, 0, 1]))
    again = rolled(graded([0.4, -0.3, 0.9], [2, 0, 1]))
    assert again.loss.item() == first.loss.item()
    moved = rolled(graded([0.9, -0.3, 0.9], [2, 0, 1]))
    assert moved.measured["reward"] == first.measured["reward"]  # the same rankings
    assert moved.loss.item() != first.loss.item()  # whose ratios have changed


@pytest.mark.parametrize(
    "change",
    [
        {"reward": "mrr,samples=4"},
        {"reward": "ndcg,samples=4", "policy": "dpo,updates=2", "loss": ("anchor=0.5",)},
        {"reward": "recall,samples=4,k=1", "policy": "grpo,kl=0.1"},
    ],
)
def test_a_reranker_learns_from_rewards_and_logs_them(tiny: Tiny, tmp_path: Path, change: dict):
    train.run(settings(tiny, tmp_path / "out", heldout_split="test", backbone=str(tiny.reranker), **change))
    records = [record for record in read_log(tmp_path / "out") if "loss" in record]
    assert len(records) == 3
    assert all({"reward", "entropy"} < record.keys() for record in records)
    assert all(("kl" in record) == ("policy" in change) for record in records)
    if "policy" in change:
        assert records[0]["kl"] == pytest.approx(0, abs=1e-6) or "updates" in change["policy"]
        assert records[-1]["kl"] > 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["results"]["losses"]["reward"]["samples"] == 4


# Answers


def test_the_log_probabilities_that_train_are_the_generators_and_their_gradient_is_transformers(tiny: Tiny, model: Any):
    prompts, answers = [[5, 9, 7], [4, 8]], [[3, 6], [11, 2, 9]]
    ids, lengths = pad([p + a for p, a in zip(prompts, answers, strict=True)], 0)
    asked = [Wanted(len(p), len(p) + len(a), temperature=1.0) for p, a in zip(prompts, answers, strict=True)]
    rows = model(ids, lengths, asked=asked)
    assert rows.counts.tolist() == [2, 3]
    generator = Generator(model.backbone, OutputHead(output_embedding(model).detach()))
    assert rows.values.tolist() == pytest.approx(generator.log_probs(prompts, answers).values.tolist(), abs=1e-5)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
    (gradient,) = torch.autograd.grad(rows.values @ weights, [model.backbone.layers[0].self_attn.q_proj.weight])
    plain = AutoModelForCausalLM.from_pretrained(tiny.speaker)
    plain.model.load_state_dict(model.backbone.state_dict())
    parts = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logs = plain(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        parts += [logs[len(prompt) - 1 + place, token] for place, token in enumerate(answer)]
    (expected,) = torch.autograd.grad(torch.stack(parts) @ weights, [plain.model.layers[0].self_attn.q_proj.weight])
    assert gradient.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    halved = model(ids, lengths, asked=[one._replace(temperature=2.0) for one in asked])
    logs = (plain(torch.tensor([prompts[0] + answers[0]])).logits[0] / 2).log_softmax(-1)
    assert halved.values[0].item() == pytest.approx(logs[2, answers[0][0]].item(), abs=1e-5)


def test_answers_are_drawn_with_the_weights_of_the_step(model: Any):
    asking = sampler(model, "label,tokens=3")
    example = asking.example(BATCH, rng=np.random.default_rng(0))
    assert example.token_ids == []
    drawn = [example.draw(model, seed=7) for _ in range(2)] if example.draw else []
    assert drawn[0].token_ids == drawn[1].token_ids
    with torch.no_grad():
        model.backbone.embed_tokens.weight.neg_()
    assert example.draw
    assert example.draw(model, seed=7).token_ids != drawn[0].token_ids
    assert example.draw(model, seed=8).token_ids != example.draw(model, seed=7).token_ids
    assert model.training


def test_a_sample_earns_what_its_answer_says(model: LanguageModel):
    """Answers that are told, not drawn."""
    asking = sampler(model, "label,samples=4,tokens=90")
    questions = asking.questions(BATCH, rng=np.random.default_rng(1))
    place = questions[0].grades.index(1.0)
    right = f"<think> so </think> <answer>[{place + 1}]</answer>"
    texts = [right, right.replace(f"[{place + 1}]", f"[{(place + 1) % 3 + 1}]"), right[8:], f"[{place + 1}]"]
    encode = asking.tokenizer
    ids = [[encode(text, add_special_tokens=False)["input_ids"] for text in texts]]
    rendered = asking.renderer.render_many([questions[0].asked])
    said = asking.said(questions[:1], rendered, ids)
    assert [one.well_formed for one in said[0]] == [True, True, False, False]
    assert rollout.rewards_of(asking, questions[:1], said).tolist() == [[1, 0, 0, 0]]
    objective = rollout.AnswerRollout(
        asking.rewarded, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), [0, 1, 0, 1], [said[0]], most=90
    )
    values = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0], requires_grad=True)
    outcome = objective(
        rollout.Rows(values, torch.tensor([2, 3])), start_rows=rollout.Rows(values.detach(), torch.tensor([2, 3]))
    )
    assert outcome.measured["answer_length"] == 2.5
    assert outcome.measured["malformed"] == 0.5
    assert outcome.measured["kl"] == 0
    assert outcome.measured["entropy"] == pytest.approx((3 + 12 + 3 + 12) / 10)
    (gradient,) = torch.autograd.grad(outcome.loss, values)
    assert gradient[0] < 0 < gradient[2]  # the first answer earned more


def test_each_document_is_asked_about_alone_and_ranked_among_all(model: LanguageModel):
    asking = sampler(model, "list,samples=2,tokens=40")
    questions = asking.questions(BATCH, rng=np.random.default_rng(0))
    assert [one.asked[1][0].doc_id for one in questions] == ["d0", "d1", "d2", "d4", "d5", "d6"]
    assert [one.grades for one in questions] == [[1.0], [0.0], [0.0], [1.0], [0.0], [0.0]]
    said = [[rollout.Said([9.0]), rollout.Said([9.0])] for _ in questions]
    assert rollout.rewards_of(asking, questions, said)[:, 0].tolist() == pytest.approx(
        [1, -0.81, -0.81, 1, -0.81, -0.81]
    )


def test_grades_are_the_groups_where_it_has_some(model: LanguageModel):
    graded = BATCH._replace(grades=[(2, 0, 1), ()])
    assert [rollout.grades_of(graded, number) for number in (0, 1)] == [[2, 0, 1], [1, 0, 0]]


TRAININGS: list[dict[str, Any]] = [
    {"reward": "label,samples=3,tokens=6", "policy": "grpo,updates=2,kl=0.1"},
    {"reward": "label,samples=3", "prompt": "setwise", "policy": "dr-grpo", "adapter": "lora,r=4"},
    {"reward": "ndcg,samples=3,tokens=4", "prompt": "first", "policy": "dapo"},
    {"reward": "list,samples=2,tokens=4", "policy": "pg"},
    {"reward": "exclusion,samples=2,tokens=4", "policy": "dpo"},
    {"reward": "mrr,samples=3,tokens=4", "prompt": "first", "policy": "orpo,length=multiplied,beta=2.5"},
    {"reward": "binary,samples=3"},
]


@pytest.mark.parametrize("change", TRAININGS, ids=lambda change: change["reward"].split(",")[0])
def test_a_language_model_learns_from_the_rewards_of_its_answers(tiny: Tiny, tmp_path: Path, change: dict):
    config = settings(tiny, tmp_path / "out", negatives=2, heldout_split="test", steps=2, batch_size=2, **change)
    train.run(replace(config, dry_run=True))
    train.run(config)
    records = read_log(tmp_path / "out")
    trained = [record for record in records if "loss" in record]
    assert len(trained) == 2
    assert all({"reward", "entropy", "answer_length", "malformed"} < record.keys() for record in trained)
    assert "heldout_reward" in records[-1]
    load_generator(open_folder(str(tmp_path / "out"), wanted="language-model"))


@pytest.mark.slow
def test_a_reward_that_can_be_had_is_learned(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Short answers of one token, rewarded for a token that is no rarer than others at first."""
    monkeypatch.setattr(rollout, "bad_tags", lambda answer, names: 0)
    parsed = rollout.Prompt.parsed
    monkeypatch.setattr(
        rollout.Prompt,
        "parsed",
        lambda self, answer, count, most=None: parsed(self, "1" if "a" in answer else "x", count),
    )
    config = settings(tiny, tmp_path / "out", reward="binary,samples=16,tokens=1", negatives=1)
    train.run(replace(config, steps=25, batch_size=4, learning_rate=0.01))
    rewards = [record["reward"] for record in read_log(tmp_path / "out")]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.5


@pytest.mark.parametrize("after", [2, 3])  # between two steps, and between two updates of a step
def test_an_interrupted_training_by_answers_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    def said(self: Sampler, questions: Any, rendered: Any, ids: Any) -> list[list[rollout.Said]]:
        return [[rollout.Said([float(answer[0] % 2)]) for answer in samples] for samples in ids]

    monkeypatch.setattr(Sampler, "said", said)  # so that samples earn different rewards
    change: dict[str, Any] = {"reward": "binary,samples=4", "policy": "grpo,updates=2", "negatives": 2}
    whole, broken = (
        settings(tiny, tmp_path / name, checkpoint_steps=1, adapter="lora,r=4", **change)
        for name in ("whole", "broken")
    )
    train.run(whole)
    torch.manual_seed(99)
    backward, calls = loop.backward, []

    def until_interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return backward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(broken)
    train.run(broken)
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (whole.out, broken.out)]
    assert weights[0] == weights[1]
    logs = [[(r["loss"], r["reward"], r["kl"]) for r in read_log(config.out)] for config in (whole, broken)]
    assert logs[0] == logs[1]
    assert logs[0][-1][-1] > 0  # it has moved


def test_all_processes_get_all_answers(model: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    prompts = [[5, 9, 7], [4, 8], [6]]
    told: list[Any] = []

    def gather(parts: list[Any], mine: Any) -> None:
        told.append(mine)
        parts[:] = told if len(told) == 2 else [mine, {1: [[0]]}]

    monkeypatch.setattr(rollout.dist, "all_gather_object", gather)
    how: dict[str, Any] = {"most": [2, 2, 1], "stop": [1], "samples": 2, "temperature": 1.0, "seed": 3}
    answers_of(model, prompts, world=rollout.World(0, 2), **how)
    both = answers_of(model, prompts, world=rollout.World(1, 2), **how)
    assert [len(samples) for samples in both] == [2, 2, 2]
    assert all(len(answer) <= 1 for answer in both[2])


def test_held_out_groups_have_a_relevant_document_and_bm25s_best_others():
    heldout = Heldout(QUERIES[:2], DOCUMENTS, [frozenset({"d0"}), frozenset({"d1", "d5"})])
    batch = heldout_batch(heldout, negatives=2)
    assert [group[0].doc_id for group in batch.documents] == ["d0", "d1"]
    assert [len(group) for group in batch.documents] == [3, 3]
    assert not {document.doc_id for document in batch.documents[1][1:]} & {"d1", "d5"}


def test_the_warm_ups_prompt_is_what_the_contract_of_the_next_stage_reads(tmp_path: Path):
    """ProRank's second stage reads the logits of 1 and 0 where its first one has learned to write them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_speaker(tmp_path / "speaker"))
    query, document = QUERIES[0], DOCUMENTS[0]
    one = Renderer(named_prompt("prorank"), tokenizer).render(query, [document])
    [ids] = Inputs(named_contract("mxbai-rerank-v2").form, tokenizer).pair_ids([(query, document)])
    assert tokenizer.decode(one.ids) == tokenizer.decode(ids)
