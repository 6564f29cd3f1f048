"""Models and a pipeline by name: python examples/python_api.py [COLLECTION RETRIEVER RERANKER]"""

import sys
import tempfile
from pathlib import Path

from tiny_collection import tiny_collection

from shortlist import Pipeline, Reranker, Retriever, encode, index, init, train

work = Path(tempfile.mkdtemp(prefix="shortlist-example-"))
collection, *models = sys.argv[1:4] if len(sys.argv) > 3 else [tiny_collection()]
if not models:  # of random weights and a few steps: this shows how, not how well
    backbone = work / "backbone"
    init.run(init.Config(collection=collection, out=backbone, layers=1, hidden=64, heads=2, vocab_size=400))
    options = {"batch_size": 8, "steps": 2, "warmup_steps": 1}
    for kind in ("retriever", "reranker"):
        settings = {"kind": kind, "backbone": str(backbone), "collection": collection, "out": work / kind}
        train.run(train.Config(**settings, **options))
        models.append(str(work / kind))

retriever, reranker = Retriever.load(models[0]), Reranker.load(models[1])
texts = ["The seal eats fish and squid.", "The owl lives in barns and hollow trees."]
print("similarity", retriever.encode_queries(["What does the seal eat?"]) @ retriever.encode_documents(texts).T)
print("scores", reranker.score("What does the seal eat?", texts))

encode.run(encode.Config(model=models[0], collection=collection, out=work / "vectors"))
index.run(index.Config(collection=collection, out=work / "bm25"))
pipeline = Pipeline.load(
    collection, retriever=models[0], vectors=work / "vectors", bm25=work / "bm25", reranker=models[1]
)
for result in pipeline.search("What does the seal eat?", k=3):
    print(f"{result.score:.3f}  {result.document.text}  {', '.join(sorted(result.places))}")
