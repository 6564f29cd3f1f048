"""Losses of a training run as `--loss` names them, with their weights and parameters."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from shortlist.errors import UserError, unknown
from shortlist.math.losses import LOSSES, NEEDS, WITHOUT_POSITIVES
from shortlist.math.ranking import Ranking
from shortlist.records import Group

TEMPERATURE = "temperature"
"""Name of the parameter that divides a loss's scores; `--temperature` sets it in all losses that have it."""


class Term(NamedTuple):
    """A weighted loss, one of those that are added up."""

    name: str
    weight: float
    parameters: Mapping[str, Any]

    def __call__(self, ranking: Ranking) -> Float[Tensor, ""]:
        """Compute the weighted loss of a batch."""
        return self.weight * LOSSES[self.name](ranking, **self.parameters)


def total_loss(terms: Sequence[Term], ranking: Ranking) -> Float[Tensor, ""]:
    """Add up the losses of all terms for a batch."""
    first, *others = (term(ranking) for term in terms)
    return sum(others, start=first)


def parse_losses(words: Sequence[str], *, temperature: float | None) -> list[Term]:
    """Parse losses from the command line: NAME, NAME=WEIGHT, NAME.PARAMETER=VALUE.

    A loss without a weight has weight 1. Setting a parameter of a loss is enough to include it.

    Args:
        temperature: temperature of all losses that have one and whose temperature is not set in the words.

    Raises:
        UserError: an unknown name, a value that does not fit, a repeated setting, or no loss at all.
    """
    weights: dict[str, float] = {}
    parameters: dict[str, dict[str, Any]] = {}
    for word in words:
        left, equals, value = word.partition("=")
        name, dot, key = left.partition(".")
        if name not in LOSSES:
            raise UserError(f"--loss {word}: {unknown('loss', name, LOSSES)}")
        given = parameters.setdefault(name, {})
        if (dot and key in given) or (not dot and name in weights):
            raise UserError(f"--loss {word}: {left} is said twice; keep one.")
        if dot:
            given[key] = _parameter(word, name, key, value)
        else:
            weights[name] = _weight(word, value) if equals else 1.0
    if not parameters:
        raise UserError(f"--loss names no loss; known: {', '.join(sorted(LOSSES))}.")
    return [_term(name, weights.get(name, 1.0), given, temperature) for name, given in parameters.items()]


def check_needs(terms: Sequence[Term], groups: Sequence[Group], *, where: str) -> None:
    """Refuse losses that need what the groups do not have.

    Raises:
        UserError: a loss lacks what it needs; the message says how to get it.
    """
    for term in terms:
        needs = NEEDS.get(term.name, ())
        if "teacher" in needs and (untaught := sum(not group.scores for group in groups)):
            raise UserError(
                f"--loss {term.name}: {untaught:,} of {len(groups):,} groups of {where} have no teacher's scores; mine "
                f"them with --teacher, or leave {term.name} out."
            )
        if "grades" in needs and not any(group.grades for group in groups):
            raise UserError(
                f"--loss {term.name}: none of the {len(groups):,} groups of {where} has grades other than relevant or "
                f"not; use graded judgements, or leave {term.name} out."
            )


def needs_positive(terms: Sequence[Term]) -> bool:
    """Whether a loss learns from the positive, and not only from a list of documents."""
    return any(term.name not in WITHOUT_POSITIVES for term in terms)


def check_positives(terms: Sequence[Term], groups: Sequence[Group], *, where: str) -> None:
    """Refuse losses that need a positive where groups have none.

    Raises:
        UserError: a loss needs a positive; the message names it.
    """
    if not groups[0].positives and needs_positive(terms):
        name = next(term.name for term in terms if term.name not in WITHOUT_POSITIVES)
        raise UserError(
            f"--loss {name}: learns from a positive, and the lists of {where} have none; give that source another loss "
            f"({', '.join(sorted(WITHOUT_POSITIVES))}), or groups in place of the run."
        )


def check_refresh(terms: Sequence[Term], *, where: str) -> None:
    """Refuse losses that follow a teacher where negatives are renewed, which no teacher has seen.

    Raises:
        UserError: a loss needs a teacher.
    """
    if taught := [term.name for term in terms if "teacher" in NEEDS.get(term.name, ())]:
        raise UserError(
            f"--refresh-steps: {where} would get negatives that no teacher has scored, and --loss {taught[0]} follows "
            "one; leave out one of the two."
        )


def _term(name: str, weight: float, given: Mapping[str, Any], temperature: float | None) -> Term:
    defaults = _defaults(name)
    common = {TEMPERATURE: temperature} if TEMPERATURE in defaults and temperature is not None else {}
    return Term(name, weight, {**defaults, **common, **given})


def _defaults(name: str) -> dict[str, Any]:
    """Read a loss's parameters and their defaults from its signature."""
    found = inspect.signature(LOSSES[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in found if parameter.kind is parameter.KEYWORD_ONLY}


def _parameter(word: str, name: str, key: str, value: str) -> Any:
    defaults = _defaults(name)
    if key not in defaults:
        raise UserError(f"--loss {word}: {unknown(f'parameter of {name}', key, defaults)}")
    try:
        parsed = _like(defaults[key], value)
    except (ValueError, KeyError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(
            type(defaults[key]), "such a value"
        )
        raise UserError(f"--loss {word}: {value!r} is not {kind}; {key} is {defaults[key]} by default.") from None
    if key.endswith(TEMPERATURE) and not parsed > 0:
        raise UserError(f"--loss {word}: expected more than 0.")
    return parsed


def _like(default: Any, value: str) -> Any:
    """Parse a value as the type of the default.

    The values of a tuple are separated by commas.

    Raises:
        ValueError, KeyError: the value does not fit the type.
    """
    if isinstance(default, tuple):
        return tuple(_like(default[0], part) for part in value.split(","))
    if isinstance(default, bool):
        return {"true": True, "false": False}[value]
    parsed = type(default)(value)
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise ValueError
    return parsed


def _weight(word: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"--loss {word}: the weight is {value!r}; expected a number above 0.")
    return weight
