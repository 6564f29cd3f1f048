"""Stores become plain arrays, or what other tools load."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from scipy.sparse import csr_array, save_npz

from shortlist.convert.engines import write_ciff, write_impacts, write_sparsevec
from shortlist.convert.settings import Config
from shortlist.data.files import atomic_write
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.data.stores.kinds import Store, open_store
from shortlist.data.stores.terms import TermReader
from shortlist.data.stores.tokens import TokenReader
from shortlist.data.stores.vectors import VectorReader
from shortlist.errors import UserError, check_installed
from shortlist.progress import progress

NUMBERS_AT_ONCE = 1 << 26
"""Numbers of vectors that are in memory together."""


def convert_store(config: Config) -> None:
    """Write the vectors of one store in another layout."""
    source, *others = config.sources
    if config.to not in STORE_LAYOUTS or others or config.collection or config.allow_pickle:
        raise UserError(
            f"{source}: holds vectors; expected this source alone and --to {' or '.join(STORE_LAYOUTS)}, without "
            "--collection and --allow-pickle."
        )
    if config.to == "ciff":
        check_installed("--to ciff", {"ciff_toolkit": "--no-deps ciff-toolkit"})
    if not config.factor > 0:
        raise UserError(f"--factor is {config.factor:g}; expected more than 0.")
    store = open_store(Path(source))
    if config.to != "arrays":
        _terms(store, config)  # refuses others, before anything is written
    spec = JobSpec("convert", {"sources": [identity(source)]}, as_if=replace(config, as_=None), folder=True)
    job = start_job(config, spec)
    if not job.done:
        with job.result() as folder:
            counts = STORE_LAYOUTS[config.to](store, folder, config)
        job.finish(counts)


def _arrays(store: Store, folder: Path, config: Config) -> dict[str, Any]:
    del config
    return write_term_arrays(store, folder) if isinstance(store, TermReader) else write_arrays(store, folder)


def _terms(store: Store, config: Config) -> TermReader:
    if not isinstance(store, TermReader):
        raise UserError(f"{store.folder}: holds no term weights, which --to {config.to} takes; write --to arrays.")
    return store


STORE_LAYOUTS: dict[str, Callable[[Store, Path, Config], dict[str, Any]]] = {
    "arrays": _arrays,
    "impacts": lambda store, folder, config: write_impacts(_terms(store, config), folder, config.factor),
    "ciff": lambda store, folder, config: write_ciff(_terms(store, config), folder, config.factor),
    "sparsevec": lambda store, folder, config: write_sparsevec(_terms(store, config), folder),
}
"""Functions that write a store in a layout."""


def write_term_arrays(store: TermReader, folder: Path) -> dict[str, Any]:
    """Write a store's term weights as a sparse matrix of SciPy.

    matrix.npz is for `scipy.sparse.load_npz`: a row for each document, in corpus order, and a column for each term.
    """
    weights = store.take(np.arange(store.num_docs))
    ends = np.concatenate([[0], np.cumsum(weights.counts)])
    matrix = csr_array((weights.weights, weights.terms, ends), shape=(store.num_docs, store.num_terms))
    save_npz(folder / "matrix.npz", matrix)
    _write_names(store, folder)
    return {"num_docs": store.num_docs, "num_entries": store.num_entries, "num_terms": store.num_terms}


def _write_names(store: TermReader, folder: Path) -> None:
    with atomic_write(folder / "doc_ids.txt") as file:
        file.writelines(f"{doc_id}\n" for doc_id in store.doc_ids)
    with atomic_write(folder / "vocabulary.json") as file:
        json.dump(store.vocabulary, file, ensure_ascii=False)


def write_arrays(store: VectorReader | TokenReader, folder: Path) -> dict[str, Any]:
    """Write a store's vectors, in corpus order, and return what was counted.

    values.npy holds the vectors, in float16 if the store does and otherwise in float32; doc_ids.txt an id per line. For
    token vectors, offsets.npy says where each document's begin, followed by their number.
    """
    dtype = np.float16 if store.dtype == "float16" else np.float32
    counts = store.counts if isinstance(store, TokenReader) else np.ones(store.num_docs, dtype=np.int64)
    ends = np.cumsum(counts, dtype=np.int64)
    values = open_memmap(folder / "values.npy", mode="w+", dtype=dtype, shape=(int(ends[-1]), store.dim))
    first = 0
    with progress("converting", store.num_docs, "documents") as advance:
        while first < store.num_docs:
            start = int(ends[first - 1]) if first else 0
            end = max(first + 1, int(np.searchsorted(ends, start + NUMBERS_AT_ONCE // store.dim, side="right")))
            values[start : int(ends[end - 1])] = store.pick(np.arange(first, end)).float32().numpy()
            advance(end - first)
            first = end
    values.flush()
    with atomic_write(folder / "doc_ids.txt") as file:
        file.writelines(f"{doc_id}\n" for doc_id in store.doc_ids)
    if not isinstance(store, TokenReader):
        return {"num_docs": store.num_docs, "dim": store.dim}
    np.save(folder / "offsets.npy", np.concatenate([[0], ends]), allow_pickle=False)
    return {"num_docs": store.num_docs, "num_tokens": store.num_tokens, "dim": store.dim}
