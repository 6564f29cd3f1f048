"""Settings of what makes term weights sparse."""

import math
from typing import NamedTuple

from shortlist.config import read_options
from shortlist.errors import UserError, unknown

OPTIONS: dict[str, float | int] = {"weight": 0.001, "steps": 0, "exempt": 0, "terms": 0}
"""Options of a regulariser, and their defaults."""
NAMES = ("flops", "l1", "idf-flops")
NONE = "none"


class Regulariser(NamedTuple):
    """A regulariser of one side's term weights."""

    name: str
    weight: float
    steps: int
    """The number of steps over which the weight grows (0: a third of the training)."""
    exempt: int
    """Texts with at most so many terms are left alone."""
    terms: int
    """The number of terms that a text is to have, to which the weight is steered (0: it is not)."""


def parse_regulariser(text: str, flag: str) -> Regulariser | None:
    """Parse a regulariser: its name, and its options with their values; None for `none`.

    Raises:
        UserError: an unknown name or option, or a value that is out of range.
    """
    name, _, rest = text.partition(",")
    if name == NONE and not rest:
        return None
    if name not in NAMES:
        raise UserError(f"{flag} {text}: {unknown('regulariser', name, [*NAMES, NONE])}")
    options = OPTIONS | read_options(f"{flag} {text}", name, rest, OPTIONS)
    if not 0 < options["weight"] < math.inf:
        raise UserError(f"{flag} {text}: weight is {options['weight']}; expected more than 0.")
    for option in ("steps", "exempt", "terms"):
        if options[option] < 0:
            raise UserError(f"{flag} {text}: {option} is {options[option]}; expected at least 0.")
    whole = {option: int(options[option]) for option in ("steps", "exempt", "terms")}
    return Regulariser(name, float(options["weight"]), **whole)
