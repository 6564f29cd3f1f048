import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from processes import Started, shortlist
from test_late_index import by_the_book, token_vectors, write_tokens

from shortlist.data.allowed import Allowed
from shortlist.data.stores.tokens import TokenReader, TokenWriter
from shortlist.errors import UserError
from shortlist.index import pruned
from shortlist.index.building import build_index
from shortlist.index.kinds import INDEXES
from shortlist.index.late import LateIndex
from shortlist.index.protocols import Opening, TokenIndex
from shortlist.index.pruned import PrunedIndex
from shortlist.math.maxsim import TokenVectors

LATE = [name for name, kind in INDEXES.items() if kind.over == ("tokens",)]


def related(num_docs: int = 300, num_queries: int = 6) -> tuple[TokenVectors, TokenVectors]:
    """Queries, and documents that share fewer and fewer tokens with them; some documents have none."""
    queries, documents = token_vectors([8] * num_queries, seed=1), list(token_vectors([12] * num_docs))
    order = np.random.default_rng(0).permutation(num_docs - 10) + 10
    for number, query in enumerate(queries):
        for missing in range(8):
            documents[order[8 * number + missing]][: 8 - missing] = query[missing:]
    documents[3] = documents[3][:0]
    counts = np.array([len(document) for document in documents])
    return queries, TokenVectors(np.concatenate(documents), counts)


QUERIES, DOCUMENTS = related()


@pytest.fixture
def store(tmp_path):
    return write_tokens(tmp_path / "tokens", DOCUMENTS, shard=100)


def build(name, store, folder, **settings):
    build_index(INDEXES[name], store.folder, folder, settings)
    return INDEXES[name].open(folder, {}, Opening(vectors=store.folder))


def recall(found, expected) -> float:
    return float(np.mean([len({*one} & {*other}) / len(other) for one, other in zip(found, expected, strict=True)]))


@pytest.mark.parametrize("name", LATE)
def test_a_pruned_search_finds_most_of_the_best_with_exact_scores(tmp_path, store, name):
    index = build(name, store, tmp_path / "index", effort=40)
    scores, positions = index.search_tokens(QUERIES, 8)
    assert isinstance(index, TokenIndex)
    expected = LateIndex(store).search_tokens(QUERIES, 300)
    assert recall(positions, expected[1][:, :8]) > 0.85
    for row in range(len(QUERIES)):
        known = dict(zip(expected[1][row].tolist(), expected[0][row].tolist(), strict=True))
        assert [known[place] for place in positions[row].tolist()] == scores[row].tolist()
    tight = INDEXES[name].open(tmp_path / "index", {}, Opening(vectors=store.folder, memory_gib=0.0))
    np.testing.assert_array_equal(tight.search_tokens(QUERIES, 8)[1], positions)


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("share", [0.02, 0.6])
def test_a_filter_finds_as_many_as_there_are(tmp_path, store, name, share):
    index = build(name, store, tmp_path / "index", effort=20)
    keep = np.random.default_rng(0).random(300) < share
    keep[3] = True  # which has no vectors
    hits = index.find(QUERIES, 5, allowed=Allowed([f"d{place}" for place in np.flatnonzero(keep)]))
    for found in hits:
        assert len(found) == min(5, keep.sum() - 1)
        assert all(keep[int(hit.doc_id[1:])] and hit.doc_id != "d3" for hit in found)


@pytest.mark.parametrize("name", LATE)
def test_every_search_chooses_its_own_candidates(tmp_path, store, name):
    index = build(name, store, tmp_path / "index", effort=10)
    index.search_tokens(QUERIES, 1)
    assert index.search_tokens(QUERIES, 60)[1].shape == (6, 60)  # not the candidates of the first search
    assert (index.search_tokens(QUERIES, 60)[1] >= 0).all()


@pytest.mark.parametrize("name", LATE)
def test_all_documents_as_candidates_give_an_exact_search(tmp_path, store, name, monkeypatch):
    monkeypatch.setattr(pruned, "ALL_SCORED", 0)
    index = build(name, store, tmp_path / "index", effort=10_000)
    for one, other in zip(index.search_tokens(QUERIES, 9), by_the_book(QUERIES, DOCUMENTS, 9), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def extended(store):
    """Two more documents, in a shard of their own."""
    new = token_vectors([12, 7], seed=7)
    TokenWriter(store.folder, 16).write_shard(3, ["new0", "new1"], new)
    return TokenReader(store.folder), new


@pytest.mark.parametrize("name", LATE)
def test_only_new_documents_are_read_again(tmp_path, store, name):
    index = build(name, store, tmp_path / "index", effort=30)
    longer, new = extended(store)
    asked = TokenVectors(new.values[:12], np.array([12]))
    old = INDEXES[name].open(tmp_path / "index", {}, Opening(vectors=store.folder))
    assert old.missing == 2
    assert "new0" not in [hit.doc_id for hit in old.find(asked, 5)[0]]
    results = build_index(INDEXES[name], store.folder, tmp_path / "index", {"effort": 30})
    assert results["read"] == 2
    now = INDEXES[name].open(tmp_path / "index", {}, Opening(vectors=store.folder))
    assert now.find(asked, 1)[0][0].doc_id == "new0"
    assert now.missing == 0
    again = build(name, longer, tmp_path / "anew", effort=30)
    for one, other in zip(now.search_tokens(QUERIES, 4), again.search_tokens(QUERIES, 4), strict=True):
        np.testing.assert_array_equal(one, other)  # the best, as centroids found anew are others
    assert index.find(QUERIES, 3) == now.find(QUERIES, 3)


def killed_before_file(number, *command):
    """Run a command that is killed just before a file that it has written gets its name."""
    written, replace = 0, Path.replace

    def counted(self, target):
        nonlocal written
        written += 1
        if written == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = counted
    return shortlist(*command)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in (".yaml", ".partial")}


@pytest.mark.slow
@pytest.mark.parametrize("name", LATE)
def test_a_build_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path, store, name):
    (store.folder / "manifest.json").write_text('{"stage": "encode", "job": "a", "complete": true, "config": {}}')
    command = ("index", "--kind", name, "--vectors", str(store.folder), "--out")
    for _ in range(2):  # a build, and an update
        assert shortlist(*command, str(tmp_path / "whole")) == 0
        kills, code = 0, -signal.SIGKILL
        while code == -signal.SIGKILL:
            kills += 1
            code = Started(killed_before_file, kills, *command, str(tmp_path / "broken")).wait()
        assert (code, kills > 4) == (0, True)
        whole, broken = contents(tmp_path / "whole"), contents(tmp_path / "broken")
        for found in (whole, broken):
            assert json.loads(found.pop("manifest.json"))["complete"]
        assert broken == whole
        assert not list((tmp_path / "broken").glob("*.partial"))
        extended(store)
        (store.folder / "manifest.json").write_text('{"stage": "encode", "job": "b", "complete": true, "config": {}}')


@pytest.mark.parametrize("name", LATE)
def test_documents_that_are_gone_are_not_found(tmp_path, store, name):
    build(name, store, tmp_path / "index", effort=20)
    order = np.arange(300)
    gone = LateIndex(store).search_tokens(QUERIES, 1)[1][:, 0]
    order[gone] = -1
    order[order >= 0] = np.arange(300 - len(set(gone.tolist())))
    order.astype("<i8").tofile(store.folder / "order-00001.bin")
    (store.folder / "snapshot.json").write_text(json.dumps({"shards": [0, 1, 2], "order": "order-00001.bin"}))
    index = INDEXES[name].open(tmp_path / "index", {}, Opening(vectors=store.folder))
    found = {hit.doc_id for hits in index.find(QUERIES, 5) for hit in hits}
    assert not found & {f"d{place}" for place in gone}


def test_an_interrupted_change_is_noticed(tmp_path, store):
    build("late", store, tmp_path / "index")
    description = (tmp_path / "index/index.json").read_bytes()
    extended(store)
    build_index(INDEXES["late"], store.folder, tmp_path / "index", {})
    (tmp_path / "index/index.json").write_bytes(description)  # as if it were interrupted just before
    with pytest.raises(UserError, match="is being changed, or was left so; run the same"):
        INDEXES["late"].open(tmp_path / "index", {}, Opening(vectors=store.folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bits": 0}, "bits 0: expected at least 1"), ({"bits": 16}, "encodings of .* dimensions; expected at most")],
)
def test_parameters_that_are_not_possible_are_refused(tmp_path, store, settings, message):
    with pytest.raises(UserError, match=message):
        build("late", store, tmp_path / "index", **settings)


def test_another_stores_index_is_refused(tmp_path, store):
    build("late", store, tmp_path / "index")
    other = write_tokens(tmp_path / "other", token_vectors([3] * 20, 8))
    with pytest.raises(UserError, match=r"indexes token vectors of dim 16, .* holds dim 8"):
        INDEXES["late"].open(tmp_path / "index", {}, Opening(vectors=other.folder))


def test_a_narrow_copy_finds_what_an_exact_search_finds(tmp_path, store, monkeypatch):
    monkeypatch.setattr("shortlist.index.narrow.NARROW_NUMBERS", 1000 * 16)
    index = build("narrow", store, tmp_path / "narrow", dtype="int8")
    for one, other in zip(index.search_tokens(QUERIES, 8), LateIndex(store).search_tokens(QUERIES, 8), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="--dtype bfloat16: token vectors are scanned in int8 only"):
        build("narrow", store, tmp_path / "bf16", dtype="bfloat16")


def test_kinds_of_index_and_of_store_must_fit(tmp_path, store):
    with pytest.raises(UserError, match=r"holds token vectors, many for each document.*--kind late"):
        build_index(INDEXES["hnsw"], store.folder, tmp_path / "index", {})


class ProposesFew:
    def propose(self, queries, count, keep):
        found = np.full((len(queries), count), -1, dtype=np.int64)
        found[:, :2] = 7, 8
        return found


def test_where_too_few_are_proposed_all_are_scored(store):
    description = {"shard_hashes": store.shard_hashes, "parameters": {"effort": 10, "refine": 1}}
    index = PrunedIndex(store, ProposesFew(), description)
    for one, other in zip(index.search_tokens(QUERIES, 5), LateIndex(store).search_tokens(QUERIES, 5), strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted(index.search_tokens(QUERIES, 2)[1][0].tolist()) == [7, 8]
