from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from named import reranker_to_train
from tiny import DOCUMENTS, QUERIES, Tiny, shaken

from shortlist import index
from shortlist.data.allowed import Allowed
from shortlist.data.formats import write_queries
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.index import cur
from shortlist.index.cur import CurIndex, CurSearch, Scoring, ScoringPace, SearchSpace, build_cur
from shortlist.index.opening import open_index
from shortlist.index.protocols import FirstStage, Opening, SearchesByReading
from shortlist.math.cur import promise_by_inverse
from shortlist.models.save import save_model
from shortlist.records import Document, Query
from shortlist.rerankers.prepared import Prepared
from shortlist.rerankers.reranker import Reranker

WORDS = sorted({word for document in DOCUMENTS for word in document.text.split()})


class Counting:
    """Scores a pair by the words that both have, and keeps account of what it reads."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.read: list[tuple[str, str]] = []
        self.dies_after = dies_after

    def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
        if self.dies_after is not None and len(self.read) >= self.dies_after:
            raise KeyboardInterrupt
        self.read += [(query.query_id, document.doc_id) for document in documents]
        return np.array([score_of(query, document) for document in documents], dtype=np.float32)


def score_of(query: Query, document: Document) -> float:
    shared = {*query.text.split()} & {*document.text.split()}
    return sum(1 + WORDS.index(word) % 7 for word in shared) + len(document.text) / 100


def scoring(ranker: Any) -> Scoring:
    return Scoring(Prepared(open=lambda: ranker), QUERIES, {})


EXACT = np.array([[score_of(query, document) for document in DOCUMENTS] for query in QUERIES], dtype=np.float32)


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two documents, and a forecast from two pairs."""
    monkeypatch.setattr(cur, "PAIRS_IN_PART", 2 * len(QUERIES))
    monkeypatch.setattr(cur, "PAIRS_TIMED", 2)


@pytest.fixture(scope="module")
def config(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> index.Config:
    """A small index."""
    folder = tmp_path_factory.mktemp("cur")
    queries = tiny.collection / "queries.jsonl"
    model, collection = str(tiny.reranker), str(tiny.collection)
    config = index.Config(kind="cur", collection=collection, queries=queries, model=model, out=folder / "cur")
    index.run(config)
    return config


def test_the_index_holds_the_models_own_scores(config: index.Config, tiny: Tiny):
    opened = open_index(config.out)
    model = Reranker.load(str(tiny.reranker))
    exact = np.array([model.score(query, DOCUMENTS) for query in QUERIES])
    np.testing.assert_allclose(opened.scores, exact, atol=1e-5)
    assert [*opened.doc_ids] == [document.doc_id for document in DOCUMENTS]
    assert sorted(path.name for path in config.out.iterdir() if not path.name.startswith(".")) == [
        "config.yaml", "doc_ids.txt", "index.json", "manifest.json", "scores.npy",
    ]  # fmt: skip
    assert (read_manifest(config.out) or {})["results"]["num_pairs"] == 144


def test_the_same_command_has_nothing_to_do(config: index.Config, capsys: pytest.CaptureFixture[str]):
    index.run(config)
    assert index.is_current(config)
    assert "already done" in capsys.readouterr().err


@pytest.mark.usefixtures("few_at_once")
def test_what_is_scored_before_an_interruption_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, second = Counting(dies_after=4 * 12 + 3), Counting()  # two parts, with what the forecast reads
    with pytest.raises(KeyboardInterrupt):
        build_cur(DOCUMENTS, tmp_path, scoring=scoring(first), num_docs=12)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["scores-00000000.npy", "scores-00000002.npy"]
    results = build_cur(DOCUMENTS, tmp_path, scoring=scoring(second), num_docs=12)
    assert {doc_id for _, doc_id in second.read} == {f"d{i}" for i in range(4, 12)}
    assert results == {"num_docs": 12, "num_queries": 12, "num_pairs": 144}
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), EXACT)
    said = capsys.readouterr().err
    assert "12 anchor queries x 12 documents are 144 pairs to read, about" in said
    assert "12 anchor queries x 8 documents are 96 pairs to read, about" in said
    third = Counting()
    assert build_cur(iter([]), tmp_path, scoring=scoring(third), num_docs=12) == results
    assert third.read == []


def test_a_part_takes_some_seconds_and_there_are_not_too_many():
    assert cur._part_size(ScoringPace(1e-3, 100), 100, 1000) == 40
    assert cur._part_size(ScoringPace(0.5, 100), 10, 1000) == 2
    assert cur._part_size(ScoringPace(5.0, 100), 10, 1000) == 1
    assert cur._part_size(ScoringPace(5.0, 100), 10, 8_192_000) == 2000


@pytest.mark.usefixtures("few_at_once")
def test_what_is_damaged_is_scored_again(tmp_path: Path):
    build_cur(DOCUMENTS, tmp_path, scoring=scoring(Counting()), num_docs=12)
    np.save(tmp_path / "scores.npy", EXACT + 1)
    build_cur(DOCUMENTS, tmp_path, scoring=scoring(Counting()), num_docs=12)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), EXACT)
    (tmp_path / "scores.npy").unlink()
    build_cur(DOCUMENTS, tmp_path, scoring=scoring(Counting()), num_docs=12)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), EXACT)


def test_a_score_that_is_not_finite_is_refused(tmp_path: Path):
    class Bad(Counting):
        def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
            return np.where([document.doc_id == "d3" for document in documents], np.inf, 1).astype(np.float32)

    with pytest.raises(UserError, match="query 'q0', document 'd3': the model gives no finite score"):
        build_cur(DOCUMENTS, tmp_path, scoring=scoring(Bad()), num_docs=12)


def test_the_cost_is_foretold_without_an_index(config: index.Config, tmp_path: Path, capsys):
    index.run(replace(config, out=tmp_path / "other", dry_run=True))
    said = capsys.readouterr().out
    assert "12 anchor queries x 12 documents are 144 pairs to read, about" in said
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "--model is missing: cur holds the scores of a reranker"),
        ({"queries": None}, "--queries is missing: cur holds scores of such queries"),
        ({"queries": Path("nowhere.jsonl")}, "--queries nowhere.jsonl: no such file"),
        ({"collection": None}, "--collection is missing"),
        ({"kind": "bm25"}, "--queries is for --kind cur, and BM25 has none"),
        ({"check": True}, "--check compares an approximate index with exact search; cur is not over vectors"),
        ({"set": ("links=3",)}, "unknown parameter of a cur index 'links'"),
    ],
)
def test_what_it_cannot_be_made_of_is_refused(config: index.Config, tmp_path: Path, changes: Any, message: str):
    with pytest.raises(UserError, match=message):
        index.run(replace(config, **{"out": tmp_path / "out", **changes}))


def test_another_model_or_other_queries_are_another_job(config: index.Config, tiny: Tiny, tmp_path: Path):
    save_model(shaken(reranker_to_train(str(tiny.llama), None, seed=0)), tmp_path / "other")
    with pytest.raises(UserError, match=r"holds another job \(model: .* there, .*other now\)"):
        index.run(replace(config, model=str(tmp_path / "other")))
    write_queries(tmp_path / "few.jsonl", QUERIES[:3])
    with pytest.raises(UserError, match=r"holds another job \(queries: "):
        index.run(replace(config, queries=tmp_path / "few.jsonl"))


def test_an_index_that_is_not_whole_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not a whole cur index"):
        cur.open_cur_index(tmp_path, {}, Opening())


def search(ranker: Any, *, anchors: list[int], budget: int, rounds: int = 2) -> CurSearch:
    doc_ids = [document.doc_id for document in DOCUMENTS]
    promise = promise_by_inverse(EXACT)
    space = SearchSpace(doc_ids, lambda queries: [promise] * len(queries), np.array(anchors))
    return CurSearch(ranker, space, budget=budget, rounds=rounds)


def fetch(doc_ids: Sequence[str]) -> dict[str, Document]:
    return {document.doc_id: document for document in DOCUMENTS if document.doc_id in doc_ids}


def test_hits_are_what_was_read_by_the_rankers_own_scores():
    ranker = Counting()
    stage = search(ranker, anchors=[0, 4, 7], budget=8)
    assert isinstance(stage, SearchesByReading)
    assert not isinstance(stage, FirstStage)
    run, num_read = stage.search_by_reading(QUERIES[:2], 5, fetch)
    for number in range(2):
        read = [int(doc_id[1:]) for query_id, doc_id in ranker.read if query_id == f"q{number}"]
        assert len(set(read)) == len(read) == num_read[f"q{number}"] == 8
        assert {0, 4, 7} <= {*read}
        best = sorted(read, key=lambda place: (-EXACT[number, place], place))[:5]
        assert [(hit.doc_id, hit.score) for hit in run[f"q{number}"]] == [
            (f"d{place}", EXACT[number, place]) for place in best
        ]


def test_a_filter_leaves_out_hits_and_not_anchors():
    ranker, only = Counting(), Allowed(["d1", "d2", "d7"])
    run, num_read = search(ranker, anchors=[0, 4, 7], budget=8).search_by_reading(QUERIES[:1], 9, fetch, allowed=only)
    assert {hit.doc_id for hit in run["q0"]} == {"d1", "d2", "d7"}
    assert num_read == {"q0": 5}
    ranker = Counting()
    run, num_read = search(ranker, anchors=[0, 4, 7], budget=4).search_by_reading(QUERIES[:1], 9, fetch, allowed=only)
    assert num_read == {"q0": 4}  # two anchors are hidden, were read, and count
    assert len(run["q0"]) == 2


def test_no_query_and_no_budget_left_are_no_error():
    stage = search(Counting(), anchors=[0, 4, 7], budget=3)
    assert stage.search_by_reading([], 5, fetch) == ({}, {})
    assert stage.search_by_reading(QUERIES[:1], 5, fetch).num_read == {"q0": 3}


@pytest.mark.parametrize("count", [0, 4])
def test_more_anchor_documents_than_anchor_queries_are_refused(count: int):
    opened = CurIndex(EXACT[:3], [f"d{i}" for i in range(12)])
    assert opened.anchors(3) is opened.anchors(3)
    with pytest.raises(UserError, match=f"anchors is {count}; the index holds 3 anchor queries and 12 documents"):
        opened.anchors(count)
