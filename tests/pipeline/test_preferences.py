"""Preferences between summaries, mined with a reranker."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import DOCUMENTS, QUERIES

from shortlist.models.folder import open_folder
from shortlist.pipeline.preferences import (
    Preference,
    choose_pair,
    mine_preferences,
    sampled_by,
    write_preferences,
)
from shortlist.records import Document, Query
from shortlist.rerankers import Candidates
from shortlist.rerankers.opening import open_language_model
from shortlist.text.prompts import named_prompt


class Counts:
    """Scores a document by how often it says the query."""

    def score(self, query: Query, documents: Sequence[Document]) -> Any:
        return np.array([document.text.split().count(query.text) for document in documents], dtype=float)


@pytest.mark.parametrize(
    ("lengths", "is_right", "pair"),
    [
        ([5, 3, 9, 7], [True, True, False, False], (1, 2)),
        ([5, 3, 9], [True, True, True], (1, 2)),
        ([5, 3, 9], [False, False, False], None),
        ([4, 4], [True, True], None),
        ([9, 2], [True, False], (0, 1)),
    ],
)
def test_the_shortest_right_one_is_chosen_and_the_longest_wrong_one_rejected(
    lengths: list[int], is_right: list[bool], pair: tuple[int, int] | None
):
    assert choose_pair(lengths, is_right) == pair


def test_a_summary_is_right_if_its_document_is_still_ranked_first(tmp_path: Path):
    documents = [Document("1", "otter x"), Document("2", "otter otter otter"), Document("3", "goat")]
    written = ["otter otter", "otter", "otter otter and more", "nothing at all of it", "", "otter"]
    lists = [(Candidates(Query("q", "otter"), documents), 1), (Candidates(Query("r", "lamp"), documents), 2)]
    asked: list[Any] = []

    def write(questions: Any) -> list[list[str]]:
        asked.extend(questions)
        return [written]

    found = list(mine_preferences(lists[:1], write, Counts()))
    assert found == [Preference(lists[0][0].query, documents[1], "otter", "nothing at all of it")]
    assert asked == [(lists[0][0].query, [documents[1]])]
    assert write_preferences(tmp_path / "pairs.jsonl", found) == 1
    line = json.loads((tmp_path / "pairs.jsonl").read_text())
    assert (line["doc_id"], line["chosen"], line["rejected"]) == ("2", "otter", "nothing at all of it")


def test_summaries_are_sampled_from_a_language_model(language_model: Path):
    folder, prompt = open_folder(str(language_model)), replace(named_prompt("summary-alone"), most_tokens=8)
    model, _ = open_language_model(prompt=prompt, reads="text", folder=folder, max_length=400)
    [samples, others] = sampled_by(model, samples=3)([(QUERIES[0], [DOCUMENTS[0]]), (QUERIES[1], [DOCUMENTS[1]])])  # type: ignore[arg-type]
    assert len(samples) == len(others) == 3
    assert len({*samples}) > 1
