from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shortlist import Pipeline
from shortlist.data.allowed import Allowed
from shortlist.data.memory import MemoryCollection
from shortlist.data.stores.terms import TermReader, TermWriter
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.index.dense import DenseSearch
from shortlist.index.flat import FlatIndex
from shortlist.index.sparse import SparseIndex, SparseSearch
from shortlist.math.feedback import bo1, distilled, rm3, score_chances, score_shares
from shortlist.math.terms import TermWeights
from shortlist.pipeline.feedback import FEEDBACKS, SearchedAgain
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.spec import parse_description, written
from shortlist.pipeline.steps import STEPS, Step
from shortlist.records import Document, Hit, Query

WORDS = ["otter", "river", "fish", "boat", "harbour", "sea", "lamp", "desk"]
RNG = np.random.default_rng(1)
TEXTS = [" ".join(RNG.choice(WORDS, size=6, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])) for _ in range(30)]
COLLECTION = MemoryCollection([Document(f"d{i}", text) for i, text in enumerate(TEXTS)])
VECTORS = RNG.normal(size=(30, 8)).astype(np.float32) * 2
WEIGHTS = (RNG.random((30, 8)) * (RNG.random((30, 8)) < 0.5)).astype(np.float32).round(2)
QUERIES = [Query("q1", "otter river"), Query("q2", "sea lamp"), Query("q3", "nothing")]
ASKED = dict(zip(("q1", "q2", "q3"), RNG.normal(size=(3, 8)).astype(np.float32), strict=True))


class Encoder:
    """Knows the queries' vectors."""

    def encode_queries(self, queries: Sequence[Query]) -> np.ndarray:
        return np.stack([ASKED[query.query_id] for query in queries])


class SparseEncoder:
    """Gives the words of a query weight 1."""

    terms = WORDS

    def encode_queries(self, queries: Sequence[Query]) -> TermWeights:
        found = [sorted(WORDS.index(word) for word in query.text.split() if word in WORDS) for query in queries]
        terms = np.array([term for row in found for term in row], dtype=np.int32)
        return TermWeights(terms, np.ones(len(terms), np.float32), np.array(list(map(len, found))))


def as_terms(rows: np.ndarray) -> TermWeights:
    return TermWeights(np.nonzero(rows)[1].astype(np.int32), rows[rows > 0], (rows > 0).sum(1))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, ids = tmp_path_factory.mktemp("stages"), [f"d{i}" for i in range(30)]
    VectorWriter(folder / "vectors", 8).write_shard(0, ids, VECTORS)
    TermWriter(folder / "terms", WORDS).write_shard(0, ids, as_terms(WEIGHTS))
    return {
        "words": BM25Index.build(COLLECTION.corpus()),
        "dense": DenseSearch(Encoder(), FlatIndex(VectorReader(folder / "vectors"))),
        "sparse": SparseSearch(SparseEncoder(), SparseIndex(TermReader(folder / "terms"))),
    }


def stepped(stages: dict[str, Any], method: str, search: str, **settings: Any) -> Step:
    stage = FEEDBACKS[method](Opener(), **settings)
    searched = SearchedAgain(search, stages[search], own_scores=True)
    stage.check("again", searched)
    return Step("again", STEPS["feedback"], stage, (search,), None, searched=searched)


def piped(stages: dict[str, Any], method: str, search: str, **settings: Any) -> Pipeline:
    first = Step(search, STEPS["find"], stages[search])
    return Pipeline(COLLECTION, [first, stepped(stages, method, search, **settings)])


def searched(pipeline: Pipeline, k: int = 30, **options: Any) -> dict[str, list[Hit]]:
    return dict(pipeline.trace(QUERIES, k, **options).last.run)


def ids(hits: Iterable[Hit]) -> list[str]:
    return [hit.doc_id for hit in hits]


def ordered(scores: np.ndarray) -> list[str]:
    """All documents above 0, best first."""
    return [f"d{place}" for place in np.argsort(-scores, kind="stable") if scores[place] > 0]


@pytest.mark.parametrize("method", ["rm3", "bo1"])
def test_words_are_searched_again_by_the_terms_of_the_texts(stages, method):
    words: BM25Index = stages["words"]
    found = searched(piped(stages, method, "words", docs=4, terms=5, weight=0.4))
    for query in QUERIES[:2]:
        first = words.search([query], 4)[query.query_id]
        texts = [TEXTS[int(hit.doc_id[1:])].split() for hit in first]
        documents = np.array([[text.count(word) for word in WORDS] for text in texts], dtype=np.float64)
        asked = np.array([query.text.split().count(word) for word in WORDS], dtype=np.float64)
        if method == "rm3":
            weights = score_shares(np.array([hit.score for hit in first]))
            revised = rm3(asked, documents, weights, terms=5, weight=0.4)
        else:
            totals = np.array([" ".join(TEXTS).split().count(word) for word in WORDS], dtype=np.float64)
            revised = bo1(asked, documents, totals, num_docs=30, terms=5, weight=0.4)
        stems = [words.query_terms([word])[0][0][0] for word in WORDS]
        [expected] = words.find_by_terms([list(zip(stems, revised.tolist(), strict=True))], 30)
        assert [hit.score for hit in found[query.query_id]] == pytest.approx([hit.score for hit in expected], rel=1e-5)
        assert ids(found[query.query_id]) != ids(words.search([query], 30)[query.query_id])
    assert found["q3"] == []


@pytest.mark.parametrize("method", ["rm3", "bo1"])
def test_term_weights_are_searched_again_by_those_that_are_stored(stages, method):
    found = searched(piped(stages, method, "sparse", docs=3, terms=4, weight=0.5))
    for query in QUERIES[:2]:
        asked = np.array([float(word in query.text.split()) for word in WORDS])
        first = [int(name[1:]) for name in ordered(WEIGHTS @ asked)[:3]]
        documents, totals = WEIGHTS[first].astype(np.float64), WEIGHTS.astype(np.float64).sum(0)
        if method == "rm3":
            revised = rm3(asked, documents, score_shares(documents @ asked), terms=4, weight=0.5)
        else:
            revised = bo1(asked, documents, totals, num_docs=30, terms=4, weight=0.5)
        assert ids(found[query.query_id]) == ordered(WEIGHTS @ revised)


def test_vectors_are_searched_again_by_means_of_stored_ones(stages):
    average = searched(piped(stages, "average", "dense"))
    sums = searched(piped(stages, "rocchio", "dense", docs=2, alpha=0.2, beta=3.0))
    for query in QUERIES:
        asked = ASKED[query.query_id]
        order = np.argsort(-(VECTORS @ asked))
        scores = VECTORS @ (asked + VECTORS[order[:3]].sum(0)) / 4
        assert ids(average[query.query_id]) == [f"d{place}" for place in np.argsort(-scores)]
        assert [hit.score for hit in average[query.query_id]] == pytest.approx(np.sort(scores)[::-1], rel=1e-4)
        scores = VECTORS @ (0.2 * asked + 3 * VECTORS[order[:2]].mean(0))
        assert [hit.score for hit in sums[query.query_id]] == pytest.approx(np.sort(scores)[::-1], rel=1e-4)


class Reranker:
    """Prefers documents with high numbers, and does not look at d0 to d9."""

    def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
        numbers = [int(document.doc_id[1:]) for document in documents]
        return np.array([np.nan if number < 10 else number / 10 for number in numbers])


def test_distillation_moves_vectors_towards_what_the_reranker_has_read(stages):
    how = {"steps": 20, "rate": 0.1, "temperature": 2.0}
    again = stepped(stages, "distill", "dense", docs=12, **how)._replace(of=("reranked",))
    again = again._replace(searched=again.searched._replace(own_scores=False))
    first = [Step("dense", STEPS["find"], stages["dense"]), Step("reranked", STEPS["rank"], Reranker(), ("dense",), 15)]
    pipeline = Pipeline(COLLECTION, [*first, again])
    assert (pipeline.first_stages, pipeline.rerankers) == (["dense"], ["reranked", "again"])
    trace = pipeline.trace(QUERIES, 30)
    for query in QUERIES:
        asked = ASKED[query.query_id]
        read = [place for place in np.argsort(-(VECTORS @ asked))[:15] if place >= 10]
        read = sorted(read, reverse=True)[:12]
        assert trace.found["reranked"].num_placed[query.query_id] >= len(read) > 3
        scores = np.array([[place / 10 for place in read]])
        moved = distilled(asked[None], VECTORS[read][None], scores, **how)[0]
        assert ids(trace.last.run[query.query_id]) == [f"d{place}" for place in np.argsort(-(VECTORS @ moved))]
    shallow = pipeline.trace(QUERIES, 30, depth=5)
    assert len(shallow.found["reranked"].run["q1"]) == 30 == len(shallow.last.run["q1"])


def test_a_query_of_which_nothing_was_ranked_keeps_its_hits(stages):
    nothing = SimpleNamespace(score=lambda query, documents: np.full(len(documents), np.nan))
    again = stepped(stages, "average", "dense")._replace(of=("reranked",))
    first = [Step("dense", STEPS["find"], stages["dense"]), Step("reranked", STEPS["rank"], nothing, ("dense",), 15)]
    for steps in (first, [*first, Step("few", STEPS["cut"], STEPS["cut"].methods()["rank"](at=20), ("reranked",))]):
        trace = Pipeline(COLLECTION, [*steps, again._replace(of=(steps[-1].name,))]).trace(QUERIES, 10)
        assert {name: hits[:10] for name, hits in trace.found["reranked"].run.items()} == trace.last.run


def test_documents_of_one_search_can_revise_another(stages):
    again = stepped(stages, "rm3", "words", docs=3, terms=4)._replace(of=("dense",))
    again = again._replace(searched=again.searched._replace(own_scores=False))
    pipeline = Pipeline(
        COLLECTION,
        [Step("words", STEPS["find"], stages["words"]), Step("dense", STEPS["find"], stages["dense"]), again],
    )
    trace = pipeline.trace(QUERIES, 30)
    assert list(trace.found) == ["dense", "again"]  # words are searched once, with other queries
    assert trace.last.run["q3"]
    first = np.argsort(-(VECTORS @ ASKED["q3"]))[:3]
    documents = np.array([[TEXTS[place].split().count(word) for word in WORDS] for place in first], dtype=np.float64)
    weights = score_chances((VECTORS[first] @ ASKED["q3"]).astype(np.float64))
    terms = rm3(np.zeros(8), documents, weights, terms=4, weight=0.5)
    held = {f"d{i}" for i, text in enumerate(TEXTS) if {WORDS[t] for t in np.flatnonzero(terms)} & {*text.split()}}
    assert {*ids(trace.last.run["q3"])} == held


def test_filters_and_exclusions_hold_in_the_second_search_too(stages):
    pipeline = piped(stages, "average", "dense")
    step = pipeline.steps[1]._replace(allowed=Allowed([f"d{i}" for i in range(5)]))
    run = searched(Pipeline(COLLECTION, [pipeline.steps[0], step]))
    assert {hit.doc_id for hits in run.values() for hit in hits} == {f"d{i}" for i in range(5)}
    best = ids(searched(pipeline, 3)["q1"])
    found = searched(pipeline, 3, exclude={"q1": frozenset(best)})
    assert len(found["q1"]) == 3
    assert not {*ids(found["q1"])} & {*best}


def test_few_documents_are_used_and_said_once(stages, capsys):
    pipeline = piped(stages, "rm3", "words", docs=25)
    first, second = searched(pipeline), searched(pipeline)
    assert first == second
    assert capsys.readouterr().err.count("query 'q2' has 18 feedback documents, and 25 are wanted") == 1


def test_all_queries_are_searched_together_and_vectors_fetched_once(stages, monkeypatch):
    calls: dict[str, int] = {"find_by_vectors": 0, "document_vectors": 0}
    for name in calls:
        whole = getattr(DenseSearch, name)

        def counted(self, *given, _name=name, _whole=whole, **more):
            calls[_name] += 1
            return _whole(self, *given, **more)

        monkeypatch.setattr(DenseSearch, name, counted)
    searched(Pipeline(COLLECTION, piped(stages, "average", "dense").steps))
    assert calls == {"find_by_vectors": 1, "document_vectors": 2}  # the first checks, with no document


def described(*steps: dict[str, Any]) -> Any:
    return parse_description({"steps": {f"s{i}": step for i, step in enumerate(steps)}}, where="here")


FIND = {"find": "index", "index": "w"}
DENSE = {"find": "dense", "model": "m", "vectors": "v"}


def test_a_step_searches_the_first_stage_that_its_run_came_from():
    cut, rank = {"cut": "rank", "at": 5}, {"rank": "pointwise", "model": "r"}
    assert described(FIND, cut, rank, {"feedback": "rm3"}).steps[-1].search == "s0"
    fused = [FIND, DENSE, {"fuse": "rrf"}]
    with pytest.raises(UserError, match=r"steps.s3: search is missing: its documents come from s0 and s1; say which"):
        described(*fused, {"feedback": "average"})
    one = described(*fused, {"feedback": "average", "search": "s1"}, {"feedback": "average", "docs": 5, "depth": 7})
    assert [part.search for part in one.steps[3:]] == ["s1", "s1"]
    assert parse_description(written(one), where="here") == one
    only_searched = described(FIND, DENSE, {"feedback": "average", "of": "s0", "search": "s1"})
    assert only_searched.steps[-1].of == ("s0",)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"feedback": "rm4"}, "unknown feedback 'rm4'"),
        ({"feedback": "rm3", "search": "s9"}, "search: unknown earlier step that finds documents 's9'"),
        ({"feedback": "average", "terms": 3}, "unknown setting of `feedback: average` 'terms'"),
        ({"feedback": "rm3", "scores": "sum"}, "unknown value 'sum'"),
    ],
)
def test_what_is_no_such_step_is_refused(step, words):
    with pytest.raises(UserError, match=words):
        described(FIND, step)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("rm3", {"weight": 1.5}, "`feedback: rm3` with weight 1.5; expected the query's share, 0 to 1"),
        ("bo1", {"terms": 0}, "`feedback: bo1` with terms 0; expected 1 or more"),
        ("average", {"docs": 0}, "`feedback: average` with docs 0"),
        ("rocchio", {"alpha": 0.0, "beta": 0.0}, "with alpha 0 and beta 0; expected finite numbers"),
        ("rocchio", {"beta": -1.0}, "beta -1"),
        ("distill", {"steps": 0}, "with steps 0"),
        ("distill", {"temperature": 0.0}, "temperature 0; expected finite numbers above 0"),
    ],
)
def test_settings_out_of_range_are_refused(method, settings, words):
    with pytest.raises(UserError, match=words):
        FEEDBACKS[method](Opener(), **settings)


def test_a_first_stage_of_another_kind_is_refused(stages, tmp_path: Path):
    with pytest.raises(UserError, match=r"step 'again': `feedback: average` needs a first stage .*'words' does not"):
        stepped(stages, "average", "words")
    with pytest.raises(UserError, match=r"step 'again': `feedback: rm3` needs .*searches by terms.*'dense' does not"):
        stepped(stages, "rm3", "dense")
    bare = DenseSearch(Encoder(), SimpleNamespace(find=lambda queries, k, *, allowed=None: []))
    with pytest.raises(UserError, match=r"step 'again': .* gives no vectors of documents"):
        stepped({"dense": bare}, "average", "dense")


def test_documents_that_are_not_stored_are_refused(stages, tmp_path: Path):
    VectorWriter(tmp_path / "few", 8).write_shard(0, ["d1"], VECTORS[:1])
    few = DenseSearch(Encoder(), FlatIndex(VectorReader(tmp_path / "few")))
    again = stepped({"dense": few}, "average", "dense")._replace(of=("words",))
    with pytest.raises(UserError, match=r"step 'again': .*few: has no vector of \d of \d documents, such as 'd"):
        searched(Pipeline(COLLECTION, [Step("words", STEPS["find"], stages["words"]), again]))
    TermWriter(tmp_path / "terms", WORDS).write_shard(0, ["d1"], as_terms(WEIGHTS[:1]))
    sparse = SparseSearch(SparseEncoder(), SparseIndex(TermReader(tmp_path / "terms")))
    again = stepped({"sparse": sparse}, "rm3", "sparse")._replace(of=("words",))
    with pytest.raises(UserError, match=r"step 'again': .*terms: has no term weights of \d+ of \d+ documents"):
        searched(Pipeline(COLLECTION, [Step("words", STEPS["find"], stages["words"]), again]))


def test_shares_of_scores_below_0_are_refused(stages):
    again = stepped(stages, "rm3", "words", docs=30, scores="shares")._replace(of=("dense",))
    with pytest.raises(UserError, match=r"query 'q\d' has a document with score -.*say `scores: softmax`"):
        searched(Pipeline(COLLECTION, [Step("dense", STEPS["find"], stages["dense"]), again]))
