"""Train a small retriever from nothing: python examples/train_retriever.py [COLLECTION [FOLDER]]"""

import sys
import tempfile
from pathlib import Path

from tiny_collection import tiny_collection

from shortlist import init, train

collection = sys.argv[1] if len(sys.argv) > 1 else tiny_collection()
folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="shortlist-example-"))

# Random weights and a tokenizer fitted to the collection; with a folder or hub name as --backbone this is not needed.
init.run(
    init.Config(collection=collection, out=folder / "backbone", layers=1, hidden=64, heads=2, vocab_size=400),
)
train.run(
    train.Config(
        kind="retriever",
        backbone=str(folder / "backbone"),
        collection=collection,
        out=folder / "retriever",
        batch_size=8,
        steps=20,
        learning_rate=0.002,
        warmup_steps=2,
        temperature=0.05,
    )
)
print((folder / "retriever" / "log.jsonl").read_text("utf-8").splitlines()[-1])
print(f"the retriever is in {folder / 'retriever'}")
