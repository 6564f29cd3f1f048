import json
import pickle
from concurrent.futures import ProcessPoolExecutor
from inspect import unwrap
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from processes import forks

from shortlist.data.stores.shards import finished_shards
from shortlist.data.stores.vectors import DTYPES, VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.index import flat, leaders
from shortlist.index.flat import FlatIndex, ScanShards, Sizes, check_queries
from shortlist.index.narrow import narrow
from shortlist.index.protocols import VectorIndex
from shortlist.records import Hit


def write(folder: Path, vectors: np.ndarray, dtype: str = "float32", *, shard: int = 130) -> VectorReader:
    """Write vectors to disk in shards and open them."""
    writer = VectorWriter(folder, vectors.shape[1], dtype)
    for number, start in enumerate(range(0, len(vectors), shard)):
        rows = vectors[start : start + shard]
        writer.write_shard(number, [f"d{start + row}" for row in range(len(rows))], rows)
    return VectorReader(folder)


@pytest.fixture
def store(tmp_path):
    return lambda vectors, dtype="float32": write(tmp_path / "vectors", vectors, dtype)


def update(folder: Path, positions: np.ndarray) -> VectorReader:
    """Say which position each row has now, as `shortlist encode --update` does."""
    (folder / "order-00001.bin").write_bytes(positions.astype("<i8").tobytes())
    (folder / "snapshot.json").write_text(json.dumps({"shards": finished_shards(folder), "order": "order-00001.bin"}))
    return VectorReader(folder)


def by_the_book(queries, vectors, k):
    scores = queries @ vectors.T
    positions = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, positions, axis=1), positions


def same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def small_integers(*shape: int, seed: int = 0) -> np.ndarray:
    """Their sums are exact, and many are equal."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def unit_vectors(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(params=[1 << 23, 500, 40], ids="{0} scores held".format)
def sizes(request, monkeypatch):
    """One block, some blocks, blocks far smaller than k; one tile of queries, or several."""
    monkeypatch.setattr(flat, "SIZES", {"cpu": Sizes(4, 4 * request.param, request.param)})
    monkeypatch.setattr(leaders, "FEWEST_WAITING", min(request.param, 1024))


@pytest.mark.parametrize("k", [1, 10, 100, 299, 300, 1000])
@pytest.mark.parametrize("num_queries", [1, 7])
def test_search_is_exact_and_ties_keep_corpus_order(store, sizes, k, num_queries):
    vectors, queries = small_integers(300, 8), small_integers(num_queries, 8, seed=1)
    same(FlatIndex(store(vectors)).search_vectors(queries, k), by_the_book(queries, vectors, k))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_scored_in_float32(store, sizes, dtype):
    queries = unit_vectors(5, 16, seed=1)
    vectors = store(unit_vectors(300, 16), dtype)
    stored = vectors.take(np.arange(300))
    scores, positions = FlatIndex(vectors).search_vectors(queries, 40)
    expected = by_the_book(queries.astype(np.float64), stored.astype(np.float64), 40)
    np.testing.assert_allclose(scores, expected[0], atol=1e-6)
    np.testing.assert_array_equal(positions, expected[1])


@pytest.mark.parametrize("order", [1, -1], ids=["worst first", "best first"])
def test_search_is_exact_where_the_corpus_is_sorted_by_score(store, sizes, order):
    vectors = np.arange(300, dtype=np.float32)[::order, None].copy()
    queries = np.array([[1.0], [-1.0]], dtype=np.float32)
    same(FlatIndex(store(vectors)).search_vectors(queries, 20), by_the_book(queries, vectors, 20))


def test_documents_that_are_all_alike_come_in_corpus_order(store, sizes):
    found = FlatIndex(store(np.ones((300, 4)))).search_vectors(np.ones((3, 4), dtype=np.float32), 20)
    assert found[1].tolist() == [list(range(20))] * 3


@pytest.mark.parametrize("narrow_dtype", [None, "int8", "bfloat16"])
@pytest.mark.parametrize("dead", [0, 120])
def test_an_updated_store_answers_like_one_written_in_that_order(tmp_path, sizes, narrow_dtype, dead):
    vectors, queries = small_integers(300, 8), small_integers(5, 8, seed=1)
    rng = np.random.default_rng(2)
    positions = np.full(300, -1)
    living = np.sort(rng.permutation(300)[dead:])
    positions[living] = rng.permutation(len(living))
    write(tmp_path / "v", vectors)
    now = update(tmp_path / "v", positions)
    in_order = np.empty((len(living), 8), dtype=np.float32)
    in_order[positions[living]] = vectors[living]
    scan = None
    if narrow_dtype:
        narrow(now, tmp_path / "n", narrow_dtype)
        scan = VectorReader(tmp_path / "n")
        assert list(scan.doc_ids) == list(now.doc_ids)
    same(FlatIndex(now, scan=scan, refine=9).search_vectors(queries, 33), by_the_book(queries, in_order, 33))


@pytest.mark.slow
@pytest.mark.parametrize("num_queries", [1, 6])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_a_narrow_scan_with_rescoring_finds_what_an_exact_one_does(tmp_path, sizes, dtype, num_queries):
    vectors, queries = unit_vectors(300, 64), unit_vectors(num_queries, 64, seed=1)
    full = write(tmp_path / "v", vectors)
    narrow(full, tmp_path / "n", dtype)
    expected = FlatIndex(full).search_vectors(queries, 20)
    found = FlatIndex(full, scan=VectorReader(tmp_path / "n")).search_vectors(queries, 20)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


def test_refine_is_how_many_candidates_are_scored_exactly(tmp_path):
    vectors = np.stack([np.ones(50), np.linspace(0, 0.001, 50)], axis=1).astype(np.float32)
    full = write(tmp_path / "v", vectors)
    narrow(full, tmp_path / "n", "int8")  # to which all are alike
    query = np.ones((1, 2), dtype=np.float32)
    for refine, best in ((1, 4), (3, 14), (10, 49)):
        index = FlatIndex(full, scan=VectorReader(tmp_path / "n"), refine=refine)
        assert index.search_vectors(query, 5)[1][0].tolist() == list(range(best, best - 5, -1))


def test_scores_of_a_narrow_scan_are_those_of_the_vectors(tmp_path):
    full = write(tmp_path / "v", unit_vectors(40, 16))
    narrow(full, tmp_path / "n", "int8")
    queries = unit_vectors(3, 16, seed=1)
    scores, positions = FlatIndex(full, scan=VectorReader(tmp_path / "n")).search_vectors(queries, 5)
    expected = np.take_along_axis(queries @ full.take(np.arange(40)).T, positions, axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_hits_are_named(store):
    vectors = np.array([[1.0, 0], [0, 1], [1, 1]], dtype=np.float32)
    index: VectorIndex = FlatIndex(store(vectors))
    assert index.find(np.array([[2.0, 1.0]], dtype=np.float32), 2) == [[Hit("d2", 3.0), Hit("d0", 2.0)]]
    assert index.find(np.ones((0, 2), dtype=np.float32), 2) == []


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_no_queries_find_nothing(tmp_path, dtype):
    vectors = write(tmp_path / "v", np.ones((5, 4)))
    scan = write(tmp_path / "n", np.ones((5, 4)), dtype) if dtype else None
    found = FlatIndex(vectors, scan=scan).search_vectors(np.ones((0, 4), dtype=np.float32), 10)
    assert found[0].shape == found[1].shape == (0, 5)


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_queries_that_do_not_fit_at_once_find_the_same(tmp_path, monkeypatch, dtype):
    vectors, queries = small_integers(300, 8), small_integers(20, 8, seed=1)
    full = write(tmp_path / "v", vectors)
    scan = write(tmp_path / "n", vectors, dtype) if dtype else None
    monkeypatch.setattr(leaders, "FEWEST_WAITING", 16)
    monkeypatch.setattr(flat, "CANDIDATES_BYTES", 8 * (100 + 2 * 100) * 3)
    monkeypatch.setattr(flat, "RESCORED_BYTES", 4 * 8 * 100 * 2)
    readings = []
    read = VectorReader.blocks
    monkeypatch.setattr(VectorReader, "blocks", lambda *args, **named: readings.append(1) or read(*args, **named))
    k = 50 if dtype else 100
    same(FlatIndex(full, scan=scan).search_vectors(queries, k), by_the_book(queries, vectors, k))
    assert len(readings) == 7  # three queries at a time


@pytest.mark.parametrize(("unlike", "readings"), [(False, 1), (True, 2)], ids=["like the rest", "unlike the rest"])
@pytest.mark.parametrize("dtype", [None, "int8"])
def test_a_sample_that_expects_too_much_costs_a_reading_and_changes_nothing(
    tmp_path, monkeypatch, dtype, unlike, readings
):
    monkeypatch.setattr(flat, "SAMPLED", 4)
    vectors, queries = small_integers(4000, 8), small_integers(3, 8, seed=1)
    if unlike:
        vectors[np.linspace(0, 3999, 1000).astype(np.int64)] *= 4
        vectors[:, 0], queries[:, 0] = np.abs(vectors[:, 0]), 10
    full = write(tmp_path / "v", vectors)
    scan = write(tmp_path / "n", vectors, dtype) if dtype else None
    looked_at = []
    read = VectorReader.blocks
    monkeypatch.setattr(VectorReader, "blocks", lambda *args, **named: looked_at.append(1) or read(*args, **named))
    k = 60 if dtype else 120
    same(FlatIndex(full, scan=scan).search_vectors(queries, k), by_the_book(queries, vectors, k))
    assert len(looked_at) == readings


def test_no_block_or_piece_is_larger_than_the_sizes_say(store, monkeypatch):
    asked, multiplied = [], set()
    read, product = VectorReader.blocks, flat.float_product
    monkeypatch.setattr(
        VectorReader, "blocks", lambda self, rows, **named: asked.append(rows) or read(self, rows, **named)
    )
    monkeypatch.setattr(
        flat, "float_product", lambda weight: lambda rows: multiplied.add(len(rows)) or product(weight)(rows)
    )
    index = FlatIndex(store(np.ones((300, 8))))
    for piece_bytes, scores, rows in ((4 * 8 * 20, 1000, 20), (1 << 20, 30, 10)):
        monkeypatch.setattr(flat, "SIZES", {"cpu": Sizes(4, piece_bytes, scores)})
        index.candidates(np.ones((3, 8), dtype=np.float32), 3)
        assert asked.pop() == flat.BLOCK_PIECES * rows
        assert max(multiplied) == rows
        multiplied.clear()


def test_blocks_are_taken_one_at_a_time_where_they_are_given_back(store, monkeypatch):
    at_work, product = [], flat.float_product

    def slowly(weight):
        def multiply(rows):
            at_work.append(1)
            sleep(0.002)
            at_work.pop()
            return product(weight)(rows)

        return multiply

    def watched(self, rows, **named):
        for block in read(self, rows, **named):
            assert not at_work, "a block was asked for while another was at work"
            yield block

    read = VectorReader.blocks
    monkeypatch.setattr(VectorReader, "blocks", watched)
    monkeypatch.setattr(flat, "float_product", slowly)
    monkeypatch.setattr(flat, "SIZES", {"cpu": Sizes(4, 4 * 8 * 10, 1000)})
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        FlatIndex(store(small_integers(300, 8)), memory_gib=1e-6).search_vectors(small_integers(2, 8), 5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("memory_gib", "released"), [(1e-6, True), (1.0, False), (None, False)])
def test_blocks_are_given_back_where_the_store_is_larger_than_the_allowance(store, memory_gib, released):
    index = FlatIndex(store(small_integers(300, 8)), memory_gib=memory_gib)
    assert index.release is released
    queries = small_integers(5, 8, seed=1)
    same(index.search_vectors(queries, 20), by_the_book(queries, small_integers(300, 8), 20))


def peak_of_a_search(folder: Path, memory_gib: float) -> tuple[float, float]:
    """Most memory that the process held before and after, MiB."""
    index = FlatIndex(VectorReader(folder), memory_gib=memory_gib)
    before = peak_mib()
    index.search_vectors(np.ones((3, 512), dtype=np.float32), 10)
    return before, peak_mib()


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory of a process")
def test_a_search_past_its_allowance_holds_a_fraction_of_the_store(tmp_path):
    rows = unit_vectors(20_000, 512)  # 40 MiB
    writer = VectorWriter(tmp_path / "v", 512)
    for number in range(8):
        writer.write_shard(number, [f"{number}-{row}" for row in range(len(rows))], rows)
    with ProcessPoolExecutor(1, mp_context=forks()) as pool:
        before, after = pool.submit(peak_of_a_search, tmp_path / "v", 0.08).result()
        assert after - before < 160
        _, held = pool.submit(peak_of_a_search, tmp_path / "v", 1.0).result()
        assert held - before > 300


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("num_queries", [1, 9])
def test_shards_scanned_apart_and_settled_equal_one_scan_to_the_last_bit(tmp_path, dtype, num_queries):
    vectors, queries = unit_vectors(1000, 48), unit_vectors(num_queries, 48, seed=1)
    full = write(tmp_path / "v", vectors)
    scan = write(tmp_path / "n", vectors, dtype) if dtype else None
    index = FlatIndex(full, scan=scan)
    task = ScanShards(queries=queries, k=30, vectors=tmp_path / "v", scan=tmp_path / "n" if dtype else None)
    task = pickle.loads(pickle.dumps(task))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts = [task(shards) for shards in ([7, 2], [0], [1, 3, 4, 5], [6])]
    finally:
        torch.set_num_threads(threads)
    same(index.settle(queries, parts, 30), index.search_vectors(queries, 30))


def test_a_shard_with_fewer_documents_than_k_offers_them_all(tmp_path):
    vectors, queries = small_integers(300, 8), small_integers(2, 8, seed=1)
    index = FlatIndex(write(tmp_path / "v", vectors))
    parts = [index.candidates(queries, 200, [shard]) for shard in (2, 0, 1)]
    assert [scores.shape for scores, _ in parts] == [(2, 40), (2, 130), (2, 130)]
    same(index.settle(queries, parts, 200), by_the_book(queries, vectors, 200))


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_a_narrow_copy_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("shortlist.index.narrow.NARROW_NUMBERS", 8 * 70)
    full = write(tmp_path / "v", unit_vectors(300, 8))
    narrow(full, tmp_path / "whole", dtype)
    narrow(full, tmp_path / "n", dtype)
    (tmp_path / "n" / "shard-00003.json").unlink()
    written = []
    write_rows = VectorWriter.write_rows
    monkeypatch.setattr(
        VectorWriter,
        "write_rows",
        lambda self, number, *rest: written.append(number) or write_rows(self, number, *rest),
    )
    narrow(full, tmp_path / "n", dtype)
    assert written == [3]
    assert list(VectorReader(tmp_path / "n").doc_ids) == list(full.doc_ids)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "n" / path.name).read_bytes() == path.read_bytes()


def test_a_narrow_copy_of_other_documents_is_refused(tmp_path):
    full, other = write(tmp_path / "v", np.ones((9, 4))), write(tmp_path / "n", np.ones((8, 4)), "int8")
    with pytest.raises(UserError, match=r"n: holds 8 vectors of dim 4, .*v 9 of dim 4; build the narrow index again"):
        FlatIndex(full, scan=other)


def test_queries_that_cannot_be_answered_are_refused(store):
    index = FlatIndex(store(np.ones((2, 8))))
    with pytest.raises(UserError, match="queries have 3 dimensions, the vectors 8"):
        index.search_vectors(np.ones((1, 3), dtype=np.float32), 1)
    with pytest.raises(UserError, match="not finite"):
        index.search_vectors(np.full((1, 8), np.nan, dtype=np.float32), 1)
    with pytest.raises(UserError, match="k is 0; expected at least 1"):
        index.search_vectors(np.ones((1, 8), dtype=np.float32), 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused_when_it_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
):
    vectors = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    vectors[7, 3] = wrong
    monkeypatch.setattr(VectorWriter, "_check_finite", lambda *_: None)
    VectorWriter(tmp_path, 8).write_shard(0, [f"d{row}" for row in range(30)], vectors)
    with pytest.raises(UserError, match="the vector of document 'd7' is not finite"):
        FlatIndex(VectorReader(tmp_path)).find(vectors[:3], 2)


@pytest.mark.parametrize(
    ("queries", "found"), [(np.zeros(4), r"of shape \(4,\)"), ("otters", "a str"), (["a"], "a list")]
)
def test_what_is_no_row_for_each_query_is_refused(queries, found):
    with pytest.raises(UserError, match=f"queries are {found}; expected an array with a row for each query"):
        unwrap(check_queries)(queries, 1, dim=4)  # as users call it, without checks of types
