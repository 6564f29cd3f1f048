"""Hashes of all that a model was trained on, small enough to be handed on with it."""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np

from shortlist.data.files import atomic_write

BYTES = 5
"""Per hash: of two texts one in 10^12 has the other's."""


def fingerprint(text: str) -> int:
    """The hash of a summary or body; of `overlap.normalized` and `body_words`, so that no layout matters."""
    return int.from_bytes(blake2b(text.encode(), digest_size=BYTES).digest(), "big")


def write_fingerprints(path: Path, texts: Iterable[str]) -> None:
    """Write the texts' hashes, each once: sorted, as differences, byte by byte, which is what compresses best."""
    hashes = np.unique(np.fromiter(map(fingerprint, texts), np.uint64))
    steps = np.diff(hashes, prepend=np.uint64(0)).astype("<u8")
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, steps=steps.view(np.uint8).reshape(-1, 8).T)


def read_fingerprints(path: Path) -> np.ndarray:
    """The hashes that a file holds, sorted."""
    with np.load(path, allow_pickle=False) as arrays:
        return np.cumsum(np.ascontiguousarray(arrays["steps"].T).view("<u8").ravel(), dtype=np.uint64)
