"""Pairwise reranking: a language model is asked which of two candidates is better."""

from collections.abc import Callable
from functools import partial
from typing import Literal, Unpack

from shortlist.errors import UserError
from shortlist.math import permutation
from shortlist.math.permutation import Plan
from shortlist.rerankers.language import LanguageModelSettings, by_language_model
from shortlist.rerankers.prepared import Prepared

PairSort = Literal["heap", "bubble", "sliding", "all"]


OF_SORTS: dict[PairSort, dict[str, int]] = {
    "heap": {"top": 10},
    "bubble": {"top": 10},
    "sliding": {"passes": 10},
    "all": {},
}
"""The settings of each sort, at their defaults."""


def pairwise(
    *,
    sort: PairSort = "heap",
    top: int | None = None,
    passes: int | None = None,
    **model: Unpack[LanguageModelSettings],
) -> Prepared:
    """Prepare a pairwise reranker (https://arxiv.org/abs/2306.17563).

    Args:
        sort: which pairs are asked for: those of a heapsort or a bubblesort, of neighbours from the end to the
            beginning, or all.
        top: documents that `heap` and `bubble` place (None: 10); the others keep their order.
        passes: times that `sliding` compares neighbours from the end to the beginning (None: 10).
        model: the language model and its prompt, which asks for the better of two.

    Raises:
        UserError: as for `by_language_model`, or the sort has no such setting.
    """
    given = {name: value for name, value in (("top", top), ("passes", passes)) if value is not None}
    for name in given.keys() - OF_SORTS[sort].keys():
        sorts = " and ".join(other for other, settings in OF_SORTS.items() if name in settings)
        raise UserError(f"--{name} is for --sort {sorts}, and changes nothing with {sort}; leave it out.")
    used = OF_SORTS[sort] | given
    plans: dict[PairSort, Callable[..., Plan]] = {
        "heap": permutation.pair_heapsort,
        "bubble": permutation.pair_bubblesort,
        "sliding": permutation.sliding_pairs,
        "all": permutation.all_pairs,
    }
    plan = partial(plans[sort], **{"k" if name == "top" else name: value for name, value in used.items()})
    return by_language_model("prp", ("pair",), lambda prompt: plan, settings={"sort": sort} | used, model=model)
