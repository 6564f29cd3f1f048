import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import DOCUMENTS, Tiny, kill_when

from shortlist import encode
from shortlist.cli import main
from shortlist.data.formats import write_corpus
from shortlist.data.vectors import VectorReader, VectorWriter, finished_shards
from shortlist.errors import UserError
from shortlist.models.checkpoint import load_retriever
from shortlist.models.embed import embed_documents
from shortlist.models.retriever import Retriever
from shortlist.records import Document


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> encode.Config:
    return encode.Config(model=str(tiny.retriever), collection=str(tiny.collection), out=tmp_path / "vectors")


@pytest.fixture
def retriever(tiny: Tiny) -> Retriever:
    return load_retriever(str(tiny.retriever)).eval()


def stored(out: Path) -> np.ndarray:
    return np.concatenate([rows for _, rows in VectorReader(out).blocks(100)])


@pytest.mark.parametrize("shard_size", [5, 12, 100])
def test_vectors_are_those_of_the_documents_in_corpus_order(
    config: encode.Config, retriever: Retriever, shard_size: int
):
    encode.run(replace(config, shard_size=shard_size))
    store = VectorReader(config.out)
    assert store.doc_ids == [document.doc_id for document in DOCUMENTS]
    np.testing.assert_allclose(stored(config.out), embed_documents(retriever, DOCUMENTS), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(stored(config.out), axis=1), 1, atol=1e-6)
    assert len(finished_shards(config.out)) == -(-12 // shard_size)


def test_shards_come_one_by_one_and_those_that_are_done_are_left_out(retriever: Retriever):
    told: list[float] = []

    def advance(amount: int | float = 1, note: str = "") -> None:
        told.append(amount)

    shards = list(encode.encode(retriever, DOCUMENTS, shard_size=5, done=[1], advance=advance))
    assert [(number, doc_ids[0], len(doc_ids)) for number, doc_ids, _ in shards] == [(0, "d0", 5), (2, "d10", 2)]
    assert sum(told) == 12


def test_the_token_budget_changes_no_vector_and_is_no_other_job(config: encode.Config, retriever: Retriever):
    encode.run(replace(config, token_budget=1))
    np.testing.assert_allclose(stored(config.out), embed_documents(retriever, DOCUMENTS), atol=1e-6)
    before = (config.out / "shard-00000.bin").stat().st_mtime_ns
    encode.run(replace(config, token_budget=999))
    assert (config.out / "shard-00000.bin").stat().st_mtime_ns == before


def test_documents_are_cut_to_the_length_asked_for(config: encode.Config, retriever: Retriever):
    encode.run(replace(config, max_length=6))
    retriever.inputs.contract = retriever.inputs.contract.with_lengths(document=6)
    np.testing.assert_allclose(stored(config.out), embed_documents(retriever, DOCUMENTS), atol=1e-6)


def test_the_manifest_counts_and_says_what_the_vectors_are(config: encode.Config):
    encode.run(config)
    manifest = json.loads((config.out / "manifest.json").read_text())
    results = manifest["results"]
    assert (manifest["complete"], results["num_docs"], results["dim"], results["dtype"]) == (True, 12, 32, "float32")
    assert manifest["config"]["model"] == config.model


def test_an_interrupted_encoding_makes_only_the_shards_that_are_missing(
    config: encode.Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = replace(config, shard_size=3)
    write = VectorWriter.write_shard

    def until_interrupted(self, index, doc_ids, vectors):
        if index == 2:
            raise KeyboardInterrupt
        write(self, index, doc_ids, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(VectorWriter, "write_shard", until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode.run(config)
    before = (config.out / "shard-00001.bin").stat().st_mtime_ns
    encode.run(config)
    assert "continuing after 2 shards" in capsys.readouterr().err
    assert (config.out / "shard-00001.bin").stat().st_mtime_ns == before
    whole = replace(config, out=config.out.with_name("whole"))
    encode.run(whole)
    assert contents(config.out) == contents(whole.out)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in ("manifest.json", "config.yaml")}


def test_a_killed_encoding_goes_on_to_the_same_bytes(tiny: Tiny, tmp_path: Path):
    texts = [Document(f"x{i}", f"{DOCUMENTS[i % 12].text} {DOCUMENTS[i % 7].text}") for i in range(1000)]
    write_corpus(tmp_path / "collection" / "corpus.jsonl", texts)
    (tmp_path / "collection" / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')

    def command(out: Path) -> list[str]:
        paths = ["--model", str(tiny.retriever), "--collection", str(tmp_path / "collection"), "--out", str(out)]
        return ["encode", *paths, "--shard-size", "10"]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(command(whole)) == 0
    kill_when(lambda: len(finished_shards(broken)) >= 5, command(broken))
    assert len(finished_shards(broken)) < 100
    assert main(command(broken)) == 0
    assert contents(broken) == contents(whole)


def test_a_changed_corpus_is_another_job(tiny: Tiny, tmp_path: Path):
    write_corpus(tmp_path / "c" / "corpus.jsonl", DOCUMENTS)
    (tmp_path / "c" / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')
    config = encode.Config(model=str(tiny.retriever), collection=str(tmp_path / "c"), out=tmp_path / "vectors")
    encode.run(config)
    write_corpus(tmp_path / "c" / "corpus.jsonl", DOCUMENTS[:4])
    with pytest.raises(UserError, match=r"collection: the contents of .* changed"):
        encode.run(config)
    encode.run(replace(config, overwrite=True))
    assert VectorReader(config.out).num_docs == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": 0}, "--shard-size is 0"),
        ({"model": "./nowhere"}, "./nowhere: cannot load a model"),
        ({"collection": "nowhere"}, "nowhere"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: encode.Config, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        encode.run(replace(config, **change))
    assert not config.out.exists()


def test_a_backbone_without_a_contract_is_told_to_name_one(tiny: Tiny, config: encode.Config):
    with pytest.raises(UserError, match="name one with --contract"):
        encode.run(replace(config, model=str(tiny.llama)))
    encode.run(replace(config, model=str(tiny.llama), contract="repllama", overwrite=True))
    assert VectorReader(config.out).num_docs == 12


def test_a_reranker_does_not_embed(tiny: Tiny, config: encode.Config):
    with pytest.raises(UserError, match=r"contract"):
        encode.run(replace(config, model=str(tiny.reranker)))
