import numpy as np
import pytest

from shortlist.index.segmented import SegmentIndex, best_of_each
from shortlist.records import Hit


class Told:
    """An index over segments that are given with their scores, the same for every query; knows what it was asked."""

    def __init__(self, hits: list[Hit]) -> None:
        self.hits, self.asked = sorted(hits, key=lambda hit: -hit.score), []

    def find(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        self.asked.append((len(queries), k))
        return [self.hits[:k] for _ in queries]


QUERIES = np.ones((2, 3), dtype=np.float32)


def test_a_document_scores_as_its_best_segment_and_comes_once():
    hits = [Hit("a#0", 1.0), Hit("a#1", 5.0), Hit("b#0", 4.0), Hit("c#7#0", 3.0), Hit("b#1", 2.0)]
    index = SegmentIndex(Told(hits))
    assert index.find(QUERIES, 2) == [[Hit("a", 5.0), Hit("b", 4.0)]] * 2
    assert index.find(QUERIES, 9) == [[Hit("a", 5.0), Hit("b", 4.0), Hit("c#7", 3.0)]] * 2
    assert best_of_each([]) == []


@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_it_asks_for_more_until_there_are_k_documents(k: int):
    rng = np.random.default_rng(0)
    long = [Hit(f"long#{i}", 100.0 + i) for i in range(50)]  # would fill any list of segments
    others = [Hit(f"d{i % 20}#{i}", float(rng.random())) for i in range(200)]
    told = Told(long + others)
    found = SegmentIndex(told).find(QUERIES, k)
    best: dict[str, float] = {}
    for hit in long + others:
        name = hit.doc_id.partition("#")[0]
        best[name] = max(best.get(name, 0.0), hit.score)
    expected = sorted(best.items(), key=lambda pair: -pair[1])[:k]
    assert [(hit.doc_id, hit.score) for hit in found[0]] == expected
    assert len(told.asked) > 1 or k == 1


def test_no_queries_find_nothing():
    assert SegmentIndex(Told([])).find(QUERIES[:0], 3) == []
    assert SegmentIndex(Told([])).find(QUERIES, 3) == [[], []]
