"""Token ids by which a language model's answer tells one label from another.

A label may be joined with what stands before it: `[A` is one token for Llama 3 and Qwen, but `[O` and `[Q` are two, and
for Mistral all of them are. So prompt and answer are tokenised together, for every label, and compared.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from shortlist.errors import UserError


class Ending(NamedTuple):
    """The end of a prompt whose answer begins with a label."""

    drop: int
    """Last ids of the prompt that the labels may change, and that are taken away."""
    add: tuple[int, ...]
    """Ids behind those that are left which all answers share."""
    paths: tuple[tuple[int, ...], ...]
    """For each label, the ids by which it is known from the others; one id if it can be read at one position."""


def ending(tokenizer: Any, text: str, ids: Sequence[int], continuations: Sequence[str]) -> Ending:
    """Find where answers that begin with different labels differ.

    Args:
        text: the prompt.
        ids: its token ids.
        continuations: an answer for each label, two at least.
    """
    rows = tokenizer([text + answer for answer in continuations], add_special_tokens=False)["input_ids"]
    shared = common_start(rows)
    kept = common_start([ids, rows[0][:shared]])
    tails = [row[shared:] for row in rows]
    return Ending(len(ids) - kept, tuple(rows[0][kept:shared]), tuple(_path(tail, tails) for tail in tails))


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """Count the ids that all rows begin with."""
    for place, column in enumerate(zip(*rows, strict=False)):
        if len(set(column)) > 1:
            return place
    return min(map(len, rows))


def _path(tail: list[int], tails: Sequence[list[int]]) -> tuple[int, ...]:
    """Find the shortest beginning of an answer that no other answer has."""
    for end in range(1, len(tail) + 1):
        if sum(other[:end] == tail[:end] for other in tails) == 1:
            return tuple(tail[:end])
    return tuple(tail)


def single_ids(paths: Sequence[tuple[int, ...]], labels: Sequence[str], *, where: str) -> list[int]:
    """Return the one id of each label.

    Raises:
        UserError: a label needs several ids, or another label begins with its only one.
    """
    first = [path[:1] for path in paths]
    joined = [label for label, path in zip(labels, paths, strict=True) if len(path) > 1 or first.count(path) > 1]
    if joined:
        fine = next(place for place, token in enumerate(first) if token in first[:place])
        raise UserError(
            f"{where}: the labels {_listed(joined)} begin with the same token as another, so no token tells all "
            f"{len(labels)} apart; show at most {fine} documents at once (--window), or have the answer generated."
        )
    return [token for path in paths for token in path]


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels[:4])) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
