import json

import numpy as np
import pytest

from shortlist.data.stores.shards import VOCABULARY, damage
from shortlist.data.stores.snapshots import compact
from shortlist.data.stores.terms import TERM_DTYPES, TERM_SHARDS, TermReader, TermWriter
from shortlist.data.stores.tokens import TokenReader
from shortlist.errors import UserError
from shortlist.math.terms import TermWeights

NAMES = [f"term{i}" for i in range(50)]
COUNTS = np.array([3, 0, 2, 5, 1, 4, 2])
DOC_IDS = [f"d\u2028{i}" for i in range(7)]
SHARDS = [(0, 4), (4, 6), (6, 7)]
RANDOM = np.random.default_rng(0)
TERMS = np.concatenate([np.sort(RANDOM.choice(50, count, replace=False)) for count in COUNTS]).astype(np.int32)
WEIGHTS = (RANDOM.random(len(TERMS)) + 0.1).astype(np.float32)
ENDS = np.cumsum(COUNTS)


def some(documents) -> TermWeights:
    places = np.concatenate([np.arange(0), *(np.arange(ENDS[i] - COUNTS[i], ENDS[i]) for i in documents)]).astype(int)
    return TermWeights(TERMS[places], WEIGHTS[places], COUNTS[list(documents)])


def write(folder, dtype="float32", shards=SHARDS):
    writer = TermWriter(folder, NAMES, dtype)
    for number, (start, end) in enumerate(shards):
        writer.write_shard(number, DOC_IDS[start:end], some(range(start, end)), bytes(16 * (end - start)))
    return folder


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "store")


@pytest.fixture
def updated(store):
    """Documents 0, 2 and 5 are dead, and the others stand in reverse order."""
    np.array([-1, 3, -1, 2, 1, -1, 0], dtype="<i8").tofile(store / "order-00001.bin")
    (store / "snapshot.json").write_text(json.dumps({"shards": [0, 1, 2], "order": "order-00001.bin"}))
    return store


def same(found: TermWeights, documents) -> None:
    wanted = some(documents)
    assert found.counts.tolist() == wanted.counts.tolist()
    assert np.array_equal(found.terms, wanted.terms)
    assert np.array_equal(found.weights, wanted.weights)


def test_term_weights_are_read_back_bit_for_bit(store):
    reader = TermReader(store)
    assert (reader.num_terms, reader.num_docs, reader.num_entries, reader.dtype) == (50, 7, 17, "float32")
    assert (list(reader.doc_ids), reader.vocabulary, reader.counts.tolist()) == (DOC_IDS, NAMES, COUNTS.tolist())
    same(reader.take(np.arange(7)), range(7))
    same(reader.take(np.array([5, 0, 6, 5, 1])), [5, 0, 6, 5, 1])
    same(reader.take(np.array([], dtype=int)), [])


def test_an_updated_store_is_read_by_position_and_compacted(updated):
    reader = TermReader(updated)
    assert (reader.num_docs, reader.num_rows, reader.counts.tolist()) == (4, 7, [2, 1, 5, 0])
    same(reader.take(np.arange(4)), [6, 4, 3, 1])
    assert [block.positions.tolist() for block in reader.blocks(99)] == [[3, 2], [1], [0]]
    assert [reader.beyond(reader.shard_hashes[:known]) for known in (3, 2)] == [0, 1]
    assert compact(updated, 2) == 3
    same(TermReader(updated).take(np.arange(4)), [6, 4, 3, 1])


def test_only_the_documents_asked_for_are_read(store):
    keep = np.array([True, False, False, True, False, False, True])
    reader = TermReader(store)
    assert [block.positions.tolist() for block in reader.blocks(99, keep=keep)] == [[0, 3], [6]]
    assert [block.positions.tolist() for block in reader.blocks(5, shards=[0])] == [[0, 1, 2], [3]]
    same(next(reader.blocks(5)).entries.as_float32(), range(3))


@pytest.mark.parametrize("dtype", TERM_DTYPES)
def test_every_dtype_keeps_all_terms_with_nearly_the_same_weights(tmp_path, dtype):
    found = TermReader(write(tmp_path, dtype)).take(np.arange(7))
    assert np.array_equal(found.terms, TERMS)
    assert np.abs(found.weights - WEIGHTS).max() < {"float32": 1e-9, "float16": 1e-3, "uint8": 3e-3}[dtype]


def test_a_small_weight_is_never_lost_in_uint8(tmp_path):
    weights = TermWeights(np.array([1, 2], np.int32), np.array([1e-6, 9], np.float32), np.array([2]))
    TermWriter(tmp_path, NAMES, "uint8").write_shard(0, ["d"], weights)
    assert (TermReader(tmp_path).take(np.array([0])).weights > 0).all()


@pytest.mark.parametrize(
    ("term", "weight", "why"),
    [
        (1, np.nan, r"a weight of document 'e' is nan; expected finite numbers above 0"),
        (1, -1, r"a weight of document 'e' is -1; expected"),
        (50, 1, r"document 'e' has term 50, and the vocabulary 50 terms; expected a model and a tokenizer"),
    ],
)
def test_what_is_no_term_weight_is_refused(tmp_path, term, weight, why):
    terms = np.array([3, term], np.int32)
    weights = TermWeights(terms, np.array([1, weight], np.float32), np.array([1, 1]))
    with pytest.raises(UserError, match=why):
        TermWriter(tmp_path, NAMES).write_shard(0, ["d", "e"], weights)


def test_a_weight_too_large_for_float16_is_refused(tmp_path):
    weights = TermWeights(np.array([3], np.int32), np.array([1e6], np.float32), np.array([1]))
    with pytest.raises(UserError, match="not finite in float16; choose a wider --dtype"):
        TermWriter(tmp_path, NAMES, "float16").write_shard(0, ["d"], weights)


def test_another_vocabulary_and_another_kind_of_store_are_refused(store):
    with pytest.raises(UserError, match=r"another vocabulary than the model's"):
        TermWriter(store, [*NAMES[1:], "x"]).write_shard(3, ["d"], some([0]))
    with pytest.raises(UserError, match=r"holds terms, not token vectors"):
        TokenReader(store)


@pytest.mark.parametrize("name", ["shard-00001.bin", "shard-00001.terms", "shard-00001.counts", VOCABULARY])
def test_every_changed_byte_is_found(store, name):
    content = bytearray((store / name).read_bytes())
    content[-1] ^= 1
    (store / name).write_bytes(bytes(content))
    assert name in (damage(store, 1) or "")
    with pytest.raises(UserError, match=name):
        TermReader(store)


def test_an_index_tells_shards_apart_by_all_that_they_hold(store, tmp_path):
    header = json.loads((store / "shard-00000.json").read_text())
    for suffix in ("bin", "terms", "counts"):
        other = header | {"sha256": header["sha256"] | {suffix: "other"}}
        assert TERM_SHARDS.identity(other) != TERM_SHARDS.identity(header)
