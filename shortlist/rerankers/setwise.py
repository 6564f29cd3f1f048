"""Setwise reranking: a language model is asked for the best of a few candidates."""

from functools import partial
from typing import Literal, Unpack

from shortlist.math import permutation
from shortlist.rerankers.language import LanguageModelSettings, Orders, by_language_model, in_orders
from shortlist.rerankers.prepared import Prepared

SetSort = Literal["heap", "bubble", "insertion"]


def setwise(
    *,
    sort: SetSort = "heap",
    top: int = 10,
    window: int | None = None,
    orders: Orders = 1,
    **model: Unpack[LanguageModelSettings],
) -> Prepared:
    """Prepare a setwise reranker (https://arxiv.org/abs/2310.09497).

    Args:
        sort: which documents are shown together: those of a heapsort, of a bubblesort, or of an insertion that takes
            the first stage's order for a good one (https://arxiv.org/abs/2504.10509).
        top: documents that are placed; the others keep their order.
        window: documents to show at once (None: as the prompt says).
        orders: in how many orders a set is shown; after two, the mean of both answers counts.
        model: the language model and its prompt, which asks for the best one.
    """
    plans = {
        "heap": permutation.set_heapsort,
        "bubble": permutation.set_bubblesort,
        "insertion": permutation.set_insertion,
    }
    return by_language_model(
        "setwise",
        ("best",),
        lambda prompt: in_orders(
            partial(plans[sort], k=top, children=(prompt.window if window is None else window) - 1), orders
        ),
        settings={"sort": sort, "top": top, "window": window, "orders": None if orders == 1 else orders},
        model=model,
    )
