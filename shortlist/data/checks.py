"""Checks shared by all collections: ids, splits and judgements must be there."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from shortlist.data.lines import OnBad
from shortlist.errors import UserError, unknown
from shortlist.records import Qrels, Query

T = TypeVar("T")

ALL = "all"
"""Name of the split that holds every query, in a collection without judgements to split them by."""


def pick(name: str, kind: str, wanted: Iterable[str], known: Mapping[str, T]) -> dict[str, T]:
    """Pick the wanted entries of `known`, in the order asked.

    Raises:
        UserError: `known` lacks one of them.
    """
    wanted = list(wanted)
    if missing := [key for key in wanted if key not in known]:
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"{name}: has no {kind} {shown} ({len(missing):,} of {len(wanted):,} asked for); "
            "check that the run, groups or judgements were made from this collection; search, mine, train and rerank "
            "leave such out with --skip-missing."
        )
    return {key: known[key] for key in wanted}


def judged_queries(name: str, queries: list[Query], qrels: Qrels, on_bad: OnBad | None = None) -> list[Query]:
    """Return the queries that have judgements, in their own order.

    Args:
        on_bad: called with a message for each judged query that is missing from `queries`.

    Raises:
        UserError: a judged query is missing, without `on_bad`.
    """
    known = {query.query_id: query for query in queries}
    if on_bad is None:
        pick(name, "query", qrels, known)
    else:
        for query_id in qrels:
            if query_id not in known:
                on_bad(f"{name}: query {query_id!r} is judged, but has no text that can be used.")
    return [query for query in queries if query.query_id in qrels]


def check_split(name: str, split: str, known: Iterable[str]) -> None:
    """Refuse a split that the collection does not know."""
    if split not in known:
        raise unknown(f"split of {name}", split, known)


class NoJudgementsError(UserError):
    """A split has no judgements."""


def no_qrels(name: str, split: str) -> NoJudgementsError:
    """Return the error for a split without judgements."""
    return NoJudgementsError(f"{name}: split {split!r} has no judgements (qrels); add them or choose another split.")


def split_of(part: str) -> str:
    """Return SPLIT from a part named `qrels/SPLIT`."""
    kind, _, split = part.partition("/")
    if kind != "qrels" or not split:
        raise ValueError(f"a collection has the parts corpus, queries and qrels/SPLIT, not {part!r}")
    return split
