import numpy as np
import pytest

from shortlist.data.allowed import Allowed
from shortlist.data.stores.terms import TermReader, TermWriter
from shortlist.errors import UserError
from shortlist.index import sparse
from shortlist.index.protocols import Opening
from shortlist.index.sparse import SparseIndex, build_sparse, numbered_terms, open_segments
from shortlist.math import postings
from shortlist.math.heaviest import heaviest
from shortlist.math.postings import left_out
from shortlist.math.terms import TermWeights

VOCABULARY = [f"t{i}" for i in range(60)]


def random_weights(texts: int, seed: int, most: int = 20) -> TermWeights:
    """Few and round weights, so that many scores are equal."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, most, texts)
    terms = [np.sort(random.choice(len(VOCABULARY), count, replace=False)) for count in counts]
    weights = random.integers(1, 4, int(counts.sum())) / np.float32(3)
    return TermWeights(np.concatenate(terms).astype(np.int32), weights.astype(np.float32), counts)


def write(folder, weights: TermWeights, first: int = 0, dtype: str = "float32"):
    number = len(list(folder.glob("shard-*.json")))
    names = [f"d{first + i}" for i in range(len(weights))]
    TermWriter(folder, VOCABULARY, dtype).write_shard(number, names, weights)
    return folder


def exhaustive(queries: TermWeights, documents: TermWeights, k: int, keep=None) -> list[list[tuple[int, float]]]:
    """Every document's score in float64, rounded; the best first, equal ones in corpus order."""
    dense = np.zeros((2, max(len(queries), len(documents)), len(VOCABULARY)))
    for side, texts in zip(dense, (queries, documents), strict=True):
        side[np.repeat(np.arange(len(texts)), texts.counts), texts.terms] = texts.weights
    scores = (dense[0, : len(queries)] @ dense[1, : len(documents)].T).astype(np.float32)
    scores = scores if keep is None else np.where(keep, scores, 0)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [[(int(d), float(row[d])) for d in best if row[d] > 0] for row, best in zip(scores, order, strict=True)]


def found(index: SparseIndex, queries: TermWeights, k: int, **options) -> list[list[tuple[int, float]]]:
    scores, positions = index.search_terms(queries, k, **options)
    return [
        [(place, score) for place, score in zip(places, row, strict=True) if place >= 0]
        for places, row in zip(positions.tolist(), scores.tolist(), strict=True)
    ]


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(sparse, "SEGMENT_ROWS", 100)


@pytest.mark.parametrize("k", [1, 10, 300, 2000])
@pytest.mark.parametrize("compiled", [True, False])
def test_search_equals_the_exhaustive_one_with_its_ties(tmp_path, small_segments, monkeypatch, k, compiled):
    if not compiled:
        monkeypatch.setattr(postings, "_multiply", None)
    documents, queries = random_weights(1000, 1), random_weights(12, 2)
    index = SparseIndex(TermReader(write(tmp_path, documents)))
    assert len(index.segments) == 10
    assert found(index, queries, k) == exhaustive(queries, documents, k)
    keep = np.random.default_rng(3).random(1000) < 0.2
    allowed = Allowed([f"d{i}" for i in np.flatnonzero(keep)])
    assert found(index, queries, k, allowed=allowed) == exhaustive(queries, documents, k, keep)


@pytest.mark.slow
def test_ten_thousand_random_queries_find_what_exhaustive_search_finds(tmp_path, small_segments):
    documents = random_weights(200, 1, most=30)
    random = np.random.default_rng(5)
    near = (documents.weights * np.exp(random.normal(0, 1e-7, len(documents.weights)))).astype(np.float32)
    documents = TermWeights(documents.terms, near, documents.counts)
    index = SparseIndex(TermReader(write(tmp_path, documents)))
    queries = random_weights(10_000, 6, most=8)
    assert found(index, queries, 10) == exhaustive(queries, documents, 10)


@pytest.mark.slow
@pytest.mark.parametrize("cost", [0, 1, 512])
def test_search_that_leaves_postings_out_equals_the_exhaustive_one_with_its_ties(tmp_path, monkeypatch, cost):
    """Some terms are frequent and light, so that leaving them out pays; most weights are round, so that many tie."""
    monkeypatch.setattr(sparse, "SEGMENT_ROWS", 16)
    monkeypatch.setattr(sparse, "SHARE_LEFT_OUT", 0.7)
    monkeypatch.setattr(sparse, "EXACT_COST", cost)
    chosen = []

    def counted(*args):
        chosen.append(left_out(*args))
        return chosen[-1]

    monkeypatch.setattr(sparse, "left_out", counted)
    random = np.random.default_rng(cost)
    for case in range(5):
        documents, queries = random_weights(150, case, most=25), random_weights(10, 100 + case, most=12)
        light = np.where(documents.terms < 30, np.float32(1 / 8), np.float32(1))
        documents = TermWeights(documents.terms, documents.weights * light, documents.counts)
        index = SparseIndex(TermReader(write(tmp_path / str(case), documents)))
        keep = random.random(150) < 0.5
        allowed = Allowed([f"d{i}" for i in np.flatnonzero(keep)])
        for k in (1, 5):
            assert found(index, queries, k) == exhaustive(queries, documents, k)
            assert found(index, queries, k, allowed=allowed) == exhaustive(queries, documents, k, keep)
    kept = np.concatenate([lists for lists, _ in chosen])
    assert {0, 1, 2} == set(kept.tolist())


def test_postings_that_are_left_out_save_most_for_their_bound_and_fit_the_budget():
    bounds, lengths = np.array([[4.0, 1.0], [2.0, 1.0], [9.0, 0.0]]), np.array([[10, 100], [1, 2], [50, 0]])
    assert [
        (kept.tolist(), total)
        for kept, total in (left_out(bounds, lengths, b) for b in (0.5, 1.0, 2.0, 4.0, 5.0, 15.0))
    ] == [
        ([2, 2, 1], 0),
        ([1, 2, 1], 1),
        ([1, 1, 1], 2),
        ([0, 2, 1], 4),
        ([0, 1, 1], 5),
        ([0, 0, 0], 15),
    ]


@pytest.mark.parametrize("compiled", [True, False])
def test_postings_of_some_terms_are_added_up(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(postings, "_multiply", None)
    rows, weights = np.array([0, 1, 0, 2, 1, 2], np.int32), np.array([1, 2, 4, 8, 16, 32], np.float32)
    for starts, ends, scores in (([0, 4], [2, 6], [1, 82, 160]), ([2, 3], [3, 3], [4, 0, 0]), ([], [], [0, 0, 0])):
        added, factors = np.zeros(3, np.float32), np.array([1, 5], np.float32)[: len(starts)]
        postings.add_postings(rows, weights, np.array(starts, np.int64), np.array(ends, np.int64), factors, added)
        assert added.tolist() == scores


def test_an_index_without_the_file_of_largest_weights_is_refused_and_built_anew(tmp_path):
    store = write(tmp_path / "store", random_weights(20, 1))
    build_sparse(TermReader(store), tmp_path / "index", advance=lambda _: None)
    (tmp_path / "index/segment-00000.tops.npy").unlink()
    with pytest.raises(UserError, match="build the index again"):
        open_segments(tmp_path / "index", {}, Opening(vectors=store))
    assert build_sparse(TermReader(store), tmp_path / "index", advance=lambda _: None)["read"] == 20
    open_segments(tmp_path / "index", {}, Opening(vectors=store))


def test_scores_that_float32_sums_would_mix_up_are_in_their_exact_order(tmp_path):
    """Each document's weights add up to nearly the same, in another order."""
    random = np.random.default_rng(0)
    one = (random.random(40) * 10 ** random.uniform(-4, 4, 40)).astype(np.float32)
    weights = np.stack([np.roll(one, shift) for shift in range(40)]) * (1 + np.arange(40)[:, None] * np.float32(6e-8))
    documents = TermWeights(
        np.tile(np.arange(40, dtype=np.int32), 40), weights.astype(np.float32).ravel(), np.full(40, 40)
    )
    queries = TermWeights(np.arange(40, dtype=np.int32), np.ones(40, np.float32), np.array([40]))
    assert found(SparseIndex(TermReader(write(tmp_path, documents))), queries, 5) == exhaustive(queries, documents, 5)


def test_an_index_is_brought_up_to_date_by_a_segment_for_new_rows(tmp_path, small_segments):
    old, new = random_weights(150, 1), random_weights(10, 2)
    store = write(tmp_path / "store", old)
    assert build_sparse(TermReader(store), tmp_path / "index", advance=lambda _: None)["read"] == 150
    kept = (tmp_path / "index/segment-00000.rows.npy").stat().st_mtime_ns
    write(store, new, first=150)
    assert build_sparse(TermReader(store), tmp_path / "index", advance=lambda _: None)["read"] == 10
    assert (tmp_path / "index/segment-00000.rows.npy").stat().st_mtime_ns == kept
    index = open_segments(tmp_path / "index", {}, Opening(vectors=store))
    assert [(segment.first, segment.last) for segment in index.segments] == [(0, 100), (100, 150), (150, 160)]
    both = TermWeights(*(np.concatenate([a, b]) for a, b in zip(vars(old).values(), vars(new).values(), strict=True)))
    queries = random_weights(5, 3)
    assert found(index, queries, 20) == exhaustive(queries, both, 20)
    for more in range(8):
        write(store, random_weights(1, more), first=160 + more)
        build_sparse(TermReader(store), tmp_path / "index", advance=lambda _: None)
    assert len(open_segments(tmp_path / "index", {}, Opening(vectors=store)).segments) <= 8
    assert len(list((tmp_path / "index").glob("segment-*"))) <= 32


def test_documents_that_are_gone_are_not_found(tmp_path):
    documents, queries = random_weights(7, 1), random_weights(5, 2)
    store = write(tmp_path, documents)
    np.array([-1, 3, -1, 2, 1, -1, 0], dtype="<i8").tofile(store / "order-00001.bin")
    (store / "snapshot.json").write_text('{"shards": [0], "order": "order-00001.bin"}')
    terms = TermReader(store)
    assert found(SparseIndex(terms), queries, 9) == exhaustive(queries, terms.take(np.arange(4)), 9)


def test_a_query_without_terms_finds_nothing_and_terms_can_be_left_out(tmp_path):
    documents = random_weights(50, 1)
    terms = TermReader(write(tmp_path, documents))
    none = TermWeights(np.empty(0, np.int32), np.empty(0, np.float32), np.array([0, 0]))
    assert found(SparseIndex(terms), none, 5) == [[], []]
    queries = random_weights(5, 2)
    assert found(SparseIndex(terms, query_terms=2), queries, 9) == exhaustive(heaviest(queries, 2), documents, 9)


def test_queries_of_another_vocabulary_or_with_impossible_weights_are_refused(tmp_path):
    index = SparseIndex(TermReader(write(tmp_path, random_weights(5, 1))))
    for term, weight, why in [(60, 1.0, "has term 60, and .* 60 terms"), (1, -1.0, "weight -1"), (1, np.inf, "inf")]:
        query = TermWeights(np.array([term], np.int32), np.array([weight], np.float32), np.array([1]))
        with pytest.raises(UserError, match=why):
            index.find(query, 3)
    with pytest.raises(UserError, match="k is 0"):
        index.find(random_weights(1, 1), 0)


def test_named_terms_become_numbers_in_order_and_unknown_ones_are_left_out():
    numbers = {"b": 7, "a": 9}
    found = numbered_terms(numbers, [[("a", 1.0), ("b", 2.0), ("x", 5.0), ("a", 0.5)], []])
    assert (found.terms.tolist(), found.weights.tolist(), found.counts.tolist()) == ([7, 9], [2, 1.5], [2, 0])


def test_the_heaviest_terms_are_kept_in_order():
    weights = TermWeights(np.array([1, 4, 9, 2], np.int32), np.array([2, 1, 2, 1], np.float32), np.array([3, 1]))
    kept = heaviest(weights, 2)
    assert (kept.terms.tolist(), kept.weights.tolist(), kept.counts.tolist()) == ([1, 9, 2], [2, 2, 1], [2, 1])
