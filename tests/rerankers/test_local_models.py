"""A language model in this process: the same answers as transformers gives, however they are batched."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DOCUMENTS, QUERIES, Tiny, write_speaker
from transformers import AutoModelForCausalLM, AutoTokenizer

from shortlist.errors import UserError
from shortlist.rerankers import Candidates, models
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.kinds import load_reranker, prepare
from shortlist.rerankers.models import LocalModel
from shortlist.rerankers.opening import longest_input
from shortlist.text.rendering import QueryAndShown, Renderer

LISTS = [Candidates(query, DOCUMENTS[:6]) for query in QUERIES[:4]]
PAIRS: list[QueryAndShown] = [(query, DOCUMENTS[place : place + 4]) for query in QUERIES[:3] for place in (0, 4)]


def opened(method: str, folder: Path, **settings: Any) -> AskingReranker:
    ranker = load_reranker(method, model=str(folder), **settings)
    assert isinstance(ranker, AskingReranker)
    return ranker


def local(method: str, folder: Path, **settings: Any) -> LocalModel:
    model = opened(method, folder, **settings).questions.model
    assert isinstance(model, LocalModel)
    return model


def answers(model: LocalModel, asked: list[QueryAndShown]) -> list[Any]:
    found = {place: reply for part in model.replies(asked) for place, reply in part.items()}
    return [found[place].answer for place in range(len(asked))]


def test_logits_of_labels_are_those_of_transformers(language_model: Path):
    model = local("setwise", language_model)
    plain = AutoModelForCausalLM.from_pretrained(language_model).eval()
    for (query, documents), found in zip(PAIRS, answers(model, PAIRS), strict=True):
        rendered = model.renderer.render(query, documents)
        with torch.inference_mode():
            logits = plain(torch.tensor([rendered.ids])).logits[0, -1]
        expected = logits[model.renderer.label_ids(rendered, len(documents))].tolist()
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_generated_answers_are_those_of_transformers(language_model: Path):
    model = local("listwise", language_model, window=4)
    plain, tokenizer = (
        AutoModelForCausalLM.from_pretrained(language_model).eval(),
        AutoTokenizer.from_pretrained(language_model),
    )
    for (query, documents), found in zip(PAIRS, answers(model, PAIRS), strict=True):
        rendered = model.renderer.render(query, documents)
        ids = torch.tensor([rendered.ids])
        said = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=rendered.answer_tokens, do_sample=False
        )[0, ids.shape[1] :]
        assert found == tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["listwise", "setwise"])
def test_answers_are_the_same_in_parts_of_any_size(language_model: Path, method: str, monkeypatch: pytest.MonkeyPatch):
    model = local(method, language_model)
    whole = answers(model, PAIRS)
    monkeypatch.setattr(models, "TOKENS_AT_ONCE", 1)
    assert [len(part) for part in model.replies(PAIRS)] == [1] * len(PAIRS)
    for one, other in zip(answers(model, PAIRS), whole, strict=True):
        assert one == (other if isinstance(other, str) else pytest.approx(other, abs=1e-5))


def test_a_certain_grade_counts_by_its_probability(language_model: Path, monkeypatch: pytest.MonkeyPatch):
    ranker = opened("graded", language_model, prompt="erank")
    model = ranker.questions.model
    assert isinstance(model, LocalModel)
    asked: list[QueryAndShown] = [
        (QUERIES[0], DOCUMENTS[:1]),
        (QUERIES[1], DOCUMENTS[1:2]),
        (QUERIES[2], DOCUMENTS[2:3]),
    ]
    said = ["<think>3 of 10</think><answer>10</answer>", "<answer>0</answer>", "no grade"]
    ids = [model.renderer.tokenizer.encode(text, add_special_tokens=False) for text in said]
    monkeypatch.setattr(
        model.generator, "generate", lambda prompts, **_: [[ids[place]] for place in range(len(prompts))]
    )
    scores = [score for verdict in ranker.questions(asked) for score in verdict]
    plain = AutoModelForCausalLM.from_pretrained(language_model).eval()
    prompt, answer = model.renderer.render(*asked[0]).ids, ids[0]
    pieces = [model.renderer.tokenizer.decode(answer[:end]) for end in range(len(answer) + 1)]
    first = max(end for end, piece in enumerate(pieces) if len(piece) <= said[0].rindex("10"))
    last = min(end for end, piece in enumerate(pieces) if len(piece) >= said[0].rindex("10") + 2)
    with torch.inference_mode():
        logs = plain(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    expected = sum(logs[len(prompt) + place - 1, answer[place]].item() for place in range(first, last))
    assert last > first
    assert scores[0] == pytest.approx(10 * np.exp(expected), rel=1e-4)
    assert scores[1] == 0
    assert np.isnan(scores[2])
    assert ranker.questions.tally.malformed == 1


def test_a_key_is_what_the_model_reads(language_model: Path):
    model = local("setwise", language_model)
    keys = model.keys(PAIRS)
    assert len({repr(key) for key in keys}) == len(PAIRS)
    assert keys == model.keys(PAIRS)
    shorter = local("setwise", language_model, max_length=max(len(ids) for ids, *_ in keys) - 3)
    assert keys != shorter.keys(PAIRS)


def test_a_prompt_is_rendered_once_for_its_key_and_its_answer(language_model: Path, monkeypatch: pytest.MonkeyPatch):
    model = local("setwise", language_model)
    expected = answers(model, PAIRS[::2])
    model.keys(PAIRS)
    monkeypatch.setattr(Renderer, "render_many", lambda *_, **__: pytest.fail("rendered again"))
    assert answers(model, PAIRS[::2]) == [pytest.approx(answer, abs=1e-5) for answer in expected]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["listwise", "setwise", "pairwise", "graded"])
def test_lists_get_the_scores_that_each_gets_alone(language_model: Path, method: str):
    settings = {"window": 4, "stride": 2} if method == "listwise" else {}
    together = np.full(24, np.nan)
    for part in opened(method, language_model, **settings).score_lists(LISTS):
        together[part.numbers] = part.scores
    alone = opened(method, language_model, **settings)
    np.testing.assert_allclose(together, np.concatenate([alone.score(*each) for each in LISTS]), atol=1e-4)
    assert np.isfinite(together).any()


def test_prompts_fit_into_the_models_length_or_the_run_ends_with_what_to_do(language_model: Path):
    asked: list[QueryAndShown] = [(query, documents) for query, documents in LISTS]
    sizes = [len(ids) + most for ids, _, most, _ in local("listwise", language_model, window=6).keys(asked)]
    room = max(sizes) - 5
    short = [len(ids) + most for ids, _, most, _ in local("listwise", language_model, max_length=room).keys(asked)]
    assert [size <= room for size in short] == [True] * 4
    assert [size for size in sizes if size <= room] == [size for size in short if size in sizes and size <= room]
    with pytest.raises(UserError) as caught:
        opened("listwise", language_model, max_length=150).score(*LISTS[0])
    assert "'q0': 6 documents, cut to 8 words each, take" in str(caught.value)
    assert "but the model reads 150; show fewer at once (--window), or shorten the query." in str(caught.value)


def test_a_prompt_may_be_as_long_as_the_model_has_positions(tmp_path: Path, language_model: Path):
    assert longest_input(local("listwise", language_model).generator) == 4096
    longer = local("listwise", write_speaker(tmp_path / "longer", max_position_embeddings=9000)).generator
    assert longest_input(longer) == 9000


@pytest.mark.slow
def test_a_model_that_cannot_answer_is_one_line(tiny: Tiny, tmp_path: Path):
    silent = write_speaker(tmp_path / "silent", chat=None)
    with pytest.raises(UserError, match=r"silent: the tokenizer has no chat template, which the prompt 'rank-zephyr'"):
        opened("listwise", silent).score(*LISTS[0])
    assert np.isfinite(opened("listwise", silent, prompt="rank-vicuna").score(*LISTS[0])).all()  # with its own form
    with pytest.raises(UserError, match=r"no language-model head|is no causal decoder|nothing to predict"):
        opened("listwise", tiny.bert)
    with pytest.raises(UserError, match=str(tiny.llama)):
        opened("listwise", tiny.llama)


def test_a_prepared_reranker_goes_to_another_process(language_model: Path):
    prepared = pickle.loads(pickle.dumps(prepare("setwise", {"model": str(language_model)})))
    np.testing.assert_array_equal(prepared.open().score(*LISTS[0]), opened("setwise", language_model).score(*LISTS[0]))
