"""Stage `encode`: embed a corpus once, so that search only ever embeds queries."""

import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from shortlist.data.collections import Collection, open_collection
from shortlist.data.files import atomic_write
from shortlist.data.manifest import Job, start_job
from shortlist.data.snapshots import compact, document_keys, missing, pin, read_known, renew
from shortlist.data.vectors import VectorWriter, finished_shards
from shortlist.engine import Engine, spread
from shortlist.errors import UserError
from shortlist.math.agreement import agreement
from shortlist.math.quantize import from_int8, to_int8
from shortlist.models.checkpoint import load_retriever, model_identity, retriever_contract
from shortlist.models.embed import Done, Precision, embed_documents, for_inference
from shortlist.models.linear import packing_pays
from shortlist.models.retriever import Retriever
from shortlist.progress import Advance, progress, say
from shortlist.records import Document
from shortlist.text.batching import windows

SAMPLE = 256
"""Documents on which a narrow precision is compared with fp32."""
LISTED = 5
"""Skipped records that are shown; skipped.txt has them all."""


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
    precision: Precision = "fp32"
    """Number type that the model computes in; for bf16 and int8, their agreement with fp32 on a sample is printed."""
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """Number type of the vectors on disk; int8 has a scale for each vector."""
    token_budget: int | None = None
    """Tokens per forward pass, padding included (None: 2,048 on a CPU, 65,536 on a GPU)."""
    shard_size: int = 20_000
    """Documents per shard: what is sorted by length together, and at most what an interruption loses."""
    workers: int | None = None
    """Processes that embed shards at a time (None: one per GPU, else one; on Ray, one per node or GPU)."""
    engine: Engine = "local"
    """`local`: this machine; `ray`: a Ray cluster, the running one if there is one."""
    skip_bad: bool = False
    """Leave out records that cannot be used, count them and list them in skipped.txt, instead of stopping."""
    update: bool = False
    """Bring the vectors up to date with a corpus that has changed: only new and changed documents are embedded."""
    compact: bool = False
    """Drop the vectors of documents that are gone from the disk, after updates."""
    dry_run: bool = False
    """Measure for up to a minute and print what the whole would take, instead of doing it."""
    overwrite: bool = False
    """Replace an output of another job instead of refusing."""


class Part(NamedTuple):
    """Documents that become one shard."""

    number: int
    documents: list[Document]


class Shard(NamedTuple):
    """A shard's contents, as VectorWriter.write_shard takes them."""

    number: int
    doc_ids: list[str]
    vectors: Float[np.ndarray, "docs dim"]
    keys: bytes


def parts(documents: Iterable[Document], shard_size: int, *, done: Container[int] = (), first: int = 0) -> Iterator[Part]:
    """Cut a corpus into shards, leaving out those that are done; numbers start with `first`."""
    for number, window in enumerate(windows(documents, shard_size), first):
        if number not in done:
            yield Part(number, window)


def encode(
    retriever: Retriever,
    documents: Iterable[Document],
    *,
    shard_size: int,
    token_budget: int | None = None,
    done: Container[int] = (),
    advance: Done | None = None,
) -> Iterator[Shard]:
    """Yield the shards of a corpus in order, leaving out those that are done.

    Args:
        shard_size: documents per shard; they are batched by length, whatever their order.
        token_budget: most tokens in one forward pass.
        done: numbers of shards to skip.
        advance: told the number of documents embedded and of their tokens.
    """
    for part in parts(documents, shard_size, done=done):
        yield embed_part(retriever, part, token_budget=token_budget, advance=advance)


def embed_part(retriever: Retriever, part: Part, **options) -> Shard:
    """Embed one shard; options as in `run_model`."""
    doc_ids = [document.doc_id for document in part.documents]
    return Shard(part.number, doc_ids, embed_documents(retriever, part.documents, **options), document_keys(part.documents))


@dataclass(frozen=True)
class Encoder:
    """Embeds shards in whichever process it is sent to; the model is loaded there, when the first shard comes."""

    config: Config
    packed: bool
    advance: Done | None = field(default=None, compare=False)

    @cached_property
    def retriever(self) -> Retriever:
        return open_retriever(self.config, precision=self.config.precision, packed=self.packed)

    def __call__(self, part: Part) -> tuple[Shard, int]:
        """The shard, and the number of its tokens."""
        tokens = 0

        def count(num_texts: int, num_tokens: int) -> None:
            nonlocal tokens
            tokens += num_tokens
            if self.advance:
                self.advance(num_texts, num_tokens)

        shard = embed_part(self.retriever, part, token_budget=self.config.token_budget, advance=count)
        return shard, tokens


def open_retriever(config: Config, *, precision: Precision = "fp32", packed: bool | None = None) -> Retriever:
    """The model that a Config names, ready to embed documents."""
    retriever = load_retriever(config.model, contract=config.contract)
    retriever.inputs.contract = retriever.inputs.contract.with_lengths(document=config.max_length)
    for_inference(retriever, precision=precision, packed=packed)
    return retriever


def run(config: Config) -> None:
    """Embed the corpus into a vector store."""
    if config.shard_size < 1:
        raise UserError(f"--shard-size is {config.shard_size}; expected at least 1.")
    collection = open_collection(config.collection)
    if config.dry_run:
        ...
    job = claim(config, collection)
    start = time.perf_counter()
    results = {} if job.done else fill(job, config, collection)
    if config.compact:
        say(f"encode: dropped {compact(job.out, config.shard_size):,} vectors of documents that are gone.")
    if not job.done:
        job.finish(**results, seconds=round(time.perf_counter() - start, 3))
