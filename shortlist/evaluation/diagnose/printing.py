"""The printed form of `shortlist diagnose`."""

import sys
from collections.abc import Mapping
from typing import Any

from shortlist.math.outcomes import OUTCOMES


def print_diagnosis(found: Mapping[str, Any]) -> None:
    """Print what `diagnose` returns."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(_outcome_table(found))
    duplicates, unjudged, queries = found["duplicates"], found["unjudged"], found["queries"]
    console.print(
        f"duplicates among the first {found['depth']}: {duplicates['duplicates']:,} in "
        f"{duplicates['queries_with_duplicates']} of {duplicates['queries_read']} queries"
    )
    for example in duplicates["examples"]:
        console.print(f"  query {example['query_id']}: {example['doc_id']} is {example['same_as']} again", markup=False)
    console.print(
        f"not judged in the top {found['k']}: {unjudged['unjudged']:,} of {unjudged['shown']:,} "
        f"({unjudged['share']:.1%}), {unjudged['above_a_relevant_one']:,} of them above a relevant document:"
    )
    for example in unjudged["examples"]:
        console.print(f"  {example['query']} ({example['query_id']})", markup=False)
        console.print(f"    rank {example['rank']}: {example['doc_id']} {example['text']}", markup=False)
    _print_queries(console, queries)
    _print_hardest(console, found["difficulty"])


def _outcome_table(found: Mapping[str, Any]) -> Any:
    from rich.table import Table

    fates = found["fates"]
    kinds = {kind: by for kind, by in fates.items() if isinstance(by, dict)}
    known = [
        outcome for outcome in OUTCOMES if any(outcome in counts for by in kinds.values() for counts in by.values())
    ]
    table = Table(
        title=f"{fates['relevant']:,} relevant documents of {found['num_queries']:,} queries; the top is {found['k']}, "
        f"the depth {found['depth']}; lengths in {found['unit']}",
        title_justify="left",
    )
    table.add_column("")
    for heading in ["documents", *known]:
        table.add_column(heading, justify="right")
    for kind, by in kinds.items():
        for name, counts in by.items():
            total = sum(counts.values())
            label = name if kind == "all" else f"{kind} {name}"
            table.add_row(label, f"{total:,}", *(f"{counts.get(outcome, 0) / total:.1%}" for outcome in known))
    if fates["not_in_the_collection"]:
        table.caption = (
            f"{fates['not_in_the_collection']} of them are not in the collection and stand in the first row only"
        )
    return table


def _print_queries(console: Any, queries: Mapping[str, Any]) -> None:
    if "after" not in queries:
        console.print(f"{queries['measure']} {queries['before']:.4f}; the lowest:")
    else:
        console.print(
            f"{queries['measure']} {queries['before']:.4f} before, {queries['after']:.4f} after the reranker; "
            f"{queries['num_won']} queries won, {queries['num_lost']} lost"
        )
    for kind in ("won", "lost", "lowest"):
        for query in queries.get(kind, []):
            console.print(f"{kind}: {query['query']} ({query['query_id']})", markup=False)
            for side in ("before", "after"):
                if side in query:
                    at = query[side]
                    place = (
                        f"first relevant at {at['first_relevant']}" if at["first_relevant"] else "none relevant found"
                    )
                    console.print(
                        f"  {side}: {at['value']:.4f}, {place}; first {at['first']['doc_id']} {at['first']['text']}",
                        markup=False,
                    )


def _print_hardest(console: Any, difficulty: Mapping[str, Any]) -> None:
    measure = difficulty["measure"]
    tau = "" if difficulty["tau"] is None else f"; tau with {measure}: {difficulty['tau']:.2f}"
    console.print(f"hard by the scores alone ({difficulty['predictor']}{tau}):")
    for query in difficulty["hardest"]:
        value = "not judged" if query["value"] is None else f"{measure} {query['value']:.4f}"
        console.print(f"  {query['query']} ({query['query_id']}): {query['spread']:.4f}, {value}", markup=False)
