"""Hashes of a model's training data, small enough to be handed on with it."""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np

from shortlist.data.files import atomic_write

BYTES = 5
"""Bytes per hash: two texts have the same one with a chance of 1 in 10^12."""


def fingerprint(text: str) -> int:
    """Hash a summary or body.

    The text comes from `overlap.normalized` or `body_words`, so that its layout does not matter.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=BYTES).digest(), "big")


def write_fingerprints(path: Path, texts: Iterable[str]) -> None:
    """Write the distinct hashes of the texts to a file.

    They are stored sorted, as differences, byte by byte, which compresses best.
    """
    hashes = np.unique(np.fromiter(map(fingerprint, texts), np.uint64))
    steps = np.diff(hashes, prepend=np.uint64(0)).astype("<u8")
    with atomic_write(path, "wb") as file:
        np.savez_compressed(file, steps=steps.view(np.uint8).reshape(-1, 8).T)


def read_fingerprints(path: Path) -> np.ndarray:
    """Read the hashes in a file, sorted."""
    with np.load(path, allow_pickle=False) as arrays:
        return np.cumsum(np.ascontiguousarray(arrays["steps"].T).view("<u8").ravel(), dtype=np.uint64)
