"""Train a reranker for a few steps, then reorder what BM25 finds: python examples/rerank.py [COLLECTION]"""

import sys
import tempfile
from pathlib import Path

from tiny_collection import tiny_collection

from shortlist import Reranker, init, mine, train
from shortlist.data.collections import open_collection
from shortlist.data.runs import write_run
from shortlist.index.bm25 import BM25Index
from shortlist.math.fusion import reorder

name = sys.argv[1] if len(sys.argv) > 1 else tiny_collection()
work = Path(tempfile.mkdtemp(prefix="shortlist-example-"))
collection = open_collection(name)
bm25 = BM25Index.build(collection.corpus())

write_run(work / "train.trec", bm25.search(collection.queries("train"), k=20))
mine.run(mine.Config(runs=(work / "train.trec",), collection=name, out=work / "groups.jsonl", negatives=4))
init.run(init.Config(collection=name, out=work / "backbone", layers=1, hidden=64, heads=2, vocab_size=400))
options = {"batch_size": 4, "steps": 10, "learning_rate": 0.001, "warmup_steps": 2}
backbone, groups = str(work / "backbone"), work / "groups.jsonl"
train.run(
    train.Config(kind="reranker", backbone=backbone, collection=name, groups=groups, out=work / "reranker", **options)
)
reranker = Reranker.load(str(work / "reranker"))
for query in collection.queries("test"):
    hits = bm25.search([query], k=20)[query.query_id]
    documents = collection.documents(hit.doc_id for hit in hits)
    scores = reranker.score(query, [documents[hit.doc_id] for hit in hits])
    print(query.text, *(hit.doc_id for hit in reorder(hits, scores.tolist())[:3]), sep="  ")
