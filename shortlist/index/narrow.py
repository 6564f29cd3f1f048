"""The exact index of fewer bytes: a narrow copy of the vectors proposes candidates, the vectors score them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortlist.data.vectors import DTYPES, VectorReader, VectorWriter, finished_shards, to_rows
from shortlist.index.flat import REFINE, FlatIndex, exact_index
from shortlist.index.parameters import Footprint
from shortlist.index.protocols import Opening
from shortlist.progress import Advance

NARROW_NUMBERS = 1 << 24
"""In a shard of a narrow copy."""


def narrow(vectors: VectorReader, folder: Path, dtype: str) -> None:
    """Copy a store in a narrower dtype, its documents in corpus order; goes on where it was interrupted."""
    writer = VectorWriter(folder, vectors.dim, dtype)
    size = max(NARROW_NUMBERS // vectors.dim, 1)
    done = set(finished_shards(folder))
    for number, start in enumerate(range(0, vectors.num_docs, size)):
        if number not in done:
            positions = np.arange(start, min(start + size, vectors.num_docs))
            rows, scales = to_rows(torch.from_numpy(vectors.take(positions)), dtype)
            writer.write_rows(number, vectors.doc_ids.take(positions), rows, scales, None)


def build_narrow(vectors: VectorReader, folder: Path, *, dtype: str, advance: Advance) -> dict[str, Any]:
    """Build the kind `narrow`; see `narrow`."""
    del advance
    narrow(vectors, folder, dtype)
    return {}


def open_narrow(folder: Path, built: Mapping[str, Any], how: Opening) -> FlatIndex:
    """Open the kind `narrow` over the vectors at `how.vectors`."""
    del built
    assert how.vectors is not None
    return exact_index(how.vectors, scan=folder, memory_gib=how.memory_gib, refine=how.refine or REFINE)


def narrow_footprint(vectors: VectorReader, *, dtype: str) -> Footprint:
    """What a narrow copy takes: a number of its type for each number of each vector."""
    scanned = vectors.num_docs * vectors.dim * DTYPES[dtype].itemsize
    return Footprint(scanned, scanned)
