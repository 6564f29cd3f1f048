"""Prompts about groups as they are written for training, and what documents are worth there."""

from typing import NamedTuple

from shortlist.models.language import Wanted
from shortlist.train.examples import Batch


class Written(NamedTuple):
    """A prompt about a group's documents, with its answer if that is learned."""

    token_ids: list[int]
    asked: Wanted
    shown: list[int]
    """Which of the group's documents stands at each place."""


def worth_of(batch: Batch, number: int) -> list[float]:
    """Return numbers by which the documents of a group belong in descending order.

    A number is the teacher's score, or without a teacher the grade, or without grades whether it is relevant.
    """
    for known in (batch.scores, batch.grades):
        if known and known[number]:
            return [float(worth) for worth in known[number]]
    return [float(document.doc_id in batch.positives[number]) for document in batch.documents[number]]
