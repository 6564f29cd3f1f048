import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import DOCUMENTS, Tiny

from shortlist import Pipeline, Reranker, ask, encode, index, search
from shortlist.cli import main
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.pipeline.steps import STEPS, Found, StepKind

QUESTION = "the history of the lamp"


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index and vectors."""
    folder = tmp_path_factory.mktemp("ask")
    index.run(index.Config(collection=str(tiny.collection), out=folder / "words"))
    encode.run(encode.Config(model=str(tiny.retriever), collection=str(tiny.collection), out=folder / "vectors"))
    return folder


@pytest.fixture
def words(tiny: Tiny, made: Path) -> dict[str, Any]:
    return {"question": QUESTION, "collection": str(tiny.collection), "index": (made / "words",)}


@pytest.fixture
def dense(tiny: Tiny, made: Path) -> dict[str, Any]:
    where = {"model": str(tiny.retriever), "vectors": made / "vectors"}
    return {"question": QUESTION, "collection": str(tiny.collection), **where}


def printed(capsys: pytest.CaptureFixture[str], **settings: Any) -> str:
    capsys.readouterr()
    ask.run(ask.Config(**settings))
    return capsys.readouterr().out


def ids(out: str) -> list[str]:
    return re.findall(r"^ ?\d+\. (\w+)", out, re.MULTILINE)


def test_a_question_prints_documents(words: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    lines = printed(capsys, **words, k=2).splitlines()
    assert lines[0].startswith(" 1. d11  (")
    assert lines[1].strip() == DOCUMENTS[11].text.strip()
    assert lines[2].startswith(" 2. ")
    assert len(lines) == 4


def test_nothing_found_is_said(words: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    ask.run(ask.Config(**words | {"question": "zzz"}))
    out, err = capsys.readouterr()
    assert out == ""
    assert "nothing found\n" in err


def test_each_step_says_its_time_and_where_it_put_a_document(
    words: dict[str, Any], dense: dict[str, Any], tiny: Tiny, capsys: pytest.CaptureFixture[str]
):
    ask.run(ask.Config(**words | dense, reranker=str(tiny.reranker), depth=6, k=6))
    out, err = capsys.readouterr()
    number = r"#\d+ \(-?[\d.]+\)"
    moved = "(, (up|down) [0-9]+)?"
    assert len(re.findall(rf"dense {number}; hybrid {number}; reranker {number}{moved}$", out, re.MULTILINE)) == 6
    assert "up " in out
    assert re.search(r"ask: bm25 [\d.]+ ms, dense [\d.]+ ms, hybrid [\d.]+ ms, documents .*, reranker [\d.]+ ms", err)


def test_a_reranker_puts_the_first_documents_in_order(
    dense: dict[str, Any], tiny: Tiny, capsys: pytest.CaptureFixture[str]
):
    first = ids(printed(capsys, **dense, k=12))
    read = [document for doc_id in first[:6] for document in DOCUMENTS if document.doc_id == doc_id]
    scores = Reranker.load(str(tiny.reranker)).score(QUESTION, read)
    best = [first[place] for place in np.argsort(-scores, kind="stable")]
    second = {"reranker": str(tiny.reranker), "depth": 6, "k": 12}
    assert ids(printed(capsys, **dense, **second)) == best + first[6:]
    assert ids(printed(capsys, **dense, **second, reranker_share=0.0)) == first


def test_json_is_one_object_with_places_and_times(
    words: dict[str, Any], dense: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    answer = json.loads(printed(capsys, **words | dense, k=3, json=True))
    assert answer["query"] == QUESTION
    assert list(answer["milliseconds"]) == ["bm25", "dense", "hybrid", "documents"]
    assert [result["rank"] for result in answer["results"]] == [1, 2, 3]
    assert answer["results"][0]["stages"]["hybrid"].keys() == {"rank", "score", "moved"}


def test_the_demos_pipeline_is_asked(words: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["ask", QUESTION, "--demo", "--demo-folder", str(tmp_path)]
    assert main(command) == 1
    assert "holds no finished demo; run `shortlist demo` first" in capsys.readouterr().err
    steps = {"words": {"find": "bm25", "index": str(words["index"][0])}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"collection": words["collection"], "steps": steps}))
    assert main([*command, "--k", "1"]) == 0
    assert capsys.readouterr().out.startswith(" 1. d11  (")


def test_a_file_and_flags_do_not_say_the_same_twice(words: dict[str, Any], tmp_path: Path):
    with pytest.raises(UserError, match="--pipeline says what is searched; leave out --index, --reranker"):
        ask.run(ask.Config(**words, pipeline=tmp_path / "p.yaml", reranker="any"))
    with pytest.raises(UserError, match="give one of them"):
        ask.run(ask.Config(question="x", pipeline=tmp_path / "p.yaml", demo=True))
    with pytest.raises(UserError, match="--collection is missing"):
        ask.run(ask.Config(question="x", index=words["index"]))
    with pytest.raises(UserError, match="--k is 0"):
        ask.run(ask.Config(**words, k=0))


@dataclass
class Backwards:
    """A toy: the list it reads, its first hits turned round."""

    how_many: int


def turn(step: Any, queries: Any, runs: Any, documents: Any, most: int) -> Found:
    [before] = runs.values()
    how_many = step.stage.how_many
    return Found({name: hits[:how_many][::-1] + hits[how_many:] for name, hits in before.items()})


def open_backwards(opener: Any, *, how_many: int) -> Backwards:
    return Backwards(how_many)


def test_a_kind_of_step_can_be_added_from_outside(
    words: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    turning = StepKind(
        turn, lambda: {"backwards": open_backwards}, lambda method, opener, settings: method(opener, **settings)
    )
    monkeypatch.setitem(STEPS, "turn", turning)
    steps = {"words": {"find": "bm25", "index": str(words["index"][0])}}
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"collection": words["collection"], "steps": steps}))
    plain = ids(printed(capsys, question=QUESTION, pipeline=path))
    steps |= {"turned": {"turn": "backwards", "how_many": 2}}
    path.write_text(yaml.safe_dump({"collection": words["collection"], "steps": steps}, sort_keys=False))
    out = printed(capsys, question=QUESTION, pipeline=path)
    assert ids(out) == [plain[1], plain[0], *plain[2:]]
    assert "turned #1" in out
    assert ", up 1" in out
    path.write_text(yaml.safe_dump({"steps": steps | {"turned": {"turn": "backwards", "how_mny": 2}}}, sort_keys=False))
    with pytest.raises(UserError, match="unknown setting of `turn: backwards` 'how_mny': perhaps 'how_many'"):
        ask.run(ask.Config(question=QUESTION, pipeline=path))


def test_a_run_holds_what_a_whole_description_gives(tiny: Tiny, made: Path, tmp_path: Path):
    steps = {
        "words": {"find": "bm25", "index": str(made / "words")},
        "pairs": {"rank": "pointwise", "model": str(tiny.reranker), "depth": 4},
    }
    (tmp_path / "p.yaml").write_text(
        yaml.safe_dump({"collection": str(tiny.collection), "steps": steps}, sort_keys=False)
    )
    config = search.Config(pipeline=tmp_path / "p.yaml", out=tmp_path / "run.trec", k=6)
    search.run(config)
    run = read_run(tmp_path / "run.trec")
    pipeline = Pipeline.load(pipeline=tmp_path / "p.yaml")
    for query in pipeline.collection.queries("test"):
        expected = pipeline.answer([query], 6)[0].results
        assert [hit.doc_id for hit in run[query.query_id]] == [result.document.doc_id for result in expected]
