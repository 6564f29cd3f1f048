"""Stores of a few vectors that change as their corpus does, and processes that die while they load them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from shortlist.data.stores.shards import finished_shards
from shortlist.data.stores.snapshots import document_keys, missing, pin, read_known, renew
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.records import Document

SHARD = 100
RNG = np.random.default_rng(0)
VECTORS = RNG.integers(-2, 3, (250, 8)).astype(np.float32)
"""Small integers: their sums are exact, and many documents tie."""
QUERIES = RNG.integers(-2, 3, (5, 8)).astype(np.float32)
CORPUS = {f"d{i}": vector for i, vector in enumerate(VECTORS)}


def clustered(num_docs: int, dim: int) -> np.ndarray:
    """Vectors of unit length round 20 centres."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((20, dim))[rng.integers(0, 20, num_docs)] + 0.5 * rng.standard_normal((num_docs, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def encode(folder: Path, corpus: dict[str, np.ndarray], *, shard: int = SHARD) -> VectorReader:
    """Make a folder the store of these documents, as `shortlist encode --update` would."""
    documents = [Document(doc_id, str(vector.tolist())) for doc_id, vector in corpus.items()]
    shards = finished_shards(folder)
    if shards:
        pin(folder)
    new = list(missing(documents, read_known(folder, shards), lambda count: None))
    writer = VectorWriter(folder, dim=len(next(iter(corpus.values()))))
    for number, start in enumerate(range(0, len(new), shard), start=len(shards)):
        part = new[start : start + shard]
        vectors = np.stack([corpus[document.doc_id] for document in part])
        writer.write_shard(number, [document.doc_id for document in part], vectors, document_keys(part))
    if shards:
        renew(folder, documents)
    return VectorReader(folder)


def best(corpus: dict[str, np.ndarray], queries: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
    """What exact search must find."""
    doc_ids, scores = list(corpus), queries @ np.stack(list(corpus.values())).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [[(doc_ids[i], float(row[i])) for i in places] for row, places in zip(scores, order, strict=True)]


def recall(index, corpus: dict[str, np.ndarray], queries: np.ndarray, k: int) -> float:
    """Share of the best k that an index finds among its k."""
    pairs = zip(index.find(queries, k), best(corpus, queries, k), strict=True)
    return float(
        np.mean([len({hit.doc_id for hit in hits} & {doc_id for doc_id, _ in true}) / k for hits, true in pairs])
    )


def kill_when_it_says_so(script: str) -> None:
    """Run Python in a process of its own, and kill -9 it once it has printed something."""
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"now\n"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
