"""The kind of index `narrow`: exact search over a smaller copy of the vectors.

The narrow copy proposes candidates, and the vectors give their scores.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shortlist.data.stores.shards import damage, finished_shards, store_kind, written_digests
from shortlist.data.stores.tokens import TokenReader, TokenRows, TokenWriter
from shortlist.data.stores.vectors import DTYPES, VectorReader, VectorWriter, to_rows
from shortlist.errors import UserError
from shortlist.index.flat import REFINE, FlatIndex, exact_index
from shortlist.index.late import NARROW_REFINE, LateIndex
from shortlist.index.parameters import Footprint
from shortlist.index.protocols import Opening
from shortlist.math.quantize import LARGEST
from shortlist.math.ragged import text_parts
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


def narrow_tokens(tokens: TokenReader, folder: Path) -> None:
    """Copy a token store in int8, in corpus order, with one factor for each shard.

    With the same factor for all tokens, the greatest integer is the greatest similarity. After an interruption it
    writes only the missing shards, and those that are not as they were written.
    """
    writer, size = TokenWriter(folder, tokens.dim, "int8"), max(NARROW_NUMBERS // tokens.dim, 1)
    done = {number for number in finished_shards(folder) if damage(folder, number) is None}
    for number, (first, last, _, _) in enumerate(text_parts(tokens.counts, size)):
        if number not in done:
            positions = np.arange(first, last)
            vectors = tokens.pick(positions).float32()
            scale = float(vectors.abs().max()) / LARGEST if len(vectors) else 0.0
            integers = (vectors / (scale or 1.0)).round_().to(torch.int8)
            rows = TokenRows(integers, torch.full((len(vectors),), scale or 1.0))
            writer.write_rows(number, tokens.doc_ids.take(positions), tokens.counts[first:last], rows, None)


def build_narrow(vectors: VectorReader | TokenReader, folder: Path, *, dtype: str, advance: Advance) -> dict[str, Any]:
    """Build an index of the kind `narrow`; see the functions `narrow` and `narrow_tokens`.

    Raises:
        UserError: the dtype is not one that token vectors are scanned in.
    """
    del advance
    if not isinstance(vectors, TokenReader):
        narrow(vectors, folder, dtype)
    elif dtype == "int8":
        narrow_tokens(vectors, folder)
    else:
        raise UserError(f"--dtype {dtype}: token vectors are scanned in int8 only.")
    return {"digests": written_digests(folder)}


def open_narrow(folder: Path, built: Mapping[str, Any], how: Opening) -> FlatIndex | LateIndex:
    """Open an index of the kind `narrow` over the vectors at `how.vectors`."""
    del built
    assert how.vectors is not None
    if store_kind(folder) == "tokens":
        scan = TokenReader(folder)
        return LateIndex(
            TokenReader(how.vectors), scan=scan, memory_gib=how.memory_gib, refine=how.refine or NARROW_REFINE
        )
    return exact_index(how.vectors, scan=folder, memory_gib=how.memory_gib, refine=how.refine or REFINE)


def narrow_footprint(vectors: VectorReader | TokenReader, *, dtype: str) -> Footprint:
    """Compute the size of a narrow copy."""
    rows, more = (vectors.num_tokens, 4) if isinstance(vectors, TokenReader) else (vectors.num_docs, 0)
    scanned = rows * (vectors.dim * DTYPES[dtype].itemsize + more)
    return Footprint(scanned, scanned)
