"""Term weights become files that search engines and databases load."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64
from scipy.sparse import csr_array

from shortlist.data.files import atomic_write
from shortlist.data.stores.terms import TermReader
from shortlist.errors import UserError
from shortlist.progress import progress, say

CONVERTED_AT_ONCE = 10_000
MOST_STORED, MOST_IN_HNSW = 16_000, 1000
"""The most terms of a text that pgvector's sparsevec stores, and that its HNSW index takes."""
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
"""How COPY of PostgreSQL writes the characters that end its fields and lines."""


def whole_numbers(weights: Float32[np.ndarray, " terms"], factor: float) -> Int64[np.ndarray, " terms"]:
    """Multiply weights and round them, to 1 at least."""
    return np.rint(weights.astype(np.float64) * factor).clip(min=1).astype(np.int64)


def write_impacts(store: TermReader, folder: Path, factor: float) -> dict[str, Any]:
    """Write a store's term weights as JSON lines that Anserini's JsonVectorCollection reads.

    A weight becomes a whole number, at least 1, after multiplication. Whoever searches must multiply the weights of
    queries too, by the same or another factor, and round them.
    """
    names = store.vocabulary
    with atomic_write(folder / "vectors.jsonl") as file:
        for doc_id, terms, weights in _texts(store):
            levels = whole_numbers(weights, factor).tolist()
            vector = {names[term]: level for term, level in zip(terms.tolist(), levels, strict=True)}
            file.write(json.dumps({"id": doc_id, "contents": "", "vector": vector}, ensure_ascii=False) + "\n")
    return {"num_docs": store.num_docs, "num_entries": store.num_entries, "factor": factor}


def write_sparsevec(store: TermReader, folder: Path) -> dict[str, Any]:
    r"""Write a store's term weights as pgvector's sparsevec, for `\copy items (doc_id, embedding) from vectors.tsv`.

    Term 0 is index 1 there, and all weights keep their digits.

    Raises:
        UserError: a document has more terms than pgvector stores.
    """
    longest = int(store.counts.max(initial=0))
    if longest > MOST_STORED:
        doc_id = store.doc_ids[int(store.counts.argmax())]
        raise UserError(
            f"{store.folder}: document {doc_id!r} has {longest:,} terms, and pgvector's sparsevec stores at most "
            f"{MOST_STORED:,}; encode with --keep-terms {MOST_IN_HNSW}."
        )
    if beyond := int((store.counts > MOST_IN_HNSW).sum()):
        say(
            f"convert: {beyond:,} documents have more than {MOST_IN_HNSW:,} terms, which pgvector stores but its HNSW "
            "index refuses."
        )
    with atomic_write(folder / "vectors.tsv") as file:
        for doc_id, terms, weights in _texts(store):
            pairs = zip((terms + 1).tolist(), weights.astype(str).tolist(), strict=True)
            vector = ",".join(f"{term}:{weight}" for term, weight in pairs)
            file.write(f"{doc_id.translate(ESCAPES)}\t{{{vector}}}/{store.num_terms}\n")
    return {"num_docs": store.num_docs, "num_entries": store.num_entries, "num_terms": store.num_terms}


def write_ciff(store: TermReader, folder: Path, factor: float) -> dict[str, Any]:
    """Write a store's term weights as an inverted index in CIFF.

    PISA and others read this, the Common Index File Format. Impacts, as `write_impacts` makes them, stand where term
    frequencies are expected; a document's length is their sum. Terms are in the order of their bytes.

    Raises:
        UserError: two terms have one name.

    https://arxiv.org/abs/2003.08276
    """
    from ciff_toolkit.ciff_pb2 import (  # pyright: ignore[reportMissingImports]
        DocRecord,
        Header,
        Posting,
        PostingsList,
    )
    from ciff_toolkit.write import CiffWriter  # pyright: ignore[reportMissingImports]

    names, weights = store.vocabulary, store.take(np.arange(store.num_docs))
    ends = np.concatenate([[0], np.cumsum(weights.counts)])
    shape = (store.num_docs, store.num_terms)
    by_document = csr_array((whole_numbers(weights.weights, factor), weights.terms, ends), shape=shape)
    lengths, postings = by_document.sum(1), by_document.tocsc()
    used = np.flatnonzero(np.diff(postings.indptr)).tolist()
    if repeated := [name for name, count in Counter(names[term] for term in used).items() if count > 1]:
        raise UserError(f"{store.folder}: has several terms {repeated[0]!r}, which CIFF cannot tell apart.")

    def lists() -> Iterator[Any]:
        for term in sorted(used, key=lambda term: names[term].encode()):
            here = slice(postings.indptr[term], postings.indptr[term + 1])
            gaps, levels = np.diff(postings.indices[here], prepend=0).tolist(), postings.data[here].tolist()
            found = [Posting(docid=gap, tf=level) for gap, level in zip(gaps, levels, strict=True)]
            yield PostingsList(term=names[term], df=len(found), cf=sum(levels), postings=found)

    header = Header(
        version=1,
        num_postings_lists=len(used),
        num_docs=store.num_docs,
        total_postings_lists=len(used),
        total_docs=store.num_docs,
        total_terms_in_collection=int(lengths.sum()),
        average_doclength=float(lengths.mean()),
        description=f"term weights times {factor:g}, rounded, at least 1",
    )
    with progress("converting", len(used), "terms") as advance, CiffWriter(folder / "index.ciff") as writer:
        writer.write_header(header)
        writer.write_postings_lists(_counted(lists(), advance))
        documents = enumerate(zip(store.doc_ids, lengths.tolist(), strict=True))
        writer.write_documents(
            DocRecord(docid=place, collection_docid=doc_id, doclength=length) for place, (doc_id, length) in documents
        )
    return {"num_docs": store.num_docs, "num_entries": store.num_entries, "num_terms": len(used), "factor": factor}


def _counted(items: Iterator[Any], advance: Any) -> Iterator[Any]:
    for item in items:
        yield item
        advance(1)


def _texts(
    store: TermReader,
) -> Iterator[tuple[str, Int32[np.ndarray, " terms"], Float32[np.ndarray, " terms"]]]:
    """Yield each document's id, terms and weights, in corpus order."""
    with progress("converting", store.num_docs, "documents") as advance:
        for first in range(0, store.num_docs, CONVERTED_AT_ONCE):
            places = np.arange(first, min(first + CONVERTED_AT_ONCE, store.num_docs))
            for doc_id, (terms, weights) in zip(store.doc_ids.take(places), store.take(places), strict=True):
                yield doc_id, terms, weights
            advance(len(places))
