import json
from pathlib import Path

import numpy as np
import pytest
from named import load_retriever
from tiny import DOCUMENTS, Tiny

from shortlist import encode
from shortlist.cli import main
from shortlist.data.formats import write_corpus
from shortlist.data.stores.vectors import VectorReader
from shortlist.models.run import embed_documents
from shortlist.text.inputs import Inputs


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "c" / "corpus.jsonl", DOCUMENTS)
    (tmp_path / "c" / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')
    return tmp_path / "c"


@pytest.fixture
def config(tiny: Tiny, collection: Path, tmp_path: Path) -> encode.Config:
    """Vectors in three shards, already encoded."""
    config = encode.Config(
        model=str(tiny.retriever), collection=str(collection), out=tmp_path / "vectors", shard_size=4, max_length=12
    )
    encode.run(config)
    return config


def flip(path: Path, place: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*")}


def vectors(folder: Path) -> dict[str, list[float]]:
    store = VectorReader(folder)
    return dict(zip(store.doc_ids, store.take(np.arange(store.num_docs)).tolist(), strict=True))


def test_a_sound_store_is_said_to_be_one(config: encode.Config, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(config.out)]) == 0
    assert capsys.readouterr().out == f"{config.out}: 12 documents, each once; every byte is as it was written.\n"
    assert main(["verify", str(config.out), "--repair"]) == 0


@pytest.mark.parametrize("suffix", ["bin", "ids", "keys", "json"])
def test_a_damaged_shard_is_named_and_it_alone_is_encoded_again(
    config: encode.Config, capsys: pytest.CaptureFixture[str], suffix: str
):
    before = contents(config.out)
    flip(config.out / f"shard-00001.{suffix}", 5)
    others = {path: path.stat().st_mtime_ns for path in config.out.glob("shard-0000[02].*")}
    capsys.readouterr()
    assert main(["verify", str(config.out)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"shard-00001.{suffix}" in err
    assert "1 of its shards are damaged; encode again what is wrong with --repair" in err
    assert main(["verify", str(config.out), "--repair"]) == 0
    assert contents(config.out) == before
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert main(["verify", str(config.out)]) == 0


def test_a_lost_shard_is_found_and_made_again(config: encode.Config, capsys: pytest.CaptureFixture[str]):
    before = contents(config.out)
    for path in config.out.glob("shard-00000.*"):
        path.unlink()
    assert main(["verify", str(config.out)]) == 1
    assert "shard-00000.json: the shard is missing" in capsys.readouterr().err
    assert main(["verify", str(config.out), "--repair"]) == 0
    assert contents(config.out) == before


@pytest.mark.parametrize("damage", ["shard-00001.bin", "shard-00003.bin", "order-00001.bin", "snapshot.json"])
def test_a_store_that_was_updated_is_repaired(
    tiny: Tiny, config: encode.Config, collection: Path, capsys: pytest.CaptureFixture[str], damage: str
):
    documents = [DOCUMENTS[3]._replace(doc_id="new"), *DOCUMENTS[:9:-1], *DOCUMENTS[2:7]]
    write_corpus(collection / "corpus.jsonl", documents)
    assert main(["encode", "--config", str(config.out / "config.yaml"), "--update"]) == 0
    before = vectors(config.out)
    (config.out / damage).unlink() if damage == "snapshot.json" else flip(config.out / damage, 8)
    assert main(["verify", str(config.out)]) == 1
    assert ("shard" if "shard" in damage else damage) in capsys.readouterr().err
    assert main(["verify", str(config.out), "--repair"]) == 0
    assert main(["verify", str(config.out)]) == 0
    after = vectors(config.out)
    assert list(after) == list(before) == [document.doc_id for document in documents]
    retriever = load_retriever(str(tiny.retriever)).eval()
    retriever.inputs = Inputs(retriever.inputs.form.with_lengths(document=12), retriever.inputs.tokenizer)
    np.testing.assert_allclose(list(after.values()), embed_documents(retriever, documents), atol=1e-6)


def test_nothing_is_repaired_with_another_corpus_or_model(
    config: encode.Config, collection: Path, capsys: pytest.CaptureFixture[str]
):
    flip(config.out / "shard-00001.bin")
    write_corpus(collection / "corpus.jsonl", DOCUMENTS[1:])
    assert main(["verify", str(config.out), "--repair"]) == 1
    assert "collection: the contents of" in capsys.readouterr().err
    assert (config.out / "shard-00001.json").exists()


def test_a_document_that_is_there_twice_is_found(config: encode.Config, capsys: pytest.CaptureFixture[str]):
    positions = np.array([*range(11), 3], dtype="<i8")
    positions.tofile(config.out / "order-00001.bin")
    (config.out / "snapshot.json").write_text(json.dumps({"shards": [0, 1, 2], "order": "order-00001.bin"}))
    assert main(["verify", str(config.out)]) == 1
    assert "its order file does not give every document one position" in capsys.readouterr().err


def test_what_is_no_finished_store_is_told_so(
    config: encode.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    assert "nowhere: no command of ours wrote it; expected an output that has a manifest" in capsys.readouterr().err
    manifest = json.loads((config.out / "manifest.json").read_text())
    (config.out / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    assert main(["verify", str(config.out)]) == 1
    assert "`shortlist encode` has not finished here" in capsys.readouterr().err


def test_any_output_is_verified_and_is_not_read_where_it_is_damaged(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, run = tmp_path / "index", tmp_path / "run.trec"
    build = ["index", "--collection", str(tiny.collection), "--out", str(out)]
    search = ["search", "--index", str(out), "--collection", str(tiny.collection), "--out", str(run)]
    assert main(build) == 0
    assert main(["verify", str(out)]) == 0
    assert "every byte is as it was written" in capsys.readouterr().out
    flip(out / "doc_ids.txt")
    assert main(["verify", str(out)]) == 1
    assert "1 of its files are not as they were written; make it again with" in capsys.readouterr().err
    assert main(search) == 1
    assert "doc_ids.txt: its contents are not those that were written" in capsys.readouterr().err
    assert main([*search, "--no-verify"]) == 0
    assert main([*build, "--overwrite"]) == 0
    assert main(["verify", str(out)]) == 0
    (out / "vocab.index.json").unlink()
    assert main(build) == 0  # it is not done while a file is missing
    assert main(["verify", str(out)]) == 0
    assert main(["verify", str(run)]) == 0
    run.write_text(run.read_text() + "q0 Q0 d0 1 0.5 mine\n")
    assert main(["verify", str(run)]) == 1
    assert main(["verify", str(run), "--accept"]) == 0
    assert main(["verify", str(run)]) == 0
    assert main(["verify", str(run), "--repair"]) == 1


def test_damaged_vectors_are_not_made_whole_by_an_update(
    config: encode.Config, collection: Path, capsys: pytest.CaptureFixture[str]
):
    flip(config.out / "shard-00001.bin")
    write_corpus(collection / "corpus.jsonl", DOCUMENTS[1:])
    assert main(["encode", "--config", str(config.out / "config.yaml"), "--update", "--compact"]) == 1
    assert "shard-00001.bin: its contents are not those that were written" in capsys.readouterr().err
    out = config.out.with_name("narrow")
    assert main(["index", "--kind", "narrow", "--vectors", str(config.out), "--out", str(out)]) == 1
    assert "shard-00001.bin: its contents are not those that were written" in capsys.readouterr().err
