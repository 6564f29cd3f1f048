"""A reranker's scores for all documents, from a few of them by a Gaussian model.

The score of a query for an item is the item's mean over other queries, the anchors, and a part that is normally
distributed: a level of the query, a multiple of the query's own product with the item's vector, a sum of the anchor
queries' scores and one of the vector's components, each with its weights, and noise. Given the scores of the items that
were read, what is expected of the others is a ridge regression (https://gaussianprocess.org/gpml/chapters/RW2.pdf).
Unlike the pseudo-inverse of `math.cur` it does not follow noise where little has been read, and takes scores and
vectors together.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from shortlist.math.reading import Promise

OF_VECTORS = 0.5
"""Part of the scores' variance around the items' means that vectors explain before anything is read, beside anchors."""
SLOPE = 0.6
"""Deviations by which a score is expected to rise with a deviation of the query's own product."""
SLOPE_VARIANCE = 0.3
"""Variance of that slope, as a part of its square."""
NOISE = 1.0
"""Variance of the noise, as a part of the scores' variance around the items' means."""
FREE_LEVEL = 100.0
"""Variance of a query's level without anchors, as a part of the variance of its scores."""


class CentredColumns(NamedTuple):
    """A column for each item, apart from what its place and its row say alone."""

    values: Float[np.ndarray, "dim items"]
    mean: Float[np.ndarray, " items"]
    """What is left out of each column."""
    levels: Float[np.ndarray, " dim"]
    """What is left out of each row besides."""
    variance: float
    """Mean square of what is left."""

    @classmethod
    def about(cls, values: Float[np.ndarray, "dim items"], mean: Float[np.ndarray, " items"]) -> "CentredColumns":
        """Leave out these means, and the level of each row around them."""
        levels = values.mean(1, dtype=np.float64) - mean.mean()
        squares = [((row - mean - level) ** 2).mean() for row, level in zip(values, levels, strict=True)]
        return cls(values, mean, levels, float(np.mean(squares)))

    def of(self, read: Int[np.ndarray, " read"]) -> Float[np.ndarray, "dim read"]:
        """Return some columns."""
        return self.values[:, read] - self.mean[read] - self.levels[:, None]

    def products(self, row: Float[np.ndarray, " dim"]) -> Float[np.ndarray, " items"]:
        """Multiply a row with all columns."""
        return row.astype(self.values.dtype) @ self.values - row.sum() * self.mean - row @ self.levels

    def scaled(self, part: float) -> float:
        """The factor that makes a column's product with itself `part` on average."""
        return part / (len(self.values) * self.variance) if self.variance > 0 else 0.0


class Expectation:
    """The scores that are expected of items.

    Args:
        scores: of anchor queries for all items (None: there are only vectors).
        vectors: of all items, by the products of which items resemble each other (None: there are only scores).
    """

    def __init__(
        self,
        scores: Float[np.ndarray, "queries items"] | None = None,
        vectors: Float[np.ndarray, "dim items"] | None = None,
    ) -> None:
        some = scores if scores is not None else vectors
        if some is None:
            raise ValueError("neither scores of anchor queries nor vectors")
        self.mean = np.zeros(some.shape[1])
        self.variance, self.level = None, FREE_LEVEL
        self.columns: list[tuple[CentredColumns, float]] = []
        """CentredColumns of the items with their factors."""
        if scores is not None:
            self.mean = scores.mean(0, dtype=np.float64)
            anchors = CentredColumns.about(scores, self.mean)
            self.columns.append((anchors, anchors.scaled(1.0 if vectors is None else 1 - OF_VECTORS)))
            self.variance = anchors.variance
            self.level = float(anchors.levels.var()) / (self.variance or 1.0)
        if vectors is not None:
            items = CentredColumns.about(vectors, np.zeros(some.shape[1]))
            self.columns.append((items, items.scaled(1.0 if scores is None else OF_VECTORS)))

    def promise(self, own: Float[np.ndarray, " items"] | None = None) -> Promise:
        """Return the expectation for one query.

        Args:
            own: products of the query's own vector with the items' (None: it has none).
        """
        if own is not None:
            own = (own - own.mean()) / (own.std() or 1.0)
        return partial(self._expect, own)

    def _expect(
        self, own: Float[np.ndarray, " items"] | None, read: Int[np.ndarray, " read"], known: Float[np.ndarray, " read"]
    ) -> Float[np.ndarray, " items"]:
        variance = known.var() if self.variance is None and len(read) else self.variance
        expected = self.mean if own is None else self.mean + SLOPE * np.sqrt(variance or 1.0) * own
        if not len(read):
            return expected
        if self.variance is None:  # no anchors say how high scores are
            expected = expected + (known - expected[read]).mean()
        kernel = self.level + NOISE * np.eye(len(read))
        parts = [columns.of(read) for columns, _ in self.columns]
        for part, (_, factor) in zip(parts, self.columns, strict=True):
            kernel += factor * part.T @ part
        slope = SLOPE_VARIANCE * SLOPE**2
        if own is not None:
            kernel += slope * np.outer(own[read], own[read])
        weights = np.linalg.solve(kernel, known - expected[read])
        expected = expected + self.level * weights.sum()
        for part, (columns, factor) in zip(parts, self.columns, strict=True):
            expected += columns.products(factor * (part @ weights))
        return expected if own is None else expected + slope * (own[read] @ weights) * own
