"""Language models that learn to answer a prompt about each group's documents."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from named import language_model_to_train
from tiny import DOCUMENTS, QUERIES, ZEPHYR_CHAT, Tiny, write_speaker
from torch import Tensor
from transformers import AutoModelForCausalLM

from shortlist import train
from shortlist.data.groups import groups_from_run, write_groups
from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.models.generator import Generator
from shortlist.models.language import LanguageModel
from shortlist.models.load import load_generator
from shortlist.models.outputs import Rows
from shortlist.records import Document, Group, Hit, Query
from shortlist.rerankers.models import LocalModel
from shortlist.settings.train import TRAINABLE
from shortlist.text.batching import pad
from shortlist.text.conversations import end_of_answer
from shortlist.text.prompts import named_prompt, prompts
from shortlist.text.rendering import Renderer
from shortlist.train.asking import Asking, Written, asking_example, learn_answers, make_askings, worth_of
from shortlist.train.build import collect_parts
from shortlist.train.examples import Batch
from shortlist.train.losses import check_needs, parse_losses
from shortlist.train.steps import backward

FIRST = ("lm", "ranknet=10", "ranknet.order=teacher", "ranknet.weigh_by_ranks=true")
GOLDEN, TEACHER = [2.0, -1.0, 0.5, 1.0], (3.0, 4.0, 1.0, 2.0)
"""Scores of four documents, and a teacher's, whose ranks of them are 2, 1, 4, 3."""
BATCH = Batch(
    queries=QUERIES[:2],
    documents=[DOCUMENTS[:4], DOCUMENTS[4:7]],
    positives=[frozenset({"d0"}), frozenset({"d4"})],
    scores=[TEACHER, (0.0, 1.0, 2.0)],
)


@pytest.fixture
def model(tiny: Tiny) -> LanguageModel:
    return language_model_to_train(str(tiny.speaker))


def asking_of(tokenizer: Any, prompt: str = "first", losses: Sequence[str] = FIRST, num_docs: int = 4) -> Asking:
    terms = parse_losses(losses, temperature=None)
    return Asking(named_prompt(prompt), tokenizer, terms, num_docs=num_docs, longest=4096)


def written_by(asking: Asking, batch: Batch = BATCH, seed: int = 0) -> list[Written]:
    return asking.write(batch, rng=np.random.default_rng(seed))


def answer_of(asking: Asking, one: Written) -> str:
    return asking.tokenizer.decode(one.token_ids[one.asked.start : one.asked.end])


def rows_of(batch: Batch, written: Sequence[Written], scores: Sequence[Sequence[float]]) -> Rows:
    """What a model gives that is sure of each answer and has these scores for each group's documents."""
    parts = [[0.0, 0.0, *(own[i] for i in one.shown)] for own, one in zip(scores, written, strict=True)]
    return Rows(torch.tensor([number for part in parts for number in part]), torch.tensor(list(map(len, parts))))


def loss_of(
    losses: Sequence[str], batch: Batch, scores: Sequence[Sequence[float]], written: Sequence[Written]
) -> float:
    terms = parse_losses(losses, temperature=None)
    return learn_answers(batch, written, terms)(rows_of(batch, written, scores)).loss.item()


def test_the_right_answer_is_the_teachers_order_of_what_is_shown_and_the_end_of_the_turn(model: LanguageModel):
    asking = asking_of(model.inputs.tokenizer, "rank-zephyr", ["lm"])
    for one, scores in zip(written_by(asking), BATCH.scores, strict=True):
        best = sorted(range(len(scores)), key=lambda number: -scores[number])
        expected = " > ".join(f"[{one.shown.index(number) + 1}]" for number in best)
        assert answer_of(asking, one) == f"{expected}</s>"
        before = asking.tokenizer.decode(one.token_ids[: one.asked.start])
        assert before.endswith("any word or explain.</s>\n<|assistant|>\n")
        for place, number in enumerate(one.shown):
            documents = BATCH.documents[0 if len(scores) == 4 else 1]
            assert f"[{place + 1}] {documents[number].text.strip()}\n" in before


def test_the_order_shown_is_another_in_each_step_and_the_same_for_its_seed(model: LanguageModel):
    asking = asking_of(model.inputs.tokenizer)
    drawn = [[one.shown for one in written_by(asking, seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, [3.0, 4.0, 1.0, 2.0]),
        ({"scores": ()}, [0.0, 2.0, 1.0, 0.0]),
        ({"scores": [(), ()], "grades": ()}, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_the_order_is_the_teachers_or_that_of_grades_or_has_positives_first(known: dict, expected: Any):
    batch = BATCH._replace(grades=[(0, 2, 1, 0), (1, 0, 0)])._replace(**known)
    assert worth_of(batch, 0) == expected


def test_documents_that_are_equally_good_stay_as_they_are_shown(model: LanguageModel):
    asking = asking_of(model.inputs.tokenizer, losses=["lm"])
    one = written_by(asking, BATCH._replace(scores=()))[0]
    place = one.shown.index(0)
    letters = [letter for i, letter in enumerate("ABCD") if i != place]
    assert answer_of(asking, one) == "] > [".join(["ABCD"[place], *letters]) + "]</s>"


@pytest.mark.parametrize(("name", "expected"), [("prp", " A"), ("setwise", " A")])
def test_a_prompt_that_asks_for_the_best_is_answered_by_the_best(name: str, expected: str, model: LanguageModel):
    asking = asking_of(model.inputs.tokenizer, name, ["lm"], num_docs=2)
    batch = Batch(QUERIES[:1], [DOCUMENTS[:2]], [frozenset()], scores=[(0.0, 1.0)])
    for seed in range(4):
        [one] = written_by(asking, batch, seed)
        assert answer_of(asking, one) == f" {'BA'[one.shown[0]]}</s>"
        assert one.shown != [1, 0] or answer_of(asking, one) == f"{expected}</s>"


def test_a_prompt_for_queries_is_answered_by_the_query_of_its_document(model: LanguageModel):
    asking = asking_of(model.inputs.tokenizer, "queries", ["lm"], num_docs=1)
    batch = Batch(QUERIES[:2], [DOCUMENTS[:1], DOCUMENTS[1:2]], [frozenset({"d0"}), frozenset({"d1"})])
    for number, one in enumerate(written_by(asking, batch)):
        assert answer_of(asking, one) == QUERIES[number].text + "</s>"
        assert DOCUMENTS[number].text.strip() in model.inputs.tokenizer.decode(one.token_ids)
    with pytest.raises(UserError, match="its answers are queries, which --loss lm alone learns"):
        asking_of(model.inputs.tokenizer, "queries", ["lm", "infonce"], num_docs=1)


def test_every_prompt_that_groups_can_answer_is_read_back_without_a_fault():
    for name in prompts():
        prompt = named_prompt(name)
        if (
            prompt.asks not in TRAINABLE
            or prompt.asks in ("queries", "blocks")
            or name in ("rank-r1", "rank-r1-v0.2", "iranker")
        ):
            continue
        count = prompt.shown_at_once()
        order = np.random.default_rng(0).permutation(count).tolist()
        scores, faults = prompt.parsed(prompt.begins + prompt.right_answer(order), count, count // 2)
        assert not faults
        named = [place for place in range(count) if scores[place] > 0]
        known = sorted(named, key=lambda place, of=scores: -of[place])
        assert known == order[: len(known)]
        assert known


def test_labels_are_read_behind_the_bracket_though_turns_end_with_the_token_that_pads(model: LanguageModel):
    tokenizer: Any = model.inputs.tokenizer
    tokenizer.pad_token = tokenizer.eos_token  # as Zephyr's is: counting what is no padding finds another place
    asking = asking_of(tokenizer)
    letters = tokenizer.convert_tokens_to_ids(list("ABCD"))
    for one in written_by(asking):
        at = one.asked.position
        assert tokenizer.decode(one.token_ids[: at + 1]).endswith("<|assistant|>\n[")
        assert one.token_ids[at + 1] in letters
        assert list(one.asked.labels) == letters[: len(one.shown)]
        assert one.token_ids[: at + 1].count(tokenizer.eos_token_id) == 2
        assert one.asked.start == at + 1  # the bracket is given when the model is asked


def test_a_letter_that_is_one_token_with_its_bracket_is_read_and_learned_before_it(qwen: Any):
    from copy import deepcopy

    tokenizer = deepcopy(qwen)
    tokenizer.chat_template = ZEPHYR_CHAT
    asking = asking_of(tokenizer)
    for one in written_by(asking):
        assert tokenizer.decode(one.token_ids[: one.asked.position + 1]).endswith("<|assistant|>\n")
        assert [tokenizer.decode([label]) for label in one.asked.labels] == ["[A", "[B", "[C", "[D"][: len(one.shown)]
        assert answer_of(asking, one).startswith("[")
        assert one.token_ids[one.asked.start] in one.asked.labels


def test_an_answer_ends_as_the_chat_ends_a_turn(model: LanguageModel):
    tokenizer: Any = model.inputs.tokenizer
    prompt = named_prompt("first")
    assert end_of_answer(prompt, tokenizer) == tokenizer.eos_token_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = ZEPHYR_CHAT.replace("eos_token", "'<|im_end|>'")
    assert end_of_answer(prompt, tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_answer(named_prompt("rank-vicuna"), tokenizer) == tokenizer.eos_token_id


def test_a_models_numbers_are_those_of_transformers(tiny: Tiny, model: LanguageModel):
    written = written_by(asking_of(model.inputs.tokenizer))
    theirs = AutoModelForCausalLM.from_pretrained(tiny.speaker)
    rows = model(*pad([one.token_ids for one in written], 0), [one.asked for one in written])
    assert rows.counts is not None
    for one, row in zip(written, rows.values.split(rows.counts.tolist()), strict=True):
        logits = theirs(input_ids=torch.tensor([one.token_ids])).logits[0]
        wanted = torch.tensor(one.token_ids[one.asked.start :])
        said = logits[one.asked.start - 1 : -1]
        torch.testing.assert_close(row[0], F.cross_entropy(said, wanted, reduction="sum"))
        assert row[1] == (said.argmax(1) == wanted).sum()
        torch.testing.assert_close(row[2:], logits[one.asked.position, list(one.asked.labels)])


@pytest.mark.parametrize("copies", [1, 2])
def test_the_loss_of_a_batch_of_equal_lists_is_that_of_one_whatever_order_is_shown(copies: int, model: LanguageModel):
    batch = Batch(QUERIES[:copies], [DOCUMENTS[:4]] * copies, [frozenset({"d0"})] * copies, scores=[TEACHER] * copies)
    for seed in range(3):
        written = written_by(asking_of(model.inputs.tokenizer), batch, seed)
        assert loss_of(FIRST, batch, [GOLDEN] * copies, written) == pytest.approx(3.42026, abs=1e-5)


def test_the_worst_document_is_the_one_whose_label_is_likeliest_where_it_is_asked_for(model: LanguageModel):
    batch = Batch(QUERIES[:1], [DOCUMENTS[:2]], [frozenset({"d0"})])
    written = [Written([1], written_by(asking_of(model.inputs.tokenizer))[0].asked, [0, 1])]
    terms = parse_losses(["infonce"], temperature=1.0)
    given = rows_of(batch, written, [[-3.0, 0.0]])
    expected = math.log(1 + math.exp(-3))
    assert learn_answers(batch, written, terms, sign=-1.0)(given).loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_a_joint_loss_is_that_of_its_two_parts(model: LanguageModel):
    def gradient(losses: Sequence[str], weights: Sequence[float]) -> Tensor:
        total = torch.zeros(())
        for names, weight in zip(losses, weights, strict=True):
            model.zero_grad()
            terms = parse_losses(names.split(), temperature=None)
            asking = asking_of(model.inputs.tokenizer, losses=FIRST)
            example = asking_example(asking, BATCH, terms, rng=np.random.default_rng(0))
            backward(model, example, token_budget=10_000, bf16=False, seed=0)
            gradient = model.embedding.grad
            assert gradient is not None
            total = total + weight * gradient
        return total

    joint = gradient(["lm ranknet=10"], [1.0])
    torch.testing.assert_close(joint, gradient(["lm", "ranknet"], [1.0, 10.0]), atol=1e-6, rtol=1e-4)


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """Eight groups of four, whose teacher likes the second of them best."""
    path, scores = tmp_path / "groups.jsonl", (2.0, 6.0, 0.0, 1.0)
    groups = [Group(f"q{i}", (f"d{i}",), tuple(f"d{(i + j) % 12}" for j in range(1, 4)), scores) for i in range(8)]
    write_groups(path, groups)
    return path


def settings(tiny: Tiny, out: Path, groups: Path, **change: Any) -> train.Config:
    values: dict[str, Any] = {"kind": "language-model", "backbone": str(tiny.speaker), "prompt": "first", "out": out}
    values |= {"collection": str(tiny.collection), "groups": str(groups), "batch_size": 8, "warmup_steps": 2}
    return train.Config(**values | {"learning_rate": 0.003, "steps": 2} | change)


@pytest.mark.slow
def test_a_trained_model_writes_answers_of_the_form_asked_for(tiny: Tiny, tmp_path: Path, groups: Path):
    train.run(settings(tiny, tmp_path / "m", groups, steps=60, learning_rate=0.01, negatives=1))
    folder, prompt = open_folder(str(tmp_path / "m"), wanted="language-model"), named_prompt("first")
    generator = Generator(*load_generator(folder))
    asked = LocalModel(generator, Renderer(prompt, folder.tokenizer, reads="text"), stop=(2,))
    [replies] = asked.replies([(QUERIES[i], DOCUMENTS[i : i + 2]) for i in range(8)])
    parsed = [prompt.parsed(str(reply.answer), 2) for reply in replies.values()]
    assert sum(not one.malformed for one in parsed) >= 6


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_is_a_causal_language_model(tied: bool, tiny: Tiny, tmp_path: Path, groups: Path):
    speaker = write_speaker(tmp_path / "speaker", tied=tied)
    train.run(settings(tiny, tmp_path / "m", groups, backbone=str(speaker)))
    before = AutoModelForCausalLM.from_pretrained(speaker)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    backbone, head = load_generator(open_folder(str(tmp_path / "m"), wanted="language-model"))
    ids = [[1, 50, 60, 70]]
    expected = theirs(torch.tensor(ids)).logits[0, -1]
    found = Generator(backbone.eval(), head).logits(ids, tokens=range(len(expected)))[0]
    torch.testing.assert_close(found, expected)
    assert theirs.config.architectures == ["LlamaForCausalLM"]
    assert theirs.config.tie_word_embeddings == tied
    assert not torch.equal(theirs.lm_head.weight, before.lm_head.weight)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_adapter_is_one_of_a_causal_language_model(tied: bool, tiny: Tiny, tmp_path: Path, groups: Path):
    from peft import AutoPeftModelForCausalLM

    speaker = write_speaker(tmp_path / "speaker", tied=tied)
    adapter = "lora,r=4,dropout=0,targets=q_proj+v_proj"
    train.run(settings(tiny, tmp_path / "m", groups, backbone=str(speaker), adapter=adapter, learning_rate=0.1))
    ids = [[1, 50, 60, 70]]
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "m")
    expected = theirs(input_ids=torch.tensor(ids)).logits[0, -1]
    before = AutoModelForCausalLM.from_pretrained(speaker)(torch.tensor(ids)).logits[0, -1]
    assert not torch.allclose(expected, before, atol=1e-3)
    backbone, head = load_generator(open_folder(str(tmp_path / "m"), wanted="language-model"))
    found = Generator(backbone.eval(), head).logits(ids, tokens=range(len(expected)))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_groups_of_judgements_get_negatives(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train.run(replace(settings(tiny, tmp_path / "m", Path()), groups=None, negatives=3, dry_run=True))
    said = capsys.readouterr()
    assert "8 of 8 groups had no negatives and get them from bm25" in said.err
    assert "a step         8 prompts" in said.out
    assert "prompts cut" in said.out
    assert "memory" in said.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "frist"}, "--prompt: unknown prompt 'frist': perhaps 'first'"),
        ({"prompt": "grouprank"}, "--prompt grouprank: what it asks for does not follow from groups; expected: all"),
        ({"prompt": "rank-r1"}, "--prompt rank-r1: its answers hold more than labels"),
        ({"prompt": "lit5"}, "--prompt lit5: is for encoder-decoders"),
        ({"prompt": "prp", "negatives": 2}, "--negatives 2: the prompt prp shows at most 2 documents"),
        ({"negatives": 0}, "--negatives is 0"),
        ({"corruption": 0.5}, "--corruption: says nothing about prompts"),
        ({"kind": "reranker", "prompt": "first"}, "--prompt: is for a language model"),
        ({"kind": "reranker", "prompt": None, "loss": ("lm",)}, "--loss lm: is for answers to a --prompt"),
        ({"heldout_split": "test"}, "--heldout-split: says nothing about a language model"),
        ({"max_length": 150}, r"the model reads 1\d\d; show fewer at once \(--negatives\)"),
        ({"loss": ("lm", "kl")}, "--loss kl: 8 of 8 groups of .* have no teacher's scores"),
        ({"loss": ("lm", "bands")}, "--loss bands: none of the 8 groups of .* has grades"),
    ],
)
def test_what_does_not_fit_a_prompt_is_one_line_before_anything_is_written(
    change: dict, message: str, tiny: Tiny, tmp_path: Path
):
    plain = [Group(f"q{i}", (f"d{i}",), tuple(f"d{(i + j) % 12}" for j in range(1, 4))) for i in range(8)]
    write_groups(tmp_path / "plain.jsonl", plain)
    with pytest.raises(UserError, match=message) as error:
        train.run(settings(tiny, tmp_path / "m", tmp_path / "plain.jsonl", **change))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "m").exists()


def test_a_model_without_a_chat_template_or_without_an_end_is_one_line(tiny: Tiny, tmp_path: Path, groups: Path):
    with pytest.raises(UserError, match="has no chat template, which the prompt 'first' needs"):
        train.run(settings(tiny, tmp_path / "m", groups, backbone=str(tiny.llama)))
    tokenizer = open_folder(str(tiny.speaker), wanted="language-model").tokenizer
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no token that ends an answer"):
        asking_of(tokenizer, "rank-vicuna", ["lm"])


def test_a_run_is_a_teacher_whose_lists_need_no_judgement(tiny: Tiny, tmp_path: Path):
    run = tmp_path / "run.trec"
    run.write_text("".join(f"q{i} Q0 d{j} {j + 1} {-j} x\n" for i in range(8) for j in range(4)))
    (tmp_path / "sources.yaml").write_text(f"a: {{collection: {tiny.collection}, run: {run}, split: test}}\n")
    change: dict[str, Any] = {"collection": None, "groups": None, "sources": str(tmp_path / "sources.yaml")}
    change |= {"loss": ("lm", "ranknet.order=teacher"), "steps": 1}
    train.run(replace(settings(tiny, tmp_path / "m", Path()), **change))
    assert (tmp_path / "m" / "model.safetensors").exists()
    [group, *_] = groups_from_run({"q0": [Hit("d3", 2.0), Hit("d1", 1.5), Hit("d2", 1.0)]}, depth=2)
    assert group == Group("q0", (), ("d3", "d1"), (2.0, 1.5))


def test_lists_without_a_teacher_or_a_positive_have_no_right_answer():
    with pytest.raises(UserError, match="--loss lm: 1 of 1 groups of here have neither a teacher's scores nor a rel"):
        check_needs(parse_losses(["lm"], temperature=None), [Group("q", (), ("d",))], where="here")


def test_a_window_is_no_longer_than_the_model_can_read_with_its_answer(model: LanguageModel):
    documents = [Document(str(i), "really " * 300) for i in range(4)]
    batch = Batch([Query("q", "which")], [documents], [frozenset({"0"})])
    for losses in (["lm"], FIRST):
        terms = parse_losses(losses, temperature=None)
        asking = Asking(named_prompt("first"), model.inputs.tokenizer, terms, num_docs=4, longest=700)
        [one] = written_by(asking, batch)
        assert 650 < len(one.token_ids) <= 700


def test_sources_of_the_same_groups_ask_with_several_prompts(tiny: Tiny, tmp_path: Path, groups: Path):
    source = f"{{collection: {tiny.collection}, groups: {groups}, "
    (tmp_path / "sources.yaml").write_text(f"a: {source}prompt: prp}}\nb: {source}prompt: setwise, negatives: 2}}\n")
    change: dict[str, Any] = {"collection": None, "groups": None, "sources": str(tmp_path / "sources.yaml")}
    config = replace(settings(tiny, tmp_path / "m", Path(), steps=4), **change)
    train.run(config)
    parts = collect_parts(config)
    askings = make_askings(config, parts, language_model_to_train(str(tiny.speaker)))
    assert [(one.prompt.name, one.num_docs) for one in askings] == [("prp", 2), ("setwise", 3)]
    with pytest.raises(UserError, match="source 'a': has a prompt, and the others have none; add --prompt"):
        train.run(replace(config, prompt=None))
    (tmp_path / "sources.yaml").write_text(f"a: {source}prompt: grouprank}}\n")
    with pytest.raises(UserError, match="--prompt grouprank: what it asks for does not follow from groups"):
        train.run(config)
