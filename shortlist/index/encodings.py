"""The kind of index `late`: fixed-dimensional encodings of documents propose candidates for late interaction.

The encodings are a store of int8 vectors, one for each row of the token store, whose shards they share. So an update
encodes only the documents of new shards.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from shortlist.data.files import atomic_write
from shortlist.data.stores.shards import finished_shards, remove_shard, shard_file, written_digests
from shortlist.data.stores.tokens import TokenBlock, TokenReader
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.index.flat import FlatIndex
from shortlist.index.parameters import Footprint
from shortlist.index.protocols import Opening
from shortlist.index.pruned import PrunedIndex, check_positive, read_late, write_late
from shortlist.math.fde import Encoding, encode_documents, encode_queries, make_encoding
from shortlist.math.maxsim import TokenVectors
from shortlist.math.quantize import to_int8
from shortlist.progress import Advance

ENCODING_DEFAULTS = {"repetitions": 4, "bits": 2, "width": 128, "effort": 256, "refine": 4}
"""Parameters of the encodings, as in `math.fde.make_encoding`; the candidates of a query, at least and in multiples of
k. For real and for random token vectors, few buckets of whole tokens found more than many of shortened ones."""
ENCODED_TOGETHER = 1 << 14
"""Tokens whose documents are encoded together."""
MOST_DIMENSIONS = 1 << 17


@final
class Encodings:
    """Proposes documents by their encodings.

    Args:
        vectors: the encodings, by row of the token store.
        encoding: what they were made with.
    """

    def __init__(self, vectors: VectorReader, encoding: Encoding, *, memory_gib: float | None = None) -> None:
        self.encoding = encoding
        self._index = FlatIndex(vectors, scan=vectors, memory_gib=memory_gib, refine=1)

    def propose(
        self, queries: TokenVectors, count: int, keep: Bool[np.ndarray, " rows"] | None
    ) -> Int[np.ndarray, "queries _"]:
        """Return the rows of the documents whose encodings are nearest to each query's."""
        encoded = encode_queries(queries, self.encoding).numpy()
        return self._index.candidates(encoded, count, keep=keep)[1]


def build_encodings(tokens: TokenReader, folder: Path, *, advance: Advance, **chosen: int) -> dict[str, Any]:
    """Build an index of the kind `late`, or encode what it lacks.

    Raises:
        UserError: a parameter is not possible.
    """
    parameters = ENCODING_DEFAULTS | chosen
    encoding = _encoding(tokens.dim, parameters)
    folder.mkdir(parents=True, exist_ok=True)
    writer = VectorWriter(folder, encoding.size, "int8")
    there, read = set(finished_shards(folder)), 0
    for number in there - set(range(len(tokens.shard_hashes))):
        remove_shard(folder, number)
        _source(folder, number).unlink(missing_ok=True)
    for number, made_from in enumerate(tokens.shard_hashes):
        count = int(tokens.starts[number + 1] - tokens.starts[number])
        source = _source(folder, number)
        if number not in there or not source.exists() or source.read_text("utf-8") != made_from:
            source.unlink(missing_ok=True)
            rows, scales = _encode_shard(tokens, number, encoding)
            writer.write_rows(number, [str(row) for row in range(count)], rows, scales, None)
            with atomic_write(source) as file:
                file.write(made_from)
            read += count
        advance(count)
    encodings = VectorReader(folder, compare=False)  # whoever searches compares
    write_late(folder, tokens, parameters, encodings=encodings.shard_hashes)
    return {"read": read, "digests": written_digests(folder)}


def _encode_shard(
    tokens: TokenReader, number: int, encoding: Encoding
) -> tuple[Int8[Tensor, "rows size"], Float[Tensor, " rows"]]:
    """Encode the documents of a shard; those that are gone become zeros."""
    start, stop = int(tokens.starts[number]), int(tokens.starts[number + 1])
    rows, scales = torch.zeros(stop - start, encoding.size, dtype=torch.int8), torch.ones(stop - start)
    for block in tokens.blocks(ENCODED_TOGETHER, shards=[number], release=True):
        places = block.rows - start
        rows[places], scales[places] = to_int8(encode_documents(_vectors(block), encoding))
    return rows, scales


def _vectors(block: TokenBlock) -> TokenVectors:
    return TokenVectors(block.float32().numpy(), block.counts.numpy())


def _source(folder: Path, number: int) -> Path:
    """Return the file that names the shard of tokens a shard was made from."""
    return shard_file(folder, number, "source")


def _encoding(dim: int, parameters: Mapping[str, int]) -> Encoding:
    check_positive(parameters)
    size = parameters["repetitions"] * min(parameters["width"], dim) << parameters["bits"]
    if size > MOST_DIMENSIONS:
        raise UserError(
            f"repetitions={parameters['repetitions']} bits={parameters['bits']} width={parameters['width']}: make "
            f"encodings of {size:,} dimensions; expected at most {MOST_DIMENSIONS:,}."
        )
    return make_encoding(dim, **{name: parameters[name] for name in ("repetitions", "bits", "width")})


def open_encodings(folder: Path, built: Mapping[str, Any], how: Opening) -> PrunedIndex:
    """Open an index of the kind `late` over the token vectors at `how.vectors`.

    Raises:
        UserError: the folder holds no whole index, or one of another store.
    """
    del built
    assert how.vectors is not None
    tokens = TokenReader(how.vectors)
    description = read_late(folder, tokens)
    vectors = VectorReader(folder)
    if vectors.shard_hashes != description.get("encodings"):
        raise UserError(f"{folder}: is being changed, or was left so; run the same `shortlist index` again.")
    encoding = _encoding(tokens.dim, description["parameters"])
    proposer = Encodings(vectors, encoding, memory_gib=how.memory_gib)
    return PrunedIndex(tokens, proposer, description, effort=how.effort, refine=how.refine, memory_gib=how.memory_gib)


def encodings_footprint(tokens: TokenReader, **chosen: int) -> Footprint:
    """Compute the size of the encodings of a token store."""
    size = tokens.num_rows * (_encoding(tokens.dim, ENCODING_DEFAULTS | chosen).size + 4)
    words = ", ".join(f"{name}={value}" for name, value in (ENCODING_DEFAULTS | chosen).items())
    return Footprint(size, size, parameters=words)
