from pathlib import Path

import numpy as np
import pytest

from shortlist.index.postings import PostingsSorter

DOCUMENTS = [[0, 1, 0], [], [2, 1, 0, 0, 0], [1], [], [3, 0]]
POSTINGS = [(0, 0, 2), (0, 2, 3), (0, 5, 1), (1, 0, 1), (1, 2, 1), (1, 3, 1), (2, 2, 1), (3, 5, 1)]
"""Word, document, count."""


def sort(folder: Path, documents: list[list[int]]) -> PostingsSorter:
    sorter = PostingsSorter(folder)
    for words in documents:
        sorter.add(words)
    return sorter


@pytest.mark.parametrize("block", [1, 2, 3, 4, 100])
def test_postings_come_by_word_then_document_whatever_the_block(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shortlist.index.postings.BLOCK_TOKENS", block)
    sorter = sort(tmp_path, DOCUMENTS)
    assert sorter.frequencies().tolist() == [3, 3, 1, 1]
    assert sorter.lengths.tolist() == [3, 0, 5, 1, 0, 2]
    parts = list(sorter.merged())
    assert [row for part in parts for row in zip(*(column.tolist() for column in part), strict=True)] == POSTINGS


def test_a_part_is_no_larger_than_a_block_even_if_a_word_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shortlist.index.postings.BLOCK_TOKENS", 4)
    parts = list(sort(tmp_path, [[0, 1, 2, 3], [0, 1], *[[0]] * 5]).merged())
    assert [part.words.tolist() for part in parts] == [[0], [0] * 3, [0] * 3, [1, 1, 2, 3]]
    assert [part.documents.tolist() for part in parts] == [[0], [1, 2, 3], [4, 5, 6], [0, 1, 0, 0]]


def test_blocks_do_not_change_what_many_documents_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 50, rng.integers(0, 9)).tolist() for _ in range(500)]

    def columns(folder: Path) -> list[np.ndarray]:
        folder.mkdir()
        return [np.concatenate(column) for column in zip(*sort(folder, documents).merged(), strict=True)]

    whole = columns(tmp_path / "whole")
    monkeypatch.setattr("shortlist.index.postings.BLOCK_TOKENS", 64)
    pieces = columns(tmp_path / "pieces")
    assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))
    assert len(list((tmp_path / "pieces").glob("*.keys"))) > 20


@pytest.mark.parametrize("block", [1, 3, 100])
def test_words_that_are_weighed_keep_their_weights(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shortlist.index.postings.BLOCK_TOKENS", block)
    sorter = PostingsSorter(tmp_path)
    for words, weights in (([2, 0], [0.5, 1.25]), ([], []), ([0, 1, 0], [0.125, 2.0, 0.25])):
        sorter.add(words, weights)
    parts = list(sorter.merged())
    rows = [row for part in parts for row in zip(*(column.tolist() for column in part), strict=True)]
    assert rows == [(0, 0, 1.25), (0, 2, 0.375), (1, 2, 2.0), (2, 0, 0.5)]
    assert sorter.frequencies().tolist() == [2, 1, 1]
