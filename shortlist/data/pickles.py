"""Safe reading of the vectors that Tevatron's `encode` has pickled.

A pickle is a program: reading it calls what it names. Here it may name only the functions that rebuild NumPy arrays.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float

from shortlist.data.files import open_bytes
from shortlist.data.formats import SPACE
from shortlist.data.seen import Seen
from shortlist.errors import UserError
from shortlist.progress import track

SHARD_SIZE = 20_000
"""Vectors per shard of the store that is written."""
START = b"\x80"
"""First byte of a pickle since protocol 2; no UTF-8 text begins with it."""
GLOBALS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")  # before and since NumPy 2
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ),
}
"""Module and name of everything that a pickle may call."""


def is_pickle(path: Path) -> bool:
    """Whether a file begins like a pickle."""
    with open_bytes(path) as file:
        return file.read(1) == START


def read_embeddings(path: Path) -> tuple[Float[np.ndarray, "docs dim"], list[str]]:
    """Read the vectors and ids that Tevatron has pickled into a file.

    Tevatron writes them by `pickle.dump((vectors, ids), file)`.

    Raises:
        UserError: the pickle names anything that no array needs, which is never run; or it holds something different.
    """
    try:
        with open_bytes(path) as file:
            content = _ArraysOnly(file).load()
    except _RefusedError as refused:
        raise UserError(
            f"{path}: asks for {refused}, which no array of numbers needs, and none of it was run; do not open this "
            "file with other tools, and ask where it came from."
        ) from None
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are bytes in it
        raise UserError(f"{path}: not a whole pickle ({error}); fetch it again.") from None
    if not isinstance(content, tuple | list) or len(content) != 2:
        _refuse(path, f"found a {type(content).__name__}")
    vectors, doc_ids = content
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f":
        _refuse(path, "the first of the two is no such array")
    doc_ids = list(doc_ids) if isinstance(doc_ids, list | tuple | np.ndarray) else []
    if len(doc_ids) != len(vectors) or not doc_ids:
        _refuse(path, f"found {len(doc_ids):,} ids for {len(vectors):,} vectors")
    return vectors, [_doc_id(path, doc_id) for doc_id in doc_ids]


def write_embeddings(sources: Sequence[str], out: Path) -> dict[str, int]:
    """Write pickled vectors as a vector store; return their number and dimension.

    The store cannot say which model made them.

    Raises:
        UserError: a source cannot be read, vectors of another dimension or precision, a document that occurs twice.
    """
    from shortlist.data.stores.vectors import VectorWriter

    new, number, num_docs, writer = Seen().add, 0, 0, None
    for source in track(sources, "converting", len(sources), "files"):
        vectors, doc_ids = read_embeddings(Path(source))
        kind = (vectors.shape[1], "float16" if vectors.dtype == "float16" else "float32")
        writer = writer or VectorWriter(out, *kind)
        if kind != (writer.dim, writer.dtype):
            raise UserError(
                f"{source}: holds {kind[1]} vectors of dim {kind[0]}, but {sources[0]} {writer.dtype} of dim "
                f"{writer.dim}; expected the vectors of one model."
            )
        if twice := next((doc_id for doc_id in doc_ids if not new(doc_id)), None):
            raise UserError(f"{source}: document {twice!r} occurs twice in the sources; every id must occur once.")
        for start in range(0, len(doc_ids), SHARD_SIZE):
            here = slice(start, start + SHARD_SIZE)
            writer.write_shard(number, doc_ids[here], vectors[here])
            number += 1
        num_docs += len(doc_ids)
    return {"num_docs": num_docs, "dim": writer.dim if writer else 0}


class _RefusedError(Exception):
    """A name in a pickle that it must not call."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in GLOBALS:
            raise _RefusedError(f"{module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def _doc_id(path: Path, value: Any) -> str:
    if not isinstance(value, str | int | np.integer) or not str(value) or SPACE.search(str(value)):
        _refuse(path, f"{value!r} is no id")
    return str(value)


def _refuse(path: Path, found: str) -> NoReturn:
    raise UserError(
        f"{path}: {found}; expected what Tevatron's encode writes: an array of floats [docs, dim], and an id without "
        "white space for each of its rows."
    )
