import sys

import numpy as np
import pytest
from stores import CORPUS, QUERIES, VECTORS, best, clustered, encode, kill_when_it_says_so, recall

from shortlist.data.allowed import Allowed
from shortlist.data.stores.snapshots import compact
from shortlist.errors import UserError
from shortlist.index.databases import lance
from shortlist.index.databases.lance import LanceIndex
from shortlist.index.protocols import VectorIndex

lancedb = pytest.importorskip("lancedb")

pytestmark = pytest.mark.slow


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "lance")


@pytest.fixture
def store(tmp_path):
    return encode(tmp_path / "store", CORPUS)


@pytest.fixture
def read(monkeypatch):
    """Rows that were read from a store to be loaded, in lists by batch."""
    rows = []
    original = lance._read

    def reading(*given):
        for batch in original(*given):
            rows.append(batch["row"].to_pylist())
            yield batch

    monkeypatch.setattr(lance, "_read", reading)
    return rows


def rows(uri):
    return sorted(lancedb.connect(uri).open_table("vectors").to_arrow()["row"].to_pylist())


@pytest.mark.parametrize("k", [1, 7, 100, 250, 1000])
def test_exact_search_is_exact_and_ties_keep_corpus_order(uri, store, k):
    index = LanceIndex.load(store, uri=uri)
    assert isinstance(index, VectorIndex)
    assert index.find(QUERIES, k) == best(CORPUS, QUERIES, k)
    assert LanceIndex.open(uri=uri).find(QUERIES[:1], k) == best(CORPUS, QUERIES[:1], k)


def test_many_queries_or_none_are_searched(uri, store):
    index = LanceIndex.load(store, uri=uri)
    assert index.find(np.tile(QUERIES, (30, 1)), 3) == best(CORPUS, QUERIES, 3) * 30
    assert index.find(QUERIES[:0], 3) == []
    assert index.find(QUERIES, 0) == [[]] * 5


def test_approximate_search_finds_nearly_all_and_scores_them_in_full(uri, tmp_path):
    vectors = clustered(2000, 32)
    corpus = {f"d{i}": vector for i, vector in enumerate(vectors)}
    index = LanceIndex.load(encode(tmp_path / "store", corpus, shard=1000), uri=uri, approximate=True)
    queries = clustered(2010, 32)[2000:]
    assert recall(index, corpus, queries, 10) > 0.9
    assert index.memory_bytes < vectors.nbytes / 2 < vectors.nbytes < index.disk_bytes
    for hit in index.find(queries[:1], 100)[0]:
        np.testing.assert_allclose(hit.score, corpus[hit.doc_id] @ queries[0], atol=1e-6)
    coarse = LanceIndex.open(uri=uri, approximate=True, probes=1, refine=1)
    assert recall(coarse, corpus, queries, 10) < recall(index, corpus, queries, 10)
    assert recall(LanceIndex.open(uri=uri), corpus, queries, 10) == 1


def test_a_load_that_is_interrupted_goes_on_where_it_was(uri, store, read):
    done = []

    def stop(amount=1, note=""):
        done.append(amount)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LanceIndex.load(store, uri=uri, advance=stop)
    assert rows(uri) == list(range(200))
    with pytest.raises(UserError, match="not there or not finished"):
        LanceIndex.open(uri=uri)
    read.clear()
    index = LanceIndex.load(store, uri=uri, advance=lambda amount=1, note="": done.append(amount))
    assert read == [list(range(200, 250))]
    assert done == [100, 100, 100, 100, 50]
    assert index.find(QUERIES, 250) == best(CORPUS, QUERIES, 250)
    assert store.beyond(LanceIndex.open(uri=uri).shard_hashes) == 0
    read.clear()
    LanceIndex.load(store, uri=uri)
    assert read == []


def test_a_load_killed_in_the_middle_of_a_shard_goes_on_with_the_same_call(uri, store):
    kill_when_it_says_so(f"""
import time
from pathlib import Path
from shortlist.data.stores.vectors import VectorReader
from shortlist.index.databases import lance

def slow(vectors, number, missing, read=lance._read):
    for i, batch in enumerate(read(vectors, number, missing)):
        if number == 1 and i == 5:
            print("now", flush=True)
            time.sleep(60)
        yield batch

lance._read, lance.WRITTEN_AT_ONCE = slow, 10
lance.LanceIndex.load(VectorReader(Path({str(store.folder)!r})), uri={uri!r})
""")
    assert rows(uri) == list(range(100))
    assert LanceIndex.load(store, uri=uri).find(QUERIES, 250) == best(CORPUS, QUERIES, 250)


@pytest.mark.parametrize("approximate", [False, True])
def test_a_store_that_has_changed_costs_only_its_changes(uri, tmp_path, store, read, approximate):
    LanceIndex.load(store, uri=uri, approximate=approximate)
    changed = {"new": VECTORS[7]} | {
        doc_id: CORPUS[doc_id] for doc_id in reversed(CORPUS) if doc_id not in ("d3", "d42")
    }
    changed["d100"] = VECTORS[0] + 1
    read.clear()
    index = LanceIndex.load(encode(store.folder, changed), uri=uri, approximate=approximate)
    assert read == [[250, 251]]
    assert (index.num_docs, len(changed)) == (249, 249)
    check(index, changed)
    index = LanceIndex.load(encode(store.folder, CORPUS), uri=uri, approximate=approximate)
    assert [row for batch in read[1:] for row in batch] == [3, 42, 100]
    check(index, CORPUS)
    compact(store.folder, 60)
    check(LanceIndex.load(encode(store.folder, CORPUS), uri=uri, approximate=approximate), CORPUS)


def check(index, corpus):
    if index.approximate:
        assert recall(index, corpus, QUERIES, 200) > 0.9
    else:
        for k in (1, 10, 249):
            assert index.find(QUERIES, k) == best(corpus, QUERIES, k)


def test_what_is_added_is_put_into_the_index_and_a_few_documents_do_not_rebuild_it(uri, tmp_path):
    vectors = clustered(1000, 16)  # LanceDB trains an index on 256 documents or more, and compares fewer one by one
    built = []
    for first, last in [(0, 600), (5, 605), (400, 1000)]:
        corpus = {f"d{i}": vectors[i] for i in range(first, last)}
        index = LanceIndex.load(encode(tmp_path / "store", corpus), uri=uri, approximate=True)
        (found,) = lancedb.connect(uri).open_table("vectors").list_indices()
        built.append((found.num_indexed_rows, found.num_unindexed_rows, found.num_segments))
        assert recall(index, corpus, vectors[-5:], 10) > 0.9
    assert built == [(600, 0, 1), (600, 0, 2), (600, 0, 1)]


def test_an_update_that_is_interrupted_is_not_opened_and_goes_on(uri, store, monkeypatch):
    LanceIndex.load(store, uri=uri)
    changed = {"new": VECTORS[7]} | {doc_id: vector for doc_id, vector in CORPUS.items() if doc_id != "d3"}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lance, "_write_order", stop)
        with pytest.raises(KeyboardInterrupt):
            LanceIndex.load(encode(store.folder, changed), uri=uri)
    with pytest.raises(UserError, match="not there or not finished"):
        LanceIndex.open(uri=uri)
    check(LanceIndex.load(encode(store.folder, changed), uri=uri), changed)


def test_a_store_encoded_anew_takes_the_place_of_the_old_one(uri, tmp_path, store):
    LanceIndex.load(store, uri=uri)
    anew = {doc_id: 2 - vector for doc_id, vector in list(CORPUS.items())[:220]}
    index = LanceIndex.load(encode(tmp_path / "new", anew), uri=uri)
    assert index.find(QUERIES, 250) == best(anew, QUERIES, 250)


def test_documents_that_only_changed_their_names_are_renamed(uri, store):
    """After the compaction the shard holds the same vectors in the same rows as before, of other documents."""
    LanceIndex.load(store, uri=uri)
    renamed = {f"x{doc_id}": vector for doc_id, vector in CORPUS.items()}
    encode(store.folder, renamed)
    compact(store.folder, 100)
    check(LanceIndex.load(encode(store.folder, renamed), uri=uri), renamed)


def test_a_shard_that_was_loaded_twice_at_once_is_there_once_in_the_end(uri, store):
    LanceIndex.load(store, uri=uri)
    table = lancedb.connect(uri).open_table("vectors")
    table.add(table.search().where("row >= 100 AND row < 200").to_arrow())
    assert len(rows(uri)) == 350
    check(LanceIndex.load(store, uri=uri), CORPUS)
    assert rows(uri) == list(range(250))


def test_a_table_of_others_or_of_other_vectors_is_left_alone(uri, tmp_path, store):
    lancedb.connect(uri).create_table("theirs", [{"vector": [1.0]}])
    with pytest.raises(UserError, match=r"table theirs of .*: is there and was not made by shortlist"):
        LanceIndex.load(store, uri=uri, table="theirs")
    index = LanceIndex.load(store, uri=uri)
    other = encode(tmp_path / "other", {"a": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="holds vectors of 8 dimensions, these have 3"):
        LanceIndex.load(other, uri=uri)
    with pytest.raises(UserError, match=r"queries have 3 dimensions, the vectors of table vectors of .* 8:"):
        index.find(np.ones((1, 3), np.float32), 1)
    with pytest.raises(UserError, match="has no approximate index"):
        LanceIndex.open(uri=uri, approximate=True)


def test_an_index_on_s3_is_loaded_and_found_by_the_environment_alone(store, monkeypatch):
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"ENDPOINT_URL": f"http://{host}:{port}", "ALLOW_HTTP": "true", "DEFAULT_REGION": "us-east-1"}
    environment |= {"ACCESS_KEY_ID": "someone", "SECRET_ACCESS_KEY": "hush"}
    for name, value in environment.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    import boto3

    boto3.client("s3").create_bucket(Bucket="place")
    done = []

    def stop(amount=1, note=""):
        done.append(amount)
        if len(done) == 2:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            LanceIndex.load(store, uri="s3://place/indexes", advance=stop)
        LanceIndex.load(store, uri="s3://place/indexes", approximate=True)
        assert LanceIndex.open(uri="s3://place/indexes").find(QUERIES, 10) == best(CORPUS, QUERIES, 10)
        with pytest.raises(UserError, match=r"^LanceDB at s3://none/x: ") as caught:
            LanceIndex.load(store, uri="s3://none/x")
        assert "hush" not in str(caught.value)
    finally:
        server.stop()


def test_a_missing_package_is_named_with_its_extra(monkeypatch, uri):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(UserError, match=r"lancedb is not installed: .* pip install 'shortlist\[lance\]'"):
        LanceIndex.open(uri=uri)


@pytest.mark.parametrize("approximate", [False, True])
def test_allowed_documents_are_found_as_if_they_were_all(uri, store, approximate):
    index = LanceIndex.load(store, uri=uri, approximate=approximate, **({"partitions": 4} if approximate else {}))
    for doc_ids in ([], ["d7"], [f"d{i}" for i in range(0, 250, 9)], [*CORPUS][:200], [*CORPUS][::-1]):
        some = {doc_id: vector for doc_id, vector in CORPUS.items() if doc_id in doc_ids}
        expected = best(some, QUERIES, 7) if some else [[] for _ in QUERIES]
        found = index.find(QUERIES, 7, allowed=Allowed([*doc_ids, "it's unheard"]))
        if approximate:
            assert [len(hits) for hits in found] == [len(hits) for hits in expected]
            assert all(hit.doc_id in some for hits in found for hit in hits)
        else:
            assert found == expected


def test_segments_are_allowed_if_their_documents_are(uri, tmp_path):
    corpus = {f"a#{i // 3}#{i % 3}": vector for i, vector in enumerate(VECTORS[:30])}
    index = LanceIndex.load(encode(tmp_path / "segments", corpus), uri=uri)
    some = {doc_id: vector for doc_id, vector in corpus.items() if doc_id.startswith(("a#2#", "a#5#"))}
    assert index.find(QUERIES, 9, allowed=Allowed(["a#2", "a#5"]).segments) == best(some, QUERIES, 9)
