import json

import numpy as np
import pytest

from shortlist.data.stores.shards import finished_shards, read_snapshot
from shortlist.data.stores.snapshots import Known, compact, document_keys, missing, pin, read_known, renew
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.records import Document


def docs(names: str) -> list[Document]:
    return [Document(name.lower(), f"text of {name}") for name in names]


def vectors_of(documents: list[Document]) -> np.ndarray:
    return np.array([[ord(document.text[-1]), 1] for document in documents], dtype=np.float32)


def write(folder, number, documents, dtype="float32"):
    doc_ids = [document.doc_id for document in documents]
    VectorWriter(folder, 2, dtype).write_shard(number, doc_ids, vectors_of(documents), document_keys(documents))


@pytest.fixture(params=["float32", "int8"])
def store(tmp_path, request):
    for number, names in enumerate(["abc", "def"]):
        write(tmp_path, number, docs(names), request.param)
    return tmp_path


def update(folder, names: str, shard_size: int = 2):
    pin(folder)
    finished, known = finished_shards(folder), []
    new = list(missing(docs(names), read_known(folder, finished), known.append))
    dtype = VectorReader(folder).dtype
    for number, start in enumerate(range(0, len(new), shard_size), finished[-1] + 1):
        write(folder, number, new[start : start + shard_size], dtype)
    return sum(known), renew(folder, docs(names))


def holds(folder, names: str):
    store = VectorReader(folder)
    assert (list(store.doc_ids), store.num_docs) == ([name.lower() for name in names], len(names))
    np.testing.assert_allclose(store.take(np.arange(len(names))), vectors_of(docs(names)), atol=0.5)
    seen = {p: v for b in store.blocks(2) for p, v in zip(b.positions.tolist(), b.float32().tolist(), strict=True)}
    np.testing.assert_allclose([seen[i] for i in range(len(names))], vectors_of(docs(names)), atol=0.5)


def test_a_key_changes_with_everything_that_a_vector_may_depend_on():
    document = Document("id", "text", "title", "url")
    others = [document._replace(**{field: "other"}) for field in document._fields]
    keys = {document_keys([each]) for each in [document, *others]}
    assert len(keys) == 5
    assert document_keys([document]) in keys
    assert all(len(key) == 16 for key in keys)


def test_what_is_known_is_found_by_its_key():
    keys = np.frombuffer(document_keys(docs("abc")), dtype="S16")
    order = np.argsort(keys)
    known = Known(keys[order], order)
    assert known.look_up(document_keys(docs("cxa"))).tolist() == [2, -1, 0]
    assert Known(keys[:0], order[:0]).look_up(document_keys(docs("a"))).tolist() == [-1]


@pytest.mark.parametrize(
    ("names", "kept", "dead"),
    [("abcdefgh", 6, 0), ("bdf", 3, 3), ("ghabcdefi", 6, 0), ("fedcba", 6, 0), ("aBcdEfg", 4, 2), ("xyz", 0, 6)],
    ids=["grown", "shrunk", "grown in front", "put in order", "changed", "replaced"],
)
def test_an_updated_store_holds_its_corpus(store, names, kept, dead):
    assert update(store, names) == (kept, dead)
    holds(store, names)


def test_updates_follow_each_other(store):
    for names in ["abcdefg", "bcdefgh", "hgx", "abcx"]:
        update(store, names)
        holds(store, names)
    assert len(finished_shards(store)) == 5  # a came back, and is where it was


def test_until_an_update_is_complete_the_store_is_what_it_was(store):
    pin(store)
    write(store, 2, docs("gh"), VectorReader(store).dtype)
    holds(store, "abcdef")
    assert update(store, "cghi") == (3, 5)  # goes on with what the first try has encoded
    holds(store, "cghi")


def test_a_reader_keeps_its_snapshot_through_update_and_compaction(store):
    before = VectorReader(store)
    update(store, "gfa")
    during = VectorReader(store)
    compact(store, 2)
    assert list(before.doc_ids) == list("abcdef")
    assert list(during.doc_ids) == list("gfa")
    np.testing.assert_allclose(before.take(np.arange(6)), vectors_of(docs("abcdef")), atol=0.5)
    np.testing.assert_allclose(during.take(np.arange(3)), vectors_of(docs("gfa")), atol=0.5)
    assert [len(block.vectors) for block in during.blocks(9)] == [1, 1, 1]


def test_compaction_leaves_the_documents_in_order_and_nothing_else(store):
    update(store, "gfaXb")
    rows = VectorReader(store).pick(np.arange(5)).vectors
    assert compact(store, 2) == 3
    assert [path.name for path in sorted(store.glob("shard-*.bin"))] == [f"shard-0000{n}.bin" for n in (3, 4, 5)]
    assert list(store.glob("order-*")) == []
    holds(store, "gfaXb")
    assert VectorReader(store).pick(np.arange(5)).vectors.equal(rows)  # not quantised a second time
    assert compact(store, 2) == 0
    assert update(store, "gfaXbz") == (5, 0)
    holds(store, "gfaXbz")


def test_a_store_that_never_changed_needs_no_compaction(store):
    assert compact(store, 2) == 0
    assert read_snapshot(store) is None
    pin(store)
    assert compact(store, 2) == 0
    assert finished_shards(store) == [0, 1]


def test_a_store_without_keys_cannot_be_matched_with_a_corpus(store):
    (store / "shard-00001.keys").unlink()
    with pytest.raises(UserError, match=r"shard-00001.keys: is missing"):
        read_known(store, [0, 1])


def test_a_crash_before_the_snapshot_changes_nothing(store, monkeypatch):
    update(store, "bcdefg")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shortlist.data.stores.snapshots._write_snapshot", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(store, 4)
        with pytest.raises(KeyboardInterrupt):
            renew(store, docs("gab"))
    holds(store, "bcdefg")
    assert json.loads((store / "snapshot.json").read_text())["order"] == "order-00001.bin"
    assert update(store, "gab")[0] == 3
    holds(store, "gab")
