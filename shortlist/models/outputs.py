"""The output of every model: rows of numbers, one or more for each text."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


class Rows(NamedTuple):
    """A model's output for several texts, as rows in the order of the texts.

    The rows of a text are next to one another.

    A dense model gives one vector for each text, and a reranker one number. Late interaction gives a vector for each
    token. Learned sparse retrieval gives one row as wide as the vocabulary, or a row for each pair of word and weight.
    """

    values: Shaped[Tensor, "rows *shape"]
    counts: Int[Tensor, " texts"] | None = None
    """The number of rows of each text (None: one)."""


def offsets(counts: Int[Tensor, " texts"]) -> Int[Tensor, " texts"]:
    """Compute the index of the first row of each text."""
    return counts.cumsum(0) - counts


def join(parts: Sequence[Rows]) -> Rows:
    """Concatenate the rows of several outputs of one model."""
    values = torch.cat([part.values for part in parts])
    counts = [part.counts for part in parts if part.counts is not None]
    return Rows(values, torch.cat(counts) if counts else None)


def select(rows: Rows, texts: Int[Tensor, " some"]) -> Rows:
    """Pick the rows of some texts, in their order in `texts`; repetition is allowed."""
    values, counts = rows
    texts = texts.to(values.device)
    if counts is None:
        return Rows(values[texts])
    counts = counts.to(values.device)
    chosen = counts[texts]
    shift = (offsets(counts)[texts] - offsets(chosen)).repeat_interleave(chosen)
    return Rows(values[shift + torch.arange(len(shift), device=shift.device)], chosen)


def split(rows: Rows) -> list[Shaped[Tensor, "rows *shape"]]:
    """Split the rows by text."""
    counts = [1] * len(rows.values) if rows.counts is None else rows.counts.tolist()
    return list(rows.values.split(counts))


def pair_scores(rows: Rows) -> Float[Tensor, " pairs"]:
    """Return the scores in a reranker's rows.

    A row is a score, or has the logits of "yes" and "no", whose difference is the score.
    """
    return rows.values if rows.values.ndim == 1 else rows.values[:, 0] - rows.values[:, 1]
