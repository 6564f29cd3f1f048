from pathlib import Path

import pytest

from shortlist import follow
from shortlist.data.formats import write_corpus
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run, write_run
from shortlist.errors import UserError
from shortlist.records import Document, Hit

HITS = [Hit("a", 3.0), Hit("b", 2.0), Hit("c", 1.5)]
NAMED = {"a": ["x", "y"], "b": ["y", "a", "z"], "c": ["z", "y"]}


def test_what_several_hits_name_comes_first():
    # y: 1/61 + 1/62 + 1/63, z: 1/62 + 1/63, x: 1/61
    assert [hit.doc_id for hit in follow.follow(HITS, NAMED, k=9)] == ["a", "b", "c", "y", "z", "x"]
    assert [hit.score for hit in follow.follow(HITS, NAMED, k=9)] == [3.0, 2.0, 1.5, 0.5, -0.5, -1.5]


def test_what_is_named_may_stay_as_listed_and_is_cut_at_k():
    listed = follow.follow(HITS, NAMED, k=5, by_votes=False)
    assert [hit.doc_id for hit in listed] == ["a", "b", "c", "x", "y"]


def test_an_id_named_twice_by_one_document_votes_once():
    assert follow.follow(HITS[:2], {"a": ["x"], "b": ["y", "y"]}, k=9)[2].doc_id == "x"


def collection(folder: Path) -> str:
    cited = {"a": ["x", "gone"], "b": [], "x": ["a"]}
    documents = [Document(name, "text", metadata={"citations": ids}) for name, ids in cited.items()]
    write_corpus(folder / "corpus.jsonl", [*documents, Document("c", "text", metadata={"cites": "x"})])
    return str(folder)


def test_a_run_is_followed_and_says_what_it_took(tmp_path: Path, capsys):
    write_run(tmp_path / "run.trec", {"q1": [Hit("a", 2.0), Hit("b", 1.0)], "q2": [Hit("b", 1.0)]})
    config = follow.Config(
        run=tmp_path / "run.trec", collection=collection(tmp_path / "data"), out=tmp_path / "out.trec"
    )
    follow.run(config)
    found = read_run(config.out)
    assert [hit.doc_id for hit in found["q1"]] == ["a", "b", "x"]
    assert [hit.doc_id for hit in found["q2"]] == ["b"]
    assert "0.5 documents added to each of 2 queries" in capsys.readouterr().err
    results = read_manifest(config.out)["results"]
    assert (results["added"], results["stages"][-1]["stage"]) == (1, "follow")


def test_a_field_that_no_document_has_or_that_holds_no_ids_is_refused(tmp_path: Path):
    write_run(tmp_path / "run.trec", {"q1": [Hit("a", 2.0)]})
    of = {"run": tmp_path / "run.trec", "collection": collection(tmp_path / "data"), "out": tmp_path / "out.trec"}
    with pytest.raises(
        UserError, match=r"has the metadata field 'links' \(found: citations\); name another with --field"
    ):
        follow.run(follow.Config(field="links", **of))
    with pytest.raises(UserError, match="--depth 50 and --k 10: expected 1 or more"):
        follow.run(follow.Config(k=10, **of))
    with pytest.raises(UserError, match=r"its 'citations' is \{'x': 1\}; expected ids of documents"):
        follow.names_of(Document("a", "", metadata={"citations": {"x": 1}}), "citations")
    assert follow.names_of(Document("c", "", metadata={"cites": 7}), "cites") == ["7"]
