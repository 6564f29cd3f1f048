import json
import sys
from pathlib import Path

import numpy as np
import pytest

from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.index import ann
from shortlist.index.ann import AnnIndex
from shortlist.index.parameters import NAMES, automatic, memory_and_disk
from shortlist.index.protocols import VectorIndex
from shortlist.records import Hit

KINDS = list(NAMES)
DIM = 16


def clustered(count: int, *, seed: int) -> np.ndarray:
    """Unit vectors round 30 centres, which the seed does not change."""
    centres = np.random.default_rng(0).standard_normal((30, DIM))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 30, count)] + 0.5 * rng.standard_normal((count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = clustered(1000, seed=1), clustered(20, seed=2)


def write_store(folder: Path, vectors: np.ndarray = VECTORS, *, dtype: str = "float32") -> VectorReader:
    """Shards of 300."""
    writer = VectorWriter(folder, vectors.shape[1], dtype)
    for shard, start in enumerate(range(0, len(vectors), 300)):
        rows = vectors[start : start + 300]
        writer.write_shard(shard, [f"d{start + row}" for row in range(len(rows))], rows)
    return VectorReader(folder)


def build(vectors: VectorReader, folder: Path, kind: str, **chosen: int) -> Path:
    parameters = automatic(kind, vectors.num_docs, vectors.dim, **chosen)
    AnnIndex.build(vectors, folder, kind=kind, parameters=parameters)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store and an index of each kind over it, to be read only."""
    folder = tmp_path_factory.mktemp("made")
    vectors = write_store(folder / "store")
    return vectors, {kind: build(vectors, folder / kind, kind) for kind in KINDS}


@pytest.fixture
def set_threads():
    """Sets FAISS's threads for the time of a test."""
    before = ann._faiss().omp_get_max_threads()
    yield ann._faiss().omp_set_num_threads
    ann._faiss().omp_set_num_threads(before)


@pytest.fixture(params=KINDS)
def opened(request, made):
    vectors, folders = made
    return AnnIndex.open(folders[request.param], vectors)


def by_the_book(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ vectors.T), axis=1, kind="stable")[:, :k]


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)]))


@pytest.mark.parametrize("k", [10, 100])
def test_nearly_all_of_the_best_documents_are_found_with_exact_scores(opened, k):
    scores, positions = opened.search_vectors(QUERIES, k)
    assert recall(positions, by_the_book(QUERIES, VECTORS, k)) > 0.97
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", QUERIES, VECTORS[positions]), atol=1e-6)
    assert (np.diff(scores) <= 0).all()


def test_what_was_proposed_is_scored_by_the_store_and_not_by_its_codes(tmp_path):
    vectors = write_store(tmp_path / "store")
    coarse = AnnIndex.open(build(vectors, tmp_path / "index", "ivf-pq", code_bytes=1, refine=1), vectors)
    best = by_the_book(QUERIES, VECTORS, 10)
    assert recall(coarse.search_vectors(QUERIES, 10)[1], best) < 0.9
    fine = AnnIndex.open(tmp_path / "index", vectors, refine=50)
    assert recall(fine.search_vectors(QUERIES, 10)[1], best) > recall(coarse.search_vectors(QUERIES, 10)[1], best)


@pytest.mark.parametrize("kind", ["ivf-flat", "hnsw"])
def test_more_effort_finds_more(made, kind):
    vectors, folders = made
    best = by_the_book(QUERIES, VECTORS, 3)
    found = [
        recall(AnnIndex.open(folders[kind], vectors, effort=effort, refine=1).search_vectors(QUERIES, 3)[1], best)
        for effort in (1, 25)
    ]
    assert found[0] < 0.97 < found[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_a_store_of_narrow_numbers_is_searched_by_those(tmp_path, kind, dtype):
    vectors = write_store(tmp_path / "store", dtype=dtype)
    index = AnnIndex.open(build(vectors, tmp_path / "index", kind), vectors)
    stored = vectors.take(np.arange(1000))
    scores, positions = index.search_vectors(QUERIES, 10)
    assert recall(positions, by_the_book(QUERIES, stored, 10)) > 0.95
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", QUERIES, stored[positions]), atol=1e-6)


def test_lists_of_narrow_floats_hold_the_bytes_of_the_store(tmp_path):
    vectors = write_store(tmp_path / "store", dtype="bfloat16")
    build(vectors, tmp_path / "index", "ivf-flat", lists=1)
    content, codes = (tmp_path / "index" / "lists.ivfdata").read_bytes(), 1000 * DIM * 2
    assert content[:codes] == b"".join((tmp_path / "store" / f"shard-0000{i}.bin").read_bytes() for i in range(4))
    assert np.array_equal(np.frombuffer(content[codes:], dtype="<i8"), np.arange(1000))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_come_in_corpus_order(tmp_path, kind):
    rng = np.random.default_rng(
        3
    )  # for such odd numbers of rows and dimensions BLAS gives equal vectors scores that differ
    vectors = write_store(tmp_path / "store", np.repeat(rng.standard_normal((39, 33), np.float32), 9, axis=0))
    index = AnnIndex.open(build(vectors, tmp_path / "index", kind), vectors)
    scores, positions = index.search_vectors(rng.standard_normal((20, 33), np.float32), 351)
    assert (np.diff(scores) == 0).sum(1).tolist() == [312] * 20
    assert (np.diff(positions)[np.diff(scores) == 0] == 1).all()


@pytest.mark.parametrize("kind", ["ivf-flat", "ivf-pq"])
def test_more_lists_are_read_where_those_hold_fewer_than_k(made, kind, monkeypatch):
    vectors, folders = made
    monkeypatch.setattr(ann, "LEAST_READ", 0)
    index = AnnIndex.open(folders[kind], vectors, effort=1)
    assert (index.search_vectors(QUERIES, 900)[1] >= 0).all()
    _, positions = index.search_vectors(QUERIES, 5000)
    assert np.array_equal(positions, by_the_book(QUERIES, VECTORS, 1000))


def test_one_query_finds_what_it_finds_among_others(opened):
    scores, positions = opened.search_vectors(QUERIES, 50)
    for number in (0, 7):
        alone = opened.search_vectors(QUERIES[number : number + 1], 50)
        assert np.array_equal(alone[0][0], scores[number])
        assert np.array_equal(alone[1][0], positions[number])


def test_threads_are_started_only_for_work_that_is_worth_it(opened, set_threads):
    set_threads(4)
    enough = ann.THREAD_PRODUCTS // DIM
    found = []
    for num_queries, docs, most in ((1, enough - 1, 9), (3, enough, 9), (9, enough, 9), (9, enough, 2)):
        with opened._threads(num_queries, docs, most) as threads:
            found.append((threads, ann._faiss().omp_get_max_threads()))
    assert found == [(1, 1), (3, 3), (4, 4), (2, 2)]
    assert ann._faiss().omp_get_max_threads() == 4


def test_the_lists_of_one_query_are_shared_by_threads_and_give_the_same(made, monkeypatch, set_threads):
    vectors, folders = made
    index = AnnIndex.open(folders["ivf-flat"], vectors)
    expected = index.search_vectors(QUERIES[:1], 50)
    set_threads(3)
    monkeypatch.setattr(ann, "THREAD_PRODUCTS", 1)
    found = index.search_vectors(QUERIES[:1], 50)
    assert index._index.parallel_mode == 1
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


def test_many_queries_are_searched_in_turns(opened, monkeypatch):
    expected = opened.search_vectors(QUERIES, 5)
    monkeypatch.setattr(ann, "QUERIES_AT_ONCE", 7)
    for found, wanted in zip(opened.search_vectors(QUERIES, 5), expected, strict=True):
        assert np.array_equal(found, wanted)


def test_hits_carry_ids_and_nothing_that_was_not_found(opened, monkeypatch):
    assert isinstance(opened, VectorIndex)
    best = by_the_book(QUERIES[:1], VECTORS, 1)[0, 0]
    ((hit,),) = opened.find(QUERIES[:1], 1)
    assert hit.doc_id == f"d{best}"
    assert hit.score == pytest.approx(float(QUERIES[0] @ VECTORS[best]), abs=1e-6)
    monkeypatch.setattr(opened, "search_vectors", lambda *_, **__: (np.array([[2.0, -np.inf]]), np.array([[3, -1]])))
    assert opened.find(QUERIES[:1], 2) == [[Hit("d3", 2.0)]]
    monkeypatch.undo()
    assert opened.find(QUERIES[:0], 5) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 50])
def test_a_small_corpus_is_searched_exactly_and_without_warnings(tmp_path, capfd, kind, count):
    vectors = write_store(tmp_path / "store", VECTORS[:count])
    index = AnnIndex.open(build(vectors, tmp_path / "index", kind), vectors)
    assert np.array_equal(index.search_vectors(QUERIES, 100)[1], by_the_book(QUERIES, VECTORS[:count], 100))
    assert "".join(capfd.readouterr()) == ""


def update(folder: Path, positions: np.ndarray) -> VectorReader:
    """Give every row a position, -1 where its document is gone."""
    positions.astype("<i8").tofile(folder / "order-00001.bin")
    shards = {"shards": list(range(len(list(folder.glob("*.json"))))), "order": "order-00001.bin"}
    (folder / "snapshot.json").write_text(json.dumps(shards))
    return VectorReader(folder)


@pytest.fixture
def order():
    """Row 0 and every third one are dead, a whole shard too; the others stand in reverse order."""
    positions = np.full(1000, -1)
    living = [row for row in range(1000) if row % 3 and not 300 <= row < 600]
    positions[living[::-1]] = np.arange(len(living))
    return positions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["before it was built", "since it was built"])
def test_documents_that_are_gone_are_not_found(tmp_path, order, kind, when):
    store, index = tmp_path / "store", tmp_path / "index"
    vectors = write_store(store)
    if when == "since it was built":
        build(vectors, index, kind)
    vectors = update(store, order)
    if when == "before it was built":
        build(vectors, index, kind)
    opened = AnnIndex.open(index, vectors)
    assert (opened.missing, opened.num_docs) == (0, vectors.num_docs)
    living = vectors.take(np.arange(vectors.num_docs))
    _, positions = opened.search_vectors(QUERIES, 30)
    assert recall(positions, by_the_book(QUERIES, living, 30)) > 0.97
    assert [hit.doc_id for hit in opened.find(QUERIES, 30)[0]] == [f"d{list(order).index(p)}" for p in positions[0]]
    if kind != "hnsw":
        assert (opened.search_vectors(QUERIES, 1000)[1] >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_documents_that_are_newer_are_counted_and_not_found(tmp_path, kind):
    build(write_store(tmp_path / "store", VECTORS[:600]), tmp_path / "index", kind)
    index = AnnIndex.open(tmp_path / "index", write_store(tmp_path / "store"))
    assert (index.missing, index.num_docs) == (400, 600)
    _, positions = index.search_vectors(QUERIES, 1000)
    assert positions.shape == (20, 1000)
    assert np.array_equal(positions[:, :600], by_the_book(QUERIES, VECTORS[:600], 600))
    assert (positions[:, 600:] == -1).all()


def test_an_index_whose_documents_are_all_gone_finds_nothing(tmp_path):
    build(write_store(tmp_path / "store", VECTORS[:300]), tmp_path / "index", "hnsw")
    write_store(tmp_path / "store", VECTORS[:600])
    index = AnnIndex.open(tmp_path / "index", update(tmp_path / "store", np.r_[np.full(300, -1), np.arange(300)]))
    scores, positions = index.search_vectors(QUERIES, 10)
    assert (scores == -np.inf).all()
    assert (positions == -1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process has mapped as Linux tells it")
def test_an_index_is_mapped_from_disk(opened, made):
    path = made[1][opened.kind] / ("lists.ivfdata" if opened.kind == "ivf-flat" else "index.faiss")
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert mapped
    assert all(line.split()[1].startswith("r-") for line in mapped)


def test_room_set_aside_changes_nothing(made, tmp_path, monkeypatch, set_threads):
    set_threads(1)
    build(made[0], tmp_path / "reserved", "hnsw")
    monkeypatch.setattr(ann, "_reserve", lambda *_: None)
    build(made[0], tmp_path / "grown", "hnsw")
    assert (tmp_path / "reserved/index.faiss").read_bytes() == (tmp_path / "grown/index.faiss").read_bytes()


def test_an_index_takes_what_was_foretold(opened):
    foretold = memory_and_disk(opened.kind, opened.parameters, 1000, DIM)
    assert opened.ram_bytes == pytest.approx(foretold.ram, rel=0.03, abs=3000)
    assert opened.disk_bytes == pytest.approx(foretold.disk, rel=0.03, abs=3000)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_store_gives_the_same_index_and_progress_ends_at_its_size(
    made, tmp_path, kind, monkeypatch, set_threads
):
    monkeypatch.setattr(ann, "BLOCK_BYTES", 4 * DIM * 128)  # in other blocks
    set_threads(1)
    vectors, folders = made
    parameters, done = automatic(kind, 1000, DIM), []
    AnnIndex.build(
        vectors, tmp_path, kind=kind, parameters=parameters, advance=lambda amount=1, note="": done.append(amount)
    )
    assert (sum(done), len(done) > 8) == (1000, True)
    if kind != "hnsw":  # how a graph grows depends on the blocks too
        for name in json.loads((tmp_path / "index.json").read_text())["files"]:
            assert (tmp_path / name).read_bytes() == (folders[kind] / name).read_bytes()


def test_the_sample_is_spread_evenly_over_the_documents_that_live(tmp_path, order, monkeypatch):
    monkeypatch.setattr(ann, "BLOCK_BYTES", 4 * DIM * 128)
    write_store(tmp_path)
    sample = ann._sample(update(tmp_path, order), 300)
    living = np.flatnonzero(order >= 0)
    assert np.array_equal(sample, VECTORS[living[np.linspace(0, len(living) - 1, 300).astype(int)]])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of a process as Linux does")
def test_lists_on_disk_are_built_in_little_memory(made, tmp_path, monkeypatch):
    monkeypatch.setattr(ann, "BLOCK_BYTES", 1 << 22)
    writer, rng = VectorWriter(tmp_path / "store", 512), np.random.default_rng(0)
    for shard in range(4):
        rows = rng.standard_normal((16384, 512), dtype=np.float32)
        writer.write_shard(shard, [f"{shard}-{row}" for row in range(16384)], rows)
    vectors, parameters = VectorReader(tmp_path / "store"), automatic("ivf-flat", 65536, 512, lists=16, sample=1024)
    held: list[int] = []

    def look(amount: float = 1, note: str = "") -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        held.append(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")))

    look()
    AnnIndex.build(vectors, tmp_path / "index", kind="ivf-flat", parameters=parameters, advance=look)
    assert vectors.num_bytes == 128 << 20
    assert max(held) - held[0] < 32 << 10


def test_a_build_that_stopped_leaves_no_index(made, tmp_path, monkeypatch):
    vectors, _ = made
    build(vectors, tmp_path, "ivf-flat")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(ann, "_codes", full)
    with pytest.raises(OSError, match="disk full"):
        build(vectors, tmp_path, "ivf-flat")
    with pytest.raises(UserError, match="holds no whole approximate index"):
        AnnIndex.open(tmp_path, vectors)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["index.faiss", "lists.ivfdata"])
def test_files_that_are_short_or_missing_are_refused(made, tmp_path, name):
    vectors, _ = made
    path = build(vectors, tmp_path, "ivf-flat") / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{name}: holds {size - 1:,} bytes, expected {size:,}; build it again"):
        AnnIndex.open(tmp_path, vectors)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: holds 0 bytes"):
        AnnIndex.open(tmp_path, vectors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_faiss_cannot_read_is_refused_in_one_line(made, tmp_path, kind):
    vectors, _ = made
    path = build(vectors, tmp_path, kind) / "index.faiss"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=r"index.faiss: FAISS cannot read it \(.*build it again") as error:
        AnnIndex.open(tmp_path, vectors)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"kind": "flat"}, {"list_sizes": []}, {"parameters": {}}, {"files": {}}])
def test_a_description_that_is_not_one_is_refused(made, tmp_path, change):
    vectors, _ = made
    path = build(vectors, tmp_path, "ivf-flat") / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="holds no whole approximate index"):
        AnnIndex.open(tmp_path, vectors)


@pytest.mark.parametrize("more", [[0], [1, 0]])
def test_lists_that_do_not_fit_their_file_are_refused(made, tmp_path, more):
    vectors, _ = made
    path = build(vectors, tmp_path, "ivf-flat") / "index.json"
    description = json.loads(path.read_text())
    sizes = description["list_sizes"]
    sizes = sizes + more if len(more) == 1 else [sizes[0] + 1, *sizes[1:]]
    path.write_text(json.dumps(description | {"list_sizes": sizes}))
    with pytest.raises(UserError, match=rf"FAISS cannot read it .*{len(sizes)} lists of"):
        AnnIndex.open(tmp_path, vectors)


def test_a_store_that_is_not_its_own_is_refused(made, tmp_path):
    _, folders = made
    with pytest.raises(UserError, match="does not begin with the vectors that the index was built from"):
        AnnIndex.open(folders["hnsw"], write_store(tmp_path / "other", VECTORS[::-1].copy()))
    with pytest.raises(UserError, match=r"indexes vectors of dim 16, .* holds dim 3"):
        AnnIndex.open(folders["hnsw"], write_store(tmp_path / "short", VECTORS[:, :3].copy()))


def test_what_cannot_be_searched_for_is_refused(opened):
    with pytest.raises(UserError, match="queries have 3 dimensions, the vectors 16"):
        opened.search_vectors(QUERIES[:, :3], 1)
    with pytest.raises(UserError, match="k is 0"):
        opened.search_vectors(QUERIES, 0)
    with pytest.raises(UserError, match="not finite"):
        opened.search_vectors(QUERIES * np.nan, 1)


def test_what_cannot_be_built_is_refused(made, tmp_path):
    vectors, folders = made
    with pytest.raises(UserError, match="unknown kind of approximate index 'hsnw': perhaps 'hnsw'"):
        AnnIndex.build(vectors, tmp_path, kind="hsnw", parameters=automatic("hnsw", 1000, DIM))
    with pytest.raises(UserError, match="2,000 lists of 1,000 documents"):
        AnnIndex.build(vectors, tmp_path, kind="ivf-flat", parameters=automatic("ivf-flat", 9**6, DIM, lists=2000))
    with pytest.raises(UserError, match="effort 0: expected at least 1"):
        AnnIndex.open(folders["hnsw"], vectors, effort=0)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_not_there_is_named(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        build(made[0], tmp_path, "hnsw")


def test_equal_vectors_are_linked_once_and_all_of_them_are_found(tmp_path):
    copies, others = np.repeat(clustered(1, seed=5), 600, axis=0), clustered(400, seed=6)
    vectors = write_store(tmp_path / "store", np.concatenate([copies, others]))
    index = AnnIndex.open(build(vectors, tmp_path / "index", "hnsw"), vectors)
    queries = np.concatenate([others[::8], copies[:1]])
    _, positions = index.search_vectors(queries, 1)
    assert positions[:, 0].tolist() == [*range(600, 1000, 8), 0]
    scores, positions = index.search_vectors(copies[:1], 610)
    assert positions[0, :600].tolist() == list(range(600))
    assert (scores[0, :600] == scores[0, 0]).all()
    order = np.arange(1000)
    order[0], order[1:] = -1, np.arange(999)  # the one that is linked has gone
    gone = update(tmp_path / "store", order)
    assert AnnIndex.open(tmp_path / "index", gone).search_vectors(copies[:1], 3)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_are_not_finite_are_not_built_into_an_index(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(VectorWriter, "_check_finite", lambda *_: None)
    vectors = write_store(tmp_path / "store", np.where(np.arange(1000)[:, None] == 7, np.nan, VECTORS))
    with pytest.raises(UserError, match="the vector of document 'd7' is not finite"):
        build(vectors, tmp_path / "index", kind)
