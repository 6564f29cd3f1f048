"""Listwise reranking: a language model puts windows of candidates in order, from the last to the first."""

from functools import partial
from typing import Unpack

from shortlist.math import permutation
from shortlist.rerankers.language import LanguageModelSettings, by_language_model
from shortlist.rerankers.prepared import Prepared


def listwise(
    *, window: int | None = None, stride: int | None = None, passes: int = 1, **model: Unpack[LanguageModelSettings]
) -> Prepared:
    """Prepare a listwise reranker (https://arxiv.org/abs/2304.09542).

    Args:
        window: documents to show at once (None: as the prompt says).
        stride: documents from one window to the next (None: as the prompt says).
        passes: times that the windows go from the end to the beginning.
        model: the language model and its prompt, which asks for an order.
    """
    return by_language_model(
        "rank-zephyr",
        ("order",),
        lambda prompt: partial(
            permutation.listwise, window=window or prompt.window, stride=stride or prompt.stride, passes=passes
        ),
        settings={"window": window, "stride": stride, "passes": passes},
        model=model,
    )
