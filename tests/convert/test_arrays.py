import numpy as np
import pytest

from shortlist.cli import main
from shortlist.convert import arrays
from shortlist.convert.arrays import write_arrays
from shortlist.data.sources import STORE, common_layout
from shortlist.data.stores.kinds import open_store
from shortlist.data.stores.snapshots import document_keys, renew
from shortlist.data.stores.tokens import TokenReader, TokenWriter
from shortlist.data.stores.vectors import VectorWriter
from shortlist.math.maxsim import TokenVectors
from shortlist.records import Document

DOCUMENTS = [Document(f"d{i}", "text") for i in range(5)]
COUNTS = np.array([2, 0, 3, 1, 4])
VALUES = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
VALUES /= np.linalg.norm(VALUES, axis=1, keepdims=True)


def write(folder, dtype):
    writer = TokenWriter(folder, 4, dtype)
    for number, (start, end) in enumerate([(0, 3), (3, 5)]):
        here = slice(COUNTS[:start].sum(), COUNTS[:end].sum())
        documents = DOCUMENTS[start:end]
        vectors = TokenVectors(VALUES[here], COUNTS[start:end])
        writer.write_shard(number, [document.doc_id for document in documents], vectors, document_keys(documents))
    return folder


@pytest.mark.parametrize(
    ("dtype", "written"), [("float32", "f4"), ("float16", "f2"), ("int8", "f4"), ("residual4", "f4")]
)
def test_token_vectors_become_values_and_offsets_in_corpus_order(tmp_path, dtype, written, monkeypatch):
    monkeypatch.setattr(arrays, "NUMBERS_AT_ONCE", 12)
    write(tmp_path / "store", dtype)
    renew(tmp_path / "store", [DOCUMENTS[4], *DOCUMENTS[:3]])
    store = TokenReader(tmp_path / "store")
    (tmp_path / "out").mkdir()
    assert write_arrays(store, tmp_path / "out") == {"num_docs": 4, "num_tokens": 9, "dim": 4}
    values = np.load(tmp_path / "out" / "values.npy", mmap_mode="r")
    offsets = np.load(tmp_path / "out" / "offsets.npy")
    assert (values.dtype, values.shape) == (written, (9, 4))
    assert (offsets.dtype, offsets.tolist()) == ("i8", [0, 4, 6, 6, 9])
    assert (tmp_path / "out" / "doc_ids.txt").read_text().split("\n") == ["d4", "d0", "d1", "d2", ""]
    for place, vectors in enumerate(store.take(np.arange(4))):
        np.testing.assert_allclose(values[offsets[place] : offsets[place + 1]], vectors, atol=1e-3)


def test_single_vectors_need_no_offsets(tmp_path):
    VectorWriter(tmp_path, 4).write_shard(0, ["a", "b"], VALUES[:2])
    (tmp_path / "out").mkdir()
    write_arrays(open_store(tmp_path), tmp_path / "out")
    assert np.array_equal(np.load(tmp_path / "out" / "values.npy"), VALUES[:2])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["doc_ids.txt", "values.npy"]


def test_a_store_is_known_by_its_shards_and_wants_arrays_alone(tmp_path, tiny, capsys):
    store = str(write(tmp_path / "store", "float32"))
    assert common_layout([store], None, {}) == STORE
    assert main(["convert", store, "--out", str(tmp_path / "out")]) == 1
    assert "holds vectors; expected this source alone and --to arrays" in capsys.readouterr().err
    assert main(["convert", str(tiny.collection), "--to", "arrays", "--out", str(tmp_path / "out")]) == 1
    assert "holds a collection; --to arrays takes vectors from `shortlist encode`." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
