"""Query likelihood: the log-probability of the query's tokens behind each document."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DOCUMENTS, QUERIES
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from shortlist.errors import UserError
from shortlist.models.generator import Generator
from shortlist.models.outputs import Rows
from shortlist.records import Document, Query
from shortlist.rerankers import Candidates
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.kinds import load_reranker, prepare
from shortlist.rerankers.models import LocalModel


def opened(folder: Path, **settings: Any) -> AskingReranker:
    ranker = load_reranker("likelihood", model=str(folder), **settings)
    assert isinstance(ranker, AskingReranker)
    return ranker


def local(ranker: AskingReranker) -> LocalModel:
    assert isinstance(ranker.questions.model, LocalModel)
    return ranker.questions.model


@pytest.fixture(scope="module")
def writer(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder-decoder."""
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    torch.manual_seed(0)
    start: dict[str, Any] = {"decoder_start_token_id": tokenizer.pad_token_id}
    config = T5Config(vocab_size=len(tokenizer), **shape, **start)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", ["likelihood", "likelihood-chat"])
def test_scores_are_the_mean_log_probabilities_of_transformers(language_model: Path, prompt: str):
    ranker = opened(language_model, prompt=prompt)
    plain = AutoModelForCausalLM.from_pretrained(language_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    for query in QUERIES[:2]:
        for document, score in zip(DOCUMENTS[:4], ranker.score(query, DOCUMENTS[:4]), strict=True):
            rendered = local(ranker).renderer.render(query, [document])
            [said] = rendered.labels
            whole = [*rendered.ids, *said]
            space = " " if prompt == "likelihood" else ""
            assert tokenizer(rendered.text + space + query.text, add_special_tokens=False)["input_ids"] == whole
            with torch.inference_mode():
                logs = plain(torch.tensor([whole])).logits[0].log_softmax(-1)
            each = [logs[len(whole) - len(said) + place - 1, token].item() for place, token in enumerate(said)]
            assert score == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_an_encoder_decoder_reads_the_document_and_its_decoder_the_query(writer: Path):
    ranker = opened(writer, prompt="likelihood-t5")
    plain, tokenizer = T5ForConditionalGeneration.from_pretrained(writer).eval(), AutoTokenizer.from_pretrained(writer)
    for document, score in zip(DOCUMENTS[:3], ranker.score(QUERIES[0], DOCUMENTS[:3]), strict=True):
        read = tokenizer(document.text.strip(), add_special_tokens=False)["input_ids"]
        said = tokenizer(QUERIES[0].text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            loss = plain(
                input_ids=torch.tensor([[*read, tokenizer.eos_token_id]]), labels=torch.tensor([said])
            ).loss  # the mean over the labels, behind the pad token
        assert score == pytest.approx(-loss.item(), abs=1e-5)


def test_a_score_is_the_mean_or_the_sum_and_the_order_the_same(language_model: Path, monkeypatch: pytest.MonkeyPatch):
    told = {"a": [-1.0, -3.0], "b": [-0.5, -1.0], "c": [-4.0, -4.0]}

    def log_probs(self: Any, prompts: Any, answers: Any) -> Rows:
        shown = [next(name for name in told if f": {name}{name}" in texts(prompt)) for prompt in prompts]
        return Rows(torch.tensor([value for name in shown for value in told[name]]), torch.tensor([2] * len(shown)))

    tokenizer = AutoTokenizer.from_pretrained(language_model)
    texts = tokenizer.decode
    monkeypatch.setattr(Generator, "log_probs", log_probs)
    documents = [Document(name, name * 2) for name in told]
    assert opened(language_model).score("q", documents).tolist() == [-2.0, -0.75, -4.0]
    assert opened(language_model, likelihood="sum").score("q", documents).tolist() == [-4.0, -1.5, -8.0]


def test_many_lists_get_the_scores_that_each_gets_alone(language_model: Path):
    lists = [Candidates(query, DOCUMENTS[place : place + 3]) for place, query in enumerate(QUERIES[:3])]
    alone = [opened(language_model).score(*one) for one in lists]
    parts, found = list(opened(language_model).score_lists(lists)), np.empty(9)
    for part in parts:
        found[part.numbers] = part.scores
    assert sum(part.num_tokens for part in parts) > 0
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-5)


def test_a_prompt_too_long_loses_words_of_its_document_and_never_of_the_query(language_model: Path):
    long = Document("d", "word " * 200)
    renderer = local(opened(language_model, max_length=100)).renderer
    rendered = renderer.render(Query("q", "which one is it"), [long])
    whole = renderer.tokenizer.decode([*rendered.ids, *rendered.labels[0]])
    assert rendered.is_shortened
    assert len(rendered.ids) + len(rendered.labels[0]) <= 100
    assert whole.endswith("answers: which one is it")


def test_what_cannot_be_read_is_refused_in_one_line(language_model: Path, writer: Path):
    server = {"model": "http://127.0.0.1:1/v1", "model_name": "m"}
    with pytest.raises(UserError, match="a server does not tell how likely a given text is; name a model's folder"):
        prepare("likelihood", server)
    with pytest.raises(UserError, match="--answers: nothing is answered"):
        prepare("likelihood", {"model": str(language_model), "answers": "text"})
    with pytest.raises(UserError, match="'graded' asks for a grade; this method needs how likely the query is"):
        prepare("likelihood", {"model": str(language_model), "prompt": "graded"})
    with pytest.raises(UserError, match="is an encoder-decoder, and the prompt 'likelihood' is for a decoder"):
        opened(writer)
