import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from shortlist.data.pickles import is_pickle, read_embeddings
from shortlist.errors import UserError

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)
IDS = ["a", "b", "c", "d"]


class Trap:
    """Unpickled by a careless reader, it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "emb.pkl"


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vectors_and_ids_are_read_as_they_were_pickled(path: Path, dtype: str, protocol: int):
    path.write_bytes(pickle.dumps((VECTORS.astype(dtype), IDS), protocol))
    vectors, doc_ids = read_embeddings(path)
    np.testing.assert_array_equal(vectors, VECTORS)
    assert (vectors.dtype, doc_ids) == (np.dtype(dtype), IDS)


@pytest.mark.parametrize(
    ("ids", "read"),
    [([7, 8, 9, 10], ["7", "8", "9", "10"]), (list(np.array(IDS)), IDS), (np.arange(4), ["0", "1", "2", "3"])],
    ids=["numbers", "numpy-texts", "array"],
)
def test_ids_may_be_numbers_and_numpys(path: Path, ids: list, read: list[str]):
    path.write_bytes(pickle.dumps((VECTORS, ids)))
    assert read_embeddings(path)[1] == read


def test_a_pickle_of_an_older_numpy_is_read(path: Path):
    content = pickle.dumps((VECTORS, IDS), 3)
    path.write_bytes(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert path.read_bytes() != content
    np.testing.assert_array_equal(read_embeddings(path)[0], VECTORS)


def test_a_gzipped_pickle_is_read(tmp_path: Path):
    (tmp_path / "emb.pkl.gz").write_bytes(gzip.compress(pickle.dumps((VECTORS, IDS))))
    assert is_pickle(tmp_path / "emb.pkl.gz")
    assert read_embeddings(tmp_path / "emb.pkl.gz")[1] == IDS


@pytest.mark.parametrize("place", ["alone", "among-the-ids", "in-the-array"])
def test_a_pickle_that_would_run_something_is_refused_by_name_and_runs_nothing(path: Path, tmp_path: Path, place: str):
    trap = Trap(tmp_path / "mark")
    content = {
        "alone": trap,
        "among-the-ids": (VECTORS, [*IDS[:3], trap]),
        "in-the-array": (np.array([[trap]], dtype=object), ["a"]),
    }[place]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=rf"emb.pkl: asks for {os.mkdir.__module__}\.mkdir, .* none of it was run"):
        read_embeddings(path)
    assert not trap.mark.exists()
    pickle.loads(path.read_bytes())  # the trap itself works
    assert trap.mark.exists()


@pytest.mark.parametrize("name", [b"cbuiltins\neval\n.", b"cnumpy\nload\n.", b"cbuiltins\ngetattr\n."])
def test_nothing_that_numpy_or_python_has_beside_arrays_is_allowed(path: Path, name: bytes):
    path.write_bytes(b"\x80\x02" + name)
    with pytest.raises(UserError, match=r"asks for (builtins|numpy)\.(eval|load|getattr), "):
        read_embeddings(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "found a dict; expected what Tevatron's encode writes"),
        ((VECTORS, IDS, 3), "found a tuple"),
        ((VECTORS.tolist(), IDS), "the first of the two is no such array"),
        ((VECTORS[0], IDS), "the first of the two is no such array"),
        ((VECTORS.astype(int), IDS), "the first of the two is no such array"),
        ((VECTORS, IDS[:3]), "found 3 ids for 4 vectors"),
        ((VECTORS[:0], []), "found 0 ids for 0 vectors"),
        ((VECTORS, None), "found 0 ids for 4 vectors"),
        ((VECTORS, ["a", "b", "c", "d e"]), "'d e' is no id"),
        ((VECTORS, ["a", "b", "c", ""]), "'' is no id"),
        ((VECTORS, ["a", "b", "c", 1.5]), "1.5 is no id"),
    ],
    ids=["dict", "three", "lists", "one-row", "integers", "few-ids", "none", "no-ids", "space", "blank", "float"],
)
def test_a_pickle_of_something_else_is_refused(path: Path, content: object, message: str):
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=f"emb.pkl: {message}"):
        read_embeddings(path)


@pytest.mark.parametrize("content", [pickle.dumps((VECTORS, IDS))[:-30], b"\x80\x04garbage", b"\x80"])
def test_a_damaged_pickle_is_refused(path: Path, content: bytes):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"emb.pkl: not a whole pickle \("):
        read_embeddings(path)


def test_texts_are_no_pickles(path: Path):
    for content in ("", "{}", "é\n"):
        path.write_text(content)
        assert not is_pickle(path)
    path.write_bytes(pickle.dumps((VECTORS, IDS)))
    assert is_pickle(path)
