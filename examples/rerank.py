"""Train a reranker for a few steps, then reorder what BM25 finds: python examples/rerank.py [COLLECTION]"""

import sys
import tempfile
from pathlib import Path

from tiny_collection import tiny_collection

from shortlist import init, mine, train
from shortlist.data.collections import open_collection
from shortlist.data.runs import write_run
from shortlist.index.bm25 import BM25Index
from shortlist.models.checkpoint import load_reranker
from shortlist.models.run import for_inference
from shortlist.rerank import rerank

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
reranker = load_reranker(str(work / "reranker"))
for_inference(reranker)
queries = {query.query_id: query for query in collection.queries("test")}
run = bm25.search(list(queries.values()), k=20)
documents = collection.documents({hit.doc_id for hits in run.values() for hit in hits})
for query_id, hits in rerank(reranker, run, queries, documents, depth=20).items():
    print(queries[query_id].text, *(hit.doc_id for hit in hits[:3]), sep="  ")
