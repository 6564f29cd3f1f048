"""Forecast of the time and space that encoding a collection takes."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from shortlist.data.collections import Collection
from shortlist.data.keyed import KEY_BYTES
from shortlist.encode.embedding import Encoder, ShardDocuments, make_encoder, usable_documents
from shortlist.models.folder import ModelFolder
from shortlist.models.kernels.linear import packing_pays
from shortlist.progress import duration, peak_bytes, size
from shortlist.records import Document
from shortlist.settings.encode import Config
from shortlist.text.inputs import Inputs
from shortlist.text.segments import whole_id

FORECAST_SECONDS = 60


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
    embedding = encoder.embedding
    dim = embedding.dim(encoder.retriever)
    vector, shard_size = embedding.vector_bytes(dim, config.dtype), embedding.shard_size(config, encoder.contract)
    row = speed.vectors * vector + embedding.row_bytes + KEY_BYTES
    in_flight = min(total, shard_size) * (speed.vectors * (embedding.held_bytes(dim) + vector) + speed.text_bytes)
    rows = "segments" if in_segments else "documents"
    lines = {
        rows: f"{total:,}, of {speed.tokens:,.0f} tokens on average",
        **({"vectors": f"{speed.vectors:.1f} for each document"} if speed.vectors != 1 else {}),
        "shards": f"{-(-total // shard_size):,} of {min(total, shard_size):,} documents",
        "on disk": f"{size(total * (row + speed.id_bytes))} ({dim} dimensions, {config.dtype})",
        "in memory": f"about {size(peak_bytes() + in_flight)} for each worker",
        "time": f"{duration(total / speed.per_second)} ({speed.per_second:,.1f} documents/s in one process)",
    }
    return "\n".join(f"{name:10} {words}" for name, words in lines.items())


class Speed(NamedTuple):
    """Measured speed of encoding, with average sizes per document."""

    per_second: float
    tokens: float
    vectors: float
    text_bytes: float
    id_bytes: float
    rows_per_document: float


def measure_speed(encoder: Encoder, documents: Iterator[Document], *, in_segments: bool) -> Speed:
    """Measure the speed by embedding more and more documents, for about a minute."""
    seen: list[Document] = []
    num_tokens, num_vectors, seconds, start = 0, 0, 0.0, time.perf_counter()
    while seconds < FORECAST_SECONDS / 2 and (more := list(islice(documents, max(16, len(seen))))):
        if not seen:
            encoder(ShardDocuments(0, more))  # loads the model
            start = time.perf_counter()
        shard, tokens, _ = encoder(ShardDocuments(0, more))
        num_tokens, num_vectors = num_tokens + tokens, num_vectors + encoder.embedding.count(shard.vectors)
        seen += more
        seconds = time.perf_counter() - start
    text = sum(len("".join(document[:4])) for document in seen)
    ids = sum(len(document.doc_id.encode()) + 1 for document in seen)
    count = len(seen)
    whole = len({whole_id(document.doc_id) for document in seen}) if in_segments else count
    return Speed(count / seconds, num_tokens / count, num_vectors / count, text / count, ids / count, count / whole)
