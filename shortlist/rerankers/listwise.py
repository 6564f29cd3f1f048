"""Listwise reranking: a language model puts windows of candidates in order, the last first."""

from functools import partial
from typing import Unpack

from shortlist.math import permutation
from shortlist.rerankers.language import LanguageModelSettings, Orders, by_language_model, in_orders
from shortlist.rerankers.prepared import Prepared
from shortlist.text.prompts import Prompt


def listwise(
    *,
    window: int | None = None,
    stride: int | None = None,
    passes: int = 1,
    orders: Orders = 1,
    **model: Unpack[LanguageModelSettings],
) -> Prepared:
    """Prepare a listwise reranker (https://arxiv.org/abs/2304.09542).

    Args:
        window: documents to show at once (None: as the prompt says).
        stride: documents from one window to the next (None: as the prompt says, and at most half of a window).
        passes: times that the windows go from the end to the beginning.
        orders: in how many orders a window is shown; after two, the mean of both answers counts.
        model: the language model and its prompt, which asks for an order.
    """
    return by_language_model(
        "rank-zephyr",
        ("order",),
        lambda prompt: in_orders(
            partial(permutation.listwise, **_windows(prompt, window, stride), passes=passes), orders
        ),
        settings={
            "window": window,
            "stride": stride,
            "passes": passes,
            "orders": None if orders == 1 else orders,
        },
        model=model,
    )


def _windows(prompt: Prompt, window: int | None, stride: int | None) -> dict[str, int]:
    """Choose windows that overlap: from one that does not, no document rises into the next."""
    window = prompt.window if window is None else window
    return {"window": window, "stride": min(prompt.stride, max(1, window // 2)) if stride is None else stride}
