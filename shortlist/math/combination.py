"""Functions that combine the scores or vectors of a document's segments into one."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

SegmentValues = Float[np.ndarray, "segments *dim"]
Combined = Float[np.ndarray, "docs *dim"]
Combine = Callable[[SegmentValues, Int[np.ndarray, " docs"]], Combined]


def maxp(
    values: Float[np.ndarray, "segments *dim"], starts: Int[np.ndarray, " docs"]
) -> Float[np.ndarray, "docs *dim"]:
    """Take the greatest value of each document's segments (https://arxiv.org/abs/1905.09217).

    Args:
        values: the values of all segments, with the segments of a document next to one another.
        starts: the index of the first segment of each document.
    """
    return np.maximum.reduceat(values, starts, axis=0)


def avgp(
    values: Float[np.ndarray, "segments *dim"], starts: Int[np.ndarray, " docs"]
) -> Float[np.ndarray, "docs *dim"]:
    """Average the values of each document's segments.

    The inner product with a mean vector is the mean of the inner products with the segments' vectors.
    """
    counts = np.diff(starts, append=len(values)).astype(values.dtype)
    return np.add.reduceat(values, starts, axis=0) / counts.reshape(-1, *[1] * (values.ndim - 1))


COMBINATIONS: dict[str, Combine] = {"maxp": maxp, "avgp": avgp}
