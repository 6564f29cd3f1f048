"""The cores of this machine: how many there are, and how threads wait."""

import os
from pathlib import Path

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that say how OpenMP's threads wait for each other."""

SPINS = "500"
"""Turns that a thread of GNU's OpenMP waits for the next piece of work before it sleeps."""

SHAPES_KEPT = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Environment variables that say how many shapes oneDNN keeps, and how many each thread of PyTorch keeps above it."""

NUM_SHAPES = "32"
"""Enough for all layers of a batch, with room for batches of a few lengths in turn."""

GPUS = ("nvidiactl", "nvidia0", "kfd", "dxg")
"""Devices in /dev of machines with a GPU that PyTorch may use."""


def wait_briefly() -> None:
    """Let OpenMP's threads sleep after a short wait, unless the user has said otherwise.

    Threads that spin, as by default, keep the core that another process could use, and the one that has the work to do
    may be waiting for just that core. OpenMP reads its environment once, so call this before PyTorch is loaded.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT=SPINS)


def keep_few_shapes() -> None:
    """Let oneDNN and PyTorch keep what they made for the last shapes of batches only.

    Unless the user has said otherwise. oneDNN keeps 1,024 by default, and above it PyTorch keeps 1,024 more in every
    thread, a quarter of a megabyte each with AVX-512: with texts of any length memory grows until there are so many.
    Both read their environment once, so call this before PyTorch is loaded.
    """
    for name in SHAPES_KEPT:
        os.environ.setdefault(name, NUM_SHAPES)


def num_cores() -> int:
    """Return how many cores this process may use; OMP_NUM_THREADS is an upper limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(cores, int(limit)) if limit.isdecimal() and int(limit) else cores


def share_cores(parts: int) -> dict[str, str]:
    """Return the environment of a process that computes with its part of the cores."""
    return dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(max(1, num_cores() // parts)))


def may_have_gpu() -> bool:
    """Whether PyTorch might find a GPU here; this does not load it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1") and any(
        Path("/dev", name).exists() for name in GPUS
    )
