"""The kind of index `seismic`: candidates of the Seismic engine, scored exactly.

Seismic knows documents by their rows and terms by their numbers, so that neither long ids nor names are cut. It keeps
weights in float16 and looks at a query's heaviest terms only, which changes what it proposes but no score.

https://arxiv.org/abs/2404.18812
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from shortlist.data.allowed import Allowed
from shortlist.data.files import atomic_write
from shortlist.data.stores.shards import DEAD
from shortlist.data.stores.terms import TermReader
from shortlist.errors import UserError
from shortlist.index.flat import Best
from shortlist.index.protocols import Opening
from shortlist.index.sparse import check_term_queries, no_scores, score_rows
from shortlist.math.heaviest import heaviest
from shortlist.math.terms import TermWeights
from shortlist.progress import Advance
from shortlist.records import Hit

SEISMIC_DEFAULTS = {"postings": 3500, "clusters": 10, "energy": 40, "effort": 20, "heap": 80, "refine": 1}
"""Parameters: postings of a term that are kept; percent of them that become clusters; percent of a cluster's weight in
its summary; terms of a query that are looked at; percent of the k-th best score that a cluster's summary must promise,
which is more exact where it is lower; candidates that are scored exactly, in multiples of k."""
MOST_TERMS = 1 << 16
"""The size of a vocabulary from which Seismic needs wider numbers."""
FEW_ALLOWED = 10_000
"""Where at most this many documents may be found, all of them are scored."""
HANDED_AT_ONCE = 1 << 22
"""Entries that are handed over at a time."""
DESCRIPTION, INDEX = "index.json", "index.seismic"


def _seismic() -> Any:
    try:
        import seismic
    except ImportError:
        raise UserError("an index of kind seismic needs pyseismic-lsr: pip install 'shortlist[sparse]'.") from None
    return seismic


def _classes(num_terms: int) -> tuple[Any, Any]:
    """Return the classes of data sets and indexes for a vocabulary of this size."""
    library = _seismic()
    if num_terms > MOST_TERMS:
        return library.SeismicDatasetLV, library.SeismicIndexLV
    return library.SeismicDataset, library.SeismicIndex


def build_seismic(terms: TermReader, folder: Path, *, advance: Advance, **chosen: int) -> dict[str, Any]:
    """Build an index of the kind `seismic`.

    Raises:
        UserError: the library is missing, a parameter is not possible, or a weight does not fit its float16.
    """
    parameters = _checked(SEISMIC_DEFAULTS | chosen)
    dataset_of, index_of = _classes(terms.num_terms)
    dataset = dataset_of(dim=terms.num_terms)
    for block in terms.blocks(HANDED_AT_ONCE):
        entries = block.entries.as_float32()
        if len(entries.weights) and float(entries.weights.max()) > np.finfo(np.float16).max:
            raise UserError(f"{terms.folder}: has a weight of {entries.weights.max():g}, more than Seismic can hold.")
        offsets = np.concatenate([[0], np.cumsum(entries.counts)])
        names, numbers = list(map(str, block.rows.tolist())), entries.terms.astype(np.int64)
        dataset.add_documents_by_id(names, numbers, entries.weights, offsets.astype(np.int64))
        advance(len(block.rows))
    folder.mkdir(parents=True, exist_ok=True)
    with silent_stdout():
        index = index_of.build_from_dataset(
            dataset,
            n_postings=parameters["postings"],
            centroid_fraction=parameters["clusters"] / 100,
            summary_energy=parameters["energy"] / 100,
        )
        index.save(str(folder / "index"))
    (folder / "index.index.seismic").rename(folder / INDEX)
    content = {"num_terms": terms.num_terms, "parameters": parameters, "shard_hashes": terms.shard_hashes}
    with atomic_write(folder / DESCRIPTION) as file:
        json.dump(content, file, indent=2)
    return {"num_entries": terms.num_entries}


@contextmanager
def silent_stdout() -> Iterator[None]:
    """Drop what a library prints to standard output, past Python.

    Seismic prints a log of each build there, and has no option against that. Errors go to standard error, which stays.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _checked(parameters: dict[str, int]) -> dict[str, int]:
    for name, value in parameters.items():
        if value < 1 or (value > 100 and name in ("clusters", "energy", "heap")):
            raise UserError(f"{name} {value}: expected {'at most 100' if value > 100 else 'at least 1'}.")
    return parameters


def open_seismic(folder: Path, built: Mapping[str, Any], how: Opening) -> "ProposedIndex":
    """Open an index of the kind `seismic` over the term store at `how.vectors`.

    Raises:
        UserError: the folder holds no whole index, or one of another store.
    """
    del built
    assert how.vectors is not None
    terms = TermReader(how.vectors)
    try:
        description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
        parameters, hashes = description["parameters"], description["shard_hashes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: holds no whole index of Seismic ({DESCRIPTION}); build it again.") from None
    asked = {name: value for name, value in (("effort", how.effort), ("refine", how.refine)) if value is not None}
    _, index_of = _classes(terms.num_terms)
    try:
        index = index_of.load(str(folder / INDEX))
    except OSError as error:
        raise UserError(f"{folder / INDEX}: cannot be read ({error}); build the index again.") from None
    return ProposedIndex(terms, index, _checked(parameters | asked), hashes, query_terms=how.query_terms)


@final
class ProposedIndex:
    """Search by term weights among the documents that Seismic proposes; their scores are exact.

    Documents that are newer than the index are never found, and those that have left the store neither.

    Attributes:
        parameters: the numbers it was built with, with the effort and refinement that it was opened with.
        missing: the number of documents of the store that are newer than the index.
    """

    def __init__(
        self,
        terms: TermReader,
        index: Any,
        parameters: dict[str, int],
        shard_hashes: Sequence[str],
        *,
        query_terms: int | None = None,
    ) -> None:
        self.terms, self.parameters, self.query_terms = terms, parameters, query_terms
        self.missing = terms.beyond(shard_hashes)
        self.engine, self._names = index, str(_seismic().get_seismic_string())
        self._positions = terms.positions_of(np.arange(int(terms.starts[len(shard_hashes)])))
        self._living = self._positions != DEAD
        self._num_living = int(np.count_nonzero(self._living))

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"<ProposedIndex of {self.terms.num_docs - self.missing:,} documents, {settings}>"

    @property
    def doc_ids(self) -> Sequence[str]:
        """The ids of the documents, in corpus order."""
        return self.terms.doc_ids

    def find(self, queries: TermWeights, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the at most k best documents for each query, equal scores in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        return self.terms.doc_ids.hits(*self.search_terms(queries, k, allowed=allowed))

    def search_terms(self, queries: TermWeights, k: int, *, allowed: Allowed | None = None) -> Best:
        """Find the at most k best documents for each query, as `SparseIndex.search_terms` does.

        Args:
            allowed: the only documents to find (None: all). Where they are few, or fewer than k of them are proposed
                for a query, all of them are scored, and the result is exact.
        """
        check_term_queries(queries, k, num_terms=self.terms.num_terms)
        queries = heaviest(queries, self.query_terms)
        keep, num_docs = self._living, self._num_living
        if allowed is not None:
            keep = keep & allowed.mask(self.terms.doc_ids)[self._positions]
            num_docs = int(np.count_nonzero(keep))
        k = min(k, max(num_docs, 1))
        scores, positions = no_scores(len(queries), k)
        for number, (terms, weights) in enumerate(queries):
            if len(terms) and num_docs:
                best, found = self._search(terms, weights, k, keep, num_docs)
                scores[number, : len(found)], positions[number, : len(found)] = best, found
        return scores, positions

    def _search(
        self,
        terms: Int32[np.ndarray, " terms"],
        weights: Float32[np.ndarray, " terms"],
        k: int,
        keep: Bool[np.ndarray, " rows"],
        num_docs: int,
    ) -> tuple[Float32[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        count = min(-(-self.parameters["refine"] * k * len(keep) // num_docs), len(keep))
        rows = np.empty(0, dtype=np.int64)
        if num_docs > FEW_ALLOWED:
            rows = self._proposed(terms, weights, count)
            rows = rows[keep[rows]]
        if len(rows) < k:  # too few are allowed, or too few have a term that was looked at
            rows = np.flatnonzero(keep)
        scores, positions = score_rows(self.terms, terms, weights, rows), self._positions[rows]
        best = np.lexsort((positions, -scores))[:k]
        best = best[scores[best] > 0]
        return scores[best], positions[best]

    def _proposed(
        self, terms: Int32[np.ndarray, " terms"], weights: Float32[np.ndarray, " terms"], count: int
    ) -> Int[np.ndarray, " rows"]:
        """Return the rows that Seismic finds."""
        found = self.engine.search(
            query_id="",
            query_components=terms.astype(self._names),
            query_values=weights,
            k=count,
            query_cut=self.parameters["effort"],
            heap_factor=self.parameters["heap"] / 100,
        )
        return np.array([int(row) for _, _, row in found], dtype=np.int64)
