"""Plans that put documents in order by asking about a few at a time.

A plan is a generator without a model: it yields questions, is sent an answer to each, and returns scores. Whoever runs
it may answer the questions of one yield in any order or together, and the questions of many plans too.

What an answer does not say changes nothing:

- A document scored NaN comes behind those of the same question that have a score.
- Documents with equal scores, or without any, keep their order: the list's in a plan that changes a list step by step
  (windows, bubblesorts, sliding pairs), the first stage's in all others.
- A pair is asked in both orders, and is undecided unless both answers prefer the same document.

So a plan that is told nothing leaves the first stage's order as it is.
"""

from collections.abc import Callable

from shortlist.math.permutation.answers import in_both_orders
from shortlist.math.permutation.heaps import pair_heapsort, set_heapsort, set_insertion
from shortlist.math.permutation.lists import listwise, pair_bubblesort, set_bubblesort, sliding_pairs
from shortlist.math.permutation.points import (
    Round,
    all_at_once,
    all_pairs,
    exclusion,
    groups,
    halving_rounds,
    tournaments,
)
from shortlist.math.permutation.running import (
    Count,
    Plan,
    PlanPart,
    Question,
    Verdict,
    count_questions,
    run_plan,
    run_plans,
    upside_down,
)

__all__ = [
    "PLANS",
    "Count",
    "Plan",
    "PlanPart",
    "Question",
    "Round",
    "Verdict",
    "all_at_once",
    "all_pairs",
    "count_questions",
    "exclusion",
    "groups",
    "halving_rounds",
    "in_both_orders",
    "listwise",
    "pair_bubblesort",
    "pair_heapsort",
    "run_plan",
    "run_plans",
    "set_bubblesort",
    "set_heapsort",
    "set_insertion",
    "sliding_pairs",
    "tournaments",
    "upside_down",
]

PLANS: dict[str, Callable[..., Plan]] = {
    "listwise": listwise,
    "all_pairs": all_pairs,
    "pair_heapsort": pair_heapsort,
    "pair_bubblesort": pair_bubblesort,
    "sliding_pairs": sliding_pairs,
    "set_heapsort": set_heapsort,
    "set_bubblesort": set_bubblesort,
    "set_insertion": set_insertion,
    "tournaments": tournaments,
    "exclusion": exclusion,
    "groups": groups,
    "all_at_once": all_at_once,
}
"""Plans by name; each takes the number of documents, and settings by keyword."""
