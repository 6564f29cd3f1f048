"""Rounding of scores to 32 bits that keeps their order."""

import numpy as np
from jaxtyping import Float, Float32


def strictly_decreasing(scores: Float[np.ndarray, " hits"]) -> Float32[np.ndarray, " hits"]:
    """Round scores, best first, to strictly decreasing 32-bit floats.

    Scores are lowered by as little as makes each one less than the one before. A reader that keeps 32 bits and breaks
    ties by a rule of its own then finds no ties.

    Raises:
        ValueError: the scores are not sorted best first, or not finite.
    """
    with np.errstate(over="ignore"):
        rounded = scores.astype(np.float32)
    if not np.isfinite(rounded).all() or (np.diff(scores) > 0).any():
        raise ValueError("scores must be finite and best first")
    bits = rounded.view(np.int32).astype(np.int64)
    place = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # neighbouring floats are neighbouring integers
    steps = np.arange(len(place))
    place = np.minimum.accumulate(place + steps) - steps
    bits = np.where(place < 0, -place | 0x80000000, place).astype(np.uint32)
    return bits.view(np.float32)
