"""Attention of some rows, and documents' scores from the attention that they get."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LOGITS_AT_ONCE = 2**24
"""Most products of queries and keys that are held at a time."""

TOO_LOW = 2.0
"""Standard deviations below a document's mean at which a token's calibrated mass does not count."""


def attention_logits(
    query: Float[Tensor, "heads rows size"],
    key: Float[Tensor, "heads tokens size"],
    *,
    scale: float,
    seen: Bool[Tensor, "*_ rows tokens"] | None = None,
) -> Float[Tensor, "heads rows tokens"]:
    """Compute scaled products of queries and keys in float32; -inf where nothing is seen."""
    logits = (query.float() * scale) @ key.float().transpose(-1, -2)
    return logits if seen is None else logits.masked_fill(~seen, -torch.inf)


def attention_mass(
    query: Float[Tensor, "heads rows size"],
    key: Float[Tensor, "heads tokens size"],
    *,
    scale: float,
    seen: Bool[Tensor, "*_ rows tokens"] | None = None,
) -> Float[Tensor, "heads tokens"]:
    """Compute each token's share of the attention of some rows, averaged over the rows.

    The products are computed for a few heads at a time and never for all rows of a text.

    Args:
        query: the rows' queries, already rotated.
        key: the tokens' keys, already rotated; one for each head.
        scale: multiplies the products.
        seen: which tokens each row sees (None: all of them).
    """
    heads = max(1, LOGITS_AT_ONCE // max(1, query.shape[1] * key.shape[1]))
    parts = zip(query.split(heads), key.split(heads), strict=True)
    return torch.cat([attention_logits(q, k, scale=scale, seen=seen).softmax(-1).mean(1) for q, k in parts])


def last_logits(
    query: Float[Tensor, "heads rows size"],
    key: Float[Tensor, "heads tokens size"],
    *,
    scale: float,
    seen: Bool[Tensor, "*_ rows tokens"] | None = None,
) -> Float[Tensor, "heads tokens"]:
    """Compute the scaled product of each token's key with the last row's query.

    https://arxiv.org/abs/2410.02343
    """
    seen = None if seen is None else seen[..., -1:, :]
    return attention_logits(query[:, -1:], key, scale=scale, seen=seen)[:, 0]


def span_sums(values: Float[Tensor, "*_ tokens"], spans: Sequence[slice]) -> Float[Tensor, "*_ spans"]:
    """Add up the values of each span's tokens; an empty span has 0."""
    sums = [values[..., span].sum(-1) for span in spans]
    return torch.stack(sums, -1) if sums else values.new_zeros(*values.shape[:-1], 0)


def span_ends(values: Float[Tensor, "*_ tokens"], spans: Sequence[slice]) -> Float[Tensor, "*_ spans"]:
    """Return the value of each span's last token."""
    return values[..., [span.stop - 1 for span in spans]]


def filtered_sums(values: Float[Tensor, "*_ tokens"], spans: Sequence[slice]) -> Float[Tensor, "*_ spans"]:
    """Add up the values of each span's tokens, except those far below the mean.

    A token does not count if its value is more than two standard deviations below. A span of one token, or of equal
    values, keeps all of them, and an empty one has 0.

    https://arxiv.org/abs/2410.02642
    """
    return span_sums(torch.cat([_without_low(values[..., span]) for span in spans], -1), packed_spans(spans))


def packed_spans(spans: Sequence[slice]) -> list[slice]:
    """Return where spans lie if nothing is between them."""
    found, start = [], 0
    for span in spans:
        length = max(0, span.stop - span.start)
        found.append(slice(start, start + length))
        start += length
    return found


def _without_low(values: Float[Tensor, "*_ tokens"]) -> Float[Tensor, "*_ tokens"]:
    """Set values far below the mean to 0."""
    if values.shape[-1] < 2:  # the standard deviation of one value is not a number
        return values
    lowest = values.mean(-1, keepdim=True) - TOO_LOW * values.std(-1, keepdim=True)
    return values.masked_fill(values < lowest, 0)
