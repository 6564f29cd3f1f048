"""The score of a collection that comes in parts."""

from collections.abc import Mapping, Sequence
from statistics import fmean


def macro_average(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over the parts, which all count alike however many queries they have.

    Args:
        parts: name of a measure -> its value, one mapping for each part.

    Raises:
        ValueError: no part, or parts with different measures.
    """
    if not parts or any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError("expected one or more parts, all with the same measures")
    return {measure: fmean(part[measure] for part in parts) for measure in parts[0]}
