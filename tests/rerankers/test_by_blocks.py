"""Reranking in blocks: scores that do not depend on the order of candidates, and contexts that are too long."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import DOCUMENTS, QUERIES, write_speaker

from shortlist.errors import UserError
from shortlist.models.blocks import Blocks, score_blocks
from shortlist.records import Document
from shortlist.rerankers import Candidates
from shortlist.rerankers.block_reranker import BlockReranker
from shortlist.rerankers.kinds import load_reranker


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return write_speaker(tmp_path_factory.mktemp("speaker") / "model", **sizes)


def opened(folder: Path, **settings: Any) -> BlockReranker:
    reranker = load_reranker("block", model=str(folder), **{"offset": "near", **settings})
    assert isinstance(reranker, BlockReranker)
    return reranker


def test_permuting_documents_permutes_their_scores(speaker: Path):
    reranker, order = opened(speaker), [4, 2, 0, 1, 3]
    scores = reranker.score(QUERIES[0], DOCUMENTS[:5])
    assert len(set(scores.tolist())) == 5
    moved = reranker.score(QUERIES[0], [DOCUMENTS[place] for place in order])
    assert moved.tolist() == scores[order].tolist()  # to the last bit


def test_scores_are_those_of_the_rendered_blocks(speaker: Path):
    reranker = opened(speaker, layer=0)
    shown = reranker.labelled(DOCUMENTS[:4])
    assert sorted(shown) == [0, 1, 2, 3]
    rendered = reranker.renderer.render(QUERIES[1], [DOCUMENTS[i] for i in shown], ["0", "1", "2", "3"])
    blocks = Blocks(*rendered)
    start = len(blocks.first) + max(map(len, blocks.documents))
    expected = score_blocks(reranker.reader, blocks, layer=0, start=start)
    np.testing.assert_allclose(reranker.score(QUERIES[1], DOCUMENTS[:4])[shown], expected, atol=1e-6)


def test_each_block_is_tokenised_by_itself_and_the_rows_that_ask_are_at_the_end(speaker: Path):
    renderer = opened(speaker).renderer
    rendered = renderer.render(QUERIES[0], DOCUMENTS[:2], ["0", "1"])
    decode = renderer.tokenizer.decode
    assert decode(rendered.first).endswith(f"Query: {QUERIES[0].text}\n\nDocuments:")
    for label, ids, document in zip("01", rendered.documents, DOCUMENTS, strict=False):
        assert decode(ids) == f"\nID: {label} | CONTENT: {document.text.strip()} | END ID: {label}"
    assert decode(rendered.last).startswith("\n====== Now let's start! ======\nWhich document")
    assert decode(rendered.last).endswith("Final Answer: [")
    assert rendered.asking == slice(len(rendered.last) - 2, len(rendered.last))
    assert decode(renderer.answer(["1", "0"])) == "[1, 0]"


def test_a_long_document_loses_its_end(speaker: Path):
    renderer = opened(speaker, max_length=9).renderer
    [ids] = renderer.render(QUERIES[0], DOCUMENTS[:1], ["0"]).documents
    assert len(ids) == 9


def test_what_an_answer_names_comes_first(speaker: Path, monkeypatch: pytest.MonkeyPatch):
    reranker = opened(speaker, answers="text")
    shown = reranker.labelled(DOCUMENTS[:4])
    said = reranker.renderer.tokenizer("2, 0] and more", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr("shortlist.rerankers.block_reranker.answer_blocks", lambda *_, **__: said)
    scores = reranker.score(QUERIES[0], DOCUMENTS[:4])
    assert scores[shown[2]] > scores[shown[0]]
    assert np.isnan(scores[[shown[1], shown[3]]]).all()


@pytest.mark.slow
def test_an_answer_is_generated(speaker: Path):
    scores = opened(speaker, answers="text").score(QUERIES[0], DOCUMENTS[:4])
    assert scores.shape == (4,)


def test_empty_lists_and_documents_have_scores(speaker: Path):
    reranker = opened(speaker)
    assert reranker.score(QUERIES[0], []).shape == (0,)
    lists = [Candidates(QUERIES[0], []), Candidates(QUERIES[0], [Document("a", ""), Document("b", "")])]
    parts = list(reranker.score_lists(lists))
    assert [part.numbers.tolist() for part in parts] == [[], [0, 1]]
    assert np.isfinite(parts[1].scores).all()


def test_contexts_beyond_the_positions_are_refused(speaker: Path):
    with pytest.raises(UserError, match=r"ends at position 16,\d+, and the model has 2,048; use --offset near"):
        opened(speaker, offset="code").score(QUERIES[0], DOCUMENTS[:2])
    long = opened(speaker, offset="paper", max_length=9000)
    with pytest.raises(UserError, match=r"the longest document 9000, and what follows begins at position 8,192"):
        long.score(QUERIES[0], [Document("a", "goat " * 9000)])
    with pytest.raises(UserError, match="layer is 5; the model has layers 0 to 1"):
        opened(speaker, layer=5)
    with pytest.raises(UserError, match="unknown answers of the method 'block' 'logits': known: text"):
        opened(speaker, answers="logits")
    with pytest.raises(UserError, match="this method needs the relevant documents, each in a block of its own"):
        opened(speaker, prompt="first")
