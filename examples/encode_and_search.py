"""Embed a collection and search the vectors exactly: python examples/encode_and_search.py [COLLECTION MODEL]"""

import sys
import tempfile
from pathlib import Path

from tiny_collection import tiny_collection

from shortlist import init
from shortlist.data.collections import open_collection
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.encode import encode, parts
from shortlist.index.dense import DenseSearch
from shortlist.index.flat import FlatIndex
from shortlist.models.retriever import Retriever

work = Path(tempfile.mkdtemp(prefix="shortlist-example-"))
name, model = sys.argv[1:3] if len(sys.argv) > 2 else (tiny_collection(), str(work / "model"))
if len(sys.argv) <= 2:  # random weights: this shows how, not how well
    init.run(init.Config(collection=name, out=Path(model), layers=1, hidden=64, heads=2, vocab_size=400))

collection = open_collection(name)
retriever = Retriever.load(model, contract=None if (Path(model) / "contract.json").exists() else "repllama")

writer = VectorWriter(work / "vectors", retriever.dim)
for part in parts(collection.corpus(), shard_size=20_000):
    writer.write_shard(*encode(retriever, part))

index = DenseSearch(retriever, FlatIndex(VectorReader(work / "vectors")))
for query_id, hits in index.search(collection.queries("test"), k=3).items():
    print(query_id, *(f"{hit.doc_id} {hit.score:.3f}" for hit in hits), sep="  ")
