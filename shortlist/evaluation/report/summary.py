"""First sentences of a report: which run is best, by how much, at what cost."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CHANCE = 0.05
"""Least p-value of a difference that may be chance."""


def in_short(results: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]]) -> str:
    """Describe the results of `evaluate` in two sentences.

    Args:
        results: what `evaluate` wrote.
        manifests: the manifest of `evaluate`, and those of all other outputs.
    """
    return f"{_winner(results)} {_measured(results, manifests)}"


def _winner(results: Mapping[str, Any]) -> str:
    rows, measure = results["rows"], results["measures"][0]
    first, best = rows[0], max(rows, key=lambda row: row[measure])
    if len(rows) == 1:
        return f"{first['name']} has {measure} {first[measure]:.4f} over {first['queries']:,} queries{_time(first)}."
    if best is first:
        second = max(rows[1:], key=lambda row: row[measure])
        gain = first[measure] - second[measure]
        found = f"{first['name']} is the best of {len(rows)} by {measure}, {first[measure]:.4f}: {gain:.4f} more than "
        return f"{found}{second['name']}{_chance(second, measure)}{_times(first, second)}."
    gain = best[measure] - first[measure]
    found = f"{best['name']} is the best of {len(rows)} by {measure}, {best[measure]:.4f}: {gain:.4f} more than "
    return f"{found}{first['name']}{_chance(best, measure)}{_times(best, first)}."


def _chance(row: Mapping[str, Any], measure: str) -> str:
    p = row.get("difference", {}).get(measure, {}).get("t_test_holm")
    if p is None:
        return ""
    return f" (p {probability(p)}{', which may be chance' if p >= CHANCE else ''})"


def _times(row: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if "ms_per_query" not in row or "ms_per_query" not in other:
        return ""
    return f", at {row['ms_per_query']:.1f} ms a query against {other['ms_per_query']:.1f} ms"


def _time(row: Mapping[str, Any]) -> str:
    return f", at {row['ms_per_query']:.1f} ms a query" if "ms_per_query" in row else ""


def _measured(results: Mapping[str, Any], manifests: Sequence[Mapping[str, Any]]) -> str:
    config, day = manifests[0]["config"], (manifests[0].get("finished") or "")[:10]
    where = config.get("collection") or config.get("qrels") or "given judgements"
    split = f", split {config.get('split', 'test')}" if config.get("collection") else ""
    queries = f"{results['rows'][0]['queries']:,} queries"
    models = _distinct(str(manifest["config"].get("model") or "") for manifest in manifests[1:])
    read = f", with {', '.join(models)}" if models else ""
    return f"Measured {f'on {day} ' if day else ''}with {queries} of {where}{split}{read}."


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name))


def probability(p: float) -> str:
    """Format a p-value; a very small one is only bounded."""
    return f"= {p:.4f}" if p >= 0.0001 else "< 0.0001"
