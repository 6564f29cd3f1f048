"""Encoding and searching on a cluster of two nodes: what one machine would write and find, also when a node dies."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import two_nodes
from named import load_retriever
from tiny import DOCUMENTS, Tiny

from shortlist import encode, search
from shortlist.data.formats import write_corpus
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
