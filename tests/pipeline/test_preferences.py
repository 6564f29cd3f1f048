"""Preferences between summaries, mined with a reranker."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import DOCUMENTS, QUERIES

from shortlist.data.preferences import Preference
from shortlist.models.folder import open_folder
from shortlist.pipeline.preferences import Sampled, Samples, choose_pair, preferred, ranks_of, read_samples
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


CANDIDATES = Candidates(
    Query("q", "otter"), [Document("1", "otter x"), Document("2", "otter otter otter"), Document("3", "goat")]
)


def sampled(*texts: str) -> Sampled:
    return Sampled(CANDIDATES, 1, [*texts])


def test_a_summary_is_ranked_in_the_place_of_its_document():
    one, other = sampled("otter otter", "otter", "none"), Sampled(CANDIDATES, 2, ["otter otter otter otter"])
    assert ranks_of(Counts(), [one, sampled(), other]) == [[0, 0, 2 - 1], [], [0]]


def test_a_summary_that_the_reranker_does_not_look_at_is_behind_all_others():
    class Blind(Counts):
        def score(self, query: Query, documents: Sequence[Document]) -> Any:
            return np.full(len(documents), np.nan)

    assert ranks_of(Blind(), [sampled("otter")]) == [[2]]


def test_the_shortest_summary_is_preferred_with_which_its_document_is_still_first():
    texts = ["otter otter", "otter", "nothing of", "nothing at all of it"]
    found: Any = preferred(sampled(*texts), [0, 0, 1, 1])
    assert found == Preference(CANDIDATES.query, CANDIDATES.documents[1], "otter", "nothing at all of it")
    assert preferred(sampled(*texts), [1, 1, 1, 2]) == "no_right"
    assert preferred(sampled(*texts), [1, 1, 1, 2], top=2) == found
    assert preferred(sampled("otter"), [0]) == "equal"
    assert preferred(sampled(), []) == "unread"
    assert preferred(sampled("otter otter and more", "otter"), [0, 1]) == "no_right"  # no shorter than its document


def test_samples_are_read_as_a_pipeline_reads_summaries():
    answer = {"samples": ['"Otters  swim."', "I cannot do this", "...", "Otters swim.", "<think>x</think>\nGoats"]}
    assert read_samples(answer) == ["Otters swim.", "Goats"]


def test_what_is_sampled_of_a_document_does_not_depend_on_the_others(language_model: Path):
    folder, prompt = open_folder(str(language_model)), replace(named_prompt("summary-alone"), most_tokens=8)
    model, _ = open_language_model(prompt=prompt, reads="text", folder=folder, max_length=400)
    several = Samples(model, samples=3)  # type: ignore[arg-type]
    asked = [(QUERIES[number], [DOCUMENTS[number]]) for number in range(2)]
    answers: dict[int, Any] = {number: reply for part in several.replies(asked) for number, reply in part.items()}
    [alone] = several.replies(asked[1:])
    assert alone[0] == answers[1]
    assert all(len({*answers[number].answer["samples"]}) == 3 for number in range(2))
    assert answers[0].answer != answers[1].answer
    assert 3 <= answers[0].answer_tokens <= 24
    [other] = Samples(model, samples=3, seed=1).replies(asked[1:])  # type: ignore[arg-type]
    assert other[0].answer != answers[1].answer
    assert several.keys(asked) != Samples(model, samples=3, seed=1).keys(asked)  # type: ignore[arg-type]
