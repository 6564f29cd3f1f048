import errno
import json
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from named import load_retriever
from processes import kill_when
from tiny import DOCUMENTS, Tiny

from shortlist import encode, index, verify
from shortlist.cli import main
from shortlist.data.formats import write_corpus
from shortlist.data.manifest import read_manifest
from shortlist.data.stores import snapshots
from shortlist.data.stores.shards import finished_shards, read_snapshot
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.encode import embedding
from shortlist.errors import UserError
from shortlist.index.opening import check_vectors
from shortlist.models import ready
from shortlist.models.dense import DenseModel
from shortlist.models.folder import open_folder
from shortlist.models.retriever import Retriever
from shortlist.models.run import embed_documents
from shortlist.records import Document
from shortlist.text.contract import presets
from shortlist.text.inputs import Inputs
from shortlist.text.segments import named_segments


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> encode.Config:
    return encode.Config(model=str(tiny.retriever), collection=str(tiny.collection), out=tmp_path / "vectors")


@pytest.fixture
def retriever(tiny: Tiny) -> DenseModel:
    return load_retriever(str(tiny.retriever)).eval()


def stored(out: Path) -> np.ndarray:
    store = VectorReader(out)
    return store.take(np.arange(store.num_docs))


def write_texts(folder: Path, documents: list[Document]) -> str:
    write_corpus(folder / "corpus.jsonl", documents)
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')
    return str(folder)


def holds(out: Path, retriever: DenseModel, documents: list[Document], atol: float = 1e-6) -> None:
    assert list(VectorReader(out).doc_ids) == [document.doc_id for document in documents]
    np.testing.assert_allclose(stored(out), embed_documents(retriever, documents), atol=atol)


@pytest.mark.parametrize("shard_size", [5, 12, 100])
def test_vectors_are_those_of_the_documents_in_corpus_order(
    config: encode.Config, retriever: DenseModel, shard_size: int
):
    encode.run(replace(config, shard_size=shard_size))
    holds(config.out, retriever, DOCUMENTS)
    np.testing.assert_allclose(np.linalg.norm(stored(config.out), axis=1), 1, atol=1e-6)
    assert len(finished_shards(config.out)) == -(-12 // shard_size)


def test_shards_come_one_by_one_and_those_that_are_done_are_left_out(retriever: DenseModel):
    told: list[tuple[int, int]] = []
    embed = partial(encode.encode, Retriever(retriever), advance=lambda *done: told.append(done))
    shards = map(embed, encode.parts(DOCUMENTS, 5, done=[1]))
    found = [(shard.number, shard.doc_ids[0], len(shard.vectors), len(shard.keys)) for shard in shards]
    assert found == [(0, "d0", 5, 80), (2, "d10", 2, 32)]
    lengths = [len(ids) for ids in retriever.inputs.document_ids([*DOCUMENTS[:5], *DOCUMENTS[10:]])]
    assert np.sum(told, axis=0).tolist() == [7, sum(lengths)]


def test_the_token_budget_changes_no_vector_and_is_no_other_job(config: encode.Config, retriever: DenseModel):
    encode.run(replace(config, token_budget=1))
    holds(config.out, retriever, DOCUMENTS)
    before = (config.out / "shard-00000.bin").stat().st_mtime_ns
    encode.run(replace(config, token_budget=999))
    assert (config.out / "shard-00000.bin").stat().st_mtime_ns == before


def test_documents_are_cut_to_the_length_asked_for(config: encode.Config, retriever: DenseModel):
    encode.run(replace(config, max_length=6))
    retriever.inputs = Inputs(retriever.inputs.form.with_lengths(document=6), retriever.inputs.tokenizer)
    holds(config.out, retriever, DOCUMENTS)


def test_documents_that_are_cut_are_counted(config: encode.Config, capsys: pytest.CaptureFixture[str]):
    encode.run(config)
    assert "encode: 12 documents, none longer than 196 tokens." in capsys.readouterr().err
    longest = sorted(len(ids) for ids in Retriever.load(config.model).inputs.document_ids(DOCUMENTS))[-1] - 1
    config = replace(config, max_length=longest, out=config.out.with_name("cut"))
    cut = sum(len(ids) > longest for ids in Retriever.load(config.model).inputs.document_ids(DOCUMENTS))
    encode.run(config)
    assert f"encode: 12 documents, {cut} cut at {longest} tokens (" in capsys.readouterr().err
    results = json.loads((config.out / "manifest.json").read_text())["results"]
    assert (results["embedded"], results["cut"]) == (12, cut)
    index.run(index.Config(kind="narrow", vectors=config.out, out=config.out.with_name("narrow")))
    assert f"index: of 12 documents {cut} were cut when they were encoded." in capsys.readouterr().err


def test_the_manifest_counts_and_says_what_the_vectors_are(config: encode.Config):
    encode.run(config)
    manifest = json.loads((config.out / "manifest.json").read_text())
    results = manifest["results"] | {"dtype": manifest["config"]["dtype"]}
    assert (manifest["complete"], results["num_docs"], results["dim"], results["dtype"]) == (True, 12, 32, "float32")
    assert manifest["config"]["model"] == config.model
    assert manifest["made_from"].keys() == {"model", "contract", "collection"}


def test_an_interrupted_encoding_makes_only_the_shards_that_are_missing(
    config: encode.Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = replace(config, shard_size=3)
    write = VectorWriter.write_shard

    def until_interrupted(self, number, doc_ids, vectors, keys):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, doc_ids, vectors, keys)

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


@pytest.mark.slow
def test_a_killed_encoding_goes_on_to_the_same_bytes(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [Document(f"x{i}", f"{DOCUMENTS[i % 12].text} {DOCUMENTS[i % 7].text}") for i in range(1000)]
    write_texts(tmp_path / "collection", texts)

    def command(out: Path) -> list[str]:
        paths = ["--model", str(tiny.retriever), "--collection", str(tmp_path / "collection"), "--out", str(out)]
        return ["encode", *paths, "--shard-size", "10"]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    kill_when(lambda: len(finished_shards(broken)) >= 5, command(broken))
    assert len(finished_shards(broken)) < 100
    assert main(command(broken)) == 0
    assert main(command(whole)) == 0
    assert contents(broken) == contents(whole)


def test_a_changed_corpus_is_another_job(tiny: Tiny, tmp_path: Path):
    collection = write_texts(tmp_path / "c", DOCUMENTS)
    config = encode.Config(model=str(tiny.retriever), collection=collection, out=tmp_path / "vectors")
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
    with pytest.raises(UserError, match="is a reranker; a retriever is wanted"):
        encode.run(replace(config, model=str(tiny.reranker)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 5}, "contract: .*; max_length: None there, 5 now"),
        ({"contract": "bert"}, "contract: None there, bert now"),
        ({"dtype": "int8"}, "dtype: float32 there, int8 now"),
        ({"precision": "bf16"}, "precision: fp32 there, bf16 now"),
        ({"model": "bert"}, "model: .* there, .*bert now"),
    ],
)
def test_another_job_in_the_same_folder_is_refused_with_the_difference(
    tiny: Tiny, config: encode.Config, change: dict, message: str
):
    encode.run(config)
    if "model" in change:
        change = {"model": str(tiny.bert), "contract": "bert"}
    with pytest.raises(UserError, match=f"holds another job .*{message}"):
        encode.run(replace(config, **change))


def test_a_preset_contract_that_means_something_else_now_is_another_job(
    tiny: Tiny, config: encode.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = replace(config, model=str(tiny.llama), contract="repllama")
    encode.run(config)
    lines = presets()["repllama"].read_text("utf-8").splitlines()
    for name, line in (("queries", 'query: ["{query}"]'), ("documents", 'document: ["{text}"]')):
        kept = [old for old in lines if old.split(":")[0] != line.split(":")[0]]
        (tmp_path / f"{name}.yaml").write_text("\n".join([*kept, line]), "utf-8")
    monkeypatch.setitem(presets(), "repllama", tmp_path / "queries.yaml")
    encode.run(config)  # of no concern to documents
    monkeypatch.setitem(presets(), "repllama", tmp_path / "documents.yaml")
    with pytest.raises(UserError, match="contract: the contents of repllama changed"):
        encode.run(config)


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 1e-3), ("bfloat16", 4e-3), ("int8", 8e-3)])
def test_narrow_stores_hold_the_same_vectors_less_precisely(
    config: encode.Config, retriever: DenseModel, capsys: pytest.CaptureFixture[str], dtype: str, atol: float
):
    encode.run(replace(config, dtype=dtype))
    holds(config.out, retriever, DOCUMENTS, atol=atol)
    said = re.findall("agreement with fp32 in float32 on 12 documents: cosine ([01][.][0-9]+)", capsys.readouterr().err)
    exact = embed_documents(retriever, DOCUMENTS)
    cosines = (stored(config.out) * exact).sum(axis=1) / np.linalg.norm(stored(config.out), axis=1)
    assert float(said[0]) == pytest.approx(cosines.mean(), abs=2e-6)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_narrow_computing_says_how_far_it_agrees_and_goes_on_saying_so(
    config: encode.Config, retriever: DenseModel, capsys: pytest.CaptureFixture[str], precision: str
):
    config = replace(config, precision=precision)
    encode.run(config)
    said = re.findall("agreement .*", capsys.readouterr().err)
    holds(config.out, retriever, DOCUMENTS, atol=0.1)
    exact = embed_documents(retriever, DOCUMENTS)
    cosine = (stored(config.out) * exact).sum(axis=1).mean()
    assert 0.99 < cosine <= 1.000001
    assert f"cosine {cosine:.6f} on average" in said[0]
    manifest = json.loads((config.out / "manifest.json").read_text())
    assert manifest["results"]["agreement"] in said[0]


@pytest.mark.slow
def test_processes_write_the_store_that_one_would(config: encode.Config, retriever: DenseModel):
    encode.run(replace(config, shard_size=2, workers=2))
    holds(config.out, retriever, DOCUMENTS)
    alone = replace(config, out=config.out.with_name("alone"), shard_size=2)
    encode.run(alone)
    assert [path.name for path in sorted(config.out.iterdir())] == [path.name for path in sorted(alone.out.iterdir())]


def test_going_on_packs_linears_as_at_the_start(config: encode.Config, monkeypatch: pytest.MonkeyPatch):
    asked: list[bool | None] = []
    monkeypatch.setattr(ready, "for_inference", lambda model, device, precision, packed: asked.append(packed))
    monkeypatch.setattr(encode, "packing_pays", lambda: True)
    encode.run(replace(config, shard_size=5))
    verify.reopen(config.out, updating=False)
    (config.out / "shard-00001.json").unlink()
    monkeypatch.setattr(encode, "packing_pays", lambda: False)
    encode.run(replace(config, shard_size=5))
    assert asked == [True, True]


GROWN = [*DOCUMENTS[:6], Document("n1", "the new lamp"), *DOCUMENTS[6:], Document("n2", "the price of the boat")]
CHANGED = [*DOCUMENTS[:3], DOCUMENTS[3]._replace(text="the goat has a lamp"), *DOCUMENTS[5:]]


@pytest.mark.slow
@pytest.mark.parametrize("documents", [GROWN, CHANGED, DOCUMENTS[::-1], GROWN[8:]])
def test_an_update_embeds_what_is_new_and_leaves_the_store_of_the_corpus_as_it_is(
    tiny: Tiny, tmp_path: Path, retriever: DenseModel, documents: list[Document], monkeypatch: pytest.MonkeyPatch
):
    collection = write_texts(tmp_path / "c", DOCUMENTS)
    config = encode.Config(model=str(tiny.retriever), collection=collection, out=tmp_path / "vectors", shard_size=5)
    encode.run(config)
    write_texts(tmp_path / "c", documents)
    with pytest.raises(UserError, match=r"collection: the contents of .* changed"):
        encode.run(config)
    embedded: list[str] = []
    embed = encode.encode
    monkeypatch.setattr(
        embedding, "encode", lambda model, part, **o: embedded.extend(part.documents) or embed(model, part, **o)
    )
    encode.run(replace(config, update=True))
    assert embedded == [document for document in documents if document not in DOCUMENTS]
    holds(config.out, retriever, documents)
    encode.run(config)  # is done now, without --update too
    encode.run(replace(config, compact=True))
    holds(config.out, retriever, documents)
    assert VectorReader(config.out).num_rows == len(documents)
    assert json.loads((config.out / "manifest.json").read_text())["complete"]


def test_vectors_of_texts_that_were_split_otherwise_are_refused(config: encode.Config):
    encode.run(config)
    manifest = json.loads((config.out / "manifest.json").read_text())
    assert manifest["decided"]["tokens"]["ids"]
    manifest["decided"]["tokens"] |= {"ids": "others", "tokenizers": "0.1"}
    (config.out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"splits texts otherwise .*\(tokenizers 0\.1 then, .* now; .*encode again"):
        check_vectors(config.out, open_folder(config.model))
    index.run(index.Config(kind="narrow", vectors=config.out, out=config.out.with_name("narrow")))
    with pytest.raises(UserError, match="splits texts otherwise"):
        check_vectors(config.out.with_name("narrow"), open_folder(config.model))
    collection = write_texts(config.out.with_name("more"), [*DOCUMENTS, Document("new", "one more")])
    with pytest.raises(UserError, match=r"--out .*splits texts otherwise .*encode anew"):
        encode.run(replace(config, collection=collection, update=True))


def test_an_update_of_nothing_is_an_encoding_and_goes_on_as_one(config: encode.Config, retriever: DenseModel):
    encode.run(replace(config, update=True))
    holds(config.out, retriever, DOCUMENTS)
    assert not (config.out / "snapshot.json").exists()


@pytest.mark.slow
def test_a_killed_update_leaves_the_old_store_and_goes_on(tiny: Tiny, tmp_path: Path, retriever: DenseModel):
    collection = write_texts(tmp_path / "c", DOCUMENTS)
    out = tmp_path / "vectors"
    command = ["encode", "--model", str(tiny.retriever), "--collection", collection, "--out", str(out)]
    assert main(command) == 0
    more = [Document(f"x{i}", f"{DOCUMENTS[i % 12].text} {DOCUMENTS[i % 7].text}") for i in range(500)]
    write_texts(tmp_path / "c", [*DOCUMENTS, *more])
    command += ["--update", "--shard-size", "20000"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "renew", interrupted)
        assert main(command) == 130
    holds(out, retriever, DOCUMENTS)
    written = finished_shards(out)
    assert main(command) == 0
    assert finished_shards(out) == written
    holds(out, retriever, [*DOCUMENTS, *more])


def test_the_clean_up_of_a_killed_compaction_is_finished_by_the_next_command(
    tiny: Tiny, tmp_path: Path, retriever: DenseModel, monkeypatch: pytest.MonkeyPatch
):
    collection = write_texts(tmp_path / "c", DOCUMENTS)
    config = encode.Config(model=str(tiny.retriever), collection=collection, out=tmp_path / "vectors", shard_size=5)
    encode.run(config)
    write_texts(tmp_path / "c", CHANGED)
    encode.run(replace(config, update=True))
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "drop_replaced", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode.run(replace(config, compact=True))
    encode.run(config)
    holds(config.out, retriever, CHANGED)
    snapshot, manifest = read_snapshot(config.out), read_manifest(config.out)
    assert snapshot is not None
    assert manifest is not None
    assert finished_shards(config.out) == snapshot.shards
    assert not list(config.out.glob("order-*"))
    visible = {path.name for path in config.out.glob("[!.]*")}
    assert {*manifest["files"]} == visible - {"manifest.json", "config.yaml"}


def interrupted(*_) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_encoding_is_updated_to_a_corpus_that_changed_meanwhile(
    tiny: Tiny, tmp_path: Path, retriever: DenseModel, monkeypatch: pytest.MonkeyPatch
):
    collection = write_texts(tmp_path / "c", DOCUMENTS)
    config = encode.Config(model=str(tiny.retriever), collection=collection, out=tmp_path / "vectors", shard_size=4)
    encode.run(config)
    verify.reopen(config.out, updating=False)
    (config.out / "shard-00002.json").unlink()
    write_texts(tmp_path / "c", GROWN)
    with monkeypatch.context() as patch:
        patch.setattr(encode, "renew", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode.run(replace(config, update=True))
    encode.run(config)  # goes on as the update that it is
    holds(config.out, retriever, GROWN)


def write_bad(folder: Path) -> str:
    good = [json.dumps({"_id": document.doc_id, "text": document.text}) for document in DOCUMENTS]
    lines = [*good[:3], "{", '{"_id": "e", "text": " "}', *good[3:9], good[0], *good[9:], '{"_id": "a b", "text": "x"}']
    write_texts(folder, [])
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_a_record_that_cannot_be_used_stops_the_work_and_nothing_is_lost(
    tiny: Tiny, tmp_path: Path, retriever: DenseModel
):
    config = encode.Config(
        model=str(tiny.retriever), collection=write_bad(tmp_path / "c"), out=tmp_path / "v", shard_size=3
    )
    with pytest.raises(UserError, match=r"corpus.jsonl:4: not JSON"):
        encode.run(config)
    assert finished_shards(config.out) == [0]
    lines = (tmp_path / "c" / "corpus.jsonl").read_text().splitlines()
    (tmp_path / "c" / "corpus.jsonl").write_text("\n".join(lines[:3] + lines[4:]))
    with pytest.raises(UserError, match=r"corpus.jsonl:4: document 'e' has neither title nor text"):
        encode.run(replace(config, update=True))
    assert finished_shards(config.out) == [0]
    (tmp_path / "c" / "corpus.jsonl").write_text("\n".join(lines[:3] + lines[5:11] + lines[12:-1]))
    encode.run(replace(config, update=True))
    holds(config.out, retriever, DOCUMENTS)


@pytest.mark.parametrize("update", [False, True])
def test_records_that_cannot_be_used_are_counted_and_listed(
    tiny: Tiny, tmp_path: Path, retriever: DenseModel, capsys: pytest.CaptureFixture[str], update: bool
):
    config = encode.Config(model=str(tiny.retriever), collection=str(tmp_path / "c"), out=tmp_path / "v", skip_bad=True)
    if update:
        write_texts(tmp_path / "c", DOCUMENTS[:5])
        encode.run(config)
    write_bad(tmp_path / "c")
    encode.run(replace(config, update=update))
    holds(config.out, retriever, DOCUMENTS)
    assert "left out 4 records that cannot be used" in capsys.readouterr().err
    listed = (config.out / "skipped.txt").read_text().splitlines()
    assert [re.findall(r"corpus.jsonl:(\d+): ", line) for line in listed] == [["4"], ["5"], ["12"], ["16"]]
    assert json.loads((config.out / "manifest.json").read_text())["results"]["skipped"] == 4


def test_a_full_disk_loses_nothing(
    config: encode.Config, retriever: DenseModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    flags = ["--model", config.model, "--collection", config.collection, "--out", str(config.out), "--shard-size", "5"]
    write = VectorWriter.write_rows

    def full(self, number, doc_ids, rows, scales, keys):
        if number == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(config.out / "shard-00001.bin"))
        write(self, number, doc_ids, rows, scales, keys)

    with monkeypatch.context() as patch:
        patch.setattr(VectorWriter, "write_rows", full)
        assert main(["encode", *flags]) == 1
    assert "shard-00001.bin: No space left on device; mend that and run it again." in capsys.readouterr().err
    assert finished_shards(config.out) == [0]
    assert main(["encode", *flags]) == 0
    holds(config.out, retriever, DOCUMENTS)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(config: encode.Config, capsys: pytest.CaptureFixture[str]):
    encode.run(replace(config, dry_run=True, shard_size=5, dtype="int8"))
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if not line.startswith("on"))
    assert said["documents"].startswith("12, of ")
    assert said["shards"] == "3 of 5 documents"
    assert re.fullmatch(r"\d+ s \([\d,.]+ documents/s in one process\)", said["time"])
    assert not config.out.exists()


@pytest.mark.parametrize("segments", ["firstp", "maxp", "avgp"])
def test_one_segment_for_every_document_has_the_vectors_of_whole_documents(
    config: encode.Config, retriever: DenseModel, segments: Any
):
    stride = {} if segments == "firstp" else {"stride": 100}
    encode.run(replace(config, segments=segments, window=196, shard_size=5, **stride))
    names = [f"{document.doc_id}#0" if segments == "maxp" else document.doc_id for document in DOCUMENTS]
    holds(config.out, retriever, [d._replace(doc_id=name) for d, name in zip(DOCUMENTS, names, strict=True)])


@pytest.mark.slow
def test_every_segment_has_a_vector_and_an_updated_store_equals_one_encoded_anew(
    config: encode.Config, retriever: DenseModel, tiny: Tiny, tmp_path: Path
):
    def texts(words: int) -> list[Document]:
        return [Document(f"x{i}", " ".join([DOCUMENTS[i].text] * (1 + i * words % 4))) for i in range(9)]

    collection = write_texts(tmp_path / "c", texts(1))
    config = replace(config, collection=collection, segments="maxp", window=20, stride=9, shard_size=4)
    encode.run(config)
    retriever.inputs = Inputs(retriever.inputs.form.with_lengths(document=20), retriever.inputs.tokenizer)
    expected = list(named_segments(retriever.inputs, texts(1), stride=9))
    assert len(expected) > 20
    holds(config.out, retriever, expected)
    verify.run(verify.Config(folder=config.out))
    write_texts(tmp_path / "c", texts(3))
    encode.run(replace(config, update=True))
    holds(config.out, retriever, list(named_segments(retriever.inputs, texts(3), stride=9)))


def test_the_mean_of_a_documents_segments_is_its_vector(config: encode.Config, retriever: DenseModel, tmp_path: Path):
    texts = [Document(f"x{i}", " ".join([DOCUMENTS[i].text] * (1 + i % 3))) for i in range(9)]
    collection = write_texts(tmp_path / "c", texts)
    encode.run(replace(config, collection=collection, segments="avgp", window=20, stride=9, shard_size=4))
    retriever.inputs = Inputs(retriever.inputs.form.with_lengths(document=20), retriever.inputs.tokenizer)
    means = [
        embed_documents(retriever, list(named_segments(retriever.inputs, [text], stride=9))).mean(0) for text in texts
    ]
    np.testing.assert_allclose(stored(config.out), means, atol=1e-6)


def test_segments_are_part_of_the_job_and_settings_that_change_nothing_are_refused(config: encode.Config):
    encode.run(config)
    for change, words in (
        ({"window": 99}, "--window changes nothing with --segments whole"),
        ({"stride": 3}, "--stride changes nothing with --segments whole"),
        ({"segments": "firstp", "stride": 3}, "--stride changes nothing with --segments firstp; .* maxp or avgp"),
    ):
        with pytest.raises(UserError, match=words):
            encode.run(replace(config, **change))
    with pytest.raises(UserError, match=r"segments: nothing there, maxp now|segments: whole there, maxp now"):
        encode.run(replace(config, segments="maxp", window=99, stride=3))
    with pytest.raises(UserError, match=r"--window is 5 and --stride 9; expected"):
        encode.run(replace(config, segments="maxp", window=5, stride=9))


def test_a_forecast_counts_segments(config: encode.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = [Document(f"x{i}", " ".join([DOCUMENTS[i].text] * 4)) for i in range(9)]
    collection = write_texts(tmp_path / "c", texts)
    encode.run(replace(config, collection=collection, segments="maxp", window=20, stride=9, dry_run=True))
    told = re.search(r"segments +(\d+), of \d+ tokens", capsys.readouterr().out)
    assert told
    assert int(told[1]) > 30
