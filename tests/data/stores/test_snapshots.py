import json

import numpy as np
import pytest

from shortlist.data.stores.kinds import open_store
from shortlist.data.stores.shards import finished_shards, read_snapshot
from shortlist.data.stores.snapshots import Known, compact, document_keys, missing, pin, read_known, renew
from shortlist.data.stores.tokens import TokenBlock, TokenReader, TokenWriter
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.math.maxsim import TokenVectors
from shortlist.records import Document


def docs(names: str) -> list[Document]:
    return [Document(name.lower(), f"text of {name}") for name in names]


def vectors_of(documents: list[Document]) -> np.ndarray:
    return np.array([[ord(document.text[-1]), 1] for document in documents], dtype=np.float32).reshape(-1, 2)


def tokens_of(documents: list[Document]) -> TokenVectors:
    """As many vectors of a document as its last letter says."""
    counts = np.array([ord(document.text[-1]) % 4 for document in documents])
    return TokenVectors(np.repeat(vectors_of(documents), counts, axis=0), counts)


WRITERS = {VectorReader: (VectorWriter, vectors_of), TokenReader: (TokenWriter, tokens_of)}


def write(folder, number, documents, reader, dtype):
    doc_ids = [document.doc_id for document in documents]
    writer, contents = WRITERS[reader]
    writer(folder, 2, dtype).write_shard(number, doc_ids, contents(documents), document_keys(documents))


def write_more(folder, number, documents):
    store = open_store(folder)
    write(folder, number, documents, type(store), store.dtype)


@pytest.fixture(params=["float32", "int8", "float16 tokens", "int8 tokens"])
def store(tmp_path, request):
    for number, names in enumerate(["abc", "def"]):
        dtype, *tokens = request.param.split()
        write(tmp_path, number, docs(names), TokenReader if tokens else VectorReader, dtype)
    return tmp_path


def update(folder, names: str, shard_size: int = 2):
    pin(folder)
    finished, known = finished_shards(folder), []
    new = list(missing(docs(names), read_known(folder, finished), known.append))
    for number, start in enumerate(range(0, len(new), shard_size), finished[-1] + 1):
        write_more(folder, number, new[start : start + shard_size])
    return sum(known), renew(folder, docs(names))


def agree(store, positions, names: str) -> None:
    """Whether some documents are those of these names."""
    found, wanted = store.take(np.array(positions, dtype=int)), docs(names)
    if isinstance(store, TokenReader):
        assert found.counts.tolist() == tokens_of(wanted).counts.tolist()
        found, wanted = found.values, tokens_of(wanted).values
    else:
        wanted = vectors_of(wanted)
    np.testing.assert_allclose(found, wanted, atol=0.5)


def holds(folder, names: str):
    store = open_store(folder)
    assert (list(store.doc_ids), store.num_docs) == ([name.lower() for name in names], len(names))
    agree(store, range(len(names)), names)
    seen = [int(position) for block in store.blocks(2) for position in block.positions]
    assert sorted(seen) == list(range(len(names)))
    for block in store.blocks(2):
        wanted = "".join(names[position] for position in block.positions)
        contents = tokens_of(docs(wanted)).values if isinstance(store, TokenReader) else vectors_of(docs(wanted))
        np.testing.assert_allclose(block.float32(), contents, atol=0.5)


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
    write_more(store, 2, docs("gh"))
    holds(store, "abcdef")
    assert update(store, "cghi") == (3, 5)  # goes on with what the first try has encoded
    holds(store, "cghi")


def test_a_reader_keeps_its_snapshot_through_update_and_compaction(store):
    before = open_store(store)
    update(store, "gfa")
    during = open_store(store)
    compact(store, 2)
    assert list(before.doc_ids) == list("abcdef")
    assert list(during.doc_ids) == list("gfa")
    agree(before, range(6), "abcdef")
    agree(during, range(3), "gfa")
    assert [len(block.rows) for block in during.blocks(9)] == [1, 1, 1]


def as_stored(folder):
    store = open_store(folder)
    block = store.pick(np.arange(store.num_docs))
    return block.values if isinstance(block, TokenBlock) else block.vectors


def test_compaction_leaves_the_documents_in_order_and_nothing_else(store):
    update(store, "gfaXb")
    rows = as_stored(store)
    assert compact(store, 2) == 3
    assert [path.name for path in sorted(store.glob("shard-*.bin"))] == [f"shard-0000{n}.bin" for n in (3, 4, 5)]
    assert list(store.glob("order-*")) == []
    holds(store, "gfaXb")
    assert as_stored(store).equal(rows)  # not quantised a second time
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
