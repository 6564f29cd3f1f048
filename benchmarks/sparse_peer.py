"""Search by term weights with PISA, in an environment of its own, as sparse_speed.py asks.

    PYTHON benchmarks/sparse_peer.py FOLDER

FOLDER holds terms.npy, weights.npy and the number of each document's terms in counts.npy, and query_terms.npy and
query_weights.npy, [queries, terms]. Commands are `build` and `search ALGORITHM`, a line each; each is answered with a
line of JSON. PISA keeps whole numbers: weights are multiplied so that the largest is 255. Queries are asked together,
on one thread.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

K = 10
ALGORITHMS = ("block_max_wand", "block_max_maxscore", "maxscore")


def whole_numbers(weights: np.ndarray) -> np.ndarray:
    """Weights as PISA keeps them."""
    return np.maximum(1, np.rint(weights * (255 / weights.max())))


def as_tokens(terms: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """A text as its indexer and its searches want it."""
    return dict(zip(map(str, terms.tolist()), weights.tolist(), strict=True))


class Pisa:
    """An index of PISA."""

    def __init__(self, folder: Path) -> None:
        import pandas as pd
        from pyterrier_pisa import PisaIndex  # pyright: ignore[reportMissingImports]

        self.given, self.index = folder, PisaIndex(str(folder / "pisa"), stemmer="none", threads=1, overwrite=True)
        terms, weights = np.load(folder / "query_terms.npy"), np.load(folder / "query_weights.npy")
        asked = [as_tokens(*query) for query in zip(terms, whole_numbers(weights), strict=True)]
        self.queries = pd.DataFrame({"qid": [str(number) for number in range(len(asked))], "query_toks": asked})

    def documents(self) -> Iterator[dict[str, Any]]:
        """Yield the documents as PISA's indexer wants them."""
        terms, weights, counts = (np.load(self.given / f"{name}.npy") for name in ("terms", "weights", "counts"))
        whole = whole_numbers(weights)
        last = 0
        for number, count in enumerate(counts.tolist()):
            here, last = slice(last, last + count), last + count
            yield {"docno": str(number), "toks": as_tokens(terms[here], whole[here])}

    def build(self) -> None:
        """Write the index, and the tables that its searches read."""
        self.index.toks_indexer(scale=1.0).index(self.documents())
        for algorithm in ALGORITHMS:
            self.search(algorithm, self.queries[:1])

    def search(self, algorithm: str, queries: Any = None) -> list[list[int]]:
        """Find the best documents of each query."""
        asked = self.queries if queries is None else queries
        found = self.index.quantized(num_results=K, threads=1, query_algorithm=algorithm)(asked)
        by_query = {qid: [int(docno) for docno in hits["docno"]] for qid, hits in found.groupby("qid")}
        return [by_query.get(str(number), []) for number in range(len(asked))]


def main(folder: Path) -> None:
    """Answer commands until there are no more."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for whatever the tool prints, also from its compiled parts
    peer = Pisa(folder)
    for line in sys.stdin:
        command, _, algorithm = line.strip().partition(" ")
        start, cpu = time.perf_counter(), time.process_time()
        found = peer.search(algorithm) if command == "search" else peer.build()
        told = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "found": found}
        told |= {"bytes": sum(path.stat().st_size for path in (folder / "pisa").rglob("*") if path.is_file())}
        print(json.dumps(told | {"settings": ALGORITHMS}), file=out, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
