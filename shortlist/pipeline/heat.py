"""The words of a shown passage with their similarity to a query, by late interaction."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from shortlist.records import Document
from shortlist.text.inputs import Inputs
from shortlist.text.marks import NO_VECTOR, unmarked

_WORD = re.compile(r"\w+")


class WarmPiece(NamedTuple):
    """A word with its best similarity to the query's tokens, or what lies between words."""

    text: str
    similarity: float | None = None


class PassageTokens(NamedTuple):
    """A passage as a late-interaction model reads it."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """The characters of those tokens that are of the passage and have a vector."""
    rows: list[int]
    """The number of each one's vector among those of the input."""


def passage_tokens(inputs: Inputs, text: str) -> PassageTokens | None:
    """Find the tokens of a passage, or its beginning, in the model's input.

    The result is None if they are not there as they are alone.
    """
    [ids] = inputs.document_ids([Document("", text)])
    [alone] = inputs.tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"]
    [spans] = inputs.token_spans([text])
    plain, rows = unmarked(ids), np.cumsum([token & NO_VECTOR == 0 for token in ids]) - 1
    count, start = max((_agreement(plain[first:], alone), -first) for first in range(len(plain) + 1))
    some = [place for place in range(count) if not ids[place - start] & NO_VECTOR]
    return PassageTokens(ids, [spans[i] for i in some], [int(rows[i - start]) for i in some]) if count else None


def _agreement(ids: Sequence[int], other: Sequence[int]) -> int:
    """Count the first tokens that are the same."""
    return next(
        (i for i, (one, two) in enumerate(zip(ids, other, strict=False)) if one != two), min(len(ids), len(other))
    )


def warm_pieces(
    text: str,
    tokens: PassageTokens,
    query: Float[np.ndarray, "query_tokens dim"],
    passage: Float[np.ndarray, "tokens dim"],
) -> list[WarmPiece]:
    """Split a passage into words with their best similarities, and what lies between.

    Args:
        query: the token vectors of the query.
        passage: the token vectors of the passage's input.
    """
    best = (passage @ query.T).max(1) if len(query) and len(passage) else np.zeros(len(passage), np.float32)
    words = [match.span() for match in _WORD.finditer(text)]
    found = _best_of_words(words, tokens, best)
    pieces, end = list[WarmPiece](), 0
    for (start, stop), similarity in zip(words, found, strict=True):
        pieces += [WarmPiece(text[end:start]), WarmPiece(text[start:stop], similarity)]
        end = stop
    return [piece for piece in [*pieces, WarmPiece(text[end:])] if piece.text]


def _best_of_words(
    words: Sequence[tuple[int, int]], tokens: PassageTokens, best: Float[np.ndarray, " tokens"]
) -> list[float | None]:
    """Return each word's best similarity; None where no token lies in it."""
    found: list[float | None] = [None] * len(words)
    place = 0
    for (start, stop), row in zip(tokens.spans, tokens.rows, strict=True):
        while place < len(words) and words[place][1] <= start:
            place += 1
        if place < len(words) and stop > words[place][0]:
            before = found[place]
            similarity = float(best[row])
            found[place] = similarity if before is None else max(before, similarity)
    return found
