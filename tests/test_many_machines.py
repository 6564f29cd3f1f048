"""Encoding, searching and reranking on a cluster of two nodes: as on one machine, also when a node dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cluster import two_nodes
from named import load_retriever
from test_rerank import logged, long_run
from tiny import DOCUMENTS, Tiny

from shortlist import encode, rerank, search
from shortlist.data.formats import write_corpus
from shortlist.data.scores import ScoreLog
from shortlist.data.vectors import VectorReader, VectorWriter, finished_shards
from shortlist.index.flat import FlatIndex
from shortlist.index.narrow import narrow
from shortlist.index.scattered import ScatteredIndex
from shortlist.models.run import embed_documents
from shortlist.records import Document

pytestmark = pytest.mark.slow

TEXTS = [Document(f"x{i}", f"{DOCUMENTS[i % 12].text} {DOCUMENTS[i % 7].text}") for i in range(400)]


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
    node = cluster.add_node(num_cpus=2)
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


def test_the_search_stage_scans_on_a_cluster(config: encode.Config, cluster: Any, tmp_path: Path):
    asked = search.Config(
        collection=config.collection,
        model=config.model,
        vectors=config.out,
        split="all",
        k=20,
        out=tmp_path / "run.trec",
    )
    runs = {}
    for engine in ("local", "ray"):
        runs[engine] = tmp_path / f"{engine}.trec"
        search.run(replace(asked, engine=engine, out=runs[engine]))
    assert runs["ray"].read_text() == runs["local"].read_text()


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
    node = cluster.add_node(num_cpus=2)
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
