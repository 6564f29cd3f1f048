import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from late import write_stanford
from tiny import QUERIES as TINY_QUERIES
from tiny import Tiny

from shortlist import Pipeline, encode, search
from shortlist.data.allowed import Allowed
from shortlist.data.runs import read_run
from shortlist.data.stores.tokens import TokenReader, TokenWriter
from shortlist.errors import UserError
from shortlist.index.building import build_index
from shortlist.index.kinds import INDEXES
from shortlist.index.late import LateIndex, LateSearch
from shortlist.index.narrow import narrow_tokens
from shortlist.index.protocols import GivesTokens, Opening
from shortlist.math.clusters import kmeans
from shortlist.math.maxsim import TokenVectors, maxsim
from shortlist.math.token_feedback import sampled
from shortlist.pipeline.feedback import FEEDBACKS, SearchedAgain
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.memory import MemoryCollection
from shortlist.pipeline.steps import STEPS, Step
from shortlist.records import Document, Hit, Query
from shortlist.settings.encode import Config as EncodeConfig

DIM, IDS = 16, [f"d{i}" for i in range(30)]
COLLECTION = MemoryCollection([Document(name, "") for name in IDS])
QUERIES = [Query("q1", ""), Query("q2", ""), Query("q3", "")]


def related() -> tuple[TokenVectors, TokenVectors]:
    """Three queries, and 30 documents of tokens that lie around twelve points; one document has none."""
    rng = np.random.default_rng(2)
    points, counts = rng.normal(size=(12, DIM)), np.append(0, rng.integers(5, 9, 29))
    popular = rng.choice(12, size=counts.sum() + 12, p=np.arange(12, 0, -1) / 78)
    rows = points[popular] + 0.4 * rng.normal(size=(len(popular), DIM))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return TokenVectors(unit[:12], np.full(3, 4)), TokenVectors(unit[12:], counts)


ASKED, DOCUMENTS = related()


class Encoder:
    """Knows the queries' token vectors."""

    def encode_queries(self, queries: Sequence[Query]) -> TokenVectors:
        found = [list(ASKED)[QUERIES.index(query)] for query in queries]
        return TokenVectors(np.concatenate(found), np.array(list(map(len, found))))


def opened(kind: str, folder: Path) -> LateSearch:
    dtype = kind if kind in ("int8", "residual4") else "float32"
    TokenWriter(folder / "tokens", DIM, dtype).write_shard(0, IDS, DOCUMENTS)
    tokens: Any = TokenReader(folder / "tokens")
    found: Any = LateIndex(tokens)
    if kind == "narrow":
        narrow_tokens(tokens, folder / "narrow")
        found = LateIndex(tokens, scan=TokenReader(folder / "narrow"))
    if kind in INDEXES and kind != "narrow":
        chosen = {"effort": 12, "refine": 1} | ({"probes": 4} if kind == "late-centroids" else {})
        build_index(INDEXES[kind], folder / "tokens", folder / "index", chosen)
        found = INDEXES[kind].open(folder / "index", {}, Opening(vectors=folder / "tokens"))
    return LateSearch(Encoder(), found)


def piped(stage: Any, **settings: Any) -> Pipeline:
    again = FEEDBACKS["tokens"](Opener(), **settings)
    searched = SearchedAgain("late", stage)
    again.check("again", searched)
    last = Step("again", STEPS["feedback"], again, ("late",), None, searched=searched)
    return Pipeline(COLLECTION, [Step("late", STEPS["find"], stage), last])


def enumerated(stored: TokenVectors, first: Sequence[Hit], query: np.ndarray, *, clusters: int, most: int, beta: float):
    """Score all documents for one query, by the definition."""
    documents = list(stored)
    tokens = np.concatenate([documents[int(hit.doc_id[1:])] for hit in first])
    numbers = kmeans(tokens, min(clusters, len(tokens)), rng=np.random.default_rng(0))
    found, bound = list[tuple[float, np.ndarray]](), sampled(stored).bound
    for number in range(clusters):
        if not (numbers == number).any():
            continue
        mean, num_near = tokens[numbers == number].mean(0), 0
        for document in documents[1:]:
            cosines = [vector @ mean / np.linalg.norm(vector) / np.linalg.norm(mean) for vector in document]
            num_near += max(cosines) > bound
        found.append((np.log(30 / (1 + num_near)) / np.log(30), mean))
    found.sort(key=lambda pair: -pair[0])
    longer = np.stack([*query, *(beta * weight * mean for weight, mean in found[:most])]).astype(np.float32)
    return maxsim(TokenVectors(longer, np.array([len(longer)])), stored)[0]


@pytest.mark.parametrize("kind", ["float32", "int8", "residual4", "narrow", "late", "late-centroids"])
def test_late_indexes_are_searched_again_as_plain_enumeration_does(kind: str, tmp_path: Path):
    stage = opened(kind, tmp_path)
    assert isinstance(stage, GivesTokens)
    trace = piped(stage, docs=3, clusters=6, centroids=4, beta=2.0).trace(QUERIES, 8)
    stored = TokenReader(tmp_path / "tokens").take(np.arange(30))
    changed = False
    for query, vectors in zip(QUERIES, ASKED, strict=True):
        first, second = (trace.found[name].run[query.query_id] for name in ("late", "again"))
        scores = enumerated(stored, first[:3], vectors, clusters=6, most=4, beta=2.0)
        assert [hit.score for hit in second] == pytest.approx([scores[int(hit.doc_id[1:])] for hit in second], rel=1e-4)
        best = [IDS[place] for place in np.argsort(-scores)[:8]]
        found = [hit.doc_id for hit in second]
        assert found == best if not kind.startswith("late") else len({*found} & {*best}) >= 5
        changed |= found != [hit.doc_id for hit in first]
    assert changed
    unchanged = piped(stage, beta=0.0).trace(QUERIES, 8).found
    assert unchanged["again"].run == unchanged["late"].run


def test_documents_without_vectors_and_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stage = opened("float32", tmp_path)
    pipeline = piped(stage, docs=2)
    bare = SimpleNamespace(search=lambda queries, k: {query.query_id: [Hit("d0", 1.0)] for query in queries})
    words = Step("words", STEPS["find"], bare)
    none = Pipeline(COLLECTION, [words, pipeline.steps[1]._replace(of=("words",))]).trace(QUERIES, 8).last.run
    assert none == stage.search(QUERIES, 8)
    few = Allowed(IDS[10:14])
    kept = Pipeline(COLLECTION, [pipeline.steps[0], pipeline.steps[1]._replace(allowed=few)]).trace(QUERIES, 8)
    assert {hit.doc_id for hits in kept.last.run.values() for hit in hits} == {*IDS[10:14]}
    whole = pipeline.trace(QUERIES, 8).last.run
    monkeypatch.setattr("shortlist.pipeline.feedback.EXPANDED_AT_ONCE", 1)
    assert pipeline.trace(QUERIES, 8).last.run == whole


def test_the_collection_is_sampled_once_and_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stage = opened("float32", tmp_path)
    assert stage.sampled_tokens().counts.tolist() == DOCUMENTS.counts[1:].tolist()
    monkeypatch.setattr("shortlist.index.late.SAMPLED_DOCS", 3)
    assert stage.sampled_tokens().counts.tolist() == DOCUMENTS.counts[[1, 15, 29]].tolist()
    monkeypatch.setattr("shortlist.index.late.SAMPLED_TOKENS", 1)
    assert stage.sampled_tokens().counts.tolist() == DOCUMENTS.counts[[1]].tolist()
    monkeypatch.undo()
    calls = list[int]()
    whole = LateSearch.sampled_tokens
    monkeypatch.setattr(LateSearch, "sampled_tokens", lambda self: calls.append(1) or whole(self))
    pipeline = piped(stage)
    for _ in range(2):
        pipeline.trace(QUERIES, 8)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"docs": 0}, "`feedback: tokens` with docs 0; expected 1 or more"),
        ({"clusters": 0}, "with clusters 0"),
        ({"centroids": 25}, "centroids 25, clusters 24 and beta 1; expected no more centroids than clusters"),
        ({"beta": -0.5}, "beta -0.5; expected .* a finite beta of 0 or more"),
        ({"beta": float("nan")}, "beta nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        FEEDBACKS["tokens"](Opener(), **settings)


def test_what_gives_no_token_vectors_is_refused(tmp_path: Path):
    stage = opened("float32", tmp_path)
    no_store: Any = SimpleNamespace(find=lambda queries, k, *, allowed=None: [])
    with pytest.raises(
        UserError, match=r"^step 'again': .* gives no token vectors of documents; search those of [^\n]*$"
    ):
        piped(LateSearch(Encoder(), no_store))
    with pytest.raises(UserError, match=r"step 'again': `feedback: rm3` needs a first stage that searches by terms"):
        FEEDBACKS["rm3"](Opener()).check("again", SearchedAgain("late", stage))
    bare = SimpleNamespace(search=None)
    with pytest.raises(UserError, match=r"`feedback: tokens` needs a first stage that searches by token vectors, as"):
        piped(bare)
    gone = SimpleNamespace(search=lambda queries, k: {query.query_id: [Hit("d99", 1.0)] for query in queries})
    steps = [Step("words", STEPS["find"], gone), piped(stage).steps[1]._replace(of=("words",))]
    with pytest.raises(UserError, match=r"step 'again': .*tokens: has no token vectors of 1 of 1 documents, such as"):
        Pipeline(MemoryCollection([Document("d99", "")]), steps).trace(QUERIES, 3)


def test_few_documents_are_used_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pipeline = piped(opened("float32", tmp_path), docs=99)
    for _ in range(2):
        pipeline.trace(QUERIES, 3)
    assert capsys.readouterr().err.count("has 29 feedback documents, and 99 are wanted") == 1


def test_one_description_gives_the_same_hits_everywhere(tiny: Tiny, tmp_path: Path):
    write_stanford(tmp_path / "model")
    model, collection = str(tmp_path / "model"), str(tiny.collection)
    encode.run(EncodeConfig(model=model, collection=collection, out=tmp_path / "tokens", dtype="residual2"))
    late = {"find": "late", "model": model, "vectors": str(tmp_path / "tokens")}
    given = {"collection": collection, "steps": {"late": late, "again": {"feedback": "tokens", "depth": 5}}}
    (tmp_path / "steps.yaml").write_text(json.dumps(given))
    search.run(search.Config(pipeline=tmp_path / "steps.yaml", out=tmp_path / "run", k=5))
    run, answers = read_run(tmp_path / "run"), Pipeline.load(pipeline=given).answer(TINY_QUERIES, 5)
    for query, answer in zip(TINY_QUERIES, answers, strict=True):
        assert [result.document.doc_id for result in answer.results] == [hit.doc_id for hit in run[query.query_id]]
        assert all({*result.places} >= {"again"} for result in answer.results)
