"""Encoding with a learned sparse model: ours beside sentence-transformers' SparseEncoder, on one core.

    python benchmarks/sparse_encode.py --model MODEL --collection scifact --docs 500 --rounds 2

Each side encodes the same documents in a process of its own, one after the other, interleaved: documents a second of processor
time, and the process's peak memory beyond what it had once the model was loaded. Then the weights of both are compared.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np


def texts_of(folder: str, count: int) -> list[tuple[str, str]]:
    """Read the titles and texts of the first documents of a BEIR folder."""
    lines = (Path(folder) / "corpus.jsonl").read_text().splitlines()[:count]
    return [(record.get("title", "").strip(), record["text"].strip()) for record in map(json.loads, lines)]


def by_shortlist(model: str, texts: list[tuple[str, str]]):
    """Prepare ours."""
    from shortlist import Document, SparseRetriever

    retriever = SparseRetriever.load(model, contract="splade")
    documents = [Document("", text, title=title) for title, text in texts]
    retriever.encode_documents(documents[:2])

    def encode():
        found = retriever.encode_documents(documents)
        return np.repeat(np.arange(len(found)), found.counts), found.terms, found.weights

    return encode


def by_sentence_transformers(model: str, texts: list[tuple[str, str]]):
    """Prepare sentence-transformers, with its defaults."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    transformer = Transformer(model, transformer_task="fill-mask", max_seq_length=256)
    encoder = SparseEncoder(modules=[transformer, SpladePooling("max")], device="cpu")
    joined = [f"{title} {text}" for title, text in texts]
    encoder.encode_document(joined[:2])

    def encode():
        found = encoder.encode_document(joined, show_progress_bar=False).coalesce()
        rows, terms = found.indices().numpy()
        return rows, terms, found.values().numpy()

    return encode


SIDES = {"shortlist": by_shortlist, "sentence-transformers": by_sentence_transformers}


def peak() -> int:
    """The process's greatest memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side: str, model: str, texts: list[tuple[str, str]], out: Path) -> dict[str, float]:
    """Encode once, keep the weights, and return time and memory."""
    import torch

    torch.set_num_threads(1)
    encode = SIDES[side](model, texts)
    before, start = peak(), time.process_time()
    rows, terms, weights = encode()
    seconds, after = time.process_time() - start, peak()
    np.savez(out, rows=rows, terms=terms, weights=weights)
    return {"seconds": seconds, "peak": after, "more": after - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--collection", required=True)
    parser.add_argument("--docs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/sparse-encode"))
    parser.add_argument("--side", choices=SIDES)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.side:
        texts = texts_of(options.collection, options.docs)
        print(json.dumps(measure(options.side, options.model, texts, options.out / f"{options.side}.npz")))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[side].append(json.loads(printed.splitlines()[-1]))
    for side, runs in found.items():
        seconds = median(run["seconds"] for run in runs)
        memory = [median(run[name] for run in runs) / 2**20 for name in ("peak", "more")]
        print(
            f"{side:22}  {options.docs / seconds:7.1f} documents/s  peak {memory[0]:6.0f} MiB, {memory[1]:6.0f} of it encoding"
        )
    ours, theirs = ({**np.load(options.out / f"{side}.npz")} for side in SIDES)
    tables = [np.zeros((options.docs, 1 + max(ours["terms"].max(), theirs["terms"].max())), np.float32) for _ in SIDES]
    for table, part in zip(tables, (ours, theirs), strict=True):
        table[part["rows"], part["terms"]] = part["weights"]
    print(f"greatest difference of a weight: {np.abs(tables[0] - tables[1]).max():.2e}")


if __name__ == "__main__":
    main()
