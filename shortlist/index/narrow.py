"""The kind of index `narrow`: exact search over a smaller copy of the vectors.

The narrow copy proposes candidates, and the vectors give their scores.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortlist.data.stores.shards import damage, finished_shards
from shortlist.data.stores.vectors import DTYPES, VectorReader, VectorWriter, to_rows
from shortlist.index.flat import REFINE, FlatIndex, exact_index
from shortlist.index.parameters import Footprint
from shortlist.index.protocols import Opening
from shortlist.progress import Advance

NARROW_NUMBERS = 1 << 24
"""The most numbers in a shard of a narrow copy."""


def narrow(vectors: VectorReader, folder: Path, dtype: str) -> None:
    """Copy a store in a narrower dtype, with its documents in corpus order.

    After an interruption it writes only the missing shards, and those that are not as they were written.
    """
    writer = VectorWriter(folder, vectors.dim, dtype)
    size = max(NARROW_NUMBERS // vectors.dim, 1)
    done = {number for number in finished_shards(folder) if damage(folder, number) is None}
    for number, start in enumerate(range(0, vectors.num_docs, size)):
        if number not in done:
            positions = np.arange(start, min(start + size, vectors.num_docs))
            rows, scales = to_rows(torch.from_numpy(vectors.take(positions)), dtype)
            writer.write_rows(number, vectors.doc_ids.take(positions), rows, scales, None)


def build_narrow(vectors: VectorReader, folder: Path, *, dtype: str, advance: Advance) -> dict[str, Any]:
    """Build an index of the kind `narrow`; see the function `narrow`."""
    del advance
    narrow(vectors, folder, dtype)
    return {}


def open_narrow(folder: Path, built: Mapping[str, Any], how: Opening) -> FlatIndex:
    """Open an index of the kind `narrow` over the vectors at `how.vectors`."""
    del built
    assert how.vectors is not None
    return exact_index(how.vectors, scan=folder, memory_gib=how.memory_gib, refine=how.refine or REFINE)


def narrow_footprint(vectors: VectorReader, *, dtype: str) -> Footprint:
    """Compute the size of a narrow copy."""
    scanned = vectors.num_docs * vectors.dim * DTYPES[dtype].itemsize
    return Footprint(scanned, scanned)
