import numpy as np
import pytest

from shortlist.data.ids import DocIds
from shortlist.records import Hit

NAMES = ["a", "bé", "東京", "a b", "e", "longer-than-others"]


def doc_ids(cuts: list[int], lines: list[int] | None = None) -> DocIds:
    """NAMES in parts that end at these cuts."""
    parts = [NAMES[start:end] for start, end in zip([0, *cuts], [*cuts, len(NAMES)], strict=True)]
    texts = [np.frombuffer("".join(f"{name}\n" for name in part).encode(), dtype=np.uint8) for part in parts]
    return DocIds(texts, [len(part) for part in parts], None if lines is None else np.array(lines))


@pytest.mark.parametrize("cuts", [[], [2], [1, 4], [3, 3]])
@pytest.mark.parametrize("lines", [None, [5, 0, 3, 3, 1]])
def test_many_ids_at_once_are_the_ids_one_by_one(cuts: list[int], lines: list[int] | None):
    ids = doc_ids(cuts, lines)
    positions = [4, 0, 0, 3, 1, 2]
    assert ids.take(np.array(positions)) == [ids[i] for i in positions]
    assert ids.take(np.array([], dtype=np.int64)) == []


def test_ids_are_those_of_the_lines():
    assert doc_ids([2]).take(np.arange(6)) == list(doc_ids([2])) == NAMES


def test_hits_are_named_and_what_was_not_found_is_left_out():
    ids = DocIds([np.frombuffer(b"a\nb\nc\n", np.uint8)], [3])
    scores, positions = np.array([[3.0, 2.0], [1.0, -np.inf]]), np.array([[2, 0], [1, -1]])
    assert ids.hits(scores, positions) == [[Hit("c", 3.0), Hit("a", 2.0)], [Hit("b", 1.0)]]
    assert ids.hits(scores[:0], positions[:0]) == []
