"""Token vectors in fewer bytes: what a search still finds with each dtype, with tokens pooled, and with some kept.

    python benchmarks/fewer_tokens.py --model work/late --collection my-data --out benchmarks/fewer_tokens.md

The collection is embedded once, in float32; everything else is made from these vectors. Every query is compared with
every document by the definition of MaxSim. `found` is the mean share of the ten best documents that are the same as
with all vectors.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float
from measuring import conditions, publish, quiet, table
from torch import Tensor

from shortlist import encode
from shortlist.data.collections import open_collection
from shortlist.data.stores.tokens import TOKEN_DTYPES, TokenReader, as_stored
from shortlist.evaluation.measure import per_query
from shortlist.math.maxsim import TokenVectors
from shortlist.math.thinning import thinned
from shortlist.models.late_retriever import LateRetriever
from shortlist.records import Hit

K = 10


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Folder or hub name of a late model."""
    collection: str
    """Collection with judgements."""
    split: str = "test"
    """Split whose queries are asked."""
    queries: int = 150
    """Most queries to ask."""
    max_length: int | None = None
    """Most tokens of a document."""
    factors: tuple[float, ...] = (2.0, 3.0, 4.0)
    """Tokens for each vector, pooled."""
    budgets: tuple[int, ...] = (80, 40, 20)
    """Vectors of each document, kept."""
    out: Path | None = None
    """Markdown file to write too."""


def scores(queries: TokenVectors, documents: TokenVectors) -> Float[Tensor, "queries docs"]:
    """MaxSim of every query with every document."""
    asked, owners = torch.from_numpy(queries.values), torch.arange(len(queries))
    owners = owners.repeat_interleave(torch.from_numpy(queries.counts))
    found = torch.full((len(queries), len(documents)), -torch.inf)
    for place, document in enumerate(documents):
        if len(document):
            best = (asked @ torch.from_numpy(np.ascontiguousarray(document)).T).amax(1)
            found[:, place] = torch.zeros(len(queries)).index_add_(0, owners, best)
    return found


def main(config: Config) -> None:
    quiet()
    under = conditions(None)
    collection = open_collection(config.collection)
    qrels = collection.qrels(config.split)
    queries = list(islice((q for q in collection.queries(config.split) if q.query_id in qrels), config.queries))
    with tempfile.TemporaryDirectory() as folder:
        out, length = Path(folder), config.max_length
        encode.run(encode.Config(model=config.model, collection=config.collection, max_length=length, out=out))
        store = TokenReader(out)
        doc_ids, vectors = list(store.doc_ids), store.take(np.arange(store.num_docs))
    asked = LateRetriever.load(config.model).encode_queries(queries)
    assert isinstance(asked, TokenVectors)
    exact = scores(asked, vectors).topk(K, 1).indices

    def row(name: str, make: Callable[[], TokenVectors]) -> list[str]:
        documents = make()
        best = scores(asked, documents).topk(K, 1)
        same = float((best.indices[:, :, None] == exact[:, None, :]).any(2).float().mean())
        run = {
            query.query_id: [Hit(doc_ids[i], score) for score, i in zip(*found, strict=True)]
            for query, *found in zip(queries, best.values.tolist(), best.indices.tolist(), strict=True)
        }
        judged = {query.query_id: qrels[query.query_id] for query in queries}
        value = np.mean([*per_query(run, judged, "nDCG@10")["nDCG@10"].values()])
        return [name, f"{documents.counts.mean():.1f}", f"{value:.4f}", f"{same:.1%}"]

    rows = [row(dtype, lambda dtype=dtype: as_stored(vectors, dtype)) for dtype in TOKEN_DTYPES]
    rows += [row(f"--pool-tokens {n:g}", lambda n=n: thinned(vectors, factor=n)) for n in config.factors]
    rows += [row(f"--keep-tokens {n}", lambda n=n: thinned(vectors, budget=n)) for n in config.budgets]
    size = f"{len(queries)} queries of {config.collection}, {len(doc_ids):,} documents, {store.dim} dimensions."
    publish(
        "Token vectors in fewer bytes",
        under,
        [size, table(["vectors", "for a document", "nDCG@10", "found"], rows)],
        config.out,
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
