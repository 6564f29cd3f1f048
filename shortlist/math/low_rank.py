"""Low-rank views of a gradient, and steps that part a row's length and direction."""

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-8
"""A direction's square below this, beside the largest one's, is rounding of float32."""


def leading_directions(matrix: Float[Tensor, "rows columns"], rank: int) -> Float[Tensor, "rank dim"]:
    """Find the first singular vectors of a matrix on its shorter side.

    They are orthonormal rows, and the largest number of each is positive. A direction in which the matrix has nothing
    but rounding is a row of zeros: AdamW would make steps of that rounding, as long as any.
    """
    wide = matrix.double() if matrix.shape[0] >= matrix.shape[1] else matrix.double().T
    squares, vectors = torch.linalg.eigh(wide.T @ wide)  # in rising order; far cheaper than decomposing the matrix
    found, squares = vectors[:, -rank:].flip(1).T, squares[-rank:].flip(0)
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    return (found * largest.sign() * (squares > ROUNDING * squares[0])[:, None]).float().contiguous()


def project(matrix: Float[Tensor, "rows columns"], directions: Float[Tensor, "rank dim"]) -> Float[Tensor, "_ _"]:
    """Project a matrix on its directions: its shorter side gets one number for each."""
    matrix = matrix.to(directions.dtype)
    return matrix @ directions.T if matrix.shape[0] >= matrix.shape[1] else directions @ matrix


def unproject(
    low: Float[Tensor, "_ _"], directions: Float[Tensor, "rank dim"], *, tall: bool
) -> Float[Tensor, "rows columns"]:
    """Return the matrix that `project` made this of, as far as the directions know it.

    Args:
        tall: whether that matrix has at least as many rows as columns.
    """
    return low @ directions if tall else directions.T @ low


def along_rows(
    weight: Float[Tensor, "rows columns"], gradient: Float[Tensor, "rows columns"]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows columns"]]:
    """Split a gradient into each row's length's part and the rest, which turns rows."""
    lengths = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    directions = weight / lengths.where(lengths > 0, 1)
    of_length = (gradient * directions).sum(1)
    return of_length, gradient - of_length[:, None] * directions


def turned(
    weight: Float[Tensor, "rows columns"], turn: Float[Tensor, "rows columns"], growth: Float[Tensor, " rows"]
) -> Float[Tensor, "rows columns"]:
    """Turn each row by a step, and give it its length plus its growth.

    A row of length 0 has no direction: it takes the step itself.
    """
    lengths, stepped = torch.linalg.vector_norm(weight, dim=1, keepdim=True), weight + turn
    new = torch.linalg.vector_norm(stepped, dim=1, keepdim=True)
    return torch.where(lengths > 0, stepped * ((lengths + growth[:, None]) / new.where(new > 0, 1)), stepped)
