"""A simulated setting finds what the pipeline with that setting finds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import Tiny

from shortlist.data.collections import open_collection
from shortlist.errors import UserError
from shortlist.pipeline import Pipeline
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.numbers import draw_settings, usual_choices, with_numbers
from shortlist.pipeline.simulation import KnownHits, PairScores, Simulation
from shortlist.pipeline.spec import Description, parse_description
from shortlist.records import Document, Hit, Query
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.kinds import RERANKERS
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
    assert {finder.searches for finder in simulation.finders.values()} == {1}


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


def test_steps_that_search_again_or_change_texts_are_refused(cascade: dict[str, Any]):
    description = described(cascade, again={"feedback": "rm3", "of": "both", "search": "words"})
    with pytest.raises(UserError, match="step 'again': `feedback: rm3` cannot be tried"):
        Simulation(description, Opener())
