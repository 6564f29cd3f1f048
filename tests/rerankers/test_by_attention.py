"""Reranking by attention: what a naive reading of transformers' weights gives, and lists that peers cannot score."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DOCUMENTS, QUERIES, write_speaker
from transformers import AutoModelForCausalLM

from shortlist.data.heads import Head, best_heads, read_heads, write_heads
from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.records import Document, Query
from shortlist.rerankers import Candidates
from shortlist.rerankers.attention_reranker import AttentionReranker
from shortlist.rerankers.kinds import load_reranker
from shortlist.rerankers.lists import score_lists


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of two layers with grouped heads."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return write_speaker(tmp_path_factory.mktemp("speaker") / "model", max_position_embeddings=600, **sizes)


def opened(folder: Path, **settings: Any) -> AttentionReranker:
    reranker = load_reranker("attention", model=str(folder), **settings)
    assert isinstance(reranker, AttentionReranker)
    return reranker


def weights_of(folder: Path, reranker: AttentionReranker, query: Query, shown: list[Document]) -> Any:
    """A prompt, and transformers' weights of all heads: heads x rows x tokens."""
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    rendered = reranker.read.renderer.render(query, shown)
    with torch.no_grad():
        found = plain(torch.tensor([rendered.ids]), output_attentions=True, use_cache=False).attentions
    return rendered, torch.cat([layer[0] for layer in found])


def naive_scores(folder: Path, reranker: AttentionReranker, heads: list[int] | None = None) -> list[float]:
    """In-context re-ranking, step by step: two passes, a difference, a filter, a sum."""
    shown = DOCUMENTS[4::-1]
    both = [weights_of(folder, reranker, query, shown) for query in (QUERIES[2], Query("", "N/A"))]
    tokens = []
    for rendered, weights in both:
        chosen = weights if heads is None else weights[heads]
        tokens.append(chosen[:, rendered.asking].mean(1).sum(0))
    scores = []
    for span in both[0][0].spans:
        change = tokens[0][span] - tokens[1][span]
        kept = change[change > change.mean() - 2 * change.std()]
        scores.append(float(kept.sum()))
    return scores[::-1]


def test_scores_are_those_of_in_context_reranking_done_naively(speaker: Path):
    reranker = opened(speaker)
    np.testing.assert_allclose(reranker.score(QUERIES[2], DOCUMENTS[:5]), naive_scores(speaker, reranker), atol=1e-5)


def test_the_attention_that_is_read_begins_behind_the_documents(speaker: Path):
    whole, of_query = (
        opened(speaker, prompt=name).read.renderer.render(QUERIES[2], DOCUMENTS[:3]) for name in ("icr", "core")
    )
    decode = opened(speaker).read.renderer.tokenizer.decode
    assert decode(whole.ids[whole.asking]).startswith("Please find information")
    assert whole.asking.stop == len(whole.ids)
    assert decode(of_query.ids[of_query.asking][:-1]).endswith(QUERIES[2].text)


def test_chosen_heads_are_read_from_a_file_and_by_name(speaker: Path, tmp_path: Path):
    path = tmp_path / "heads.json"
    write_heads(path, [Head(1, 2), Head(0, 3)], model=open_folder(str(speaker)).identity)
    expected = naive_scores(speaker, opened(speaker), heads=[6, 3])
    for named in (str(path), "1-2,0-3"):
        np.testing.assert_allclose(opened(speaker, heads=named).score(QUERIES[2], DOCUMENTS[:5]), expected, atol=1e-5)


def test_a_file_of_heads_has_to_be_of_the_model(speaker: Path, tmp_path: Path):
    path = tmp_path / "heads.json"
    write_heads(path, [Head(1, 2)], model="sha256:another")
    with pytest.raises(UserError, match=r"heads\.json: were chosen for another model than .*model names now"):
        opened(speaker, heads=str(path))
    with pytest.raises(UserError, match="no such file; make one with `shortlist heads`"):
        opened(speaker, heads=str(tmp_path / "none"))
    path.write_text("[]")
    with pytest.raises(UserError, match="is no file of heads"):
        opened(speaker, heads=str(path))
    with pytest.raises(UserError, match="head 7-0: the model has layers 0 to 1"):
        opened(speaker, heads="7-0")


def test_products_are_those_with_the_last_token_of_each_document(speaker: Path):
    reranker = opened(speaker, signal="qk", uncalibrated=True, heads="0-1")
    rendered, weights = weights_of(speaker, reranker, QUERIES[2], DOCUMENTS[4::-1])
    logs = weights[1, -1].log()  # of the softmax, which is the same for all tokens but for a constant
    ends = np.array([float(logs[span.stop - 1]) for span in rendered.spans[::-1]])
    found = reranker.score(QUERIES[2], DOCUMENTS[:5])
    np.testing.assert_allclose(found - found[0], ends - ends[0], atol=1e-4)


def test_documents_of_one_token_equal_ones_and_empty_ones_get_a_score(speaker: Path):
    documents = [
        Document("a", "x"),
        Document("b", ""),
        Document("c", DOCUMENTS[0].text),
        Document("d", DOCUMENTS[0].text),
    ]
    for settings in ({}, {"uncalibrated": True}, {"signal": "qk"}):
        scores = opened(speaker, **settings).score(QUERIES[0], documents)
        assert np.isfinite(scores).all()
        assert scores[2] != scores[3]  # each is read where it stands
    assert opened(speaker).score(QUERIES[0], []).shape == (0,)


def test_a_list_too_long_for_the_model_says_how_many_documents_fit(speaker: Path):
    reranker = opened(speaker)
    documents = [Document(str(i), "the apple has a colour " * 6) for i in range(40)]
    with pytest.raises(
        UserError, match=r"40 documents take [\d,]+ tokens .* the model reads 600; \d+ of them fit"
    ) as told:
        reranker.score(QUERIES[0], documents)
    fit = int(str(told.value).split("; ")[1].split()[0])
    assert 1 < fit < 40
    assert len(reranker.score(QUERIES[0], documents[:fit])) == fit


def test_lists_of_several_queries_have_the_scores_of_each(speaker: Path):
    reranker = opened(speaker)
    lists = [Candidates(query, DOCUMENTS[: place + 1]) for place, query in enumerate(QUERIES[:3])]
    parts = list(score_lists(reranker, lists))
    assert [part.numbers.tolist() for part in parts] == [[0], [1, 2], [3, 4, 5]]
    assert all(part.num_tokens > 0 for part in parts)
    np.testing.assert_allclose(parts[2].scores, reranker.score(*lists[2]), atol=1e-6)


def test_a_prompt_that_is_answered_and_a_server_are_refused(speaker: Path):
    with pytest.raises(
        UserError, match="'first' asks for all documents in order; this method needs nothing but attention"
    ):
        opened(speaker, prompt="first")
    with pytest.raises(UserError, match="a server tells nothing of attention"):
        load_reranker("attention", model="http://127.0.0.1:1/v1")
    with pytest.raises(UserError, match="this method needs all documents in order"):
        load_reranker("listwise", model=str(speaker), prompt="icr")


def test_the_best_heads_are_those_of_the_highest_scores(tmp_path: Path):
    scores = {"0-0": 0.1, "3-1": 0.5, "1-2": 0.5, "2-0": 0.4}
    assert list(map(str, best_heads(scores, 3))) == ["3-1", "1-2", "2-0"]
    write_heads(tmp_path / "h.json", best_heads(scores, 2), model="m", scores=scores)
    assert read_heads(str(tmp_path / "h.json"), "m") == [Head(3, 1), Head(1, 2)]


PUBLISHED = {
    "llama/core_temp0.1_prune0.0": "13-18,13-1,14-13,13-21,14-31,13-13,8-11,14-20",
    "mistral/core_temp0.001_prune0.0": "15-21,15-1,16-12,15-7,9-26,12-11,12-7,18-0",
}
"""The heads that CoRe's paper lists, by the file of all heads' scores in its repository's head_data/."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_heads_chosen_from_published_scores_are_the_published_choice(name: str):
    """CORE_HEAD_DATA names the folder, if it is not ../shared/data/core-heads."""
    folder = Path(os.environ.get("CORE_HEAD_DATA", Path(__file__).parents[3] / "shared/data/core-heads"))
    if not (folder / f"{name}.json").exists():
        pytest.skip(f"needs the published scores of CoRe heads in {folder}, which are not here")
    scores = json.loads((folder / f"{name}.json").read_text("utf-8"))
    assert ",".join(map(str, best_heads(scores, 8))) == PUBLISHED[name]
