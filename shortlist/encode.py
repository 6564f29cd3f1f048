"""Stage `encode`: embed a corpus once, so that search only embeds queries."""

import time
from collections.abc import Container, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from shortlist.data.collections import Collection, open_collection
from shortlist.data.files import atomic_write
from shortlist.data.jobs import Job, start_job
from shortlist.data.keyed import KEY_BYTES
from shortlist.data.lines import OnBad
from shortlist.data.outputs import changing
from shortlist.data.stores.shards import count_rows, finished_shards, shard_digests
from shortlist.data.stores.snapshots import compact, document_keys, drop_replaced, missing, pin, read_known, renew
from shortlist.data.stores.vectors import DTYPES, VectorReader, VectorWriter, to_rows
from shortlist.engine import Engine, spread
from shortlist.errors import UserError
from shortlist.math.agreement import NEIGHBOURS, agreement
from shortlist.math.combination import avgp
from shortlist.math.quantize import from_int8
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kernels.linear import packing_pays
from shortlist.models.retriever import Retriever
from shortlist.models.run import TextsDone
from shortlist.progress import duration, paced, peak_bytes, progress, say, size
from shortlist.records import Document
from shortlist.settings.encode import SKIPPED, STORE_FILES, Config, check, contract_of, job_of
from shortlist.text.batching import windows
from shortlist.text.contract import InputContract
from shortlist.text.inputs import Inputs
from shortlist.text.segments import (
    document_segments,
    named_segments,
    whole_id,
)
from shortlist.text.tokenizer import other_tokens, token_dependencies

SAMPLE = 256
"""Number of documents on which a narrow precision is compared with fp32."""
FORECAST_SECONDS = 60
MOST_SHOWN = 5
"""Most skipped records to show; skipped.txt has them all."""


class ShardDocuments(NamedTuple):
    """Documents that become one shard."""

    number: int
    documents: list[Document]


class Shard(NamedTuple):
    """A shard's contents, in the order of VectorWriter.write_shard's arguments."""

    number: int
    doc_ids: list[str]
    vectors: Float[np.ndarray, "docs dim"]
    keys: bytes


def parts(
    documents: Iterable[Document], shard_size: int, *, done: Container[int] = (), first: int = 0
) -> Iterator[ShardDocuments]:
    """Cut a corpus into shards and leave out finished ones; numbers start at `first`."""
    for number, window in enumerate(windows(documents, shard_size), first):
        if number not in done:
            yield ShardDocuments(number, window)


def encode(retriever: Retriever, part: ShardDocuments, *, mean_stride: int | None = None, **options) -> Shard:
    """Embed one shard; options as in `run_model`.

    Args:
        mean_stride: embed each document as the mean of its segments, which begin this many tokens apart.
    """
    doc_ids, keys = [document.doc_id for document in part.documents], document_keys(part.documents)
    if mean_stride is None:
        return Shard(part.number, doc_ids, retriever.encode_documents(part.documents, **options), keys)
    segments = document_segments(retriever.inputs, part.documents, stride=mean_stride)
    vectors = retriever.encode_documents(
        [segment for document_parts in segments for segment in document_parts], **options
    )
    starts = np.cumsum([0, *map(len, segments[:-1])])
    return Shard(part.number, doc_ids, avgp(vectors, starts), keys)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Embeds shards in the process that it is sent to.

    The model is loaded there when the first shard comes.

    Attributes:
        contract: input contract for the documents.
        precision: as for `models.run.for_inference`, and so is `packed`.
        token_budget: most tokens in one forward pass.
        mean_stride: as for `encode`.
        advance: called with the numbers of embedded documents and of their tokens.
    """

    model: ModelFolder
    contract: InputContract
    precision: Precision
    packed: bool
    token_budget: int | None
    mean_stride: int | None
    advance: TextsDone | None = field(default=None, compare=False)

    @cached_property
    def retriever(self) -> Retriever:
        return self.open(precision=self.precision, packed=self.packed)

    def open(self, **options: Any) -> Retriever:
        """Load the model, ready to embed documents; options as for `Retriever.load`."""
        return Retriever.load(self.model, contract=self.contract, **options)

    def __call__(self, part: ShardDocuments) -> tuple[Shard, int, int]:
        """Embed a shard, and return it with the numbers of tokens and of cut documents."""
        tokens = num_cut = 0

        def count(num_texts: int, num_tokens: int) -> None:
            nonlocal tokens
            tokens += num_tokens
            if self.advance:
                self.advance(num_texts, num_tokens)

        def count_cut(kind: str, num_texts: int, num_all: int) -> None:
            nonlocal num_cut
            num_cut += num_texts

        self.retriever.inputs.on_cut = count_cut
        options = {"token_budget": self.token_budget, "advance": count}
        return encode(self.retriever, part, mean_stride=self.mean_stride, **options), tokens, num_cut


def make_encoder(config: Config, model: ModelFolder, *, packed: bool) -> Encoder:
    """Make the encoder that a Config describes."""
    return Encoder(
        model=model,
        contract=contract_of(config, model),
        precision=config.precision,
        packed=packed,
        token_budget=config.token_budget,
        mean_stride=config.stride if config.segments == "avgp" else None,
    )


def run(config: Config) -> None:
    """Embed the corpus into a vector store."""
    check(config)
    collection, model = open_collection(config.collection), open_folder(config.model)
    if config.dry_run:
        print(forecast_encoding(config, model, collection))
        return
    job = start_job(config, job_of(config, model, collection))
    if not job.done:
        start = time.perf_counter()
        results = fill(job, config, model, collection)
        results["seconds"] = round(time.perf_counter() - start, 3)
        job.finish(digests=shard_digests(job.out), **results)
    elif "changing" in job.manifest:  # an update or a compaction was interrupted
        with changing(job.out, stage="encode", writes=STORE_FILES, digests=shard_digests):
            drop_replaced(job.out)
    if config.compact:
        with changing(job.out, stage="encode", writes=STORE_FILES, digests=shard_digests):
            say(f"encode: dropped {compact(job.out, config.shard_size):,} vectors of documents that are gone.")


def fill(job: Job, config: Config, model: ModelFolder, collection: Collection) -> dict[str, Any]:
    """Write the shards that a store lacks; returns the results for the manifest."""
    encoder = make_encoder(config, model, packed=job.decide("packed", packing_pays))
    usable = partial(
        usable_documents,
        collection,
        Inputs(encoder.contract.form, model.tokenizer),
        segment_stride=config.stride if config.segments == "maxp" else None,
        skip_bad=config.skip_bad,
    )
    made_with = job.decide("tokens", lambda: token_dependencies(model.tokenizer))
    if why := other_tokens(made_with, lambda: model.tokenizer):
        raise UserError(f"--out {job.out}: {why}; encode anew, with --overwrite or into another folder.")
    results: dict[str, Any] = {}
    if config.precision != "fp32" or config.dtype != "float32":
        results["agreement"] = job.decide("agreement", lambda: vector_agreement(encoder, usable(), config.dtype))
        say(f"encode: agreement with fp32 in float32 on {results['agreement']}.")
    bad: list[str] = []
    documents = usable(on_bad=bad.append)
    done = finished_shards(job.out)
    before = 0 if job.updating else count_rows(job.out)
    if before:
        say(f"encode: continuing after {len(done)} shards.")
    total = collection.num_docs() if config.segments != "maxp" else None
    with progress("encoding", total, "segments" if total is None else "documents", done=before) as advance:
        if job.updating:
            pin(job.out)
            documents = missing(documents, read_known(job.out, done), advance)
            wanted = parts(documents, config.shard_size, first=done[-1] + 1 if done else 0)
        else:
            wanted = parts(documents, config.shard_size, done=done)
        results |= write(
            job.out,
            encoder,
            wanted,
            paced(advance, "documents"),
            dtype=config.dtype,
            engine=config.engine,
            workers=config.workers,
        )
    if "cut" in results:
        rows, longest = "segments" if config.segments == "maxp" else "documents", encoder.contract.form.document_length
        cut = f"{results['cut']:,} cut at {longest} tokens" if results["cut"] else f"none longer than {longest} tokens"
        more = " (a larger --max-length or --segments maxp reads on)" if results["cut"] and rows == "documents" else ""
        say(f"encode: {results['embedded']:,} {rows}, {cut}{more}.")
    if job.updating:
        results["dead"] = renew(job.out, usable())
        if results["dead"] and not config.compact:
            say(f"encode: {results['dead']:,} vectors of documents that are gone are kept; --compact drops them.")
    store = VectorReader(job.out, compare=False)
    results["num_parameters"] = model.num_parameters
    return results | {"num_docs": store.num_docs, "dim": store.dim, "skipped": _list_skipped(job.out, bad)}


def write(
    out: Path,
    encoder: Encoder,
    wanted: Iterator[ShardDocuments],
    advance: TextsDone,
    *,
    dtype: str,
    engine: Engine,
    workers: int | None,
) -> dict[str, float]:
    """Embed parts in this process or others, and write shards as they come.

    Returns the tokens per second, the number of documents embedded now, and how many of them were cut, if any was
    embedded.
    """
    start, num_tokens, embedded, num_cut = time.perf_counter(), 0, 0, 0
    workers = workers or (None if engine == "ray" else max(1, torch.cuda.device_count()))
    here = engine == "local" and workers == 1
    task = replace(encoder, advance=advance) if here else encoder
    with closing(spread(task, wanted, engine=engine, workers=workers)) as shards:
        for shard, tokens, cut in shards:
            VectorWriter(out, shard.vectors.shape[1], dtype).write_shard(*shard)
            num_tokens, embedded, num_cut = num_tokens + tokens, embedded + len(shard.doc_ids), num_cut + cut
            if not here:
                advance(len(shard.doc_ids), tokens)
    seconds = time.perf_counter() - start
    if not num_tokens:
        return {}
    return {"tokens_per_second": round(num_tokens / seconds, 1), "embedded": embedded, "cut": num_cut}


def vector_agreement(encoder: Encoder, documents: Iterator[Document], dtype: str) -> str:
    """Compare the vectors of the first documents with exact ones; returns the result in words.

    The vectors are computed and stored with the encoder's precision and `dtype`.
    """
    sample = list(islice(documents, SAMPLE))
    exact = torch.from_numpy(encoder.open().encode_documents(sample, token_budget=encoder.token_budget))
    # A copy, so that its model is freed before the work begins.
    shard, *_ = replace(encoder)(ShardDocuments(0, sample))
    rows, scales = to_rows(torch.from_numpy(shard.vectors), dtype)
    found = agreement(rows.float() if scales is None else from_int8(rows, scales), exact)
    return (
        f"{len(sample)} documents: cosine {found.mean_cosine:.6f} on average, {found.least_cosine:.6f} at least, "
        f"{found.neighbours:.1%} of the {NEIGHBOURS} nearest neighbours the same"
    )


def usable_documents(
    collection: Collection,
    inputs: Inputs,
    *,
    segment_stride: int | None,
    skip_bad: bool,
    on_bad: OnBad = lambda _: None,
) -> Iterator[Document]:
    """Yield the documents to embed, or their segments if segments have vectors.

    Args:
        segment_stride: tokens from one segment's beginning to the next one's (None: whole documents).
        on_bad: called with a message for each document that is left out.
    """
    documents = collection.corpus(on_bad if skip_bad else None, allow_empty=False)
    return documents if segment_stride is None else named_segments(inputs, documents, stride=segment_stride)


def _list_skipped(out: Path, bad: list[str]) -> int:
    """List the records that were left out in a file, and print the first."""
    if bad:
        with atomic_write(out / SKIPPED) as file:
            file.writelines(f"{line}\n" for line in bad)
        say(f"encode: left out {len(bad):,} records that cannot be used; {out / SKIPPED} lists them:")
        for line in bad[:MOST_SHOWN]:
            say(f"  {line}")
    return len(bad)


def forecast_encoding(config: Config, model: ModelFolder, collection: Collection) -> str:
    """Estimate the time and space of encoding a collection on this machine.

    The estimate comes from embedding its first documents in one process.
    """
    encoder, in_segments = make_encoder(config, model, packed=packing_pays()), config.segments == "maxp"
    documents = usable_documents(
        collection,
        Inputs(encoder.contract.form, model.tokenizer),
        segment_stride=config.stride if in_segments else None,
        skip_bad=config.skip_bad,
    )
    speed = measure_speed(encoder, documents, in_segments=in_segments)
    total = round(collection.num_docs() * speed.rows_per_document)
    dim, itemsize = encoder.retriever.dim, DTYPES[config.dtype].itemsize
    row = dim * itemsize + (4 if config.dtype == "int8" else 0) + KEY_BYTES
    in_flight = min(total, config.shard_size) * (dim * (4 + itemsize) + speed.text_bytes)
    rows = "segments" if in_segments else "documents"
    lines = {
        rows: f"{total:,}, of {speed.tokens:,.0f} tokens on average",
        "shards": f"{-(-total // config.shard_size):,} of {min(total, config.shard_size):,} documents",
        "on disk": f"{size(total * (row + speed.id_bytes))} ({dim} dimensions, {config.dtype})",
        "in memory": f"about {size(peak_bytes() + in_flight)} for each worker",
        "time": f"{duration(total / speed.per_second)} ({speed.per_second:,.1f} documents/s in one process)",
    }
    return "\n".join(f"{name:10} {words}" for name, words in lines.items())


class Speed(NamedTuple):
    """Measured speed of encoding, with average sizes per document."""

    per_second: float
    tokens: float
    text_bytes: float
    id_bytes: float
    rows_per_document: float


def measure_speed(encoder: Encoder, documents: Iterator[Document], *, in_segments: bool) -> Speed:
    """Measure the speed by embedding more and more documents, for about a minute."""
    seen: list[Document] = []
    num_tokens, seconds, start = 0, 0.0, time.perf_counter()
    while seconds < FORECAST_SECONDS / 2 and (more := list(islice(documents, max(16, len(seen))))):
        if not seen:
            encoder(ShardDocuments(0, more))  # loads the model
            start = time.perf_counter()
        num_tokens += encoder(ShardDocuments(0, more))[1]
        seen += more
        seconds = time.perf_counter() - start
    text = sum(len("".join(document[:4])) for document in seen)
    ids = sum(len(document.doc_id.encode()) + 1 for document in seen)
    count = len(seen)
    whole = len({whole_id(document.doc_id) for document in seen}) if in_segments else count
    return Speed(count / seconds, num_tokens / count, text / count, ids / count, count / whole)
