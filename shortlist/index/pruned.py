"""Late interaction with only those documents that a quicker search proposes."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int

from shortlist.data.allowed import Allowed
from shortlist.data.files import atomic_write
from shortlist.data.stores.shards import DEAD
from shortlist.data.stores.tokens import TokenReader
from shortlist.errors import UserError
from shortlist.index.flat import Best
from shortlist.index.late import (
    LateIndex,
    check_token_queries,
    is_too_large,
    nothing_found,
    queries_at,
    score_candidates,
    some_queries,
    with_vectors,
    work_on_queries,
)
from shortlist.math.maxsim import TokenVectors
from shortlist.math.scoring import best_of
from shortlist.records import Hit

ALL_SCORED = 2
"""Where at most this many documents may be found, in multiples of the candidates, all of them are scored."""
PROPOSED_AT_ONCE = 256
"""Queries whose candidates are proposed together."""
DESCRIPTION = "index.json"


@runtime_checkable
class Proposer(Protocol):
    """A quick search for documents that may be among the best."""

    def propose(
        self, queries: TokenVectors, count: int, keep: Bool[np.ndarray, " rows"] | None
    ) -> Int[np.ndarray, "queries _"]:
        """Return the rows of at most `count` documents for each query, in any order.

        Where there are fewer, they are followed by -1.

        Args:
            queries: queries that have vectors.
            keep: whether the document of each row may be found (None: all).
        """
        ...


@final
class PrunedIndex:
    """Late interaction over a token store, with the documents that a quicker search proposes.

    Their scores are exact. Documents that are newer than the index are never found, and those that have left the store
    since then neither.

    Attributes:
        parameters: the numbers it was built with, with the effort and refinement that it was opened with.
        missing: the number of documents of the store that are newer than the index.
    """

    def __init__(
        self,
        tokens: TokenReader,
        proposer: Proposer,
        description: Mapping[str, Any],
        *,
        effort: int | None = None,
        refine: int | None = None,
        memory_gib: float | None = None,
    ) -> None:
        asked = {name: value for name, value in (("effort", effort), ("refine", refine)) if value is not None}
        self.tokens, self.proposer, self._memory_gib = tokens, proposer, memory_gib
        self._release = is_too_large(tokens, memory_gib)
        self.parameters: dict[str, int] = description["parameters"] | asked
        check_positive(self.parameters)
        self.missing = tokens.beyond(description["shard_hashes"])
        self._positions = tokens.positions_of(np.arange(int(tokens.starts[len(description["shard_hashes"])])))
        inside = self._positions[self._positions != DEAD]
        self._findable = np.zeros(tokens.num_docs, dtype=bool)
        self._findable[inside] = tokens.counts[inside] > 0

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"<PrunedIndex of {self.tokens.num_docs - self.missing:,} documents, {settings}>"

    @property
    def doc_ids(self) -> Sequence[str]:
        """The ids of the store's documents, in corpus order."""
        return self.tokens.doc_ids

    def find(self, queries: TokenVectors, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the at most k best documents for each query.

        They are sorted best first, equal scores in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        return self.tokens.doc_ids.hits(*self.search_tokens(queries, k, allowed=allowed))

    def search_tokens(self, queries: TokenVectors, k: int, *, allowed: Allowed | None = None) -> Best:
        """Find the k best documents for each query, equal scores in corpus order.

        Args:
            allowed: the only documents to find (None: all). Where they are few, or fewer than k of them are proposed
                for a query, all of them are scored, and the result is exact.

        Returns:
            Exact scores and positions in the store, best first; fewer than k columns if fewer documents can be found. A
            query without vectors has scores of -inf and positions of -1.

        Raises:
            UserError: the queries have another dimension than the store, or are not finite; k is below 1.
        """
        check_token_queries(queries, k, dim=self.tokens.dim)
        keep = self._findable if allowed is None else self._findable & allowed.mask(self.tokens.doc_ids)
        num_docs = int(np.count_nonzero(keep))
        k = min(k, num_docs)
        count = max(self.parameters["effort"], self.parameters["refine"] * k)
        if not k or num_docs <= ALL_SCORED * count:
            return self._exact.search_some(queries, max(k, 1), keep)
        scores, positions = nothing_found(len(queries), k)
        asked, some = with_vectors(queries)
        of_rows = (self._positions != DEAD) & keep[self._positions]
        for first in range(0, len(asked), PROPOSED_AT_ONCE):
            part, places = some_queries(some, first, first + PROPOSED_AT_ONCE), asked[first : first + PROPOSED_AT_ONCE]
            rows = self.proposer.propose(part, count, None if of_rows.all() else of_rows)
            scores[places], positions[places] = self._score(part, rows, k, keep)
        return scores, positions

    def _score(
        self,
        queries: TokenVectors,
        rows: Int[np.ndarray, "queries _"],
        k: int,
        keep: Bool[np.ndarray, " docs"],
    ) -> Best:
        """Select the k best of the proposed documents, or of all if fewer are proposed."""

        def best(number: int) -> Best:
            query, proposed = queries_at(queries, number), rows[number][rows[number] >= 0]
            if len(proposed) < k:
                return self._exact.search_some(query, k, keep)
            positions = self._positions[proposed]
            exact = score_candidates(self.tokens, query, positions, release=self._release)
            scores, found = best_of(torch.from_numpy(exact)[None], torch.from_numpy(positions)[None], k)
            return scores.numpy(), found.numpy()

        scores, positions = zip(*work_on_queries(best, len(queries)), strict=True)
        return np.concatenate(scores), np.concatenate(positions)

    @cached_property
    def _exact(self) -> LateIndex:
        """Exact search, for the few documents that a filter allows."""
        return LateIndex(self.tokens, memory_gib=self._memory_gib)


def write_late(folder: Path, tokens: TokenReader, parameters: Mapping[str, int], **more: Any) -> None:
    """Write down what an index was built from, which completes it."""
    content = {"dim": tokens.dim, "parameters": dict(parameters), "shard_hashes": tokens.shard_hashes, **more}
    with atomic_write(folder / DESCRIPTION) as file:
        json.dump(content, file, indent=2)


def read_late(folder: Path, tokens: TokenReader) -> dict[str, Any]:
    """Read what an index over this store was built from.

    Raises:
        UserError: there is no whole index, or it is one of vectors of another dimension.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
        whole = {"dim", "parameters", "shard_hashes"} <= description.keys()
    except (OSError, ValueError, AttributeError):
        whole, description = False, {}
    if not whole:
        raise UserError(f"{folder}: holds no whole late index ({DESCRIPTION}); build it again with `shortlist index`.")
    if description["dim"] != tokens.dim:
        raise UserError(
            f"{folder}: indexes token vectors of dim {description['dim']}, {tokens.folder} holds dim {tokens.dim}; "
            "open it with the store that it was built from."
        )
    return description


def check_positive(parameters: Mapping[str, int]) -> None:
    """Raise UserError for a parameter below 1."""
    for name, value in parameters.items():
        if value < 1:
            raise UserError(f"{name} {value}: expected at least 1.")
