"""Vectors of a store become plain arrays, which any tool reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from shortlist.convert.settings import Config
from shortlist.data.files import atomic_write
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.data.stores.kinds import Store, open_store
from shortlist.data.stores.tokens import TokenReader
from shortlist.errors import UserError
from shortlist.progress import progress

NUMBERS_AT_ONCE = 1 << 26
"""Numbers of vectors that are in memory together."""


def convert_store(config: Config) -> None:
    """Write the vectors of one store as arrays."""
    source, *others = config.sources
    if config.to != "arrays" or others or config.collection or config.allow_pickle:
        raise UserError(
            f"{source}: holds vectors; expected this source alone and --to arrays, without --collection and "
            "--allow-pickle."
        )
    spec = JobSpec("convert", {"sources": [identity(source)]}, as_if=replace(config, as_=None), folder=True)
    job = start_job(config, spec)
    if not job.done:
        with job.result() as folder:
            counts = write_arrays(open_store(Path(source)), folder)
        job.finish(counts)


def write_arrays(store: Store, folder: Path) -> dict[str, Any]:
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
