"""In-context retrieval: all candidates in one prompt, and the log-probability of each one's number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DOCUMENTS, QUERIES
from transformers import AutoModelForCausalLM

from shortlist.errors import UserError
from shortlist.records import Document
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.kinds import load_reranker, prepare
from shortlist.rerankers.models import LocalModel

SERVER = {"model": "http://127.0.0.1:1/v1", "model_name": "m"}


def opened(folder: Path, **settings: Any) -> AskingReranker:
    ranker = load_reranker("context", model=str(folder), **settings)
    assert isinstance(ranker, AskingReranker)
    return ranker


def test_a_score_is_the_log_probability_of_the_documents_number(language_model: Path):
    ranker = opened(language_model)
    scores = ranker.score(QUERIES[0], DOCUMENTS[:12])
    assert isinstance(ranker.questions.model, LocalModel)
    rendered = ranker.questions.model.renderer.render(QUERIES[0], DOCUMENTS[:12])
    assert {len(label) for label in rendered.labels} == {1, 2}  # 1 and 12 begin alike
    plain = AutoModelForCausalLM.from_pretrained(language_model).eval()
    for score, label in zip(scores, rendered.labels, strict=True):
        whole = [*rendered.ids, *label]
        with torch.inference_mode():
            logs = plain(torch.tensor([whole])).logits[0].log_softmax(-1)
        each = [logs[len(rendered.ids) + place - 1, token].item() for place, token in enumerate(label)]
        assert score == pytest.approx(sum(each), abs=1e-4)
    assert ranker.questions.tally.calls == 1


def test_documents_stand_before_the_query_so_that_a_list_is_read_once_for_all(language_model: Path):
    ranker = opened(language_model)
    assert isinstance(ranker.questions.model, LocalModel)
    one, other = (ranker.questions.model.renderer.render(query, DOCUMENTS[:5]) for query in QUERIES[:2])
    assert one.ids[: one.spans[-1].stop] == other.ids[: other.spans[-1].stop]


def test_numbers_may_be_generated_and_a_list_shown_in_both_orders(language_model: Path):
    ranker = opened(language_model, answers="text", orders=2)
    scores = ranker.score(QUERIES[0], DOCUMENTS[:5])
    assert scores.shape == (5,)
    assert ranker.questions.tally.calls == 2


def test_a_context_too_long_says_what_it_takes_what_fits_and_what_to_do(language_model: Path):
    ranker = opened(language_model, max_length=300)
    long = [Document(f"d{place}", "word " * 100) for place in range(4)]
    with pytest.raises(UserError) as caught:
        ranker.score("a query", long)
    words = str(caught.value)
    assert "4 whole documents take " in words
    assert "and the model reads 300; show fewer (--depth), or shorten them first (`compress:` in a pipeline)" in words
    assert "\n" not in words
    assert np.isfinite(ranker.score("a query", DOCUMENTS[:2])).all()


def test_what_does_not_fit_the_method_is_refused_in_one_line():
    for settings, words in (
        ({"prompt": "first"}, "'first' has labels for 26 documents, and this method shows all at once"),
        ({}, "a server does not tell how likely every number is; have them generated with --answers text"),
        ({"prompt": "tourrank"}, "asks for the best few; this method needs all documents in order"),
    ):
        with pytest.raises(UserError, match=words):
            prepare("context", SERVER | settings)
    assert prepare("context", SERVER | {"answers": "text"}).asks
    with pytest.raises(UserError, match="a server does not tell how likely given texts are; choose text or logits"):
        prepare("listwise", SERVER | {"answers": "likelihood"})
