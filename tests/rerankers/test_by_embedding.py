"""Reranking by a query's vector that has read documents, and by states at marked tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import retriever_to_train
from safetensors.torch import load_file, save_file
from tiny import DOCUMENTS, QUERIES, Tiny, write_llama, write_projecting, write_speaker
from transformers import AutoTokenizer, LlamaModel

from shortlist import Retriever
from shortlist.cli import main
from shortlist.data.runs import read_run, write_run
from shortlist.errors import UserError
from shortlist.models.save import save_model
from shortlist.pipeline import Pipeline
from shortlist.records import Document, Hit, Query
from shortlist.rerankers import Candidates
from shortlist.rerankers.embedding_reranker import EmbeddingReranker
from shortlist.rerankers.kinds import load_reranker
from shortlist.rerankers.lists import score_lists
from shortlist.rerankers.marked_reranker import MarkedReranker
from shortlist.text.prompts import named_prompt
from shortlist.text.rendering import Renderer

ORDER = [4, 2, 0, 1, 3]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever that has a token for every letter."""
    folder = tmp_path_factory.mktemp("retriever")
    write_speaker(folder / "speaker", max_position_embeddings=600)
    save_model(retriever_to_train(str(folder / "speaker"), None), folder / "model")
    return folder / "model"


def opened(folder: Path, **settings: Any) -> EmbeddingReranker:
    reranker = load_reranker("embedding", model=str(folder), **{"prompt": "e2rank-plain", **settings})
    assert isinstance(reranker, EmbeddingReranker)
    return reranker


def last_states(folder: Path, prompts: list[list[int]]) -> np.ndarray:
    """What transformers has behind the last token of each prompt."""
    plain = LlamaModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return np.stack([plain(torch.tensor([ids])).last_hidden_state[0, -1].numpy() for ids in prompts])


def test_scores_are_cosines_of_last_states_with_all_documents(retriever: Path):
    reranker, shown = opened(retriever, window=3), DOCUMENTS[:6]
    tokenizer = AutoTokenizer.from_pretrained(retriever)
    listed = "\n".join(f"[{place}] {document.text.strip()}" for place, document in enumerate(shown[:3], 1))
    text = (
        "Given a web search query and some relevant documents, rerank the documents that answer the query:\n"
        f"Documents:\n{listed}\nSearch Query: {QUERIES[2].text}"
    )
    prompt = [1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2]
    alone = reranker.retriever.inputs.document_ids(shown)
    query, *documents = last_states(retriever, [prompt, *alone])
    expected = [query @ one / np.linalg.norm(query) / np.linalg.norm(one) for one in documents]
    np.testing.assert_allclose(reranker.score(QUERIES[2], shown), expected, atol=1e-5)


def test_the_documents_in_the_prompt_and_their_order_change_scores_and_the_others_do_not(retriever: Path):
    reranker = opened(retriever, window=3)
    scores = reranker.score(QUERIES[0], DOCUMENTS[:5])
    behind = reranker.score(QUERIES[0], [*DOCUMENTS[:3], DOCUMENTS[4], DOCUMENTS[3]])
    np.testing.assert_allclose(behind[[0, 1, 2, 4, 3]], scores, atol=1e-6)
    moved = reranker.score(QUERIES[0], [DOCUMENTS[place] for place in ORDER])
    assert np.abs(moved - scores[ORDER]).max() > 1e-4
    assert np.abs(opened(retriever, window=5).score(QUERIES[0], DOCUMENTS[:5]) - scores).max() > 1e-4


def test_without_documents_in_the_prompt_the_scores_are_those_of_search(retriever: Path, tiny: Tiny):
    for folder in (retriever, tiny.retriever):  # pools by the last token, and by the mean
        plain = Retriever.load(str(folder))
        query, documents = plain.encode_queries(QUERIES[:1])[0], plain.encode_documents(DOCUMENTS[:5])
        expected = documents @ query / np.linalg.norm(query) / np.linalg.norm(documents, axis=1)
        np.testing.assert_allclose(
            opened(folder, window=0, prompt=None).score(QUERIES[0], DOCUMENTS[:5]), expected, atol=1e-5
        )
    with pytest.raises(UserError, match="window 0: puts no document into a prompt"):
        opened(retriever, window=0, prompt="e2rank-plain")


def test_stored_vectors_are_read_and_only_others_are_encoded(
    retriever: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    vectors = tmp_path / "vectors"
    assert not main(["encode", "--model", str(retriever), "--collection", str(tiny.collection), "--out", str(vectors)])
    plain, stored = opened(retriever), opened(retriever, vectors=vectors)
    shown = [*DOCUMENTS[:4], Document("new", "a kettle")]
    expected, new = plain.score(QUERIES[1], shown), []
    encode = stored.retriever.encode_documents
    monkeypatch.setattr(
        stored.retriever, "encode_documents", lambda texts, **how: new.extend(texts) or encode(texts, **how)
    )
    np.testing.assert_allclose(stored.score(QUERIES[1], shown), expected, atol=1e-5)
    assert [document.doc_id for document in new] == ["new"]
    assert "with 12 stored documents" in repr(stored)


def test_a_document_that_was_shortened_for_one_query_is_whole_for_another(retriever: Path):
    reranker, short = opened(retriever, window=0, prompt=None), DOCUMENTS[0]._replace(text="a kettle")
    lists = [Candidates(QUERIES[0], [short]), Candidates(QUERIES[1], [DOCUMENTS[0]])]
    found = [float(scored.scores[0]) for scored in reranker.score_lists(lists)]
    expected = [float(reranker.score(query, documents)[0]) for query, documents in lists]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[0] != pytest.approx(float(reranker.score(QUERIES[0], [DOCUMENTS[0]])[0]), abs=1e-5)


def test_vectors_of_another_model_or_dimension_are_refused(retriever: Path, tiny: Tiny, tmp_path: Path):
    for name, more in {
        "other": ["--model", str(tiny.retriever)],
        "cut": ["--model", str(retriever), "--dims", "8"],
    }.items():
        place = ["--collection", str(tiny.collection), "--out", str(tmp_path / name)]
        assert not main(["encode", *more, *place])
    with pytest.raises(UserError, match="its vectors were not made by what model"):
        opened(retriever, vectors=tmp_path / "other")
    with pytest.raises(UserError, match="holds vectors of 8 dimensions, and the model's have 32; encode again"):
        opened(retriever, vectors=tmp_path / "cut")


def test_long_documents_are_cut_each_by_itself_and_the_end_token_stays(retriever: Path):
    reranker = opened(retriever)
    long = [Document(str(place), f"{name} " * 200) for place, name in enumerate(["apple", "boat", "cello"])]
    rendered = reranker.renderer.render(QUERIES[0], long)
    assert len(rendered.ids) <= 600
    assert rendered.ids[-1] == 2  # the end token
    decode = reranker.renderer.tokenizer.decode
    shown = [decode(rendered.ids[span]) for span in rendered.spans]
    assert [text.split()[1] for text in shown] == ["apple", "boat", "cello"]
    lengths = [len(text.split()) for text in shown]
    assert 100 < min(lengths) <= max(lengths) <= min(lengths) + 2
    assert decode(rendered.ids).endswith(f"Search Query: {QUERIES[0].text}</s>")
    assert reranker.retriever.inputs.document_ids([long[0]])[0][-1] == 2
    alone = reranker.renderer.render(QUERIES[0], [Document("0", "apple " * 300)])  # which would fit into 600 tokens
    [span] = alone.spans
    assert 150 < span.stop - span.start < 210  # 196 and the label
    assert np.isfinite(reranker.score(QUERIES[0], long)).all()


def test_lists_of_several_queries_have_the_scores_of_each(retriever: Path):
    reranker = opened(retriever)
    lists = [Candidates(query, DOCUMENTS[: 2 * place]) for place, query in enumerate(QUERIES[:3])]
    parts = list(score_lists(reranker, lists))
    assert [part.numbers.tolist() for part in parts] == [[], [0, 1], [2, 3, 4, 5]]
    np.testing.assert_allclose(parts[2].scores, reranker.score(*lists[2]), atol=1e-5)


def test_settings_that_fit_no_model_are_refused(retriever: Path, tiny: Tiny):
    with pytest.raises(UserError, match="needs a model: a retriever's folder"):
        load_reranker("embedding")
    with pytest.raises(UserError, match="a server tells no hidden states"):
        load_reranker("embedding", model="http://127.0.0.1:1/v1")
    with pytest.raises(UserError, match="'first' asks for all documents in order; this method needs hidden states"):
        opened(retriever, prompt="first")
    with pytest.raises(UserError, match=r"has no projector .* 'jina-reranker-v3' needs one; take prompt e2rank"):
        opened(retriever, prompt="jina-reranker-v3")
    with pytest.raises(UserError, match="window is -1; expected at least 0"):
        opened(retriever, window=-1)
    with pytest.raises(UserError, match="pools by mean, and a listwise prompt's vector is its last token's state"):
        opened(tiny.bert, contract="e5")


@pytest.fixture(scope="module")
def projecting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_projecting(tmp_path_factory.mktemp("projecting") / "model")


def marked(folder: Path, **settings: Any) -> MarkedReranker:
    reranker = load_reranker("embedding", model=str(folder), **settings)
    assert isinstance(reranker, MarkedReranker)
    return reranker


def naive_vectors(folder: Path, query: Query, documents: list[Document]) -> tuple[np.ndarray, np.ndarray]:
    """The published model's way: one context, states at the marks, two layers; the query's vector, then documents'."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = Renderer(named_prompt("jina-reranker-v3"), tokenizer).render(query, documents)
    ids = torch.tensor([rendered.ids])
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        states = LlamaModel.from_pretrained(folder).eval()(ids).last_hidden_state[0]
        first, second = (weights[f"projector.{place}.weight"] for place in (0, 2))
        vectors = torch.relu(states @ first.T) @ second.T
    of_documents, of_query = (
        ids[0] == tokenizer.convert_tokens_to_ids(token) for token in ("<|embed_token|>", "<|rerank_token|>")
    )
    [query_vector] = vectors[of_query]
    return query_vector.numpy(), vectors[of_documents].numpy()


def cosine(query: np.ndarray, documents: np.ndarray) -> np.ndarray:
    return documents @ query / np.linalg.norm(documents, axis=1) / np.linalg.norm(query)


def test_scores_are_cosines_of_projected_states_at_the_marks(projecting: Path):
    expected = cosine(*naive_vectors(projecting, QUERIES[3], DOCUMENTS[:4]))
    np.testing.assert_allclose(marked(projecting).score(QUERIES[3], DOCUMENTS[:4]), expected, atol=1e-5)


def test_blocks_are_merged_by_the_best_cosine_of_each(projecting: Path):
    blocks = [DOCUMENTS[:2], DOCUMENTS[2:4], DOCUMENTS[4:5]]
    found = [naive_vectors(projecting, QUERIES[0], block) for block in blocks]
    weights = [(1 + cosine(*each).max()) / 2 for each in found]
    query = np.average([query for query, _ in found], axis=0, weights=weights)
    expected = cosine(query, np.concatenate([documents for _, documents in found]))
    scores = marked(projecting, window=2).score(QUERIES[0], DOCUMENTS[:5])
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.abs(scores - marked(projecting).score(QUERIES[0], DOCUMENTS[:5])).max() > 1e-4


def test_blocks_end_where_the_longest_document_would_not_fit_and_none_is_cut(projecting: Path):
    reranker = marked(projecting)
    documents = [Document(str(i), "the apple has a colour " * (4 + 20 * (i == 3))) for i in range(12)]
    blocks = reranker.blocks(QUERIES[0], documents)
    assert len(blocks) > 1
    assert all(len(one.ids) <= 900 for one in blocks)
    decode, shown = reranker.renderer.tokenizer.decode, []
    for one in blocks:
        shown += [decode(one.ids[span]).partition("\n")[2] for span in one.spans]
        assert len(one.marks) == len(one.spans) + 1
    assert shown == [document.text.strip() for document in documents]
    longest = max(span.stop - span.start for one in blocks for span in one.spans)
    assert len(blocks[0].ids) + longest > 900  # otherwise the second block would begin later


def test_a_document_that_never_fits_is_cut_and_the_marks_stay(projecting: Path):
    reranker = marked(projecting, max_length=620)
    long = [Document("long", "the apple has a colour " * 300), *DOCUMENTS[:2]]
    blocks = reranker.blocks(QUERIES[0], long)
    assert [len(one.spans) for one in blocks] == [1, 1, 1]
    assert all(len(one.ids) <= 620 and len(one.marks) == 2 for one in blocks)
    assert np.isfinite(reranker.score(QUERIES[0], long)).all()
    assert reranker.score(QUERIES[0], []).shape == (0,)


def test_settings_of_retrievers_and_damaged_projectors_are_refused(projecting: Path, tmp_path: Path):
    with pytest.raises(UserError, match="vectors: is for a retriever, and this model's vectors depend on the query"):
        marked(projecting, vectors=tmp_path)
    with pytest.raises(UserError, match=r"has a projector .* 'e2rank' needs none; take prompt jina-reranker-v3"):
        marked(projecting, prompt="e2rank")
    with pytest.raises(UserError, match="window is 126; expected 1 to 125"):
        marked(projecting, window=126)
    broken = write_llama(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors") | {"projector.0.weight": torch.randn(16, 32)}
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights of the shapes \[16, 32\] and None; expected projector.0.weight"):
        marked(broken)


def test_the_command_gives_the_scores_of_python(retriever: Path, tiny: Tiny, tmp_path: Path):
    run = {query.query_id: [Hit(d.doc_id, 5.0 - i) for i, d in enumerate(DOCUMENTS[:4])] for query in QUERIES[:2]}
    write_run(tmp_path / "run.trec", run)
    out = tmp_path / "out.trec"
    settings = ["--prompt", "e2rank-plain", "--window", "2", "--model", str(retriever)]
    paths = ["--run", str(tmp_path / "run.trec"), "--collection", str(tiny.collection), "--out", str(out)]
    assert not main(["rerank", "--method", "embedding", *settings, *paths])
    scores = {hit.doc_id: hit.score for hit in read_run(out)["q0"]}
    expected = opened(retriever, window=2).score(QUERIES[0], DOCUMENTS[:4])
    np.testing.assert_allclose([scores[document.doc_id] for document in DOCUMENTS[:4]], expected, atol=1e-5)


def test_a_pipeline_reranks_with_it(retriever: Path, tiny: Tiny, tmp_path: Path):
    assert not main(["index", "--collection", str(tiny.collection), "--out", str(tmp_path / "words")])
    ranked = {"rank": "embedding", "model": str(retriever), "prompt": "e2rank-plain", "depth": 3}
    steps = {"words": {"find": "bm25", "index": str(tmp_path / "words")}, "ranked": ranked}
    pipeline = Pipeline.load(str(tiny.collection), pipeline={"steps": steps})
    before, after = (
        [found.document.doc_id for found in pipeline.search(QUERIES[0].text, k=3, rerank=rerank)]
        for rerank in (False, True)
    )
    texts = {document.doc_id: document for document in DOCUMENTS}
    scores = opened(retriever).score(QUERIES[0].text, [texts[doc_id] for doc_id in before])
    assert after == [before[place] for place in np.argsort(-scores)]
