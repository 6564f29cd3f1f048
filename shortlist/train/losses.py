"""Losses of a training run as `--loss` names them, with their weights and parameters."""

import inspect
import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor

from shortlist.errors import UserError, unknown
from shortlist.math.losses import ANSWER_LOSSES, LOSSES, NEEDS, NEEDS_NO_POSITIVE, Loss
from shortlist.math.losses.answers import Likelihoods
from shortlist.math.ranking import Ranking
from shortlist.records import Group

TEMPERATURE = "temperature"
"""Name of the parameter that divides a loss's scores; `--temperature` sets it in all losses that have it."""

AT_LEAST = {
    "infonce.focal": 0,
    "lambdarank.k": 1,
    "sinkhorn.iterations": 1,
    "policy.samples": 2,
    "policy.k": 1,
    "bands.epsilon": 0,
    "bands.pull": 0,
    "bands.levels": 2,
}
"""The least values that parameters may have."""

ABOVE_0 = ("sinkhorn.epsilon", "margin_mse.scale")
"""Parameters that have to be above 0, as every temperature has."""


NAMED: Mapping[str, Loss] = ChainMap(ANSWER_LOSSES, LOSSES)  # a program may add to either
"""All losses by name."""


class Term(NamedTuple):
    """A weighted loss, one of those that are added up."""

    name: str
    weight: float
    parameters: Mapping[str, Any]

    @property
    def is_of_answers(self) -> bool:
        """Whether it is a loss of answers instead of a ranking."""
        return self.name in ANSWER_LOSSES

    def __call__(self, given: Ranking | Likelihoods | None) -> Float[Tensor, ""]:
        """Compute the weighted loss of a batch."""
        return self.weight * NAMED[self.name](given, **self.parameters)


def total_loss(terms: Sequence[Term], ranking: Ranking | None, answers: Likelihoods | None = None) -> Float[Tensor, ""]:
    """Add up the losses of all terms for a batch.

    Args:
        ranking: what losses of rankings read; None if there are none.
        answers: what losses of answers read; None if there are none.
    """
    first, *others = (term(answers if term.is_of_answers else ranking) for term in terms)
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
        if name not in NAMED:
            raise UserError(f"--loss {word}: {unknown('loss', name, NAMED)}")
        given = parameters.setdefault(name, {})
        if (dot and key in given) or (not dot and name in weights):
            raise UserError(f"--loss {word}: {left} is said twice; keep one.")
        if dot:
            given[key] = _parameter(word, name, key, value)
        else:
            weights[name] = _weight(word, value) if equals else 1.0
    if not parameters:
        raise UserError(f"--loss names no loss; known: {', '.join(sorted(NAMED))}.")
    return [_term(name, weights.get(name, 1.0), given, temperature) for name, given in parameters.items()]


def needs(term: Term) -> set[str]:
    """Return what a loss needs, as in `NEEDS`; a parameter may need a teacher too."""
    return {*NEEDS.get(term.name, ()), *({"teacher"} & set(term.parameters.values()))}


def needs_positive(terms: Sequence[Term]) -> bool:
    """Whether some loss teaches nothing about a query without a relevant document."""
    return any(
        (term.name not in NEEDS_NO_POSITIVE and not term.is_of_answers)
        or any(term.parameters.get(key) != value for key, value in NEEDS_NO_POSITIVE.get(term.name, {}).items())
        for term in terms
    )


def check_needs(terms: Sequence[Term], groups: Sequence[Group], *, where: str, role: str = "retriever") -> None:
    """Refuse losses that need what the groups, or this kind of model, do not have.

    Args:
        role: what the model is for, as in `ModelKind.role`.

    Raises:
        UserError: a loss lacks what it needs; the message says how to get it.
    """
    if terms and needs_positive(terms) and (without := sum(not group.positives for group in groups)):
        name = next(term.name for term in terms if needs_positive([term]))
        raise UserError(
            f"--loss {name}: {without:,} of {len(groups):,} groups of {where} have no relevant document; leave them "
            f"out, or use losses that need none ({', '.join(sorted(NEEDS_NO_POSITIVE))})."
        )
    for term in terms:
        lacking = needs(term)
        if term.is_of_answers and (unordered := sum(not (group.scores or group.positives) for group in groups)):
            raise UserError(
                f"--loss {term.name}: {unordered:,} of {len(groups):,} groups of {where} have neither a teacher's "
                "scores nor a relevant document, so no answer is right; mine them with --teacher, or leave them out."
            )
        if "shared documents" in lacking and role != "retriever":
            raise UserError(
                f"--loss {term.name}: compares queries by the documents that all of them rank, and a {role} ranks each "
                "query's own list; use kl, js or pld."
            )
        if "teacher" in lacking and (untaught := sum(not group.scores for group in groups)):
            raise UserError(
                f"--loss {term.name}: {untaught:,} of {len(groups):,} groups of {where} have no teacher's scores; mine "
                f"them with --teacher, or leave {term.name} out."
            )
        if "grades" in lacking and not any(group.grades for group in groups):
            raise UserError(
                f"--loss {term.name}: none of the {len(groups):,} groups of {where} has grades other than relevant or "
                f"not; use graded judgements, or leave {term.name} out."
            )


def check_refresh(terms: Sequence[Term], *, where: str) -> None:
    """Refuse losses that follow a teacher where negatives are renewed, which no teacher has seen.

    Raises:
        UserError: a loss needs a teacher.
    """
    if taught := [term.name for term in terms if "teacher" in needs(term)]:
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
    return {parameter.name: parameter.default for parameter in _signature(name)}


def _signature(name: str) -> list[inspect.Parameter]:
    found = inspect.signature(NAMED[name]).parameters.values()
    return [parameter for parameter in found if parameter.kind is parameter.KEYWORD_ONLY]


def _parameter(word: str, name: str, key: str, value: str) -> Any:
    defaults = _defaults(name)
    if key not in defaults:
        raise UserError(f"--loss {word}: {unknown(f'parameter of {name}', key, defaults)}")
    choices = next(get_args(parameter.annotation) for parameter in _signature(name) if parameter.name == key)
    if isinstance(defaults[key], str) and choices and value not in choices:
        raise UserError(f"--loss {word}: {unknown(f'value of {name}.{key}', value, choices)}")
    try:
        parsed = _like(defaults[key], value)
    except (ValueError, KeyError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(
            type(defaults[key]), "such a value"
        )
        raise UserError(f"--loss {word}: {value!r} is not {kind}; {key} is {defaults[key]} by default.") from None
    if (key.endswith(TEMPERATURE) or f"{name}.{key}" in ABOVE_0) and not parsed > 0:
        raise UserError(f"--loss {word}: expected more than 0.")
    if (least := AT_LEAST.get(f"{name}.{key}")) is not None and parsed < least:
        raise UserError(f"--loss {word}: expected at least {least}.")
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
