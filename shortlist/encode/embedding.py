"""EmbeddingKind of shards of documents, and a table of what differs between kinds of models."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from shortlist.data.collections import Collection
from shortlist.data.lines import OnBad
from shortlist.data.stores.shards import CODEBOOK
from shortlist.data.stores.snapshots import document_keys
from shortlist.data.stores.terms import TERM_DTYPES, TermReader, TermWriter, to_entries
from shortlist.data.stores.tokens import RESIDUALS, TokenReader, TokenWriter, as_stored
from shortlist.data.stores.vectors import DTYPES, VectorReader, VectorWriter, to_rows
from shortlist.math.agreement import NEIGHBOURS, Agreement, agreement, term_agreement, token_agreement
from shortlist.math.combination import avgp
from shortlist.math.heaviest import heaviest
from shortlist.math.maxsim import TokenVectors
from shortlist.math.quantize import from_int8
from shortlist.math.terms import TermWeights
from shortlist.math.thinning import POOLING, thinned
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder
from shortlist.models.kinds import kind_in
from shortlist.models.late_retriever import LateRetriever
from shortlist.models.retriever import Retriever
from shortlist.models.run import TextsDone
from shortlist.models.sparse_retriever import SparseRetriever
from shortlist.records import Document
from shortlist.settings.encode import Config, contract_of
from shortlist.text.batching import windows
from shortlist.text.contract import InputContract
from shortlist.text.inputs import Inputs
from shortlist.text.segments import document_segments, named_segments

TOKENS_A_SHARD = 1 << 19
"""Most token vectors in a shard, which is in memory as a whole before it is written."""


class NamedTerms(NamedTuple):
    """Term weights of documents with the vocabulary that their numbers are from."""

    weights: TermWeights
    vocabulary: list[str]


Vectors = Float[np.ndarray, "docs dim"] | TokenVectors | NamedTerms
Embed = Callable[..., Vectors]
"""Embeds documents with a retriever; options as in `run_model`."""


class ShardDocuments(NamedTuple):
    """Documents that become one shard."""

    number: int
    documents: list[Document]


class Shard(NamedTuple):
    """A shard's contents, in the order of the arguments of a writer's `write_shard`."""

    number: int
    doc_ids: list[str]
    vectors: Vectors
    keys: bytes


def parts(
    documents: Iterable[Document], shard_size: int, *, done: Container[int] = (), first: int = 0
) -> Iterator[ShardDocuments]:
    """Cut a corpus into shards and leave out finished ones; numbers start at `first`."""
    for number, window in enumerate(windows(documents, shard_size), first):
        if number not in done:
            yield ShardDocuments(number, window)


def one_vector(retriever: Retriever, documents: Sequence[Document], **options: Any) -> Float[np.ndarray, "docs dim"]:
    """Embed each document as one vector."""
    return retriever.encode_documents(documents, **options)


def mean_vector(
    retriever: Retriever, documents: Sequence[Document], *, stride: int, **options: Any
) -> Float[np.ndarray, "docs dim"]:
    """Embed each document as the mean of its segments, which begin `stride` tokens apart."""
    segments = document_segments(retriever.inputs, documents, stride=stride)
    vectors = one_vector(retriever, [segment for document in segments for segment in document], **options)
    return avgp(vectors, np.cumsum([0, *map(len, segments[:-1])]))


def token_vectors(
    retriever: LateRetriever,
    documents: Sequence[Document],
    *,
    factor: float | None = None,
    budget: int | None = None,
    **options: Any,
) -> TokenVectors:
    """Embed each document as the vectors of its tokens; `factor` and `budget` as for `thinned`."""
    vectors = retriever.encode_documents(documents, **options)
    assert isinstance(vectors, TokenVectors)  # as for all that is no single text
    return thinned(vectors, factor=factor, budget=budget)


def named_weights(
    retriever: Any, documents: Sequence[Document], *, most: int | None = None, **options: Any
) -> NamedTerms:
    """Embed each document as weights for terms; `most` as for `heaviest`."""
    return NamedTerms(heaviest(retriever.encode_documents(documents, **options), most), list(retriever.terms))


def encode(retriever: Any, part: ShardDocuments, *, embed: Embed = one_vector, **options: Any) -> Shard:
    """Embed one shard; options as in `run_model`."""
    doc_ids = [document.doc_id for document in part.documents]
    return Shard(part.number, doc_ids, embed(retriever, part.documents, **options), document_keys(part.documents))


@dataclass(frozen=True, kw_only=True)
class EmbeddingKind:
    """Functions that embed documents with a kind of model, and keep what it gives."""

    load: Callable[..., Any]
    """Loads a retriever from a model's folder."""
    embed: Callable[[Config], Embed]
    """Chooses how documents are embedded; the function can be pickled."""
    write: Callable[..., None]
    """Writes a Shard into a folder; takes the dtype, and the number of documents of the whole store."""
    arrange: Callable[[Path, str, Iterator[Any]], Iterator[Any]] = lambda folder, dtype, shards: shards
    """Puts embedded shards into an order in which they can be written."""
    shard_size: Callable[[Config, InputContract], int] = lambda config, contract: config.shard_size
    """Chooses the number of documents in a shard."""
    agree: Callable[[Any, Any, str], Agreement]
    """Compares vectors, once stored in a dtype, with all the exact ones of the same documents."""
    count: Callable[[Any], int] = len
    """Counts the vectors of a shard."""
    vector_bytes: Callable[[int, str], float]
    """Computes the size on disk of a vector of some dimension in a dtype."""
    dim: Callable[[Any], int] = lambda retriever: retriever.dim
    """Returns the dimension of a retriever's vectors."""
    held_bytes: Callable[[int], int] = lambda dim: 4 * dim
    """Computes the size in memory of a vector of some dimension, as the model gives it."""
    row_bytes: int = 0
    """The size on disk of what is kept of a document besides vectors, id and key."""
    reads_on: str = "a larger --max-length or --segments maxp"
    """Settings by which more is read of a document that was cut."""
    described: Callable[[Path, Config], Mapping[str, Any]]
    """Describes a store for its manifest."""


def _embed_whole(config: Config) -> Embed:
    return partial(mean_vector, stride=config.stride) if config.segments == "avgp" else one_vector


def _embed_tokens(config: Config) -> Embed:
    return partial(token_vectors, factor=config.pool_tokens, budget=config.keep_tokens)


def _embed_terms(config: Config) -> Embed:
    return partial(named_weights, most=config.keep_terms)


def _write_vectors(folder: Path, shard: Shard, *, dtype: str, num_docs: int | None) -> None:
    del num_docs
    number, doc_ids, vectors, keys = shard
    assert isinstance(vectors, np.ndarray)
    VectorWriter(folder, vectors.shape[1], dtype).write_shard(number, doc_ids, vectors, keys)


def _write_tokens(folder: Path, shard: Shard, *, dtype: str, num_docs: int | None) -> None:
    number, doc_ids, vectors, keys = shard
    assert isinstance(vectors, TokenVectors)
    TokenWriter(folder, vectors.values.shape[1], dtype, num_docs=num_docs).write_shard(number, doc_ids, vectors, keys)


def _write_terms(folder: Path, shard: Shard, *, dtype: str, num_docs: int | None) -> None:
    del num_docs
    number, doc_ids, vectors, keys = shard
    assert isinstance(vectors, NamedTerms)
    TermWriter(folder, vectors.vocabulary, dtype).write_shard(number, doc_ids, vectors.weights, keys)


def _arrange_tokens(folder: Path, dtype: str, shards: Iterator[Any]) -> Iterator[Any]:
    """Let the other shards wait for the one that a codebook is fitted to."""
    if dtype not in RESIDUALS or (folder / CODEBOOK).exists():
        yield from shards
        return
    waiting = []
    for found in shards:
        if found[0].number == 0:
            yield found
            break
        waiting.append(found)
    yield from waiting
    yield from shards


def _shard_size_of_tokens(config: Config, contract: InputContract) -> int:
    return min(config.shard_size, max(1, TOKENS_A_SHARD // contract.form.document_length))


def _agree_vectors(found: Float[np.ndarray, "docs dim"], exact: Float[np.ndarray, "docs dim"], dtype: str) -> Agreement:
    rows, scales = to_rows(torch.from_numpy(found), dtype)
    return agreement(rows.float() if scales is None else from_int8(rows, scales), torch.from_numpy(exact))


def _agree_tokens(found: TokenVectors, exact: TokenVectors, dtype: str) -> Agreement:
    return token_agreement(as_stored(found, dtype), exact)


def _agree_terms(found: NamedTerms, exact: TermWeights, dtype: str) -> Agreement:
    return term_agreement(to_entries(found.weights, dtype).as_float32(), exact)


def _bytes_of_vector(dim: int, dtype: str) -> float:
    return float(dim * DTYPES[dtype].itemsize + (4 if dtype == "int8" else 0))


def _bytes_of_token(dim: int, dtype: str) -> float:
    return dim * RESIDUALS[dtype] / 8 + 2 if dtype in RESIDUALS else _bytes_of_vector(dim, dtype)


def _bytes_of_term(dim: int, dtype: str) -> float:
    del dim
    return 4.0 + np.dtype(TERM_DTYPES[dtype]).itemsize


def _describe_vectors(folder: Path, config: Config) -> dict[str, Any]:
    del config
    store = VectorReader(folder, compare=False)
    return {"num_docs": store.num_docs, "dim": store.dim}


def _describe_tokens(folder: Path, config: Config) -> dict[str, Any]:
    store = TokenReader(folder, compare=False)
    found: dict[str, Any] = {"num_docs": store.num_docs, "num_tokens": store.num_tokens, "dim": store.dim}
    pooling = {"token_pooling": POOLING} if config.pool_tokens is not None else {}
    return found | {"dtype": store.dtype} | pooling


def _describe_terms(folder: Path, config: Config) -> dict[str, Any]:
    del config
    store = TermReader(folder, compare=False)
    found = {"num_docs": store.num_docs, "num_entries": store.num_entries, "num_terms": store.num_terms}
    return found | {"dtype": store.dtype}


EMBEDDINGS: dict[str, EmbeddingKind] = {
    "Retriever": EmbeddingKind(
        load=Retriever.load,
        embed=_embed_whole,
        write=_write_vectors,
        agree=_agree_vectors,
        vector_bytes=_bytes_of_vector,
        described=_describe_vectors,
    ),
    "LateRetriever": EmbeddingKind(
        load=LateRetriever.load,
        embed=_embed_tokens,
        write=_write_tokens,
        arrange=_arrange_tokens,
        shard_size=_shard_size_of_tokens,
        agree=_agree_tokens,
        count=lambda vectors: len(vectors.values),
        vector_bytes=_bytes_of_token,
        row_bytes=4,
        reads_on="a larger --max-length",
        described=_describe_tokens,
    ),
    "SparseRetriever": EmbeddingKind(
        load=SparseRetriever.load,
        embed=_embed_terms,
        write=_write_terms,
        agree=_agree_terms,
        count=lambda vectors: len(vectors.weights.terms),
        vector_bytes=_bytes_of_term,
        dim=lambda retriever: retriever.num_terms,
        held_bytes=lambda dim: 8,
        row_bytes=8,
        reads_on="a larger --max-length",
        described=_describe_terms,
    ),
}
"""The ways to embed, by the class that a kind of model is used through (`ModelKind.used_as`)."""


def embedding_of(model: ModelFolder, contract: InputContract) -> EmbeddingKind:
    """Look up how a model embeds documents."""
    return EMBEDDINGS[kind_in(model, contract, "document").used_as]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Embeds shards in the process that it is sent to.

    The model is loaded there when the first shard comes.

    Attributes:
        contract: input contract for the documents.
        precision: as for `models.run.for_inference`, and so is `packed`.
        token_budget: most tokens in one forward pass.
        embed: how documents are embedded.
        advance: called with the numbers of embedded documents and of their tokens.
    """

    model: ModelFolder
    contract: InputContract
    precision: Precision
    packed: bool
    token_budget: int | None
    embed: Embed
    advance: TextsDone | None = field(default=None, compare=False)

    @cached_property
    def retriever(self) -> Any:
        return self.open(precision=self.precision, packed=self.packed)

    @property
    def embedding(self) -> EmbeddingKind:
        """The way of this kind of model."""
        return embedding_of(self.model, self.contract)

    def open(self, **options: Any) -> Any:
        """Load the model, ready to embed documents; options as for `Retriever.load`."""
        return self.embedding.load(self.model, contract=self.contract, **options)

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
        return encode(self.retriever, part, embed=self.embed, **options), tokens, num_cut


def make_encoder(config: Config, model: ModelFolder, *, packed: bool) -> Encoder:
    """Make the encoder that a Config describes."""
    contract = contract_of(config, model)
    return Encoder(
        model=model,
        contract=contract,
        precision=config.precision,
        packed=packed,
        token_budget=config.token_budget,
        embed=embedding_of(model, contract).embed(config),
    )


def vector_agreement(encoder: Encoder, documents: list[Document], dtype: str) -> str:
    """Compare the vectors of documents with exact ones; returns the result in words.

    The vectors are computed and stored with the encoder's precision and `dtype`; the exact ones are all that the model
    gives.
    """
    exact = encoder.open().encode_documents(documents, token_budget=encoder.token_budget)
    # A copy, so that its model is freed before the work begins.
    shard, *_ = replace(encoder)(ShardDocuments(0, documents))
    found = encoder.embedding.agree(shard.vectors, exact, dtype)
    return (
        f"{len(documents)} documents: cosine {found.mean_cosine:.6f} on average, {found.least_cosine:.6f} at least, "
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
