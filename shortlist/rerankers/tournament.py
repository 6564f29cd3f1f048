"""Tournaments: a language model chooses the best of groups, round after round."""

from functools import partial
from typing import Unpack

from shortlist.math import permutation
from shortlist.rerankers.language import LanguageModelSettings, by_language_model
from shortlist.rerankers.prepared import Prepared


def tournament(*, repeats: int = 2, seed: int = 0, **model: Unpack[LanguageModelSettings]) -> Prepared:
    """Prepare a reranker by tournaments (https://arxiv.org/abs/2406.11678).

    Args:
        repeats: tournaments, whose points are added up.
        seed: seed of the order in which documents are shown.
        model: the language model and its prompt, which asks for the best few or for an order.
    """
    return by_language_model(
        "tourrank",
        ("top", "order"),
        lambda prompt: partial(permutation.tournaments, repeats=repeats, seed=seed),
        settings={"repeats": repeats, "seed": seed},
        model=model,
    )
