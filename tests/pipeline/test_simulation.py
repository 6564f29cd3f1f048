"""A simulated setting finds what the pipeline with that setting finds."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import Tiny

from shortlist.data.answers import AnswerLog
from shortlist.data.collections import open_collection
from shortlist.pipeline import Pipeline
from shortlist.pipeline import known as known_stages
from shortlist.pipeline.known import KnownHits, PairScores
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.numbers import draw_settings, usual_choices, with_numbers
from shortlist.pipeline.simulation import Simulation
from shortlist.pipeline.spec import Description, parse_description
from shortlist.records import Document, Hit, Query, Run
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.kinds import RERANKERS
from shortlist.rerankers.models import RawAnswer
from shortlist.rerankers.prepared import Prepared

COUNTED: list[tuple[str, str]] = []
"""The pairs that the stub has scored."""


class Stub:
    """Scores by the letters of texts, alone or as a share of the best in the list."""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole

    def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
        COUNTED.extend((query.query_id, document.doc_id) for document in documents)
        scores = np.array([sum(map(ord, document.text + query.text)) % 97 for document in documents], dtype=float)
        return scores / (1 + len(documents)) if self.whole else scores


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more rerankers, which count what they score."""
    COUNTED.clear()
    monkeypatch.setitem(RERANKERS, "letters", lambda: Prepared(open=lambda: Stub(whole=False)))
    monkeypatch.setitem(RERANKERS, "lists", lambda: Prepared(open=lambda: Stub(whole=True), whole_lists=True))


def described(cascade: dict[str, Any], **steps: dict[str, Any]) -> Description:
    first = {name: cascade["steps"][name] for name in ("words", "vectors", "both")}
    return parse_description({"collection": cascade["collection"], "steps": first | steps}, where="test")


def queries_of(tiny: Tiny) -> list[Query]:
    return open_collection(tiny.collection).queries("test")


def test_every_setting_finds_what_the_real_pipeline_finds(tiny: Tiny, cascade: dict[str, Any]):
    description = parse_description(cascade, where="test")
    simulation, queries = Simulation(description, Opener()), queries_of(tiny)
    choices = {
        "words.depth": [4, 8],
        "both.weights": [(0.3, 0.7), (1.0, 0.0)],
        "first.depth": [0, 3, 7],
        "first.share": [0.5, 1.0],
        "first.drop": [0.5, 1.0],
        "second.depth": [0, 2, 3],
    }
    settings = draw_settings(description, choices, most=60)
    assert len(settings) > 30
    for numbers in settings[::5]:
        found = simulation.run(queries, 5, numbers).run
        real = Pipeline.open(with_numbers(description, numbers), simulation._opener).trace(queries, 5).last.run
        assert {q: [hit.doc_id for hit in hits] for q, hits in found.items()} == {
            q: [hit.doc_id for hit in hits] for q, hits in real.items()
        }
        for query_id, hits in found.items():
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in real[query_id]], abs=1e-5)


def test_two_hundred_settings_score_each_pair_once(tiny: Tiny, cascade: dict[str, Any], stubs: None):
    description = described(cascade, near={"rank": "letters", "depth": 8}, last={"rank": "letters", "depth": 4})
    simulation, queries, asked = Simulation(description, Opener()), queries_of(tiny), 0
    settings = draw_settings(description, usual_choices(description, lambda part: False), most=200)
    assert len(settings) == 200
    for numbers in settings:
        asked += sum(simulation.run(queries, 5, numbers).pairs.values())
    assert len(set(COUNTED)) == len(COUNTED) == simulation.num_scored <= len(queries) * 12 < asked
    assert set(simulation.searches.values()) == {1}


def test_a_reranker_of_whole_lists_reads_each_other_list_anew(tiny: Tiny, cascade: dict[str, Any], stubs: None):
    description = described(cascade, near={"rank": "lists", "depth": 8})
    simulation, queries = Simulation(description, Opener()), queries_of(tiny)
    for depth in (8, 4, 8, 4):
        numbers = {"near.depth": depth}
        found = simulation.run(queries, 8, numbers)
        assert found.run == Pipeline.open(with_numbers(description, numbers)).trace(queries, 8).last.run
    assert simulation.num_scored == len(queries) * (8 + 4)


def test_pairs_are_counted_where_lists_are_short(tiny: Tiny, cascade: dict[str, Any], stubs: None):
    description = described(cascade, few={"cut": "rank", "at": 3}, near={"rank": "letters", "depth": 8})
    simulation, queries = Simulation(description, Opener()), queries_of(tiny)
    assert simulation.run(queries, 5, {}).pairs == {"near": 3 * len(queries)}
    assert simulation.run(queries, 5, {"few.at": 2}).pairs == {"near": 2 * len(queries)}
    assert simulation.run(queries, 5, {"near.depth": 1}).pairs == {"near": len(queries)}
    assert len(queries) <= simulation.run(queries, 5, {"near.drop": 0.1}).pairs["near"] < 3 * len(queries)


class Finder:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def search(self, queries: Sequence[Query], k: int) -> dict[str, list[Hit]]:
        self.asked.append(k)
        return {query.query_id: [Hit(f"d{place}", -place) for place in range(k)] for query in queries}


@pytest.mark.parametrize(("exact", "asked"), [(True, [5, 7]), (False, [5, 3, 7, 4])])
def test_a_search_is_made_again_only_where_a_shorter_one_differs(exact: bool, asked: list[int]):
    finder = Finder()
    known = KnownHits(finder, exact=exact)
    for k in (5, 3, 7, 5 if exact else 3, 4):
        assert len(known.search([Query("q", "")], k)["q"]) == k
    assert finder.asked == asked


def test_scores_come_in_the_order_of_the_lists_whatever_is_known():
    known = PairScores(Stub(whole=False), whole_lists=False)
    documents = [Document(f"d{place}", "abc"[place]) for place in range(3)]
    first = known.score(Query("q", "x"), documents[1:])
    [both] = known.score_lists([Candidates(Query("r", "y"), documents), Candidates(Query("q", "x"), documents[::-1])])
    assert isinstance(both, Scored)
    assert both.scores[3:5].tolist() == first[::-1].tolist()
    assert known.num_scored == 6


def test_a_changed_text_is_another_pair():
    known = PairScores(Stub(whole=False), whole_lists=False)
    known.score(Query("q", "x"), [Document("d", "abc")])
    known.score(Query("q", "x"), [Document("d", "abd")])
    assert known.num_scored == 2


def test_a_description_with_numbers_is_written_and_read_again(cascade: dict[str, Any], tmp_path: Path):
    from shortlist.pipeline.spec import read_description, written

    description = with_numbers(parse_description(cascade, where="test"), {"both.weights": (0.1, 0.9)})
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(written(description), sort_keys=False))
    assert read_description(tmp_path / "p.yaml") == description


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A language model that writes about goats, and the questions it was asked."""
    asked: list[str] = []

    class Speaker:
        def keys(self, questions: Sequence[Any]) -> list[Any]:
            return [[query.text, *(document.text for document in documents)] for query, documents in questions]

        def replies(self, questions: Sequence[Any]) -> Iterator[dict[int, RawAnswer]]:
            for place, (query, [document]) in enumerate(questions):
                asked.append(f"{query.text} {document.text}")
                yield {place: RawAnswer("the goat", 7, 3)}

    monkeypatch.setattr("shortlist.pipeline.shortening.open_language_model", lambda **_: (Speaker(), {"model": "m"}))
    return asked


def in_words(run: Run) -> dict[str, list[tuple[str, Any]]]:
    return {name: [(hit.doc_id, pytest.approx(hit.score, abs=1e-5)) for hit in hits] for name, hits in run.items()}


NEAR = {"rank": "letters", "depth": 6}
LIVE: dict[str, tuple[dict[str, dict[str, Any]], dict[str, list[Any]]]] = {
    "rm3": (
        {"again": {"feedback": "rm3", "of": "both", "search": "words", "docs": 3, "scores": "softmax"}, "near": NEAR},
        {"both.weights": [(0.3, 0.7), (1.0, 0.0)], "again.weight": [0.5, 0.9], "again.docs": [2], "near.depth": [0, 3]},
    ),
    "average": (
        {"again": {"feedback": "average", "of": "both", "search": "vectors", "docs": 2}, "near": NEAR},
        {"both.weights": [(0.3, 0.7), (0.4, 0.6)], "again.depth": [9, 5], "near.share": [0.5]},
    ),
    "distill": (
        {"near": NEAR, "again": {"feedback": "distill", "of": "near", "search": "vectors", "docs": 4, "depth": 8}},
        {"near.depth": [0, 3, 6], "near.share": [0.5, 1.0], "again.steps": [1, 10]},
    ),
    "hyde": (
        {"more": {"rewrite": "hyde", "search": "vectors", "model": ""}, "all": {"fuse": "rrf"}, "near": NEAR},
        {"all.weights": [(0.5, 0.5), (0.9, 0.1)], "more.depth": [9, 4], "near.depth": [2, 6]},
    ),
    "extract": (
        {"short": {"compress": "extract", "words": 3, "depth": 5}, "near": NEAR},
        {"both.weights": [(0.3, 0.7), (1.0, 0.0)], "short.depth": [5, 2], "near.depth": [0, 3]},
    ),
    "summary": (
        {"short": {"compress": "summary", "model": "", "words": 3, "depth": 4}, "near": NEAR},
        {"both.weights": [(0.3, 0.7), (1.0, 0.0)], "short.depth": [4, 2], "near.depth": [2, 6]},
    ),
}
"""Steps that a model, or another search, has to do again for other inputs, with numbers to try."""


@pytest.mark.parametrize("name", LIVE)
def test_steps_that_search_again_or_change_texts_find_what_the_real_pipeline_finds(
    tiny: Tiny, cascade: dict[str, Any], stubs: None, speaker: list[str], name: str
):
    steps, choices = LIVE[name]
    named = {one: {**step, "model": str(tiny.speaker)} if "model" in step else step for one, step in steps.items()}
    description = described(cascade, **named)
    simulation, queries = Simulation(description, Opener()), queries_of(tiny)[:4]
    settings = draw_settings(description, choices, most=12)
    assert len(settings) > 3
    found = [simulation.run(queries, 5, numbers) for numbers in settings]
    assert len(set(speaker)) == len(speaker)
    for numbers, simulated in [*zip(settings, found, strict=True)][::3]:
        real = Pipeline.open(with_numbers(description, numbers), simulation._opener).trace(queries, 5).last.run
        assert {query_id: list(map(tuple, hits)) for query_id, hits in simulated.run.items()} == in_words(real)
    known = dict(simulation.searches)
    for numbers in reversed(settings):  # what is known is not done again, in whatever order it is asked for
        simulation.run(queries, 5, numbers)
    assert simulation.searches == known


def test_a_second_search_is_made_once_for_each_list_that_feeds_it(tiny: Tiny, cascade: dict[str, Any], stubs: None):
    again = {"feedback": "average", "of": "both", "search": "vectors", "docs": 2}
    description = described(cascade, again=again, near={"rank": "letters", "depth": 8})
    simulation, queries = Simulation(description, Opener()), queries_of(tiny)
    for depth in (8, 4, 2):
        for weights in ((0.3, 0.7), (0.31, 0.69)):  # other scores, and the same two documents
            simulation.run(queries, 5, {"both.weights": weights, "near.depth": depth})
    assert simulation.searches["again"] == 1


def test_first_stages_that_read_documents_read_them_once(tiny: Tiny, cascade: dict[str, Any], built: Path, stubs: None):
    names = {"vectors": str(built / "vectors"), "retriever": str(tiny.retriever), "model": str(tiny.reranker)}
    steps = {"cur": {"find": "cur", "budget": 6, **names}, "near": {"rank": "letters", "depth": 6}}
    description = parse_description({"collection": cascade["collection"], "steps": steps}, where="test")
    simulation, queries = Simulation(description, Opener()), queries_of(tiny)
    for depth in (6, 3, 0):
        numbers = {"near.depth": depth}
        real = Pipeline.open(with_numbers(description, numbers), simulation._opener).trace(queries, 5).last.run
        simulated = simulation.run(queries, 5, numbers).run
        assert {query_id: [hit.doc_id for hit in hits] for query_id, hits in simulated.items()} == {
            query_id: [hit.doc_id for hit in hits] for query_id, hits in real.items()
        }
    assert simulation.searches["cur"] == 1


def test_varied_documents_by_sub_queries_are_simulated_too(tiny: Tiny, cascade: dict[str, Any], tmp_path: Path):
    (tmp_path / "aspects.jsonl").write_text(
        "".join(json.dumps({"_id": f"q0#{one}", "text": text}) + "\n" for one, text in enumerate(["apple", "goat"]))
    )
    words = cascade["steps"]["words"]
    sides = {"diversify": "coverage", "aspects": str(tmp_path / "aspects.jsonl"), "depth": 6, "k": 3}
    steps = {"words": words, "sides": sides}
    description = parse_description({"collection": cascade["collection"], "steps": steps}, where="test")
    simulation, queries = Simulation(description, Opener()), queries_of(tiny)
    for numbers in ({}, {"sides.lambda": 0.1}, {"sides.depth": 4}):
        real = Pipeline.open(with_numbers(description, numbers)).trace(queries, 5).last.run
        assert simulation.run(queries, 5, numbers).run == real


def test_scores_and_texts_in_a_log_are_not_computed_again(
    tiny: Tiny, cascade: dict[str, Any], stubs: None, speaker: list[str], tmp_path: Path
):
    short = {"compress": "summary", "model": str(tiny.speaker), "words": 3, "depth": 4}
    description = described(cascade, short=short, near={"rank": "letters", "depth": 8}, last={"rank": "lists"})
    queries, runs = queries_of(tiny), []
    for _ in range(2):
        log = AnswerLog(tmp_path / "known.sqlite")
        simulation = Simulation(description, Opener(), log=log)
        runs.append((simulation.run(queries, 5, {}), simulation.num_scored))
        log.close()
    assert runs[0] == runs[1]
    assert len(speaker) == len(set(speaker)) > 0
    assert len(COUNTED) == runs[0][1]


def test_an_interruption_loses_no_score_that_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_stages, "LOST_SECONDS", 0.0)
    COUNTED.clear()
    stub, documents = Stub(whole=False), [Document(f"d{place}", "abc"[place]) for place in range(3)]
    lists = [Candidates(Query(name, name), documents) for name in "pqr"]

    class Stops(Stub):
        def score(self, query: Query, documents: Sequence[Document]) -> np.ndarray:
            if query.query_id == "r":
                raise KeyboardInterrupt
            return super().score(query, documents)

    log = AnswerLog(tmp_path / "known.sqlite")
    with pytest.raises(KeyboardInterrupt):
        list(PairScores(Stops(whole=False), "near", whole_lists=False, log=log).score_lists(lists))
    log.close()
    assert len(COUNTED) == 6
    going_on = PairScores(stub, "near", whole_lists=False, log=AnswerLog(tmp_path / "known.sqlite"))
    [found] = going_on.score_lists(lists)
    assert len(COUNTED) == 9
    [plain] = PairScores(stub, whole_lists=False).score_lists(lists)
    assert found.scores.tolist() == plain.scores.tolist()
    assert going_on.num_scored == 9
    other = PairScores(stub, "other", whole_lists=False, log=AnswerLog(tmp_path / "known.sqlite"))
    list(other.score_lists(lists))
    assert len(COUNTED) == 9 + 9 + 9  # scores of another step are others
