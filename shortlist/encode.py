"""Stage `encode`: embed a corpus once, so that search only ever embeds queries."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float

from shortlist.data.collections import open_collection
from shortlist.data.manifest import start_job
from shortlist.data.vectors import VectorWriter, finished_shards
from shortlist.errors import UserError
from shortlist.models.checkpoint import load_retriever, model_identity
from shortlist.models.embed import embed_documents, for_inference
from shortlist.models.retriever import Retriever
from shortlist.progress import Advance, progress, say
from shortlist.records import Document

Shard = tuple[int, list[str], Float[np.ndarray, "docs dim"]]


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Model folder or hub name."""
    collection: str
    """Folder, `irds:` or `hf:` name."""
    out: Path
    """Folder for the vectors; continued where it left off if it holds the same job, refused if another."""
    contract: str | None = None
    """Input contract by name, for a model folder that does not say its own."""
    max_length: int | None = None
    """Most tokens of a document (None: the model's)."""
    token_budget: int | None = None
    """Tokens per forward pass, padding included (None: 2,048 on a CPU, 65,536 on a GPU)."""
    shard_size: int = 50_000
    """Documents per shard: what is sorted by length together, and at most what an interruption loses."""
    overwrite: bool = False
    """Replace an output of another job instead of refusing."""


def encode(
    retriever: Retriever,
    documents: Iterable[Document],
    *,
    shard_size: int,
    token_budget: int | None = None,
    done: Sequence[int] = (),
    advance: Advance | None = None,
) -> Iterator[Shard]:
    """Yield (shard number, doc_ids, vectors) in corpus order, leaving out the shards that are done.

    Args:
        shard_size: documents per shard; they are batched by length, whatever their order.
        token_budget: most tokens in one forward pass.
        done: numbers of shards to skip.
        advance: told the number of documents embedded.
    """
    stream = iter(documents)
    number = 0
    while shard := list(islice(stream, shard_size)):
        if number not in done:
            vectors = embed_documents(retriever, shard, token_budget=token_budget, advance=advance)
            yield number, [document.doc_id for document in shard], vectors
        elif advance:
            advance(len(shard))
        number += 1


def run(config: Config) -> None:
    """Embed the corpus into a vector store."""
    if config.shard_size < 1:
        raise UserError(f"--shard-size is {config.shard_size}; expected at least 1.")
    collection = open_collection(config.collection)
    job = start_job(
        config,
        stage="encode",
        inputs={"model": model_identity(config.model), "collection": collection.identity("corpus")},
        ignore=("token_budget",),
        folder=True,
    )
    if job.done:
        return
    start = time.perf_counter()
    retriever = load_retriever(config.model, contract=config.contract)
    retriever.inputs.contract = retriever.inputs.contract.with_lengths(document=config.max_length)
    for_inference(retriever)
    writer = VectorWriter(job.out, retriever.dim)
    done = finished_shards(job.out)
    if done:
        say(f"encode: continuing after {len(done)} shards.")
    total = sum(1 for _ in collection.corpus())
    with progress("encoding", total, "documents") as advance:
        options = {"shard_size": config.shard_size, "token_budget": config.token_budget, "advance": advance}
        for number, doc_ids, vectors in encode(retriever, collection.corpus(), done=done, **options):
            writer.write_shard(number, doc_ids, vectors)
    seconds = time.perf_counter() - start
    job.finish(num_docs=total, dim=retriever.dim, dtype=writer.dtype, seconds=round(seconds, 3))
