import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shortlist.data.stores import tokens
from shortlist.data.stores.shards import CODEBOOK, damage, finished_shards
from shortlist.data.stores.snapshots import compact, document_keys, renew
from shortlist.data.stores.tokens import RESIDUALS, TOKEN_DTYPES, TOKEN_SHARDS, TokenReader, TokenWriter
from shortlist.data.stores.vectors import DTYPES, VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.math.maxsim import TokenVectors
from shortlist.math.residual import fit_codebook
from shortlist.records import Document

DIM = 8
COUNTS = np.array([3, 0, 2, 5, 1, 4, 2])
DOC_IDS = [f"d\u2028{i}" for i in range(7)]
SHARDS = [(0, 4), (4, 6), (6, 7)]
VALUES = np.random.default_rng(0).standard_normal((COUNTS.sum(), DIM)).astype(np.float32)
VALUES /= np.linalg.norm(VALUES, axis=1, keepdims=True)
ENDS = np.cumsum(COUNTS)


def some(documents: list[int] | range) -> TokenVectors:
    parts = [VALUES[ENDS[i] - COUNTS[i] : ENDS[i]] for i in documents]
    return TokenVectors(np.concatenate([VALUES[:0], *parts]), COUNTS[list(documents)])


def write(folder, dtype="float32", shards=SHARDS):
    writer = TokenWriter(folder, dim=DIM, dtype=dtype)
    for number, (start, end) in enumerate(shards):
        writer.write_shard(number, DOC_IDS[start:end], some(range(start, end)))
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


def same(found: TokenVectors, documents: list[int] | range) -> None:
    assert found.counts.tolist() == some(documents).counts.tolist()
    assert np.array_equal(found.values, some(documents).values)


def test_token_vectors_are_read_back_bit_for_bit(store):
    reader = TokenReader(store)
    assert (reader.dim, reader.num_docs, reader.num_tokens, reader.dtype) == (DIM, 7, 17, "float32")
    assert (list(reader.doc_ids), reader.num_bytes) == (DOC_IDS, VALUES.nbytes)
    assert reader.counts.tolist() == COUNTS.tolist()
    assert reader.starts.tolist() == [0, 4, 6, 7]
    same(reader.take(np.arange(7)), range(7))
    same(reader.take(np.array([5, 0, 6, 5, 1])), [5, 0, 6, 5, 1])
    same(reader.take(np.array([], dtype=int)), [])


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of a process as Linux does")
def test_released_vectors_take_no_memory_and_are_read_again(tmp_path):
    values = np.ones((1 << 14, 128), dtype=np.float32)  # 8 MiB
    TokenWriter(tmp_path, dim=128).write_shard(0, ["a", "b"], TokenVectors(values, np.array([1, len(values) - 1])))
    reader = TokenReader(tmp_path)

    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    before = mapped()
    assert reader.pick(np.array([1])).values.sum() == values[1:].sum()
    assert mapped() - before > 7 * 1024
    reader.release()
    assert mapped() - before < 1024
    assert reader.take(np.array([0])).values.tolist() == values[:1].tolist()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1, [[0], [1], [2], [3], [4], [5], [6]]), (5, [[0, 1, 2], [3], [4, 5], [6]]), (99, [[0, 1, 2, 3], [4, 5], [6]])],
)
def test_blocks_hold_whole_documents_and_at_most_so_many_tokens(store, tokens, expected):
    blocks = list(TokenReader(store).blocks(tokens, release=True))
    assert [block.positions.tolist() for block in blocks] == expected
    assert np.array_equal(torch.cat([block.values.clone() for block in blocks]), VALUES)
    assert torch.cat([block.counts for block in blocks]).tolist() == COUNTS.tolist()


def test_a_block_of_documents_that_stand_together_is_no_copy(store):
    reader = TokenReader(store)
    block, *_ = reader.blocks(99)
    assert block.values.data_ptr() == reader.pick(np.arange(2)).values.data_ptr()


def test_only_the_documents_and_shards_asked_for_are_read(store):
    reader = TokenReader(store)
    keep = np.array([True, False, False, True, False, False, True])
    blocks = list(reader.blocks(99, keep=keep))
    assert [block.positions.tolist() for block in blocks] == [[0, 3], [6]]
    same(TokenVectors(blocks[0].values.numpy(), blocks[0].counts.numpy()), [0, 3])
    assert [block.positions.tolist() for block in reader.blocks(99, shards=[2, 0])] == [[6], [0, 1, 2, 3]]


def test_an_updated_store_is_read_by_position(updated):
    reader = TokenReader(updated)
    assert (reader.num_docs, reader.num_rows, reader.num_tokens) == (4, 7, 8)
    assert list(reader.doc_ids) == [DOC_IDS[row] for row in (6, 4, 3, 1)]
    assert reader.counts.tolist() == [2, 1, 5, 0]
    assert [block.positions.tolist() for block in reader.blocks(99)] == [[3, 2], [1], [0]]
    same(reader.take(np.arange(4)), [6, 4, 3, 1])
    assert [reader.beyond(reader.shard_hashes[:known]) for known in (3, 2, 1, 0)] == [0, 1, 2, 4]


@pytest.mark.parametrize("dtype", TOKEN_DTYPES)
def test_every_dtype_gives_nearly_the_same_vectors_everywhere(tmp_path, dtype):
    reader = TokenReader(write(tmp_path, dtype))
    found = reader.take(np.arange(7)).values
    assert (found * VALUES).sum(1).mean() > (0.5 if dtype in RESIDUALS else 0.99)
    assert np.array_equal(torch.cat([block.float32() for block in reader.blocks(3)]), found)
    assert np.array_equal(reader.take(np.array([3, 0])).values, np.concatenate([found[5:10], found[:3]]))
    block = reader.pick(np.array([2]))
    assert dtype not in DTYPES or block.values.dtype == DTYPES[dtype]
    assert (block.scales is not None) == (dtype == "int8")


def test_rows_are_raw_little_endian_numbers_that_need_no_library_of_ours(store):
    assert np.array_equal(np.fromfile(store / "shard-00000.bin", dtype="<f4").reshape(-1, DIM), VALUES[:10])
    assert np.fromfile(store / "shard-00000.counts", dtype="<i4").tolist() == [3, 0, 2, 5]
    header = json.loads((store / "shard-00000.json").read_text())
    assert {name: header[name] for name in ("kind", "dtype", "dim", "count", "tokens")} == {
        "kind": "tokens",
        "dtype": "float32",
        "dim": DIM,
        "count": 4,
        "tokens": 10,
    }


def test_a_reader_keeps_what_it_opened_when_the_files_are_gone(store):
    reader = TokenReader(store)
    for path in store.iterdir():
        path.unlink()
    same(reader.take(np.arange(7)), range(7))
    assert list(reader.doc_ids) == DOC_IDS


def test_a_shard_may_hold_no_vector_at_all(tmp_path):
    write(tmp_path, shards=[(1, 2), (2, 4)])
    reader = TokenReader(tmp_path)
    assert reader.counts.tolist() == [0, 2, 5]
    assert [block.counts.tolist() for block in reader.blocks(9)] == [[0], [2, 5]]
    same(reader.take(np.array([0])), [1])


def test_residual_codes_are_a_centroid_and_packed_bits_and_their_codebook_is_fitted_once(tmp_path):
    write(tmp_path / "one", "residual2")
    write(tmp_path / "two", "residual2")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert [(tmp_path / "one" / name).read_bytes() for name in names] == [
        (tmp_path / "two" / name).read_bytes() for name in names
    ]
    before = (tmp_path / "one" / CODEBOOK).read_bytes()
    writer = TokenWriter(tmp_path / "one", DIM, "residual2", num_docs=10**9)
    writer.write_shard(3, ["new"], TokenVectors(VALUES[::-1].copy(), np.array([17])))
    assert (tmp_path / "one" / CODEBOOK).read_bytes() == before
    reader = TokenReader(tmp_path / "one")
    block = reader.pick(np.array([3]))
    assert block.codes is not None
    assert (block.values.shape, block.values.dtype, block.codes.shape) == ((5, 2), torch.uint8, (5,))
    assert reader.num_bytes == 34 * 2
    for path in (tmp_path / "one").iterdir():
        path.unlink()
    assert np.array_equal(block.float32(), reader.take(np.array([3])).values)


def test_a_compacted_store_keeps_its_residual_codes(tmp_path):
    documents = [Document(doc_id, "text") for doc_id in DOC_IDS]
    writer = TokenWriter(tmp_path, DIM, "residual4")
    for number, (start, end) in enumerate(SHARDS):
        writer.write_shard(number, DOC_IDS[start:end], some(range(start, end)), document_keys(documents[start:end]))
    before, codebook = TokenReader(tmp_path).pick(np.array([4, 2])), (tmp_path / CODEBOOK).read_bytes()
    renew(tmp_path, [documents[4], documents[2]])
    assert compact(tmp_path, 9) == 5
    after = TokenReader(tmp_path).pick(np.array([0, 1]))
    assert after.values.equal(before.values)
    assert torch.equal(after.float32(), before.float32())
    assert (tmp_path / CODEBOOK).read_bytes() == codebook


def test_what_residual_codes_cannot_hold_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"12 dimensions, and residual1 packs 8 of them into a byte; choose a --dtype"):
        TokenWriter(tmp_path, dim=12, dtype="residual1")
    writer = TokenWriter(tmp_path, dim=DIM, dtype="residual1")
    with pytest.raises(UserError, match=r"keeps no lengths, and those of the model's token vectors are not 1; choose"):
        writer.write_shard(0, ["a"], TokenVectors(VALUES[:2] * 2, np.array([2])))
    broken = VALUES[:2].copy()
    broken[1, 1] = np.inf
    with pytest.raises(UserError, match=r"a token vector of document 'a' is not finite in residual1"):
        writer.write_shard(0, ["a"], TokenVectors(broken, np.array([2])))
    with pytest.raises(
        UserError, match=r"residual1 needs vectors to fit a codebook to, and the first 1 documents have"
    ):
        writer.write_shard(0, ["a"], TokenVectors(VALUES[:0], np.array([0])))
    assert not list(tmp_path.iterdir())


def test_shards_of_two_codebooks_are_no_store(tmp_path):
    write(tmp_path / "a", "residual1", shards=[(0, 4)])
    write(tmp_path / "b", "residual1", shards=[(3, 4), (4, 6)])
    for suffix in ("json", "bin", "ids", "counts", "codes"):
        (tmp_path / "b" / f"shard-00001.{suffix}").replace(tmp_path / "a" / f"shard-00001.{suffix}")
    with pytest.raises(UserError, match=r"codebook.safetensors: its contents are not those that were written"):
        TokenReader(tmp_path / "a")
    with pytest.raises(UserError, match=r"shard-00001.json: was written with another codebook.safetensors than the"):
        TokenReader(tmp_path / "a", compare=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "int8", "residual2"])
def test_every_changed_byte_of_a_store_is_noticed(tmp_path, dtype):
    write(tmp_path, dtype, shards=[(0, 3), (3, 4)])
    silent = []
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        places = range(0, len(content), 3)
        damages = {f"flip at {i}": content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in places}
        damages |= {"cut": content[:-1], "longer": content + b"\0", "empty": b""}
        for name, damaged in damages.items():
            path.write_bytes(damaged)
            with pytest.raises(UserError) as raised:
                TokenReader(tmp_path)
            if "\n" in str(raised.value) or not any(damage(tmp_path, number) for number in (0, 1)):
                silent.append(f"{path.name}: {name}: {raised.value}")
        path.write_bytes(content)
    assert silent == []
    assert TokenReader(tmp_path).num_docs == 4


def test_a_store_of_the_other_kind_is_told_so(store, tmp_path):
    with pytest.raises(UserError, match=r"store: holds tokens, not one vector for each document; a late model"):
        VectorReader(store)
    VectorWriter(tmp_path / "v", dim=2).write_shard(0, ["a"], np.ones((1, 2), dtype=np.float32))
    with pytest.raises(UserError, match=r"v: holds vectors, not token vectors; encode with a late model"):
        TokenReader(tmp_path / "v")


def test_what_does_not_fit_together_or_would_poison_a_search_is_refused(tmp_path):
    with pytest.raises(UserError, match="unknown vector dtype 'float3': perhaps 'float32'"):
        TokenWriter(tmp_path, dim=DIM, dtype="float3")
    writer = TokenWriter(tmp_path, dim=DIM)
    for doc_ids, counts in ((["a"], [1, 1]), (["a", "b"], [1, 2]), ([], []), (["a", "b"], [3, -1])):
        with pytest.raises(ValueError, match="do not make a shard of dim 8"):
            writer.write_shard(0, doc_ids, TokenVectors(VALUES[:2], np.array(counts, dtype=int)))
    broken = VALUES[:4].copy()
    broken[3, 2] = np.nan
    with pytest.raises(UserError, match="a token vector of document 'c' is not finite in float32 \\(1 such"):
        writer.write_shard(0, ["a", "b", "c"], TokenVectors(broken, np.array([2, 0, 2])))
    with pytest.raises(UserError, match="holds a line end"):
        writer.write_shard(0, ["a\n"], TokenVectors(VALUES[:2], np.array([2])))
    assert finished_shards(tmp_path) == []


def test_the_number_of_centroids_is_chosen_for_the_whole_store(tmp_path, monkeypatch):
    expected = []

    def fit(sample, *, bits, num_vectors):
        expected.append((len(sample), bits, num_vectors))
        return fit_codebook(sample, bits=bits, num_vectors=num_vectors)

    monkeypatch.setattr(tokens, "fit_codebook", fit)
    for name, num_docs in (("a", None), ("b", 100)):
        writer = TokenWriter(tmp_path / name, DIM, "residual2", num_docs=num_docs)
        writer.write_shard(0, DOC_IDS[:4], some(range(4)))
    assert expected == [(10, 2, 10), (10, 2, 250)]


def test_an_index_tells_shards_apart_by_all_that_says_what_vectors_are_whose(tmp_path):
    def identity(folder: str, counts: list[int]) -> str:
        TokenWriter(tmp_path / folder, DIM).write_shard(0, ["a", "b"], TokenVectors(VALUES[:3], np.array(counts)))
        return TokenReader(tmp_path / folder).shard_hashes[0]

    assert identity("a", [1, 2]) == identity("b", [1, 2]) != identity("c", [2, 1])
    header = {"sha256": {"bin": "x", "counts": "y"}}
    books = [TOKEN_SHARDS.identity({**header, "beside": {CODEBOOK: book}}) for book in ("one", "other")]
    assert books[0] != books[1]
