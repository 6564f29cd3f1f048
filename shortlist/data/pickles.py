"""Safe reading of the vectors that Tevatron's `encode` has pickled.

A pickle is a program: reading it calls what it names. Here it may name only the functions that rebuild NumPy arrays.
"""

import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float

from shortlist.data.files import open_bytes
from shortlist.data.formats import SPACE
from shortlist.errors import UserError

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
