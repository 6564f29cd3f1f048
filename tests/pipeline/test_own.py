"""A collection's own indexes: when they are built, where they are, and what happens meanwhile."""

import json
import os
import threading
from pathlib import Path

import pytest
from tiny import DOCUMENTS, Tiny

from shortlist import Pipeline, encode, index
from shortlist.cli import main
from shortlist.data.claims import claim_output
from shortlist.data.formats import write_corpus
from shortlist.errors import UserError
from shortlist.pipeline import own
from shortlist.pipeline.flags import Sources, from_flags
from shortlist.pipeline.own import places_of, with_own_indexes
from shortlist.pipeline.spec import parse_description
from shortlist.records import Document


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "data/corpus.jsonl", DOCUMENTS)
    return tmp_path / "data"


def found(data: Path, query: str, **options) -> list[tuple[str, float]]:
    results = Pipeline.load(str(data), **options).search(query, 20)
    return [(result.document.doc_id, result.score) for result in results]


def test_the_words_of_a_collection_are_indexed_once_and_again_when_it_has_changed(
    data: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["ask", "history of the lamp", "--collection", str(data), "--k", "1"]
    for said in (f"index: wrote {data}/.shortlist/bm25", "", ""):
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert out.startswith(" 1. d11 ")
        assert [line for line in err.splitlines() if "wrote" in line] == [said] * bool(said)
    write_corpus(data / "corpus.jsonl", [*DOCUMENTS[:5], Document("new", "the history of the violin")])
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["doc_id"] == "new"
    index.run(index.Config(collection=str(data), out=data.parent / "fresh"))
    assert found(data, "history of the violin") == found(data, "history of the violin", bm25=data.parent / "fresh")


def test_with_a_model_its_vectors_are_kept_too_and_only_new_documents_are_embedded(
    data: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
):
    found(data, "lamp", retriever=str(tiny.retriever))
    documents = [*DOCUMENTS[:5], Document("new", "the history of the lamp"), *DOCUMENTS[6:]]
    write_corpus(data / "corpus.jsonl", documents)
    capsys.readouterr()
    renewed = found(data, "lamp", retriever=str(tiny.retriever))
    assert "encode: 1 documents" in capsys.readouterr().err
    words, vectors = data.parent / "words", data.parent / "vectors"
    index.run(index.Config(collection=str(data), out=words))
    encode.run(encode.Config(model=str(tiny.retriever), collection=str(data), out=vectors))
    assert renewed == found(data, "lamp", retriever=str(tiny.retriever), vectors=vectors, bm25=words)


def test_a_description_without_steps_and_steps_without_an_index_mean_the_collections_own(data: Path, tiny: Tiny):
    alone = with_own_indexes(parse_description({"collection": str(data)}, where="p"))
    assert alone == with_own_indexes(from_flags(Sources(), collection=str(data)))
    assert [part.settings for part in alone.steps] == [{"index": data / ".shortlist/bm25"}]
    assert with_own_indexes(alone) == alone
    steps = {"w": {"find": "bm25", "language": "german"}, "r": {"rank": "pointwise", "model": str(tiny.reranker)}}
    both = Pipeline.load(pipeline={"collection": str(data), "steps": steps})
    assert [step.name for step in both.steps] == ["w", "r"]
    assert json.loads((data / ".shortlist/bm25/index.json").read_text())["analyser"] == "german"
    Pipeline.load(str(data))
    assert json.loads((data / ".shortlist/bm25/index.json").read_text())["analyser"] == "german"
    with pytest.raises(UserError, match="not both, not neither"):
        Pipeline.load(pipeline={"steps": {"w": {**steps["w"], "index": str(data)}}, "collection": str(data)})


def test_a_collection_that_cannot_be_written_has_its_index_in_the_cache(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(data.parent / "cache"))
    monkeypatch.setattr(own.os, "access", lambda path, mode: data not in [path, *Path(path).parents])
    expected = found(data, "lamp")
    assert not (data / ".shortlist").exists()
    beside, elsewhere = places_of(str(data))
    assert (elsewhere / "bm25/index.json").exists()
    assert found(data, "lamp") == expected
    elsewhere.rename(beside)  # what is there and current is searched, even if it cannot be written
    assert found(data, "lamp") == expected
    assert not elsewhere.exists()


def test_a_second_command_waits_for_the_first(data: Path, capsys: pytest.CaptureFixture[str]):
    out = data / ".shortlist/bm25"
    started, results = threading.Event(), []

    def first() -> None:
        with claim_output(out, folder=True, stage="index") as held:
            started.set()
            second.start()
            second.join(0.3)
            assert second.is_alive()
            held.release()

    second = threading.Thread(target=lambda: results.append(found(data, "lamp")))
    worker = threading.Thread(target=first)
    worker.start()
    started.wait()
    worker.join()
    second.join()
    assert [doc_id for doc_id, _ in results[0]] == ["d11"]
    assert "another command brings it up to date; waiting for it." in capsys.readouterr().err


def test_an_interrupted_first_build_is_begun_again(data: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "build_index", interrupted)
    assert main(["ask", "lamp", "--collection", str(data)]) == 130
    monkeypatch.undo()
    assert [doc_id for doc_id, _ in found(data, "lamp")] == ["d11"]
    assert {path.name for path in (data / ".shortlist").iterdir()} == {"bm25"}
    assert os.listdir(data / ".shortlist/bm25").count(".lock") == 0


def test_a_corpus_with_a_bad_line_is_refused_in_one_line(data: Path, capsys: pytest.CaptureFixture[str]):
    (data / "corpus.jsonl").write_text("{}\n")
    assert main(["ask", "lamp", "--collection", str(data)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "corpus.jsonl:1: document has no '_id' field" in line
