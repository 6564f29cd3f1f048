import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_ann import QUERIES, VECTORS, write_store
from tiny import DOCUMENTS, Tiny

from shortlist import encode, index
from shortlist.data.allowed import Allowed
from shortlist.data.manifest import read_manifest
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.index.flat import FlatIndex
from shortlist.index.opening import open_index
from shortlist.index.protocols import Opening, SearchesByReading, VectorIndex
from shortlist.index.tree import NodeTexts, TreeIndex, beginning, build_tree, open_tree_index
from shortlist.index.walking import TreeSearch, by_ranker, to_shares
from shortlist.math.tree import Tree
from shortlist.records import Document, Query
from shortlist.rerankers import opening
from shortlist.rerankers.models import RawAnswer
from shortlist.settings.encode import Config as EncodeConfig


def built(store: Path, folder: Path, **chosen: int) -> Path:
    build_tree(VectorReader(store), folder, advance=lambda amount=1, note="": None, **chosen)
    return folder


def opened(store: Path, folder: Path, effort: int | None = None) -> TreeIndex:
    return open_tree_index(folder, {}, Opening(vectors=store, effort=effort))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 1,000 vectors in four shards, and a tree over it."""
    folder = tmp_path_factory.mktemp("tree")
    write_store(folder / "store")
    built(folder / "store", folder / "tree", branch=8)
    return folder


def names(hits: Sequence[Any]) -> list[list[str]]:
    return [[hit.doc_id for hit in row] for row in hits]


def test_with_all_nodes_it_finds_what_exact_search_finds(made: Path):
    tree, flat = opened(made / "store", made / "tree", 1000), FlatIndex(VectorReader(made / "store"))
    assert isinstance(tree, VectorIndex)
    for k in (1, 10, 2000):
        found, exact = tree.find(QUERIES, k), flat.find(QUERIES, k)
        assert names(found) == names(exact)
        np.testing.assert_allclose(
            [hit.score for row in found for hit in row], [hit.score for row in exact for hit in row], atol=1e-6
        )


def test_with_few_nodes_it_reads_few_documents_and_misses_little(made: Path):
    tree, flat = opened(made / "store", made / "tree", 16), FlatIndex(VectorReader(made / "store"))
    hits, read = tree.find_among(QUERIES, 10, allowed=None)
    exact = flat.find(QUERIES, 10)
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(names(hits), names(exact), strict=True)])
    assert recall > 0.9
    assert max(read) <= 16 * 16
    assert np.mean(read) < 200


def test_a_deep_list_opens_as_many_nodes_as_it_needs(made: Path):
    tree = opened(made / "store", made / "tree", 1)
    assert [len(row) for row in tree.find(QUERIES, 100)] == [100] * len(QUERIES)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_a_filter_finds_as_many_as_are_allowed(made: Path, share: float):
    tree, flat = opened(made / "store", made / "tree", 1000), FlatIndex(VectorReader(made / "store"))
    chosen = np.flatnonzero(np.random.default_rng(0).random(1000) < share)
    only = Allowed([f"d{number}" for number in chosen])
    assert names(tree.find(QUERIES, 7, allowed=only)) == names(flat.find(QUERIES, 7, allowed=only))
    few = opened(made / "store", made / "tree", 2).find(QUERIES, 2, allowed=only)
    assert {hit.doc_id for row in few for hit in row} <= {f"d{number}" for number in chosen}
    assert all(len(row) == min(2, len(chosen)) for row in few)


def test_the_same_store_and_seed_give_the_same_bytes(made: Path, tmp_path: Path):
    built(made / "store", tmp_path / "again", branch=8)
    built(made / "store", tmp_path / "other", branch=8, seed=1)
    first, again, other = (
        (folder / "tree.safetensors").read_bytes() for folder in (made / "tree", tmp_path / "again", tmp_path / "other")
    )
    assert first == again
    assert first != other


def test_a_tree_of_other_vectors_is_refused(made: Path, tmp_path: Path):
    write_store(tmp_path / "more", np.concatenate([VECTORS, VECTORS[:1]]))
    with pytest.raises(UserError, match=r"is a tree of other vectors than .*more holds now"):
        opened(tmp_path / "more", made / "tree")


@pytest.mark.parametrize("damage", ["none", "no arrays", "cut"])
def test_what_is_not_whole_is_refused(made: Path, tmp_path: Path, damage: str):
    if damage != "none":
        (tmp_path / "index.json").write_text((made / "tree/index.json").read_text())
    if damage == "cut":
        (tmp_path / "tree.safetensors").write_bytes((made / "tree/tree.safetensors").read_bytes()[:500])
    with pytest.raises(UserError, match="not a whole tree"):
        opened(made / "store", tmp_path)


def test_what_it_cannot_be_made_of_is_refused(tmp_path: Path):
    writer = VectorWriter(tmp_path / "bad", 2)
    writer.write_shard(0, ["a", "b"], np.ones((2, 2), dtype=np.float32))
    with pytest.raises(UserError, match="branch 3: expected at least 4"):
        built(tmp_path / "bad", tmp_path / "tree", branch=3)


def test_a_nodes_text_is_what_its_typical_documents_begin_with():
    documents = {"a": Document("a", "one two"), "b": Document("b", "text", title=" Title "), "c": Document("c", "x")}
    tree = Tree(np.array([1, 3, 5, 6]), np.array([2, 0, 1]))
    texts = NodeTexts(tree, np.array([[1, 0], [0, 1], [2, -1]]), ["a", "b", "c"], None)
    assert {node: document.text for node, document in texts([1, 2], lambda ids: documents).items()} == {
        1: "x; one two",
        2: "Title",
    }
    assert beginning(Document("d", "w " * 40)) == " ".join(["w"] * 12)
    told = NodeTexts(tree, np.zeros((3, 2)), ["a"], {1: "said"})
    assert told([1], lambda ids: documents) == {1: Document("node 1", "said")}


def test_an_order_becomes_shares_and_silence_stays():
    assert to_shares([3.0, 1.0, 2.0, 1.0]) == pytest.approx([1, 1 / 3, 2 / 3, 1 / 3])
    assert np.isnan(to_shares([np.nan, 1.0])[0])


class Writer:
    """Describes a node by the words that all its texts share, or says nothing of it."""

    def __init__(self, dies_after: int | None = None, *, silent: bool = False) -> None:
        self.asked: list[list[str]] = []
        self.dies_after, self.silent = dies_after, silent

    def keys(self, asked: Sequence[Any]) -> list[Any]:
        return [[document.text for document in documents] for _, documents in asked]

    def replies(self, asked: Sequence[Any]) -> Iterator[dict[int, RawAnswer]]:
        for place, (_, documents) in enumerate(asked):
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            self.asked.append([document.doc_id for document in documents])
            yield {place: RawAnswer("" if self.silent else f"<think>so</think> {len(self.asked)}\nthings", 7, 2)}


@pytest.fixture(scope="module")
def config(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> index.Config:
    """What builds a tree of 12 documents whose nodes are described."""
    folder = tmp_path_factory.mktemp("described")
    encode.run(EncodeConfig(model=str(tiny.retriever), collection=str(tiny.collection), out=folder / "vectors"))
    return index.Config(
        kind="tree",
        vectors=folder / "vectors",
        collection=str(tiny.collection),
        writer=str(tiny.speaker),
        set=("branch=4",),
        out=folder / "tree",
    )


def with_writer(monkeypatch: pytest.MonkeyPatch, writer: Writer) -> Writer:
    monkeypatch.setattr(opening, "open_language_model", lambda **given: (writer, {"model": "writer"}))
    return writer


def test_nodes_are_described_once_even_after_an_interruption(
    config: index.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = replace(config, out=tmp_path / "tree")
    first = with_writer(monkeypatch, Writer(dies_after=2))
    with pytest.raises(KeyboardInterrupt):
        index.run(config)
    assert len(first.asked) == 2
    second = with_writer(monkeypatch, Writer())
    index.run(config)
    results = (read_manifest(config.out) or {})["results"]
    assert len(second.asked) == results["calls"] - 2
    assert results["calls"] == results["num_nodes"] - 1
    assert (results["prompt_tokens"], results["answer_tokens"]) == (7 * results["calls"], 2 * results["calls"])
    texts = open_index(config.out).texts([1], lambda ids: {})
    assert texts[1].text in {"1 things", "2 things", "3 things"}
    assert all(json.loads(line)[1] for line in (config.out / "texts.jsonl").read_text().splitlines())
    index.run(config)
    assert index.is_current(config)
    with pytest.raises(UserError, match=r"holds another job \(.*writer: .*speaker there, None now"):
        index.run(replace(config, writer=None, collection=None))


def test_a_limit_of_calls_pauses_and_no_node_is_asked_about_twice(
    config: index.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config, writer = replace(config, out=tmp_path / "tree", max_calls=2), with_writer(monkeypatch, Writer())
    index.run(config)
    assert len(writer.asked) == 2
    assert re.search(r"index: \d+ of \d+ nodes are left; the same command goes on", capsys.readouterr().err)
    assert not (read_manifest(config.out) or {})["complete"]
    while not (read_manifest(config.out) or {})["complete"]:
        before = len(writer.asked)
        index.run(config)
        assert before < len(writer.asked) <= before + 2
    assert len(writer.asked) == (read_manifest(config.out) or {})["results"]["calls"]
    assert len({tuple(names) for names in writer.asked}) == len(writer.asked)


def test_a_silent_writer_leaves_the_typical_documents(
    config: index.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_writer(monkeypatch, Writer(silent=True))
    index.run(replace(config, out=tmp_path / "tree"))
    results = (read_manifest(tmp_path / "tree") or {})["results"]
    assert results["malformed"] == results["calls"]
    by_id = {document.doc_id: document for document in DOCUMENTS}
    texts = open_index(tmp_path / "tree").texts([1], lambda ids: by_id)
    assert texts[1].text.startswith("the ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": None}, "--vectors is missing"),
        ({"collection": None}, "--collection is missing: --writer reads its documents"),
        ({"writer": None, "writer_name": "x"}, "--writer is missing: --writer-name"),
        ({"writer": None, "max_calls": 2}, "--writer is missing: --max-calls"),
        ({"max_calls": 0}, "--max-calls is 0; expected at least 1"),
        ({"writer_prompt": "queries"}, "--writer-prompt: 'queries' asks for no text"),
        ({"kind": "hnsw", "set": ()}, "--writer is for --kind tree, and hnsw has none"),
        ({"set": ("links=3",)}, "unknown parameter of a tree index 'links'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    config: index.Config, tmp_path: Path, changes: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        index.run(replace(config, out=tmp_path / "out", **changes))


def test_the_cost_is_foretold_with_the_calls(config: index.Config, capsys: pytest.CaptureFixture[str]):
    index.run(replace(config, dry_run=True))
    said = capsys.readouterr().out
    assert "branch=4, effort=64, seed=0; about 5 calls of the language model" in said
    assert not config.out.exists()


def test_a_reranker_that_reads_all_gives_its_own_order(made: Path):
    class Lengths:
        def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
            return np.array([float(document.text.split(";")[0]) for document in documents])

    store = VectorReader(made / "store")
    texts = {f"d{place}": Document(f"d{place}", f"{place * 7 % 1000}") for place in range(store.num_docs)}
    fetch = lambda ids: {doc_id: texts[doc_id] for doc_id in ids}  # noqa: E731
    stage = by_ranker(opened(made / "store", made / "tree"), Lengths(), beam=3, budget=10_000)
    assert isinstance(stage, TreeSearch)
    assert isinstance(stage, SearchesByReading)
    run, read = stage.search_by_reading([Query("q", "x"), Query("p", "y")], 3, fetch)
    assert [hit.score for hit in run["q"]] == [999, 998, 997]
    assert run["p"] == run["q"]
    assert read["q"] == stage.index.tree.starts[-1] - 1
    assert stage.search_by_reading([], 3, fetch) == ({}, {})
