"""Every search among allowed documents equals the list of all documents with the others left out."""

from pathlib import Path

import numpy as np
import pytest
from test_ann import write_store
from test_flat import small_integers, unit_vectors, update, write
from tiny import DOCUMENTS

from shortlist.data.allowed import Allowed
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.index import ann, flat
from shortlist.index.ann import AnnIndex
from shortlist.index.bm25 import BM25Index
from shortlist.index.dense import DenseSearch
from shortlist.index.flat import FlatIndex, Sizes
from shortlist.index.narrow import narrow
from shortlist.index.parameters import NAMES, automatic
from shortlist.index.scattered import ScatteredIndex
from shortlist.index.segmented import SegmentIndex
from shortlist.records import Document, Hit, Query

SHARES = {"none": 0.0, "one": 1, "few": 0.03, "half": 0.49, "most": 0.9, "all": 1.0}
NUM_DOCS = 300


@pytest.fixture(params=SHARES)
def allowed(request) -> Allowed:
    """Some of the documents d0 to d299, and one that no index has."""
    share, rng = SHARES[request.param], np.random.default_rng(4)
    chosen = rng.permutation(NUM_DOCS)[:1] if isinstance(share, int) else np.flatnonzero(rng.random(NUM_DOCS) < share)
    return Allowed([*(f"d{number}" for number in rng.permutation(chosen)), "unheard"])


@pytest.fixture
def small(monkeypatch) -> None:
    """Tiles and blocks so small that there are several of each."""
    monkeypatch.setattr(flat, "SIZES", {"cpu": Sizes(4, 2000, 500)})


def left(hits: list[list[Hit]], allowed: Allowed, k: int) -> list[list[Hit]]:
    """The plain definition."""
    return [[hit for hit in row if hit.doc_id in allowed][:k] for row in hits]


@pytest.mark.parametrize("k", [1, 7, 100, 1000])
def test_words_find_only_allowed_documents(allowed, k):
    rng = np.random.default_rng(0)
    documents = [Document(f"d{i}", " ".join(rng.choice(["a1", "b2", "c3", "d4"], 3))) for i in range(NUM_DOCS)]
    index = BM25Index.build(documents, analyser="whitespace")
    queries = [Query("x", "a1"), Query("y", "b2 c3"), Query("z", "unheard")]
    every = index.search(queries, NUM_DOCS)
    found = index.search(queries, k, allowed=allowed)
    assert [*found.values()] == left([*every.values()], allowed, k)
    assert index.search(queries, NUM_DOCS) == every  # nothing has changed for the next search


@pytest.mark.parametrize("k", [1, 7, 100, 1000])
@pytest.mark.parametrize("kept", [flat.COPIES_BYTES, 0], ids=["copied", "read"])
def test_exact_search_finds_the_best_allowed_documents(tmp_path, small, allowed, k, kept, monkeypatch):
    monkeypatch.setattr(flat, "COPIES_BYTES", kept)
    queries = small_integers(7, 8, seed=1)
    index = FlatIndex(write(tmp_path, small_integers(NUM_DOCS, 8)))
    expected = left(index.find(queries, NUM_DOCS), allowed, k)
    assert index.find(queries, k, allowed=allowed) == expected
    assert index.find(queries[:1], k, allowed=allowed) == expected[:1]
    released = FlatIndex(index.vectors, memory_gib=1e-9)
    assert released.release
    assert released.find(queries, k, allowed=allowed) == expected
    assert ScatteredIndex(index, engine="local").find(queries, k, allowed=allowed) == expected


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_a_narrow_scan_finds_the_best_allowed_documents(tmp_path, small, allowed, dtype):
    vectors, queries = write(tmp_path / "v", small_integers(NUM_DOCS, 8)), small_integers(5, 8, seed=1)
    narrow(vectors, tmp_path / "n", dtype)
    expected = left(FlatIndex(vectors).find(queries, NUM_DOCS), allowed, 20)
    index = FlatIndex(vectors, scan=VectorReader(tmp_path / "n"))
    assert index.find(queries, 20, allowed=allowed) == expected
    assert ScatteredIndex(index, engine="local").find(queries, 20, allowed=allowed) == expected


def test_an_updated_store_is_filtered_by_document_and_not_by_row(tmp_path, small, allowed):
    queries, rng = small_integers(5, 8, seed=1), np.random.default_rng(2)
    positions = np.full(NUM_DOCS, -1)
    living = np.sort(rng.permutation(NUM_DOCS)[100:])
    positions[living] = rng.permutation(len(living))
    write(tmp_path, small_integers(NUM_DOCS, 8))
    index = FlatIndex(update(tmp_path, positions))
    assert index.find(queries, 20, allowed=allowed) == left(index.find(queries, 200), allowed, 20)


def test_cut_vectors_are_filtered_too(tmp_path, allowed):
    write(tmp_path, unit_vectors(NUM_DOCS, 8))
    index = FlatIndex(VectorReader(tmp_path, dim=4, unit=False))
    queries = unit_vectors(5, 4, seed=1)
    expected = left(index.find(queries, NUM_DOCS), allowed, 20)
    found = index.find(queries, 20, allowed=allowed)
    assert [[hit.doc_id for hit in hits] for hits in found] == [[hit.doc_id for hit in hits] for hits in expected]


def test_copies_of_vectors_live_as_long_as_their_filters_and_there_is_room(tmp_path, monkeypatch):
    index = FlatIndex(write(tmp_path, small_integers(NUM_DOCS, 8)))
    first, second = Allowed([f"d{i}" for i in range(50)]), Allowed([f"d{i}" for i in range(30, 80)])
    queries = small_integers(2, 8, seed=1)
    monkeypatch.setattr(index, "_copies_bytes", 50 * 8 * 4)
    index.find(queries, 5, allowed=first)
    copy = index._copies[first]
    index.find(queries, 5, allowed=first)
    assert index._copies[first] is copy
    assert copy.vectors.is_contiguous()
    index.find(queries, 5, allowed=second)
    assert [*index._copies] == [second]  # room for one
    del second
    assert [*index._copies] == []


def test_a_sample_of_the_allowed_documents_sets_the_first_threshold(tmp_path, monkeypatch):
    monkeypatch.setattr(flat, "SAMPLED", 4)
    vectors = unit_vectors(2000, 16)
    index, queries = FlatIndex(write(tmp_path, vectors, shard=1000)), unit_vectors(5, 16, seed=1)
    for share in (0.3, 0.7):
        keep = np.random.default_rng(3).random(2000) < share
        some = Allowed([f"d{i}" for i in np.flatnonzero(keep)])
        sampled = index._sampled(
            2, None, flat._Some(keep, int(keep.sum()), index._copy(keep, int(keep.sum()), some), share < 0.5)
        )
        assert sampled is not None
        assert keep[sampled[0].positions.numpy()].all()
        expected = np.argsort(-np.where(keep, queries @ vectors.T, -9), axis=1, kind="stable")[:, :2]
        assert index.search_vectors(queries, 2, allowed=some)[1].tolist() == expected.tolist()


def test_segments_are_allowed_if_their_documents_are(tmp_path):
    vectors = small_integers(60, 8)
    VectorWriter(tmp_path, 8).write_shard(0, [f"c#{i // 3}#{i % 3}" for i in range(60)], vectors)
    index = SegmentIndex(FlatIndex(VectorReader(tmp_path)))
    queries, allowed = small_integers(5, 8, seed=1), Allowed(["c#3", "c#7", "c#11", "c"])
    assert index.find(queries, 2, allowed=allowed) == left(index.find(queries, 20), allowed, 2)
    assert [len(hits) for hits in index.find(queries, 20, allowed=allowed)] == [3] * 5
    assert "c#3#0" in allowed.segments
    assert "c#3#0" not in allowed


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("exactly", [1.0, 0.0], ids=["few are compared", "by the index"])
def test_approximate_search_finds_as_many_allowed_documents_as_there_are(tmp_path, allowed, kind, exactly, monkeypatch):
    monkeypatch.setattr(ann, "EXACTLY", exactly)
    vectors = np.repeat(unit_vectors(100, 16), 3, axis=0)  # equal vectors, of which one stands in the graph
    store, queries = write_store(tmp_path / "v", vectors), unit_vectors(5, 16, seed=1)
    AnnIndex.build(store, tmp_path / "i", kind=kind, parameters=automatic(kind, NUM_DOCS, 16))
    index = AnnIndex.open(tmp_path / "i", store)
    expected = left(FlatIndex(store).find(queries, NUM_DOCS), allowed, 20)
    found = index.find(queries, 20, allowed=allowed)
    if exactly or kind == "hnsw":  # lists give any of the documents that tie for the last place
        assert [[hit.doc_id for hit in hits] for hits in found] == [[hit.doc_id for hit in hits] for hits in expected]
    for hits, best in zip(found, expected, strict=True):
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in best], atol=1e-6)
    assert all(hit.doc_id in allowed for hits in found for hit in hits)


@pytest.mark.parametrize("kind", NAMES)
def test_what_an_approximate_search_misses_is_found_exactly(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(ann, "EXACTLY", 0.0)
    store, queries = write_store(tmp_path / "v", unit_vectors(NUM_DOCS, 16)), unit_vectors(5, 16, seed=1)
    AnnIndex.build(store, tmp_path / "i", kind=kind, parameters=automatic(kind, NUM_DOCS, 16))
    index, allowed = AnnIndex.open(tmp_path / "i", store), Allowed([f"d{i}" for i in range(0, NUM_DOCS, 5)])
    nothing = np.full((5, 20), -1)
    monkeypatch.setattr(index, "_from_graph", lambda *_: nothing)
    monkeypatch.setattr(index, "_from_lists", lambda *_: nothing)
    expected = left(FlatIndex(store).find(queries, NUM_DOCS), allowed, 20)
    assert index.find(queries, 20, allowed=allowed) == expected


def test_documents_newer_than_an_approximate_index_are_not_found_by_a_filter_either(tmp_path):
    vectors = unit_vectors(NUM_DOCS, 16)
    AnnIndex.build(
        write_store(tmp_path / "v", vectors), tmp_path / "i", kind="hnsw", parameters=automatic("hnsw", 300, 16)
    )
    VectorWriter(tmp_path / "v", 16).write_shard(1, ["new"], vectors[:1])
    index = AnnIndex.open(tmp_path / "i", VectorReader(tmp_path / "v"))
    assert index.find(vectors[:1], 2, allowed=Allowed(["new", "d7"]))[0][0].doc_id == "d7"
    assert len(index.find(vectors[:1], 2, allowed=Allowed(["new", "d7"]))[0]) == 1


def test_a_dense_search_asks_its_index_for_allowed_documents(tmp_path):
    class Embeds:
        def encode_queries(self, queries):
            return small_integers(len(queries), 8, seed=1)

    index, allowed = FlatIndex(write(tmp_path, small_integers(NUM_DOCS, 8))), Allowed(["d4", "d9"])
    search = DenseSearch(Embeds(), index)
    assert {hit.doc_id for hit in search.search(["a"], 5, allowed=allowed)["0"]} == {"d4", "d9"}
    assert search.search(["a"], 5) == {"0": index.find(small_integers(1, 8, seed=1), 5)[0]}


def test_allowed_documents_are_counted_named_and_masked(tmp_path: Path):
    allowed = Allowed(document.doc_id for document in DOCUMENTS[:3])
    assert (len(allowed), [*allowed], "d1" in allowed, "d9" in allowed) == (3, ["d0", "d1", "d2"], True, False)
    assert repr(allowed) == "<Allowed: 3 documents>"
    assert allowed.mask(["d9", "d2"]).tolist() == [False, True]
    doc_ids = write(tmp_path, small_integers(NUM_DOCS, 8)).doc_ids
    mask = allowed.mask(doc_ids)
    assert np.flatnonzero(mask).tolist() == [0, 1, 2]
    assert allowed.mask(doc_ids) is mask
    assert Allowed([]).mask(doc_ids).sum() == 0
