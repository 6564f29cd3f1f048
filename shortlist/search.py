"""Stage `search`: a first stage (BM25, vectors, or both fused) finds each query's long list."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, final

from shortlist.config import from_settings, load_yaml
from shortlist.data.collections import Collection, open_collection
from shortlist.data.formats import write_run
from shortlist.data.manifest import identity, read_manifest, start_job
from shortlist.data.vectors import VectorReader
from shortlist.errors import UserError
from shortlist.index import Index
from shortlist.math.fusion import rrf
from shortlist.records import Hit, Query, Run

DEMO_FOLDER = Path("shortlist-demo")
SNIPPET = 300
"""Characters of a document that are printed."""
HYBRID_DEPTH = 100
"""Ranks of each part that are fused, however few are asked for: a document that both rank 20th can win."""


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str | None = None
    """Where the queries are: folder, `irds:` or `hf:` name."""
    index: Path | None = None
    """BM25 index from `shortlist index`. With --vectors too, both are searched and fused by reciprocal rank."""
    model: str | None = None
    """Retriever that made the vectors: folder or hub name."""
    vectors: Path | None = None
    """Vectors from `shortlist encode`."""
    out: Path | None = None
    """Run file to write; needed unless --query is given."""
    split: str = "test"
    """Which queries of the collection."""
    k: int = 1000
    """Documents per query."""
    query: str | None = None
    """Search for this text and print the 10 best (or --k if fewer) instead of writing a run."""
    contract: str | None = None
    """Input contract by name, for a model folder that does not say its own."""
    query_length: int | None = None
    """Most tokens of a query (None: the model's)."""
    demo: str | None = None
    """Search the demo's collection for this text, with what `shortlist demo` has trained."""
    demo_folder: Path = DEMO_FOLDER
    """Where `shortlist demo` has worked."""
    overwrite: bool = False
    """Replace an output of another job instead of refusing."""


@final
class Dense:
    """Exact search by the vectors of a retriever."""

    def __init__(self, retriever: Any, vectors: VectorReader) -> None:
        from shortlist.index.flat import FlatIndex

        self.retriever = retriever
        self.flat = FlatIndex(vectors)
        self.doc_ids = vectors.doc_ids

    def search(self, queries: list[Query], k: int) -> Run:
        """Each query's k documents of greatest similarity."""
        from shortlist.models.embed import embed_queries

        scores, places = self.flat.search_vectors(embed_queries(self.retriever, queries), k)
        return {
            query.query_id: [Hit(self.doc_ids[place], score) for place, score in zip(*row, strict=True)]
            for query, *row in zip(queries, places.tolist(), scores.tolist(), strict=True)
        }


@final
class Hybrid:
    """Several first stages, fused by reciprocal rank."""

    def __init__(self, parts: Sequence[Index]) -> None:
        self.parts = parts

    def search(self, queries: list[Query], k: int) -> Run:
        """Each query's k best documents of all parts together."""
        fused = rrf([part.search(queries, max(k, HYBRID_DEPTH)) for part in self.parts])
        return {query.query_id: fused.get(query.query_id, [])[:k] for query in queries}


def open_index(config: Config) -> Index:
    """The first stage that a Config describes.

    Raises:
        UserError: it describes none, or vectors of another model.
    """
    parts: list[Index] = []
    if config.index:
        from shortlist.index.bm25 import BM25Index

        identity(config.index)  # refuses an unfinished index
        parts.append(BM25Index.load(config.index))
    if config.vectors or config.model:
        if not (config.vectors and config.model):
            given, wanted = ("--vectors", "--model") if config.vectors else ("--model", "--vectors")
            raise UserError(f"{given} without {wanted}: searching vectors takes the model that made them.")
        parts.append(_open_dense(config.model, config.vectors, config))
    if not parts:
        raise UserError("nothing to search with: give --index, or --model and --vectors, or all three.")
    return parts[0] if len(parts) == 1 else Hybrid(parts)


def _open_dense(model: str, vectors: Path, config: Config) -> Dense:
    from shortlist.models.checkpoint import load_retriever, model_identity
    from shortlist.models.embed import for_inference

    identity(vectors)  # refuses an unfinished store
    manifest = read_manifest(vectors)
    if manifest and manifest["made_from"].get("model") != model_identity(model):
        raise UserError(
            f"--vectors {vectors}: were made by {manifest['config'].get('model')}, which is not what --model {model} "
            "holds now; encode again, or name the model that made them."
        )
    retriever = load_retriever(model, contract=config.contract)
    retriever.inputs.contract = retriever.inputs.contract.with_lengths(query=config.query_length)
    for_inference(retriever)
    return Dense(retriever, VectorReader(vectors))


def search(index: Index, queries: list[Query], k: int) -> tuple[Run, float]:
    """Each query's hits, and the milliseconds that one query took on average."""
    start = time.perf_counter()
    found = index.search(queries, k)
    return found, 1000 * (time.perf_counter() - start) / max(1, len(queries))


def run(config: Config) -> None:
    """Write the run of a split's queries, or print what one query finds."""
    if config.demo is not None:
        config = _demo_config(config)
    if config.collection is None:
        raise UserError("--collection is missing: it says where the queries and documents are.")
    if config.k < 1:
        raise UserError(f"--k is {config.k}; expected at least 1.")
    collection = open_collection(config.collection)
    if config.query is not None:
        print_hits(collection, open_index(config), config.query, k=min(config.k, 10))
        return
    if config.out is None:
        raise UserError("--out is missing: name the run file to write, or ask one question with --query.")
    index, queries = open_index(config), collection.queries(config.split)
    job = start_job(config, stage="search", inputs=_inputs(config, queries), ignore=("query", "demo", "demo_folder"))
    if job.done:
        return
    index.search(queries[:1], 1)  # what is compiled or read on first use is not a query's time
    found, milliseconds = search(index, queries, config.k)
    write_run(job.out, found, tag="shortlist")
    job.finish(num_queries=len(queries), ms_per_query=round(milliseconds, 3))


def _inputs(config: Config, queries: list[Query]) -> dict[str, str]:
    made_by = {"index": config.index, "vectors": config.vectors}
    inputs = {name: identity(path) for name, path in made_by.items() if path}
    inputs["collection"] = f"sha256:{sha256(repr(queries).encode()).hexdigest()}"  # not the qrels: there may be none
    if config.model:
        from shortlist.models.checkpoint import model_identity

        inputs["model"] = model_identity(config.model)
    return inputs


def print_hits(collection: Collection, index: Index, text: str, *, k: int) -> None:
    """Search for a text and print its best documents: rank, score, id, the beginning of the text."""
    hits = index.search([Query("query", text)], k)["query"]
    documents = collection.documents([hit.doc_id for hit in hits])
    for rank, hit in enumerate(hits, start=1):
        document = documents[hit.doc_id]
        words = f"{document.title}\n{document.text}".strip()
        snippet = words if len(words) <= SNIPPET else words[:SNIPPET].rstrip() + " ..."
        print(f"{rank:2}. {hit.doc_id}  ({hit.score:.4f})", *snippet.splitlines()[:6], sep="\n      ")
    if not hits:
        print("nothing found", file=sys.stderr)


def _demo_config(config: Config) -> Config:
    path = config.demo_folder / "search.yaml"
    if not path.exists():
        raise UserError(f"{config.demo_folder}: holds no finished demo; run `shortlist demo` first (`make demo`).")
    return replace(from_settings(Config, load_yaml(path), where=str(path)), query=config.demo, k=config.k)
