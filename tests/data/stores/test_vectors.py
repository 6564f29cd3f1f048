import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shortlist.data.files import sha256
from shortlist.data.ids import DocIds
from shortlist.data.stores.shards import count_rows, damage, finished_shards, read_snapshot
from shortlist.data.stores.vectors import DTYPES, VectorReader, VectorWriter
from shortlist.errors import UserError

VECTORS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
DOC_IDS = [f"d\u2028{i}" for i in range(7)]
SHARDS = [(0, 4), (4, 6), (6, 7)]


def write(folder, dtype="float32"):
    writer = VectorWriter(folder, dim=3, dtype=dtype)
    for number, (start, end) in enumerate(SHARDS):
        writer.write_shard(number, DOC_IDS[start:end], VECTORS[start:end])
    return folder


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "store")


@pytest.fixture
def updated(store):
    """Rows 0, 2 and 5 are dead, and the others stand in reverse order."""
    positions = np.array([-1, 3, -1, 2, 1, -1, 0], dtype="<i8")
    positions.tofile(store / "order-00001.bin")
    (store / "snapshot.json").write_text(json.dumps({"shards": [0, 1, 2], "order": "order-00001.bin"}))
    return store


def test_vectors_are_read_back_bit_for_bit_in_the_order_written(store):
    reader = VectorReader(store)
    assert (reader.dim, reader.num_docs, reader.num_rows, reader.dtype) == (3, 7, 7, "float32")
    assert (list(reader.doc_ids), reader.num_bytes, count_rows(store)) == (DOC_IDS, 84, 7)
    blocks = list(reader.blocks(3))
    assert [block.rows.tolist() for block in blocks] == [[0, 1, 2], [3], [4, 5], [6]]
    assert all(block.positions.equal(block.rows) for block in blocks)
    assert np.array_equal(torch.cat([block.vectors for block in blocks]), VECTORS)
    assert np.array_equal(reader.take(np.array([5, 0, 6, 5])), VECTORS[[5, 0, 6, 5]])


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_narrow_floats_are_the_nearest_ones(tmp_path, dtype, error):
    reader = VectorReader(write(tmp_path, dtype))
    vectors = torch.cat([block.vectors for block in reader.blocks(100)])
    assert (vectors.dtype, reader.dtype, reader.num_bytes) == (DTYPES[dtype], dtype, 21 * vectors.itemsize)
    assert vectors.equal(torch.from_numpy(VECTORS).to(DTYPES[dtype]))
    np.testing.assert_allclose(reader.take(np.arange(7)), VECTORS, rtol=error)


def test_int8_rows_have_a_scale_each(tmp_path):
    reader = VectorReader(write(tmp_path, "int8"))
    steps = np.abs(VECTORS).max(axis=1, keepdims=True) / 127
    assert np.array_equal(np.fromfile(tmp_path / "shard-00001.scales", dtype="<f4"), steps[4:6, 0])
    assert np.array_equal(
        np.fromfile(tmp_path / "shard-00001.bin", "i1").reshape(-1, 3), (VECTORS / steps).round()[4:6]
    )
    stored = torch.cat([block.float32() for block in reader.blocks(3)]).numpy()
    assert (np.abs(stored - VECTORS) <= steps / 2 * 1.0001).all()
    assert np.array_equal(reader.take(np.array([6, 2])), stored[[6, 2]])


def test_an_updated_store_is_read_by_position(updated):
    reader = VectorReader(updated)
    assert (reader.num_docs, reader.num_rows) == (4, 7)
    assert list(reader.doc_ids) == [DOC_IDS[row] for row in (6, 4, 3, 1)] == reader.doc_ids[:]
    blocks = list(reader.blocks(3))
    assert [block.rows.tolist() for block in blocks] == [[1], [3], [4], [6]]
    assert [block.positions.tolist() for block in blocks] == [[3], [2], [1], [0]]
    assert np.array_equal(torch.cat([block.vectors for block in blocks]), VECTORS[[1, 3, 4, 6]])
    assert np.array_equal(reader.take(np.array([0, 3])), VECTORS[[6, 1]])
    assert reader.positions_of(np.arange(7)).tolist() == [-1, 3, -1, 2, 1, -1, 0]


def test_a_store_counts_the_documents_that_an_older_index_lacks(updated):
    reader = VectorReader(updated)
    assert reader.shard_hashes == [sha256(updated / f"shard-0000{number}.bin") for number in range(3)]
    assert [reader.beyond(reader.shard_hashes[:known]) for known in (3, 2, 1, 0)] == [0, 1, 2, 4]
    with pytest.raises(UserError, match="does not begin with the vectors that the index was built from"):
        reader.beyond(reader.shard_hashes[1:])


def test_a_reader_keeps_what_it_opened_when_the_files_are_gone(store):
    reader = VectorReader(store)
    for path in store.iterdir():
        path.unlink()
    assert np.array_equal(reader.take(np.arange(7)), VECTORS)
    assert list(reader.doc_ids) == DOC_IDS


def test_released_blocks_are_read_again(store):
    reader = VectorReader(store)
    for _ in range(2):
        assert np.array_equal(torch.cat([block.vectors.clone() for block in reader.blocks(2, release=True)]), VECTORS)


def test_only_the_shards_asked_for_are_read(store):
    assert [block.rows.tolist() for block in VectorReader(store).blocks(9, shards=[2, 0])] == [[6], [0, 1, 2, 3]]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of a process as Linux does")
def test_releasing_keeps_the_memory_of_a_scan_small(tmp_path):
    writer = VectorWriter(tmp_path, dim=1024)
    writer.write_shard(0, [str(i) for i in range(16384)], np.ones((16384, 1024), dtype=np.float32))
    reader = VectorReader(tmp_path)

    def mapped():
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    before = mapped()
    most = max(mapped() for block in reader.blocks(1024, release=True) if block.vectors.sum())
    assert most - before < 16 * 1024
    kept = max(mapped() for block in reader.blocks(1024) if block.vectors.sum())
    assert kept - before > 48 * 1024


@pytest.mark.parametrize("lines", [None, [3, 0, 2]])
def test_ids_are_a_sequence_of_strings(lines):
    parts = [np.frombuffer("a\nbé\n".encode(), np.uint8), np.frombuffer("c\n\u2028d\n".encode(), np.uint8)]
    ids = DocIds(parts, [2, 2], None if lines is None else np.array(lines))
    expected = ["a", "bé", "c", "\u2028d"] if lines is None else ["\u2028d", "a", "c"]
    assert list(ids) == expected == [ids[i] for i in range(len(ids))]
    assert (ids[-1], ids[1:], len(ids), "c" in ids, "x" in ids) == (
        expected[-1],
        expected[1:],
        len(expected),
        True,
        False,
    )
    with pytest.raises(IndexError):
        ids[len(expected)]


def test_rows_are_raw_little_endian_floats_that_need_no_library_of_ours(store):
    assert np.array_equal(np.fromfile(store / "shard-00000.bin", dtype="<f4").reshape(-1, 3), VECTORS[:4])
    VectorWriter(store / "wide", dim=3).write_shard(0, ["a"], VECTORS[:1].astype(">f8"))
    assert np.array_equal(np.fromfile(store / "wide/shard-00000.bin", dtype="<f4"), VECTORS[0])


def test_a_shard_counts_only_when_its_header_is_there(store, tmp_path):
    assert finished_shards(tmp_path / "none") == []
    assert finished_shards(store) == [0, 1, 2]
    (store / "shard-00002.json").unlink()
    assert finished_shards(store) == [0, 1]
    assert VectorReader(store).num_docs == 6


def test_the_header_is_written_after_what_it_describes(store, monkeypatch):
    def full(*_):
        raise OSError(28, "disk full")

    monkeypatch.setattr("shortlist.data.stores.shards.json.dump", full)
    for number in (3, 1):  # a new shard, and one that is replaced
        with pytest.raises(OSError, match="disk full"):
            VectorWriter(store, dim=3).write_shard(number, ["x"], VECTORS[:1])
    assert (store / "shard-00003.bin").exists()
    assert finished_shards(store) == [0, 2]


def damage_file(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def test_a_truncated_shard_is_found_at_opening(store):
    damage_file(store / "shard-00001.bin", lambda content: content.pop())
    message = r"shard-00001.bin: its contents are not those that were written; `shortlist verify .* --repair`"
    with pytest.raises(UserError, match=message):
        VectorReader(store)


@pytest.mark.parametrize("suffix", ["bin", "ids"])
def test_a_flipped_bit_is_found_by_hashing(store, suffix):
    assert [damage(store, number) for number in range(3)] == [None, None, None]
    damage_file(store / f"shard-00001.{suffix}", lambda content: content.__setitem__(1, content[1] ^ 1))
    assert f"shard-00001.{suffix}: its contents are not those that were written" in str(damage(store, 1))
    assert damage(store, 0) is None
    (store / "shard-00002.json").write_text("{")
    assert "shard-00002.json: not the header of a vector shard" in str(damage(store, 2))


def test_lost_ids_are_found_at_opening(store):
    damage_file(store / "shard-00000.ids", lambda content: content.__delitem__(slice(0, content.index(b"\n") + 1)))
    with pytest.raises(UserError, match=r"shard-00000.ids: its contents are not those that were written"):
        VectorReader(store)


def test_a_snapshot_or_order_that_is_broken_is_refused(updated):
    (updated / "order-00001.bin").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"order-00001.bin: does not hold a position for each of 7 rows"):
        VectorReader(updated)
    (updated / "snapshot.json").write_text("{}")
    with pytest.raises(UserError, match=r"snapshot.json: not a snapshot of a vector store"):
        read_snapshot(updated)


def test_a_missing_shard_an_empty_folder_and_a_broken_header_are_refused(store, tmp_path):
    with pytest.raises(UserError, match="holds no vectors"):
        VectorReader(tmp_path)
    (store / "shard-00001.json").unlink()
    with pytest.raises(UserError, match=r"shard-00001.json: the shard is missing"):
        VectorReader(store)
    (store / "shard-00001.json").write_text("{}")
    with pytest.raises(UserError, match=r"shard-00001.json: not the header of a vector shard"):
        VectorReader(store)


def test_a_dtype_nobody_knows_and_a_dim_that_differs_are_refused(store):
    with pytest.raises(UserError, match="unknown vector dtype 'float3': perhaps 'float32'"):
        VectorWriter(store, dim=3, dtype="float3")
    VectorWriter(store, dim=2).write_shard(1, ["x"], VECTORS[:1, :2])
    with pytest.raises(
        UserError, match=r"shard-00001.bin: holds float32 vectors of dim 2, but the first shard float32 of dim 3"
    ):
        VectorReader(store)
    header = json.loads((store / "shard-00000.json").read_text())
    (store / "shard-00000.json").write_text(json.dumps(header | {"dtype": "int4"}))
    with pytest.raises(UserError, match=r"unknown vector dtype in .*shard-00000.json 'int4'"):
        VectorReader(store)


def test_vectors_that_would_poison_a_search_are_refused(tmp_path):
    vectors = VECTORS[:2].copy()
    vectors[1, 2] = np.nan
    writer = VectorWriter(tmp_path, dim=3)
    with pytest.raises(UserError, match="the vector of document 'b' is not finite in float32"):
        writer.write_shard(0, ["a", "b"], vectors)
    with pytest.raises(UserError, match="holds a line end"):
        writer.write_shard(0, ["a", "b\n"], VECTORS[:2])
    with pytest.raises(ValueError, match="do not make a shard of dim 3"):
        writer.write_shard(0, ["a"], VECTORS[:2])
    with pytest.raises(UserError, match="not finite in float16"):
        VectorWriter(tmp_path, dim=3, dtype="float16").write_shard(0, ["a"], VECTORS[:1] * 1e6)
    vectors[1, 2] = np.inf
    with pytest.raises(UserError, match="not finite in int8"):
        VectorWriter(tmp_path, dim=3, dtype="int8").write_shard(0, ["a", "b"], vectors)
    assert finished_shards(tmp_path) == []
