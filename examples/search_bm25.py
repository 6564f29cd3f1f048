"""Index a collection for BM25 and search it: python examples/search_bm25.py [COLLECTION]"""

import sys

from tiny_collection import tiny_collection

from shortlist.data.collections import open_collection
from shortlist.index.bm25 import BM25Index

collection = open_collection(sys.argv[1] if len(sys.argv) > 1 else tiny_collection())
index = BM25Index.build(collection.corpus())
queries = collection.queries("test")
run = index.search(queries, k=3)

for query in queries:
    print(query.text)
    documents = collection.documents([hit.doc_id for hit in run[query.query_id]])
    for hit in run[query.query_id]:
        print(f"  {hit.score:7.3f}  {hit.doc_id}  {documents[hit.doc_id].text[:70]}")
