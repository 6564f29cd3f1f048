"""Judgements by aspect, and the measures of variety that need them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shortlist.data.formats import is_integer, split_columns
from shortlist.data.lines import parse_lines
from shortlist.data.runs import RunColumns
from shortlist.errors import UserError
from shortlist.evaluation.measure import ByQuery
from shortlist.math.aspects import ASPECT_MEASURES, NEED_NO_CUTOFF, WITHOUT_ALPHA
from shortlist.records import Qrels

Aspects = dict[str, dict[str, dict[str, int]]]
"""query_id -> doc_id -> aspect -> grade."""


def read_aspects(path: Path) -> Aspects:
    """Read lines `query aspect document relevance`, as TREC's diversity tasks have them.

    Raises:
        UserError: a malformed line, the same document twice for an aspect, no aspect besides 0.
    """
    found: Aspects = {}
    for number, _, columns in parse_lines(path, split_columns):
        if len(columns) != 4 or not is_integer(columns[3]):
            raise UserError(f"{path}:{number}: expected 4 columns: query aspect document relevance, a whole number.")
        query_id, aspect, doc_id, grade = columns
        grades = found.setdefault(query_id, {}).setdefault(doc_id, {})
        if grades.setdefault(aspect, int(grade)) != int(grade):
            raise UserError(f"{path}:{number}: document {doc_id!r} is judged twice for aspect {aspect!r}; keep one.")
    if {aspect for docs in found.values() for grades in docs.values() for aspect in grades} <= {"0"}:
        raise UserError(f"{path}: its second column names no aspect; expected query aspect document relevance.")
    return found


def without_aspects(aspects: Aspects) -> Qrels:
    """Return the highest grade of each document over all aspects."""
    return {query: {doc: max(grades.values()) for doc, grades in docs.items()} for query, docs in aspects.items()}


def is_of_aspects(name: str) -> bool:
    """Whether a measure needs judgements by aspect."""
    return name.strip().partition("@")[0].partition("(")[0] in ASPECT_MEASURES


def by_aspect(
    run: RunColumns, aspects: Aspects, measures: Sequence[str], *, relevance_level: int = 1, complete: bool = False
) -> dict[str, ByQuery]:
    """Measure how many aspects of each query a run covers.

    Args:
        measures: names such as alpha_nDCG@10, ERR_IA@10, StRecall@10, AP_IA or NRBP.
        relevance_level: lowest grade that counts as relevant.
        complete: include judged queries that the run lacks, at 0.

    Returns:
        name of the measure -> query_id -> value, in the order of the judgements.

    Raises:
        UserError: a measure without a cutoff, or with an unknown parameter.
    """
    parsed = {name: _parameters(name) for name in measures}
    numbers = {query_id: number for number, query_id in enumerate(run.query_ids)}
    values: dict[str, ByQuery] = {name: {} for name in measures}
    cutoffs = [parameters["cutoff"] for _, parameters in parsed.values()]
    deepest = None if None in cutoffs else max(cutoffs)
    for query_id, judged in aspects.items():
        if query_id not in numbers and not complete:
            continue
        names = {aspect: place for place, aspect in enumerate({a for grades in judged.values() for a in grades})}
        hits = run.hits(numbers[query_id])[:deepest] if query_id in numbers else []
        shown = [judged.get(hit.doc_id, {}) for hit in hits]
        about, known = (_about(grades, names, relevance_level) for grades in (shown, list(judged.values())))
        for name, (formula, parameters) in parsed.items():
            values[name][query_id] = ASPECT_MEASURES[formula](about, known, **parameters)
    return values


def _parameters(name: str) -> tuple[str, dict]:
    head, _, cutoff = name.strip().partition("@")
    formula, _, alpha = head.partition("(")
    settings: dict = {}
    if alpha:
        word, _, value = alpha.rstrip(")").partition("=")
        try:
            settings["alpha"] = float(value)
        except ValueError:
            word = ""
        if word.strip() != "alpha" or formula in WITHOUT_ALPHA or not 0 <= settings["alpha"] <= 1:
            raise UserError(f"measure {name!r}: expected a form such as {formula}@10 or alpha_nDCG(alpha=0.5)@10.")
    if formula in NEED_NO_CUTOFF and "@" not in name:
        return formula, settings | {"cutoff": None}
    if not is_integer(cutoff) or int(cutoff) < 1:
        raise UserError(f"measure {name!r}: has no cutoff; expected a form such as {formula}@10.")
    return formula, settings | {"cutoff": int(cutoff)}


def _about(documents: Sequence[Mapping[str, int]], names: Mapping[str, int], level: int) -> np.ndarray:
    about = np.zeros((len(documents), len(names)), dtype=bool)
    for place, grades in enumerate(documents):
        about[place, [names[aspect] for aspect, grade in grades.items() if grade >= level]] = True
    return about
