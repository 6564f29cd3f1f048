import json

import numpy as np
import pytest

from shortlist.data.vectors import VectorReader, VectorWriter, finished_shards
from shortlist.errors import UserError

VECTORS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
DOC_IDS = [f"d\u2028{i}" for i in range(7)]


@pytest.fixture
def store(tmp_path):
    writer = VectorWriter(tmp_path / "store", dim=3)
    for index, (start, end) in enumerate([(0, 4), (4, 6), (6, 7)]):
        writer.write_shard(index, DOC_IDS[start:end], VECTORS[start:end])
    return tmp_path / "store"


def test_vectors_are_read_back_bit_for_bit_in_the_order_written(store):
    reader = VectorReader(store)
    reader.verify()
    assert (reader.dim, reader.num_docs, reader.dtype, reader.doc_ids) == (3, 7, "float32", DOC_IDS)
    blocks = list(reader.blocks(3))
    assert [start for start, _ in blocks] == [0, 3, 4, 6]
    assert np.array_equal(np.concatenate([block for _, block in blocks]), VECTORS)


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
        raise OSError("disk full")

    monkeypatch.setattr("shortlist.data.vectors.json.dump", full)
    with pytest.raises(OSError, match="disk full"):
        VectorWriter(store, dim=3).write_shard(3, ["x"], VECTORS[:1])
    assert (store / "shard-00003.bin").exists()
    assert finished_shards(store) == [0, 1, 2]


def damage(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def test_a_truncated_shard_is_found_at_opening(store):
    damage(store / "shard-00001.bin", lambda content: content.pop())
    with pytest.raises(
        UserError, match=r"shard-00001.bin: holds 23 bytes, its header says 24; delete .*shard-00001.json"
    ):
        VectorReader(store)


def test_a_flipped_bit_is_found_by_verify(store):
    damage(store / "shard-00001.bin", lambda content: content.__setitem__(5, content[5] ^ 1))
    with pytest.raises(UserError, match=r"shard-00001.bin: its contents are not those that were written"):
        VectorReader(store).verify()


def test_lost_ids_are_found_when_they_are_read(store):
    damage(store / "shard-00000.ids", lambda content: content.__delitem__(slice(0, content.index(b"\n") + 1)))
    with pytest.raises(UserError, match=r"shard-00000.ids: holds 3 ids, its header says 4"):
        _ = VectorReader(store).doc_ids


def test_a_document_that_occurs_twice_is_found_by_verify(store):
    VectorWriter(store, dim=3).write_shard(3, DOC_IDS[:1], VECTORS[:1])
    with pytest.raises(UserError, match="a document occurs in it twice"):
        VectorReader(store).verify()


def test_a_missing_shard_an_empty_folder_and_a_broken_header_are_refused(store, tmp_path):
    with pytest.raises(UserError, match="holds no vectors"):
        VectorReader(tmp_path)
    (store / "shard-00001.json").unlink()
    with pytest.raises(UserError, match="shard 1 is missing"):
        VectorReader(store)
    (store / "shard-00001.json").write_text("{}")
    with pytest.raises(UserError, match=r"shard-00001.json: not the header of a vector shard"):
        VectorReader(store)


def test_a_dtype_nobody_knows_and_a_dim_that_differs_are_refused(store):
    with pytest.raises(UserError, match="unknown vector dtype 'float3': perhaps 'float32'"):
        VectorWriter(store, dim=3, dtype="float3")
    VectorWriter(store, dim=2).write_shard(1, ["x"], VECTORS[:1, :2])
    with pytest.raises(
        UserError, match=r"shard-00001.bin: holds float32 vectors of dim 2, but shard 0 float32 of dim 3"
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
    with pytest.raises(UserError, match="the vector of document 'b' is not finite"):
        writer.write_shard(0, ["a", "b"], vectors)
    with pytest.raises(UserError, match="holds a line end"):
        writer.write_shard(0, ["a", "b\n"], VECTORS[:2])
    with pytest.raises(ValueError, match="do not make a shard of dim 3"):
        writer.write_shard(0, ["a"], VECTORS[:2])
    assert finished_shards(tmp_path) == []
