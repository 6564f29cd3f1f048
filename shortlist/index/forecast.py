"""Forecast of the cost of building an index, for `shortlist index --dry-run`.

It builds the index over a part of the input and extrapolates.
"""

import tempfile
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shortlist.data.collections import open_collection
from shortlist.data.files import folder_bytes
from shortlist.data.stores.kinds import Store, kind_of_store
from shortlist.index.building import build_index, fitting_store
from shortlist.index.kinds import IndexKind
from shortlist.index.parameters import Footprint
from shortlist.progress import duration, peak_bytes, size

MEASURED_SECONDS = 60
FIRST_DOCS = 10_000
"""Documents in the first measurement over a corpus; each further measurement has twice as many."""
PART_DOCS = 20_000
"""The number of vectors that an index is built over to see how long that takes."""


class Measured(NamedTuple):
    """The measured cost of building an index over a part of the input."""

    num_docs: int
    seconds: float
    disk: int
    """Bytes of the files written."""


def forecast_index(kind: IndexKind, source: str | Path, settings: Mapping[str, Any]) -> str:
    """Forecast the documents, disk, memory and time of an index, one per line.

    The arguments are those of `build_index`.
    """
    over = _over_corpus if kind.reads == "corpus" else _over_vectors
    return "\n".join(f"{name:10} {words}" for name, words in over(kind, source, settings).items())


def _over_corpus(kind: IndexKind, source: str | Path, settings: Mapping[str, Any]) -> dict[str, str]:
    collection = open_collection(str(source))
    if kind.forecast is not None:
        return dict(kind.forecast(collection.corpus(), num_docs=collection.num_docs(), **settings))
    total, count, part = collection.num_docs(), FIRST_DOCS, Measured(0, 0.0, 0)
    with tempfile.TemporaryDirectory() as name:
        while part.seconds < MEASURED_SECONDS / 4 and part.num_docs < total:  # the next measurement takes twice as long
            start, folder = time.perf_counter(), Path(name) / str(count)
            found = kind.build(islice(collection.corpus(), count), folder, **settings)["num_docs"]
            part = Measured(found, time.perf_counter() - start, folder_bytes(folder))
            count *= 2
    return _lines(total, part, kind) | {"building": f"about {size(peak_bytes())} of memory"}


def _over_vectors(kind: IndexKind, source: str | Path, settings: Mapping[str, Any]) -> dict[str, str]:
    vectors = fitting_store(kind, Path(source))
    foretold = kind.footprint(vectors, **settings) if kind.footprint else None
    if kind.outside:
        part = Measured(0, 0.0, 0)
    else:
        part = _measure(kind, vectors, {name: settings[name] for name in kind.settings})
    lines = _lines(vectors.num_docs, part, kind, foretold)
    if kind.outside:
        lines |= {"memory": "the database's own", "time": "not measured: that would write into the database"}
    if foretold and foretold.building:
        lines["building"] = f"about {size(foretold.building)} of memory"
    if foretold and foretold.parameters:
        lines["parameters"] = foretold.parameters
    return lines


def _measure(kind: IndexKind, vectors: Store, settings: Mapping[str, Any]) -> Measured:
    """Build an index over vectors spread over the store, with automatic parameters."""
    part = np.linspace(0, vectors.num_docs - 1, min(vectors.num_docs, PART_DOCS)).astype(np.int64)
    with tempfile.TemporaryDirectory() as name:
        sample, folder = Path(name) / "vectors", Path(name) / "index"
        writer = kind_of_store(vectors.folder).like(vectors, sample)
        writer.write_shard(0, [str(position) for position in part], vectors.take(part))
        start = time.perf_counter()
        build_index(kind, sample, folder, settings)
        return Measured(len(part), time.perf_counter() - start, folder_bytes(folder))


def _lines(total: int, part: Measured, kind: IndexKind, foretold: Footprint | None = None) -> dict[str, str]:
    times = total / part.num_docs if part.num_docs else 0
    disk, ram = (foretold.disk, foretold.ram) if foretold else (part.disk * times, part.disk * times)
    seconds = part.seconds * times * (kind.growth(total, part.num_docs) if part.num_docs else 0)
    return {
        "documents": f"{total:,}",
        "disk": f"about {size(disk)}",
        "memory": f"about {size(ram)} while searching",
        "time": f"about {duration(seconds)}, from building it over {part.num_docs:,} documents here",
    }
