"""Graded answers: a language model grades each candidate, alone or in a group."""

from functools import partial
from typing import Unpack

from shortlist.math import permutation
from shortlist.rerankers.language import LanguageModelSettings, by_language_model
from shortlist.rerankers.prepared import Prepared


def groupwise(
    *, window: int | None = None, repeats: int = 1, seed: int = 0, **model: Unpack[LanguageModelSettings]
) -> Prepared:
    """Prepare a reranker by grades that are given to groups (https://arxiv.org/abs/2511.11653).

    Args:
        window: documents of a group (None: as the prompt says).
        repeats: times that documents are put into groups and graded_singly; grades are averaged.
        seed: seed of the groups.
        model: the language model and its prompt, which asks for grades.
    """
    return by_language_model(
        "grouprank",
        ("grades",),
        lambda prompt: partial(
            permutation.groups, size=prompt.window if window is None else window, repeats=repeats, seed=seed
        ),
        settings={"window": window, "repeats": repeats, "seed": seed},
        model=model,
    )


def graded_singly(**model: Unpack[LanguageModelSettings]) -> Prepared:
    """Prepare a reranker by a grade for each document alone.

    Read from logits, the score is the expected grade.
    """
    return by_language_model(
        "graded", ("grade",), lambda prompt: partial(permutation.groups, size=1), settings={}, model=model
    )
