"""Pairwise reranking: a language model is asked which of two candidates is better."""

from functools import partial
from typing import Literal, Unpack

from shortlist.math import permutation
from shortlist.rerankers.language import LanguageModelSettings, by_language_model
from shortlist.rerankers.prepared import Prepared

PairSort = Literal["heap", "bubble", "sliding", "all"]


def pairwise(
    *, sort: PairSort = "heap", top: int = 10, passes: int = 10, **model: Unpack[LanguageModelSettings]
) -> Prepared:
    """Prepare a pairwise reranker (https://arxiv.org/abs/2306.17563).

    Args:
        sort: which pairs are asked for: those of a heapsort or a bubblesort, of neighbours from the end to the
            beginning, or all.
        top: documents that the sorts place; the others keep their order.
        passes: times that neighbours are compared from the end to the beginning, for `sliding`.
        model: the language model and its prompt, which asks for the better of two.
    """
    plans = {
        "heap": partial(permutation.pair_heapsort, k=top),
        "bubble": partial(permutation.pair_bubblesort, k=top),
        "sliding": partial(permutation.sliding_pairs, passes=passes),
        "all": permutation.all_pairs,
    }
    used = {"heap": {"top": top}, "bubble": {"top": top}, "sliding": {"passes": passes}, "all": {}}[sort]
    return by_language_model("prp", ("pair",), lambda prompt: plans[sort], settings={"sort": sort} | used, model=model)
