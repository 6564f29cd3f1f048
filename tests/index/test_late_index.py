from inspect import unwrap
from pathlib import Path

import numpy as np
import pytest

from shortlist.data.allowed import Allowed
from shortlist.data.stores.tokens import TOKEN_DTYPES, TokenReader, TokenWriter
from shortlist.errors import UserError
from shortlist.index import late
from shortlist.index.late import LateIndex, LateSearch, check_token_queries, score_candidates
from shortlist.index.narrow import narrow_tokens
from shortlist.index.protocols import FirstStage, TokenIndex
from shortlist.index.scattered import ScatteredTokens
from shortlist.math.maxsim import TokenVectors, maxsim
from shortlist.records import Hit


def token_vectors(counts, dim: int = 16, seed: int = 0) -> TokenVectors:
    values = np.random.default_rng(seed).standard_normal((int(np.sum(counts)), dim)).astype(np.float32)
    return TokenVectors(values / np.linalg.norm(values, axis=1, keepdims=True), np.array(counts))


def write_tokens(folder: Path, vectors: TokenVectors, dtype: str = "float32", *, shard: int = 40) -> TokenReader:
    """Write token vectors to disk in shards and open them."""
    writer, texts = TokenWriter(folder, vectors.values.shape[1], dtype), list(vectors)
    for number, start in enumerate(range(0, len(texts), shard)):
        part = texts[start : start + shard]
        names = [f"d{start + row}" for row in range(len(part))]
        writer.write_shard(number, names, TokenVectors(np.concatenate(part), np.array([len(text) for text in part])))
    return TokenReader(folder)


COUNTS = np.random.default_rng(5).integers(0, 9, 100)
COUNTS[:5] = 0, 3, 0, 5, 5
QUERIES = token_vectors([4, 1, 0, 7], seed=1)


def by_the_book(queries: TokenVectors, documents: TokenVectors, k: int, keep=None):
    scores = maxsim(queries, documents)
    if keep is not None:
        scores[:, ~keep] = -np.inf
    positions = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, positions, axis=1), positions


@pytest.fixture
def store(tmp_path):
    return write_tokens(tmp_path / "tokens", token_vectors(COUNTS))


@pytest.fixture(params=[1 << 14, 30], ids="{0} tokens".format)
def sizes(request, monkeypatch):
    """One unit of work, or many."""
    monkeypatch.setattr(late, "UNIT_TOKENS", request.param)


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_search_finds_what_the_definition_finds(store, sizes, k):
    documents = store.take(np.arange(100))
    scores, positions = LateIndex(store).search_tokens(QUERIES, k)
    assert scores.shape == (4, min(k, np.count_nonzero(COUNTS)))
    expected = by_the_book(QUERIES, documents, scores.shape[1])
    some = QUERIES.counts > 0
    np.testing.assert_array_equal(positions[some], expected[1][some])
    np.testing.assert_allclose(scores[some], expected[0][some], atol=1e-5)
    assert (positions[~some] == -1).all()  # a query without vectors finds nothing


@pytest.mark.parametrize("dtype", TOKEN_DTYPES)
def test_what_a_store_holds_is_what_is_scored(tmp_path, dtype):
    store = write_tokens(tmp_path / dtype, token_vectors(COUNTS), dtype)
    scores, positions = LateIndex(store).search_tokens(QUERIES, 7)
    expected = by_the_book(QUERIES, store.take(np.arange(100)), 7)
    np.testing.assert_array_equal(positions[[0, 1, 3]], expected[1][[0, 1, 3]])
    np.testing.assert_allclose(scores[[0, 1, 3]], expected[0][[0, 1, 3]], atol=1e-5)


def test_equal_documents_come_in_corpus_order(tmp_path, sizes):
    one = token_vectors([5, 3])
    many = TokenVectors(np.tile(one.values, (40, 1)), np.tile(one.counts, 40))
    positions = LateIndex(write_tokens(tmp_path / "t", many)).search_tokens(QUERIES, 60)[1]
    for row in positions[[0, 1, 3]]:
        assert row[:40].tolist() == sorted(row[:40])
        assert row[40:].tolist() == sorted(row[40:])


@pytest.mark.parametrize("share", [0.03, 0.5, 1.0])
def test_a_filter_leaves_the_others_out(store, sizes, share):
    keep = np.random.default_rng(0).random(100) < share
    allowed = Allowed([f"d{position}" for position in np.flatnonzero(keep)])
    hits = LateIndex(store).find(QUERIES, 10, allowed=allowed)
    expected = by_the_book(QUERIES, store.take(np.arange(100)), 100, keep)
    for row, found in enumerate(hits):
        best = [f"d{p}" for s, p in zip(expected[0][row], expected[1][row], strict=True) if np.isfinite(s)][:10]
        assert [hit.doc_id for hit in found] == (best if QUERIES.counts[row] else [])


def test_memory_changes_nothing(store):
    whole, released = LateIndex(store, memory_gib=1.0), LateIndex(store, memory_gib=0.0)
    assert released.release
    assert not whole.release
    for one, other in zip(whole.search_tokens(QUERIES, 20), released.search_tokens(QUERIES, 20), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scan", [False, True], ids=["exact", "narrow"])
def test_processes_that_search_some_shards_find_what_one_search_finds(store, scan, tmp_path, monkeypatch):
    monkeypatch.setattr("shortlist.index.narrow.NARROW_NUMBERS", 60 * 16)
    if scan:
        narrow_tokens(store, tmp_path / "narrow")
    alone = LateIndex(store, scan=TokenReader(tmp_path / "narrow") if scan else None, refine=2)
    assert len(alone.scanned.shard_hashes) >= 3
    scattered = ScatteredTokens(alone, engine="local")
    some = Allowed([f"d{place}" for place in range(3, 100, 7)])
    for k, allowed in ((1, None), (9, None), (1000, None), (9, some), (1000, some), (3, Allowed(["d1"]))):
        expected = alone.find(QUERIES, k, allowed=allowed)
        assert scattered.find(QUERIES, k, allowed=allowed) == expected
    assert list(scattered.doc_ids) == list(store.doc_ids)


def test_how_many_queries_are_asked_changes_nothing(store, monkeypatch):
    index = LateIndex(store)
    together = index.search_tokens(QUERIES, 20)
    monkeypatch.setattr(late, "CANDIDATES_BYTES", 1)  # one query for each pass
    for one, other in zip(together, index.search_tokens(QUERIES, 20), strict=True):
        np.testing.assert_array_equal(one, other)


def test_candidates_are_scored_as_a_search_scores_them(store):
    scores, positions = LateIndex(store).search_tokens(QUERIES, 20)
    query = TokenVectors(QUERIES.values[:4], QUERIES.counts[:1])
    np.testing.assert_array_equal(score_candidates(store, query, positions[0][::-1].copy()), scores[0][::-1])


class Encoder:
    def encode_queries(self, queries):
        return QUERIES


def test_a_late_search_is_a_first_stage(store):
    index = LateIndex(store)
    search = LateSearch(Encoder(), index)
    assert isinstance(index, TokenIndex)
    assert isinstance(search, FirstStage)
    run = search.search(["a", "b", "c", "d"], 3)
    assert [len(run[name]) for name in "0123"] == [3, 3, 0, 3]
    assert isinstance(run["0"][0], Hit)
    assert run["0"] == index.find(QUERIES, 3)[0]
    assert search.doc_ids is not None
    assert len(search.doc_ids) == 100


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (token_vectors([2], 8), 1, "the queries' tokens have 8 dimensions, those of the documents 16"),
        (np.ones((2, 16), dtype=np.float32), 1, "queries are a ndarray; expected TokenVectors"),
        (token_vectors([2]), 0, "k is 0; expected at least 1"),
        (TokenVectors(np.full((1, 16), np.nan, np.float32), np.array([1])), 1, "not finite"),
    ],
)
def test_queries_that_do_not_fit_are_refused(queries, k, message):
    with pytest.raises(UserError, match=message):
        unwrap(check_token_queries)(queries, k, dim=16)
