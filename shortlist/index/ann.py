"""Approximate search with FAISS.

A compressed index proposes candidates, which are scored exactly from the vector store on disk.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from shortlist.data.allowed import Allowed
from shortlist.data.files import atomic_write
from shortlist.data.stores.shards import DEAD
from shortlist.data.stores.vectors import Block, VectorReader, refuse_not_finite
from shortlist.errors import UserError
from shortlist.index.flat import FlatIndex, check_queries
from shortlist.index.parameters import (
    BLOCK_BYTES,
    NAMES,
    PQ_CENTROIDS,
    SCALAR_BITS,
    Parameters,
    automatic,
    check_kind,
    check_parameters,
)
from shortlist.index.protocols import Opening
from shortlist.progress import Advance
from shortlist.records import Hit

LISTS = "lists.ivfdata"
EQUALS = "equals.npy"
"""Rows with equal vectors, [rows, 2]: the row that is linked in the graph, and one that is not, in this order."""
Done = Callable[[float], object]
"""Is called with the number of documents done; half a document is one of its two passes."""
QUERIES_AT_ONCE = 1024
STORED = {"float16": "QT_fp16", "bfloat16": "QT_bf16", "int8": "QT_8bit"}
"""FAISS's names for the dtypes of a store, except float32."""
THREAD_PRODUCTS = 1 << 24
"""Multiplications for which another thread pays: FAISS's threads spin after their work, and hold up torch's."""
LEAST_READ = 10
"""Documents that the lists read must hold on average, in multiples of k. In a small corpus, k is a large part."""
EXACTLY = 1.0
"""Where a filter allows at most this many documents, in multiples of those that an approximate search would look at,
they are all compared."""


class _Some(NamedTuple):
    """The documents that a search may find."""

    keep: Bool[np.ndarray, " docs"]
    """Whether the document at each position is allowed and in the index."""
    num_docs: int
    selector: Any
    """FAISS's selector of their rows."""


@final
class AnnIndex:
    """A FAISS index over a vector store, searched by inner product.

    Its ids are the store's rows. The parts that grow with the corpus are mapped from disk: the codes and graph of an
    hnsw index, the lists of an ivf index. The graph and the lists are meant for vectors of about the same length, as
    embeddings usually are.

    Attributes:
        kind: the kind of index that was built.
        parameters: the parameters it was built with, with the effort and refinement that it was opened with.
        num_docs: the number of documents that can be found.
        missing: the number of documents of the store that are newer than the index, and are never found.
        ram_bytes: memory that searches come to hold, besides the pages of the store that they touch.
        disk_bytes: the size of the index's files.
    """

    def __init__(self, folder: Path, vectors: VectorReader, description: dict[str, Any], parameters: Parameters):
        self.kind: str = description["kind"]
        self.parameters, self.vectors = parameters, vectors
        self.missing = vectors.beyond(description["shard_hashes"])
        self.num_docs = vectors.num_docs - self.missing
        self.ram_bytes: int = description["files"]["index.faiss"]
        self.disk_bytes = sum(description["files"].values())
        self._faiss = _faiss()
        self._index = _read(self._faiss, folder, description)
        self._positions = vectors.positions_of(np.arange(description["num_rows"]))
        self._equals = np.load(folder / EQUALS) if EQUALS in description["files"] else None
        alive = self._positions != DEAD
        self._alive = None if alive.all() else self._selector(alive)
        self._some: WeakKeyDictionary[Allowed, _Some] = WeakKeyDictionary()

    def _selector(self, wanted: Bool[np.ndarray, " rows"]) -> Any:
        """Return FAISS's selector of rows; a linked row stands for equal vectors too."""
        selected = wanted.copy()
        if self._equals is not None:
            linked, equal = self._equals.T
            np.logical_or.at(selected, linked, wanted[equal])
        return None if selected.all() else self._faiss.IDSelectorBitmap(np.packbits(selected, bitorder="little"))

    @staticmethod
    def build(
        vectors: VectorReader, folder: Path, *, kind: str, parameters: Parameters, advance: Advance | None = None
    ) -> None:
        """Build an index over a store and write it into a folder.

        Memory holds a training sample, a block of vectors, and as much as `Footprint` says. The same store and
        parameters give the same ivf index. An hnsw graph is linked by all cores at once, and is a little different
        every time unless OMP_NUM_THREADS is 1.

        Args:
            folder: where index.faiss, index.json, for ivf-flat lists.ivfdata and, for hnsw over equal vectors,
                equals.npy are written; made if missing.
            kind: a name in NAMES.
            advance: called with the number of documents done.

        Raises:
            UserError: there is no such kind, the parameters do not fit the store, or FAISS is not installed.
        """
        check_kind(kind)
        check_parameters(kind, parameters, vectors.num_docs, vectors.dim)
        faiss, done = _faiss(), cast(Done, advance or (lambda amount: None))
        index = _empty(faiss, kind, parameters, vectors)
        equals = _equal_rows(vectors) if kind == "hnsw" else None
        index.train(_sample(vectors, parameters.sample))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.json").unlink(missing_ok=True)  # until the new files are complete, the folder holds no index
        if equals is not None:
            with atomic_write(folder / EQUALS, "wb") as file:
                np.save(file, equals)
        if kind == "ivf-flat":
            list_sizes = _fill_on_disk(index, vectors, folder / LISTS, done).tolist()
        else:
            list_sizes = _fill(index, vectors, done, without=None if equals is None else equals[:, 1])
        with atomic_write(folder / "index.faiss", "wb") as file:
            faiss.write_index(index, file.name)
        names = ["index.faiss", *([LISTS] if list_sizes else []), *([] if equals is None else [EQUALS])]
        description = {
            "kind": kind,
            "parameters": asdict(parameters),
            "dim": vectors.dim,
            "num_docs": vectors.num_docs,
            "num_rows": vectors.num_rows,
            "shard_hashes": vectors.shard_hashes,
            "list_sizes": list_sizes,
            **({} if equals is None else {"num_equal": len(equals)}),
            "files": {name: (folder / name).stat().st_size for name in names},
        }
        with atomic_write(folder / "index.json") as file:
            json.dump(description, file, indent=2)

    @classmethod
    def open(
        cls, folder: Path, vectors: VectorReader, *, effort: int | None = None, refine: int | None = None
    ) -> "AnnIndex":
        """Open an index with the store that it was built from.

        Documents that have left the store since then are not found.

        Args:
            effort: replaces the effort that the index was built with.
            refine: replaces the refinement that the index was built with.

        Raises:
            UserError: the folder holds no complete index, or an index of another store; effort or refine is below 1.
        """
        description = _describe(folder)
        if description["dim"] != vectors.dim:
            raise UserError(
                f"{folder}: indexes vectors of dim {description['dim']}, {vectors.folder} holds dim {vectors.dim}; "
                "open it with the store that it was built from."
            )
        asked = {name: value for name, value in (("effort", effort), ("refine", refine)) if value is not None}
        parameters = replace(Parameters(**description["parameters"]), **asked)
        check_parameters(description["kind"], parameters, description["num_docs"], vectors.dim)
        return cls(folder, vectors, description, parameters)

    def find(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k best documents for each query.

        They are sorted best first, equal scores in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        return self.vectors.doc_ids.hits(*self.search_vectors(queries, k, allowed=allowed))

    def search_vectors(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """Find the k best documents for each query, equal scores in corpus order.

        Args:
            allowed: the only documents to find (None: all). Where they are few, or the index finds fewer than k of
                them for a query, all of them are compared with it, and the result is exact.

        Returns:
            Exact scores and positions in the store, best first; -inf and -1 after the last document found. There are
            fewer than k columns if the store is smaller, or fewer are allowed.

        Raises:
            UserError: the queries have another dimension than the store, or are not finite; k is below 1.
        """
        check_queries(queries, k, dim=self.vectors.dim)
        some = None if allowed is None else self._find_some(allowed)
        if allowed is None or some is None:
            return self._search(queries, min(k, self.vectors.num_docs), None)
        k = max(1, min(k, some.num_docs))
        if not some.num_docs or some.num_docs <= EXACTLY * self._compared(k, some):
            return self._exact.search_some(queries, k, some.keep, prepared_for=allowed)
        scores, positions = self._search(queries, k, some)
        short = np.flatnonzero(positions[:, -1] < 0)
        if len(short):
            scores[short], positions[short] = self._exact.search_some(
                queries[short], k, some.keep, prepared_for=allowed
            )
        return scores, positions

    @cached_property
    def _exact(self) -> FlatIndex:
        """Exact search over the vectors, for the few documents that a filter allows."""
        return FlatIndex(self.vectors)

    def _find_some(self, allowed: Allowed) -> _Some:
        """Find the allowed documents that are in the index."""
        if allowed not in self._some:
            inside = self._positions[self._positions != DEAD]
            keep = np.zeros(self.vectors.num_docs, dtype=bool)
            keep[inside] = allowed.mask(self.vectors.doc_ids)[inside]
            wanted = (self._positions != DEAD) & keep[self._positions]
            self._some[allowed] = _Some(keep, int(np.count_nonzero(keep)), self._selector(wanted))
        return self._some[allowed]

    def _compared(self, k: int, some: _Some) -> float:
        """Estimate how many documents a query is compared with by an approximate search."""
        if self.kind == "hnsw":
            return float(self._effort(k, some) * self.parameters.links)
        return self._probes(k, some) * self._index.ntotal / self._index.nlist

    def _search(
        self, queries: Float[np.ndarray, "queries dim"], k: int, some: _Some | None
    ) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        positions = np.full((len(queries), k), -1, dtype=np.int64)
        if self.num_docs == 0:
            return scores, positions
        propose = self._from_graph if self.kind == "hnsw" else self._from_lists
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            batch = np.ascontiguousarray(queries[start : start + QUERIES_AT_ONCE], dtype=np.float32)
            for number, (query, rows) in enumerate(zip(batch, propose(batch, k, some), strict=True), start):
                best, places = self._rescored(query, self._with_equals(rows[rows >= 0], k, some), k)
                scores[number, : len(best)], positions[number, : len(best)] = best, places
        return scores, positions

    def _rescored(self, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.sort(self.vectors.positions_of(rows))  # corpus order: for reading from disk and for ties
        # Without BLAS, where the last digits of a score may depend on the position of the vector.
        scores = np.einsum("nd,d->n", self.vectors.take(positions), query)
        refuse_not_finite(self.vectors, torch.from_numpy(positions), torch.from_numpy(np.isfinite(scores)))
        order = np.argsort(-scores, kind="stable")[:k]
        return scores[order], positions[order]

    def _with_equals(self, rows: Int[np.ndarray, " found"], k: int, some: _Some | None) -> Int[np.ndarray, " rows"]:
        """Add the rows with equal vectors, of each set the k first in corpus order."""
        if self._equals is None:
            return rows
        linked, equal = self._equals.T
        starts, stops = np.searchsorted(linked, rows, side="left"), np.searchsorted(linked, rows, side="right")
        found = [rows[starts == stops]]
        for row, start, stop in zip(rows, starts, stops, strict=True):
            if start < stop:
                same = np.array([row, *equal[start:stop]])
                positions = self.vectors.positions_of(same)
                living = positions != DEAD if some is None else (positions != DEAD) & some.keep[positions]
                found.append(same[living][np.argsort(positions[living])[:k]])
        return np.concatenate(found)

    def _effort(self, k: int, some: _Some | None) -> int:
        """Choose the candidates of a graph search: more where few are allowed."""
        effort = max(self.parameters.effort, self._num_candidates(k))
        return effort if some is None else math.ceil(effort * self.num_docs / some.num_docs)

    def _from_graph(self, queries: np.ndarray, k: int, some: _Some | None) -> Int[np.ndarray, "queries candidates"]:
        count, effort = self._num_candidates(k), self._effort(k, some)
        how = self._faiss.SearchParametersHNSW(efSearch=effort, sel=some.selector if some else self._alive)
        with self._threads(len(queries), effort * self.parameters.links, len(queries)):
            return self._index.search(queries, count, params=how)[1]

    def _probes(self, k: int, some: _Some | None) -> int:
        """Choose the lists to read at first: more where few documents are allowed."""
        index = self._index
        probes = max(self.parameters.effort, min(index.nlist, LEAST_READ * k * index.nlist // max(1, index.ntotal)))
        return probes if some is None else min(index.nlist, math.ceil(probes * self.num_docs / some.num_docs))

    def _from_lists(self, queries: np.ndarray, k: int, some: _Some | None) -> Int[np.ndarray, "queries candidates"]:
        """Find the rows of candidates, reading more lists where the first ones hold too few."""
        index, count = self._index, self._num_candidates(k)
        rows, todo = np.full((len(queries), count), -1), np.arange(len(queries))
        probes, least = self._probes(k, some), min(k, self.num_docs if some is None else some.num_docs)
        while len(todo):
            how = self._faiss.SearchParametersIVF(nprobe=probes, sel=some.selector if some else self._alive)
            with self._threads(len(todo), index.nlist + index.ntotal * probes // index.nlist, probes) as threads:
                index.parallel_mode = 0 if len(todo) >= threads else 1  # over queries, or over the lists of each
                rows[todo] = index.search(queries[todo], count, params=how)[1]
            todo = todo[(rows[todo] >= 0).sum(1) < least] if probes < index.nlist else todo[:0]
            probes = min(2 * probes, index.nlist)
        return rows

    @contextmanager
    def _threads(self, num_queries: int, docs: int, most: int) -> Iterator[int]:
        """Set FAISS's number of threads inside the block, and yield it.

        Args:
            num_queries: the number of queries to search.
            docs: the number of documents that each query is compared with.
            most: the largest useful number of threads.
        """
        before = self._faiss.omp_get_max_threads()
        threads = max(1, min(before, most, num_queries * docs * self.vectors.dim // THREAD_PRODUCTS))
        self._faiss.omp_set_num_threads(threads)
        try:
            yield threads
        finally:
            self._faiss.omp_set_num_threads(before)

    def _num_candidates(self, k: int) -> int:
        return min(self.parameters.refine * k, self.num_docs, self._index.ntotal)


def build_ann(vectors: VectorReader, folder: Path, *, kind: str, advance: Advance, **chosen: int) -> dict[str, Any]:
    """Build one of the approximate kinds, with the chosen parameters and otherwise `automatic` ones."""
    parameters = automatic(kind, vectors.num_docs, vectors.dim, **chosen)
    AnnIndex.build(vectors, folder, kind=kind, parameters=parameters, advance=advance)
    return {}


def open_ann(folder: Path, built: Mapping[str, Any], how: Opening) -> AnnIndex:
    """Open one of the approximate kinds over the vectors at `how.vectors`."""
    del built
    assert how.vectors is not None
    return AnnIndex.open(folder, VectorReader(how.vectors), effort=how.effort, refine=how.refine)


def _faiss() -> ModuleType:
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError:
        raise UserError("faiss is not installed: approximate search needs it; pip install faiss-cpu.") from None
    faiss.cvar.distance_compute_blas_threshold = 1  # with the default, k-means and assignment take ten times as long
    return faiss


def _describe(folder: Path) -> dict[str, Any]:
    """Read index.json and check that the files it names are complete.

    Mapping a file that is too short would crash.

    Raises:
        UserError: the folder holds no complete index.
    """
    again = "build it again with `shortlist index`."
    try:
        description = json.loads((folder / "index.json").read_text("utf-8"))
        files, _ = description["files"], Parameters(**description["parameters"])
        whole = description["kind"] in NAMES and "index.faiss" in files
        whole = whole and {"dim", "num_docs", "num_rows", "shard_hashes"} <= description.keys()
        whole = whole and (LISTS in files) == bool(description["list_sizes"])
        whole = whole and (EQUALS in files) == ("num_equal" in description)
    except (OSError, ValueError, KeyError, TypeError):
        whole, files, description = False, {}, {}
    if not whole:
        raise UserError(f"{folder}: holds no whole approximate index (index.json); {again}")
    for name, size in files.items():
        path = folder / Path(name).name
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise UserError(f"{path}: holds {found:,} bytes, expected {size:,}; {again}")
    return description


def _read(faiss: ModuleType, folder: Path, description: dict[str, Any]) -> Any:
    """Map an index into memory.

    FAISS has one way to map graphs and flat codes, and another for inverted lists.
    """
    how = faiss.IO_FLAG_MMAP_IFC if description["kind"] == "hnsw" else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    try:
        index = faiss.read_index(str(folder / "index.faiss"), how)
        if description["list_sizes"]:
            _attach(faiss, index, folder / LISTS, description["list_sizes"])
        linked = description["num_docs"] - description.get("num_equal", 0)
        if (index.d, index.ntotal) != (description["dim"], linked):
            raise RuntimeError(f"{index.ntotal:,} vectors of dim {index.d} are not what index.json says")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{folder / 'index.faiss'}: FAISS cannot read it ({reason}); build it again with `shortlist index`."
        ) from None
    return index


def _attach(faiss: ModuleType, index: Any, path: Path, sizes: list[int]) -> None:
    """Attach the inverted lists in a file to an index.

    The file holds the codes of a list, then its ids, list after list. This replaces FAISS's reader of such lists, which
    opens any file that the index names.
    """
    on_disk = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(path))
    table, offset = faiss.OnDiskOneListVector(), 0
    for size in sizes:
        one = faiss.OnDiskOneList()
        one.size, one.capacity, one.offset = size, size, offset
        table.push_back(one)
        offset += size * (index.code_size + 8)
    if len(sizes) != index.nlist or offset != path.stat().st_size:
        raise RuntimeError(f"{len(sizes)} lists of {offset:,} bytes are not those of {path.name}")
    on_disk.lists, on_disk.totsize, on_disk.read_only = table, offset, True
    on_disk.do_mmap()
    index.replace_invlists(on_disk, True)
    on_disk.this.disown()  # the index owns it now
    index.ntotal = sum(sizes)


def _empty(faiss: ModuleType, kind: str, parameters: Parameters, vectors: VectorReader) -> Any:
    """Make an index without documents, to be trained."""
    dim, metric = vectors.dim, faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        code = getattr(faiss.ScalarQuantizer, SCALAR_BITS[parameters.bits])
        graph = faiss.IndexHNSWSQ(dim, code, parameters.links, metric)
        graph.hnsw.efConstruction = parameters.construction
        _reserve(faiss, graph, vectors.num_docs, parameters.links)
        return faiss.IndexIDMap(graph)
    centroids, lists = faiss.IndexFlatIP(dim), parameters.lists
    if kind == "ivf-pq":
        index = faiss.IndexIVFPQ(centroids, dim, lists, parameters.code_bytes, 8, metric)
        index.pq.cp.min_points_per_centroid = 1  # no warning for a small corpus, which is mostly rescored
    elif vectors.dtype == "float32":
        index = faiss.IndexIVFFlat(centroids, dim, lists, metric)
    else:
        code = getattr(faiss.ScalarQuantizer, STORED[vectors.dtype])
        index = faiss.IndexIVFScalarQuantizer(centroids, dim, lists, code, metric, False)  # False: no residuals
    return index


def _reserve(faiss: ModuleType, graph: Any, num_docs: int, links: int) -> None:
    """Reserve memory for a graph and its codes.

    Arrays that grow by copying would need twice as much.
    """
    codes = faiss.downcast_index(graph.storage)
    for array, size in ((codes.codes, codes.code_size), (graph.hnsw.neighbors, 2 * links + 1.1 * links / (links - 1))):
        array.resize(math.ceil(num_docs * size))
        array.resize(0)


def _rows_at_once(vectors: VectorReader) -> int:
    return max(1, BLOCK_BYTES // (4 * vectors.dim))


def _sample(vectors: VectorReader, size: int) -> Float[np.ndarray, "sample dim"]:
    """Take vectors evenly spaced over the store.

    They are repeated if there are fewer than product quantisation needs.
    """
    wanted = np.linspace(0, vectors.num_docs - 1, min(size, vectors.num_docs)).astype(np.int64)
    sample, seen, taken = np.empty((len(wanted), vectors.dim), dtype=np.float32), 0, 0
    for block in vectors.blocks(_rows_at_once(vectors), release=True):
        end = int(np.searchsorted(wanted, seen + len(block.rows)))
        picked = torch.from_numpy(wanted[taken:end] - seen)
        scales = None if block.scales is None else block.scales[picked]
        part = Block(block.rows[picked], block.positions[picked], block.vectors[picked], scales)
        sample[taken:end] = _finite(vectors, part)
        seen, taken = seen + len(block.rows), end
    return sample if len(sample) >= PQ_CENTROIDS else np.resize(sample, (PQ_CENTROIDS, vectors.dim))


def _fill(
    index: Any, vectors: VectorReader, advance: Done, *, without: Int[np.ndarray, " rows"] | None = None
) -> list[int]:
    """Add all vectors to an index, without some rows."""
    for block in vectors.blocks(_rows_at_once(vectors), release=True):
        values, rows = _finite(vectors, block), block.rows.numpy()
        kept = slice(None) if without is None else ~np.isin(rows, without)
        index.add_with_ids(np.ascontiguousarray(values[kept]), rows[kept])
        advance(len(block.rows))
    return []


def _finite(vectors: VectorReader, block: Block) -> Float[np.ndarray, "block dim"]:
    """Return the vectors of a block to build from, which must be finite."""
    values = block.float32()
    refuse_not_finite(vectors, block.positions, values.isfinite().all(1))
    return values.numpy()


def _equal_rows(vectors: VectorReader) -> Int[np.ndarray, "rows 2"] | None:
    """Find the rows whose vectors equal an earlier row's; None if there are none.

    Equal vectors would fill each other's links in a graph, so that it has no way out of them or into them.
    """
    prints, rows = [], []
    for block in vectors.blocks(_rows_at_once(vectors), release=True):
        values = block.float32().numpy()
        prints.append(b"".join(blake2b(value.tobytes(), digest_size=16).digest() for value in values))
        rows.append(block.rows.numpy())
    all_rows = np.concatenate(rows)
    _, first, inverse = np.unique(np.frombuffer(b"".join(prints), "S16"), return_index=True, return_inverse=True)
    linked = all_rows[first[inverse]]
    equal = linked != all_rows
    pairs = np.stack([linked[equal], all_rows[equal]], axis=1).astype("<i8")
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))] if len(pairs) else None


def _fill_on_disk(index: Any, vectors: VectorReader, path: Path, advance: Done) -> Int[np.ndarray, " lists"]:
    """Write the inverted lists into a file, holding one block of vectors in memory.

    The place of every list in the file is known beforehand, so each block is written where it belongs.

    Returns:
        The number of documents in each list.
    """
    lists, rows = _assign(index, vectors, advance)
    sizes, entry = np.bincount(lists, minlength=index.nlist), index.code_size + 8
    starts = np.concatenate([[0], np.cumsum(sizes)])
    ids, ends = rows[np.argsort(lists, kind="stable")], entry * starts[:-1]
    with atomic_write(path, "wb") as file:
        file.truncate(entry * len(rows))
        done = 0
        for block in vectors.blocks(_rows_at_once(vectors), release=True):
            here = lists[done : done + len(block.rows)]
            order = np.argsort(here, kind="stable")
            numbers, firsts = np.unique(here[order], return_index=True)
            codes = _codes(index, block)[order]
            for number, first, last in zip(numbers, firsts, [*firsts, len(here)][1:], strict=True):
                file.seek(ends[number])
                ends[number] += file.write(codes[first:last].tobytes())
            done += len(here)
            advance(len(here) / 2)
        for number, end in enumerate(ends):  # after the last code
            file.seek(end)
            file.write(ids[starts[number] : starts[number + 1]].tobytes())
    return sizes


def _assign(
    index: Any, vectors: VectorReader, advance: Done
) -> tuple[Int[np.ndarray, " docs"], Int[np.ndarray, " docs"]]:
    """Find the list that each document belongs to, and its row, in row order."""
    lists, rows = np.empty(vectors.num_docs, dtype=np.int32), np.empty(vectors.num_docs, dtype=np.int64)
    done = 0
    for block in vectors.blocks(_rows_at_once(vectors), release=True):
        here = slice(done, done + len(block.rows))
        lists[here] = index.quantizer.assign(_finite(vectors, block), 1)[:, 0]
        rows[here] = block.rows.numpy()
        done = here.stop
        advance(len(block.rows) / 2)
    return lists, rows


def _codes(index: Any, block: Block) -> np.ndarray:
    """Return the bytes that FAISS keeps of each vector.

    If the store has no scales, they are the bytes of the store.
    """
    if block.scales is not None:
        return index.sq.compute_codes(block.float32().numpy())
    return block.vectors.contiguous().view(torch.uint8).numpy()
