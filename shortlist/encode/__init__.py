"""Stage `encode`: embed a corpus once, so that search only embeds queries."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from shortlist.data.collections import Collection, open_collection
from shortlist.data.files import atomic_write
from shortlist.data.jobs import Job, start_job
from shortlist.data.outputs import changing
from shortlist.data.stores.shards import count_rows, finished_shards, shard_digests
from shortlist.data.stores.snapshots import compact, drop_replaced, missing, pin, read_known, renew
from shortlist.encode.embedding import (
    Encoder,
    ShardDocuments,
    embedding_of,
    encode,
    make_encoder,
    parts,
    usable_documents,
    vector_agreement,
)
from shortlist.encode.forecast import forecast_encoding
from shortlist.engine import Engine, spread
from shortlist.errors import UserError
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kernels.linear import packing_pays
from shortlist.models.run import TextsDone
from shortlist.progress import paced, progress, say
from shortlist.settings.encode import SKIPPED, STORE_FILES, Config, check, contract_of, job_of
from shortlist.text.inputs import Inputs
from shortlist.text.tokenizer import other_tokens, token_dependencies

__all__ = ["Config", "encode", "fill", "parts", "run", "write"]

SAMPLE = 256
"""Number of documents on which a narrow precision is compared with fp32."""
MOST_SHOWN = 5
"""Most skipped records to show; skipped.txt has them all."""


def run(config: Config) -> None:
    """Embed the corpus into a vector store."""
    check(config)
    collection, model = open_collection(config.collection), open_folder(config.model)
    if config.dry_run:
        print(forecast_encoding(config, model, collection))
        return
    job = start_job(config, job_of(config, model, collection))
    contract = contract_of(config, model)
    shard_size = embedding_of(model, contract).shard_size(config, contract)
    if not job.done:
        start = time.perf_counter()
        results = fill(job, config, model, collection, shard_size)
        results["seconds"] = round(time.perf_counter() - start, 3)
        job.finish(digests=shard_digests(job.out), **results)
    elif "changing" in job.manifest:  # an update or a compaction was interrupted
        with changing(job.out, stage="encode", writes=STORE_FILES, digests=shard_digests):
            drop_replaced(job.out)
    if config.compact:
        with changing(job.out, stage="encode", writes=STORE_FILES, digests=shard_digests):
            say(f"encode: dropped the vectors of {compact(job.out, shard_size):,} documents that are gone.")


def fill(job: Job, config: Config, model: ModelFolder, collection: Collection, shard_size: int) -> dict[str, Any]:
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
    given = (config.precision, config.dtype, config.pool_tokens, config.keep_tokens, config.keep_terms)
    if given != ("fp32", "float32", None, None, None):
        sample = partial(vector_agreement, encoder, dtype=config.dtype)
        results["agreement"] = job.decide("agreement", lambda: sample(list(islice(usable(), SAMPLE))))
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
            wanted = parts(documents, shard_size, first=done[-1] + 1 if done else 0)
        else:
            wanted = parts(documents, shard_size, done=done)
        results |= write(
            job.out,
            encoder,
            wanted,
            paced(advance, "documents"),
            num_docs=total,
            dtype=config.dtype,
            engine=config.engine,
            workers=config.workers,
        )
    if "cut" in results:
        rows, longest = "segments" if config.segments == "maxp" else "documents", encoder.contract.form.document_length
        cut = f"{results['cut']:,} cut at {longest} tokens" if results["cut"] else f"none longer than {longest} tokens"
        more = f" ({encoder.embedding.reads_on} reads on)" if results["cut"] and rows == "documents" else ""
        say(f"encode: {results['embedded']:,} {rows}, {cut}{more}.")
    if job.updating:
        results["dead"] = renew(job.out, usable())
        if results["dead"] and not config.compact:
            say(f"encode: the vectors of {results['dead']:,} documents that are gone are kept; --compact drops them.")
    results |= {"num_parameters": model.num_parameters, **encoder.embedding.described(job.out, config)}
    return results | {"skipped": _list_skipped(job.out, bad)}


def write(
    out: Path,
    encoder: Encoder,
    wanted: Iterator[ShardDocuments],
    advance: TextsDone,
    *,
    num_docs: int | None,
    dtype: str,
    engine: Engine,
    workers: int | None,
) -> dict[str, float]:
    """Embed parts in this process or others, and write shards as they come.

    Args:
        num_docs: number of documents of the whole store, if that is known.
        dtype: how vectors are stored.

    Returns:
        The tokens per second, the number of documents embedded now, and how many of them were cut, if any was embedded.
    """
    start, num_tokens, embedded, num_cut = time.perf_counter(), 0, 0, 0
    workers = workers or (None if engine == "ray" else max(1, torch.cuda.device_count()))
    here = engine == "local" and workers == 1
    task = replace(encoder, advance=advance) if here else encoder
    embedding = encoder.embedding
    with closing(spread(task, wanted, engine=engine, workers=workers)) as shards:
        for shard, tokens, cut in embedding.arrange(out, dtype, shards):
            embedding.write(out, shard, dtype=dtype, num_docs=num_docs)
            num_tokens, embedded, num_cut = num_tokens + tokens, embedded + len(shard.doc_ids), num_cut + cut
            if not here:
                advance(len(shard.doc_ids), tokens)
    seconds = time.perf_counter() - start
    if not num_tokens:
        return {}
    return {"tokens_per_second": round(num_tokens / seconds, 1), "embedded": embedded, "cut": num_cut}


def _list_skipped(out: Path, bad: list[str]) -> int:
    """List the records that were left out in a file, and print the first."""
    if bad:
        with atomic_write(out / SKIPPED) as file:
            file.writelines(f"{line}\n" for line in bad)
        say(f"encode: left out {len(bad):,} records that cannot be used; {out / SKIPPED} lists them:")
        for line in bad[:MOST_SHOWN]:
            say(f"  {line}")
    return len(bad)
