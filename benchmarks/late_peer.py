"""Late interaction in another tool's environment, for late_speed.py: reads commands, writes a line of JSON for each.

    PYTHON benchmarks/late_peer.py TOOL FOLDER

FOLDER holds documents.npy, counts.npy, queries.npy and query_tokens.npy. Commands are `build` and `search SETTING`;
neither shortlist nor anything but the tool, torch and numpy is needed.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

torch.set_num_threads(1)
K = 10


class FastPlaid:
    """fast-plaid with its own defaults, except for the sample of k-means, without which it takes minutes."""

    settings = ("probe 8, full 4096", "probe 32, full 4096", "probe 2, full 1024")

    def __init__(self, folder: Path) -> None:
        from fast_plaid import search  # pyright: ignore[reportMissingImports]

        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self.index = folder, search.FastPlaid(str(folder), device="cpu", low_memory=False)

    def build(self, documents: list[torch.Tensor]) -> None:
        sample = min(len(documents), 2000)
        self.index.create(documents_embeddings=documents, n_samples_kmeans=sample)

    def search(self, queries: torch.Tensor, setting: str) -> list[list[int]]:
        probes, full = (int(part.split()[1]) for part in setting.split(", "))
        how = {"n_ivf_probe": probes, "n_full_scores": full, "n_processes": 1}
        found = self.index.search(queries, top_k=K, show_progress=False, **how)
        return [[int(place) for place, _ in hits] for hits in found]


class Warp:
    """xtr-warp-rs."""

    settings = ("nprobe 16", "nprobe 64", "nprobe 128")

    def __init__(self, folder: Path) -> None:
        from xtr_warp.search import XTRWarp  # pyright: ignore[reportMissingImports]

        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self.index = folder, XTRWarp(str(folder))

    def build(self, documents: list[torch.Tensor]) -> None:
        sample = min(len(documents), 2000)
        how = {"nbits": 4, "n_samples_kmeans": sample, "show_progress": False}
        self.index.create(embeddings_source=documents, device="cpu", **how)
        self.index.load(device="cpu", dtype=torch.float32)

    def search(self, queries: torch.Tensor, setting: str) -> list[list[int]]:
        nprobe = int(setting.split()[1])
        found = self.index.search(queries, top_k=K, num_threads=1, nprobe=nprobe, show_progress=False)
        return [[int(place) for place, _ in hits] for hits in found]


TOOLS: dict[str, Any] = {"fast-plaid": FastPlaid, "xtr-warp-rs": Warp}


def main(tool: str, folder: Path) -> None:
    """Answer commands until there are no more."""
    counts = np.load(folder / "counts.npy")
    documents = [torch.from_numpy(one) for one in np.split(np.load(folder / "documents.npy"), np.cumsum(counts)[:-1])]
    queries = torch.from_numpy(np.load(folder / "queries.npy"))
    queries = queries.view(len(np.load(folder / "query_tokens.npy")), -1, queries.shape[1])
    out = sys.stdout
    sys.stdout = sys.stderr  # for whatever the tool prints
    peer = TOOLS[tool](folder / tool)
    for line in sys.stdin:
        command, _, setting = line.strip().partition(" ")
        start, found = time.perf_counter(), []
        if command == "build":
            peer.build(documents)
        else:
            found = peer.search(queries, setting)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in (folder / tool).rglob("*") if path.is_file())
        told = {"seconds": seconds, "found": found, "bytes": size, "settings": peer.settings}
        print(json.dumps(told), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
