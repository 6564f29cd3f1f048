"""Exclusion: a language model is asked for the worst candidate, again and again."""

from functools import partial
from typing import Unpack

from shortlist.math import permutation
from shortlist.rerankers.language import LanguageModelSettings, by_language_model
from shortlist.rerankers.prepared import Prepared


def exclusion(*, window: int | None = None, **model: Unpack[LanguageModelSettings]) -> Prepared:
    """Prepare a reranker by exclusion (https://arxiv.org/abs/2506.21638).

    Args:
        window: documents to show at once (None: as the prompt says).
        model: the language model and its prompt, which asks for the worst one.
    """
    return by_language_model(
        "iranker",
        ("worst",),
        lambda prompt: partial(permutation.exclusion, window=prompt.window if window is None else window),
        settings={"window": window},
        model=model,
    )
