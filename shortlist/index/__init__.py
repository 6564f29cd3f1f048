"""Stage `index`: read a corpus once, so that search need not."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from shortlist.data.collections import open_collection
from shortlist.data.manifest import start_job
from shortlist.progress import track
from shortlist.records import Query, Run


@runtime_checkable
class Index(Protocol):
    """A first stage: anything that finds documents for queries."""

    def search(self, queries: list[Query], k: int) -> Run:
        """The at most k best documents of each query, best first."""
        ...


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str
    """BEIR or MS MARCO folder, `irds:` or `hf:` name."""
    out: Path
    """Folder to write."""
    kind: Literal["bm25"] = "bm25"
    """The kind of index."""
    analyser: Literal["english", "code"] = "english"
    """How text becomes words: `english` as in Lucene, or `code` for source code."""
    k1: float = 0.9
    """How much a word's second occurrence in a document still counts (0: nothing)."""
    b: float = 0.4
    """How much longer documents are held back (0: not at all, 1: fully)."""
    overwrite: bool = False
    """Replace an output of another job instead of refusing."""


def run(config: Config) -> None:
    """Index the corpus into a folder."""
    # Its libraries load slowly, and dense search needs none of them.
    from shortlist.index.bm25 import BM25Index

    collection = open_collection(config.collection)
    job = start_job(config, stage="index", inputs={"collection": collection.identity("corpus")}, folder=True)
    if job.done:
        return
    start = time.perf_counter()
    documents = track(collection.corpus(), "indexing", unit="documents")
    index = BM25Index.build(documents, analyser=config.analyser, k1=config.k1, b=config.b)
    index.save(job.out)
    job.finish(num_docs=len(index), seconds=round(time.perf_counter() - start, 3))
