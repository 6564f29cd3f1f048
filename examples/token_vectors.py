"""Give the vectors of late interaction to LanceDB: python examples/token_vectors.py [COLLECTION MODEL]"""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from tiny_collection import tiny_collection

from shortlist import LateRetriever, convert, encode, init, open_collection, train

work = Path(tempfile.mkdtemp(prefix="shortlist-example-"))
name, model = sys.argv[1:3] if len(sys.argv) > 2 else (tiny_collection(), str(work / "model"))
if len(sys.argv) <= 2:  # a few steps from random weights: this shows how, not how well
    init.run(init.Config(collection=name, out=work / "backbone", layers=1, hidden=64, heads=2, vocab_size=400))
    settings = {"collection": name, "steps": 20, "batch_size": 4, "learning_rate": 1e-3, "dim": 32}
    train.run(train.Config(kind="late", backbone=str(work / "backbone"), out=Path(model), **settings))

encode.run(encode.Config(model=model, collection=name, out=work / "tokens", dtype="float16"))
convert.run(convert.Config(sources=(str(work / "tokens"),), to="arrays", out=work / "arrays"))

values, offsets = (np.load(work / "arrays" / f"{array}.npy", mmap_mode="r") for array in ("values", "offsets"))
doc_ids = (work / "arrays" / "doc_ids.txt").read_text("utf-8").splitlines()
documents = [values[start:end] for start, end in pairwise(offsets)]  # also what fast-plaid's `create` is given

vectors = pa.array([document.tolist() for document in documents], pa.list_(pa.list_(pa.float32(), values.shape[1])))
table = lancedb.connect(work / "lance").create_table("documents", pa.table({"doc_id": doc_ids, "vectors": vectors}))

retriever = LateRetriever.load(model)
for query in open_collection(name).queries("test"):
    asked: Any = table.search(retriever.encode_queries(query), "vectors")
    hits = asked.distance_type("cosine").limit(3).to_list()
    print(query.query_id, *(hit["doc_id"] for hit in hits), sep="  ")
