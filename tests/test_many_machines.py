"""Work on a cluster of two nodes: as on one machine, also when a node dies."""

import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cluster import add_node, two_nodes
from late import write_stanford
from named import load_retriever
from test_engine import KILLS, Die, Drawn, Refuse, Sleep, Square, Where, device, end, end_a_program, processes
from test_rerank import logged, long_run
from tiny import DOCUMENTS, Tiny

from shortlist import encode, rerank, search
from shortlist.data.formats import write_corpus
from shortlist.data.runs import read_run
from shortlist.data.scores import ScoreLog
from shortlist.data.stores.shards import finished_shards
from shortlist.data.stores.tokens import TokenReader
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.engine import spread
from shortlist.errors import UserError
from shortlist.index.flat import FlatIndex
from shortlist.index.narrow import narrow
from shortlist.index.scattered import ScatteredIndex
from shortlist.models.run import embed_documents
from shortlist.records import Document

pytestmark = pytest.mark.slow

TEXTS = [
    Document(f"x{i}", f"{DOCUMENTS[i % 12].text} {DOCUMENTS[i % 7].text}", metadata={"year": 2010 + i % 10})
    for i in range(400)
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def config(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> encode.Config:
    folder = tmp_path_factory.mktemp("cluster")
    write_corpus(folder / "c" / "corpus.jsonl", TEXTS)
    (folder / "c" / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')
    return encode.Config(model=str(tiny.retriever), collection=str(folder / "c"), out=folder / "vectors", shard_size=10)


def test_a_cluster_encodes_what_one_process_does_though_a_node_is_killed(
    tiny: Tiny, config: encode.Config, cluster: Any, monkeypatch: pytest.MonkeyPatch
):
    node = add_node(cluster, num_cpus=2)
    cluster.wait_for_nodes()
    written: list[int] = []
    write = VectorWriter.write_shard

    def kill_a_node_half_way(self: VectorWriter, number: int, *shard: Any) -> None:
        written.append(number)
        write(self, number, *shard)
        if len(written) == 15:
            cluster.remove_node(node, allow_graceful=False)

    monkeypatch.setattr(VectorWriter, "write_shard", kill_a_node_half_way)
    encode.run(replace(config, engine="ray"))
    assert sorted(written) == list(range(40)) == finished_shards(config.out)
    store = VectorReader(config.out)
    assert list(store.doc_ids) == [document.doc_id for document in TEXTS]
    exact = embed_documents(load_retriever(str(tiny.retriever)).eval(), TEXTS)
    np.testing.assert_allclose(store.take(np.arange(400)), exact, atol=1e-6)
    cluster.wait_for_nodes()  # until all know of the death, or later tests are given work for a dead node


def test_a_cluster_encodes_and_searches_token_vectors_as_one_process_does(
    config: encode.Config, cluster: Any, tmp_path: Path
):
    write_corpus(tmp_path / "c" / "corpus.jsonl", TEXTS[:60])
    (tmp_path / "c" / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')
    model = str(write_stanford(tmp_path / "model"))
    late = replace(config, model=model, collection=str(tmp_path / "c"), dtype="residual4", pool_tokens=2.0)
    stores = []
    for engine in ("ray", "local"):
        encode.run(replace(late, out=tmp_path / engine, engine=engine))
        stores.append(TokenReader(tmp_path / engine))
    many, one = stores
    assert finished_shards(many.folder) == list(range(6))
    assert (list(many.doc_ids), many.counts.tolist()) == (list(one.doc_ids), one.counts.tolist())
    found, exact = (store.take(np.arange(60)).values for store in stores)
    assert (found * exact).sum(1).mean() > 0.99
    asked = search.Config(
        model=model, vectors=one.folder, collection=late.collection, split="all", k=20, out=tmp_path / "run"
    )
    runs = []
    for engine in ("ray", "local"):
        search.run(replace(asked, engine=engine, out=tmp_path / f"{engine}.trec"))
        runs.append((tmp_path / f"{engine}.trec").read_text())
    assert runs[0] == runs[1]


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_a_cluster_finds_to_the_last_bit_what_one_machine_does(
    config: encode.Config, cluster: Any, dtype: str | None, tmp_path: Path
):
    store, scan = VectorReader(config.out), None
    if dtype:
        narrow(store, tmp_path / "narrow", dtype)
        scan = VectorReader(tmp_path / "narrow")
    queries = store.take(np.arange(0, 400, 9))
    alone = FlatIndex(store, scan=scan)
    assert ScatteredIndex(alone).find(queries, 30) == alone.find(queries, 30)


@pytest.mark.parametrize("where", [None, "year >= 2017"])
def test_the_search_stage_scans_on_a_cluster(config: encode.Config, cluster: Any, tmp_path: Path, where: str | None):
    asked = search.Config(
        collection=config.collection,
        model=config.model,
        vectors=config.out,
        split="all",
        k=20,
        where=where,
        out=tmp_path / "run.trec",
    )
    runs = {}
    for engine in ("local", "ray"):
        runs[engine] = tmp_path / f"{engine}.trec"
        search.run(replace(asked, engine=engine, out=runs[engine]))
    [found], [alone] = (read_run(runs[engine]).values() for engine in ("ray", "local"))
    if where is None:
        assert found == alone
    else:  # what a filter leaves is multiplied in other pieces
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in alone], abs=1e-5)
        assert {hit.doc_id for hit in found[:15]} <= {hit.doc_id for hit in alone}
        assert all(int(hit.doc_id[1:]) % 10 >= 7 for hit in found)
    assert len(found) == len(alone) == 20


@contextmanager
def as_many_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_a_cluster_reranks_what_one_process_does_though_a_node_is_killed(
    tiny: Tiny, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    collection, run = long_run(tmp_path, num_queries=20)
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 20)
    settings = {"model": str(tiny.reranker), "run": run, "collection": collection, "split": "all"}
    with as_many_threads(2):  # as a node has: products split among another number may round otherwise
        rerank.run(rerank.Config(**settings, out=tmp_path / "one.trec"))
    append, appended = ScoreLog.append, []
    node = add_node(cluster, num_cpus=2)
    cluster.wait_for_nodes()

    def kill_a_node_half_way(self: ScoreLog, pairs: Any, scores: Any) -> None:
        append(self, pairs, scores)
        appended.append(len(pairs))
        if len(appended) == 8:
            cluster.remove_node(node, allow_graceful=False)

    monkeypatch.setattr(ScoreLog, "append", kill_a_node_half_way)
    rerank.run(rerank.Config(**settings, out=tmp_path / "many.trec", engine="ray"))
    assert len(set(logged(tmp_path / "many.trec"))) == len(logged(tmp_path / "many.trec")) == 500
    assert (tmp_path / "many.trec").read_bytes() == (tmp_path / "one.trec").read_bytes()
    cluster.wait_for_nodes()


def test_a_cluster_works_at_one_item_per_node_with_all_its_threads(cluster: Any):
    drawn, results = Drawn(), []
    for result in spread(Where(0.05), drawn.numbers(12), engine="ray"):
        results.append(result)
        assert drawn.count <= len(results) + 2
    assert sorted(number for number, *_ in results) == list(range(12))
    assert len({node for _, node, _, _ in results}) == len({pid for _, _, pid, _ in results}) == 2
    assert {threads for *_, threads in results} == {"2"}


def test_a_cluster_works_at_as_many_items_as_are_asked_for(cluster: Any):
    results = list(spread(Where(0.05), range(12), engine="ray", workers=4))
    assert len({pid for _, _, pid, _ in results}) == 4
    assert {threads for *_, threads in results} == {"1"}


def test_a_cluster_loads_the_task_once_per_worker(cluster: Any, tmp_path: Path):
    assert sorted(spread(Square(tmp_path), range(12), engine="ray")) == [(n, n * n) for n in range(12)]
    assert Counter(path.name.split("-")[1] for path in tmp_path.iterdir()).most_common(1)[0][1] == 1


@pytest.mark.parametrize("error", [UserError("corpus.jsonl:7: no text."), KeyError("x")], ids=["user", "other"])
def test_an_error_on_a_cluster_is_raised_as_it_is(cluster: Any, error: Exception):
    with pytest.raises(type(error)) as raised:
        list(spread(Refuse(error), range(20), engine="ray"))
    assert type(raised.value) is type(error)
    assert raised.value.args == error.args


def test_an_item_that_ends_every_worker_of_a_cluster_is_given_up(cluster: Any, tmp_path: Path):
    with pytest.raises(UserError, match=r"ended 3 processes \(.*\)\. .*fewer workers"):
        list(spread(Die(tmp_path, times=9), range(3), engine="ray"))
    assert len(list(tmp_path.iterdir())) == 3


def test_closing_early_ends_the_workers_of_a_cluster(cluster: Any, tmp_path: Path):
    results = spread(Sleep(tmp_path), [0, 30, 30, 30], engine="ray")
    next(results)
    results.close()
    assert len(processes(tmp_path)) >= 1
    assert end(processes(tmp_path))


def test_a_worker_of_a_cluster_keeps_its_gpu(cluster: Any):
    node = add_node(cluster, num_cpus=2, num_gpus=2)
    cluster.wait_for_nodes()
    seen = set(spread(device, range(12), engine="ray"))
    cluster.remove_node(node)
    assert sorted(gpu for _, gpu in seen) == ["0", "1"]


def test_nothing_is_lost_and_nothing_done_twice_when_a_node_is_killed(cluster: Any):
    node = add_node(cluster, num_cpus=2)
    cluster.wait_for_nodes()
    results, given, killed_after = [], [], sys.maxsize

    def items() -> Iterator[int]:
        while len(given) < killed_after + 20:
            given.append(len(given))
            yield given[-1]

    for result in spread(Where(0.2), items(), engine="ray"):
        results.append(result)
        if killed_after == sys.maxsize and result[1] == node.node_id:  # by now it has its next item
            cluster.remove_node(node, allow_graceful=False)
            killed_after = len(given)
    assert sorted(number for number, *_ in results) == given
    assert len({place for _, place, _, _ in results}) == 3
    assert node.node_id not in {place for _, place, _, _ in results[-10:]}
    cluster.wait_for_nodes()


@KILLS
def test_no_process_of_a_cluster_outlives_a_program_that_was(cluster: Any, tmp_path: Path, kill: signal.Signals):
    end_a_program(tmp_path, kill, "ray", cluster.address)
