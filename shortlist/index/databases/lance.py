"""Vectors in LanceDB (the extra `lance`), in a folder or on S3.

Any machine that can read the folder or bucket can search them. An index called `vectors` is two tables: `vectors` (row,
doc_id, shard, vector) and `vectors_order`. The latter is written last, in one step. It records what the index was built
from, and the position of each row in corpus order if that is not the order of rows.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from shortlist.data.allowed import Allowed
from shortlist.data.stores.shards import DEAD
from shortlist.data.stores.vectors import VectorReader
from shortlist.errors import UserError, not_given
from shortlist.index.protocols import Opening
from shortlist.progress import Advance
from shortlist.records import Hit

WRITTEN_AT_ONCE = 1000
"""The number of vectors read from the store at a time."""
SEARCHES_AT_ONCE = 64
RUNS_AT_ONCE = 500
"""The most ranges of rows in one deletion."""
DROPPED_ROWS = 0.25
"""The share of documents from which on a filtered search asks for more documents and drops those that are not allowed.
LanceDB takes longer to read a condition that names so many."""
PROBES = 32
"""The number of lists of an approximate index that are searched."""
CANDIDATES_PER_HIT = 10
"""The number of candidates that are scored by their full vectors, in multiples of k."""
MOST_TABLES = 1_000_000
"""The most tables of a LanceDB to list when looking for an index's tables."""
MOST_WORDS = 300
"""The most characters of a message from LanceDB to pass on."""


@final
class LanceIndex:
    """A LanceDB table of vectors, searched by inner product; made by `load` or `open`.

    Attributes:
        dim: numbers per vector.
        num_docs: the number of documents in the table.
        shard_hashes: the loaded shards, in row order; `VectorReader.beyond` counts the documents that they lack.
        disk_bytes: the size of the table and its index.
        memory_bytes: the size of what a search reads: the approximate index or all vectors.
    """

    def __init__(self, place: "_Place", *, approximate: bool, probes: int, refine: int) -> None:
        self._place, self.approximate, self.probes, self.refine = place, approximate, probes, refine
        if not (place.has(place.order) and place.has(place.table)):
            raise UserError(f"{place}: is not there or not finished; `shortlist index --kind lance` fills it.")
        self._table, order = place.open(place.table), place.open(place.order)
        self.dim: int = self._table.schema.field("vector").type.list_size
        self.num_docs: int = self._table.count_rows()
        self.shard_hashes: list[str] = _described(order)["shards"]
        self._positions: Int[np.ndarray, " rows"] = order.to_arrow()["position"].to_numpy()
        indices = [index for index in self._table.list_indices() if index.columns == ["vector"]]
        if approximate and not indices:
            raise UserError(f"{place}: has no approximate index: make it with `shortlist index`, or search exactly.")
        index_bytes = sum(index.size_bytes or 0 for index in indices)
        self.disk_bytes: int = self._table.stats()["total_bytes"] + index_bytes
        self.memory_bytes: int = index_bytes if approximate else self.num_docs * self.dim * 4

    @classmethod
    def open(
        cls,
        *,
        uri: str,
        table: str = "vectors",
        approximate: bool = False,
        probes: int = PROBES,
        refine: int = CANDIDATES_PER_HIT,
        storage_options: Mapping[str, str] | None = None,
    ) -> "LanceIndex":
        """Open an index in LanceDB, without the vector store.

        Args:
            uri: as in `load`.
            table: the name of the table.
            approximate: search the approximate index instead of every vector.
            probes: the number of its lists to search.
            refine: the number of candidates that are scored by their full vectors, in multiples of k.
            storage_options: as in `load`.

        Raises:
            UserError: the LanceDB cannot be read, there is no such table, or `approximate` is set and there is no
                approximate index.
        """
        with _plain_errors(uri):
            return cls(_Place(uri, table, storage_options), approximate=approximate, probes=probes, refine=refine)

    @classmethod
    def load(
        cls,
        vectors: VectorReader,
        *,
        uri: str,
        table: str = "vectors",
        approximate: bool = False,
        partitions: int | None = None,
        sub_vectors: int | None = None,
        storage_options: Mapping[str, str] | None = None,
        advance: Advance | None = None,
    ) -> "LanceIndex":
        """Make the table hold exactly the documents of a store.

        Every shard is loaded in one commit, so an interrupted load continues with the next shard. If the store has
        changed, only the changes are loaded. Only one process at a time may load a table.

        Args:
            uri: a folder, or `s3://bucket/path`; credentials come from the environment (AWS_ACCESS_KEY_ID, ...).
            table: the name of the table.
            approximate: make an IVF-PQ index too.
            partitions: the number of its lists (None: chosen by LanceDB).
            sub_vectors: the bytes that it keeps of each vector (None: chosen by LanceDB, about dim / 16).
            storage_options: further options of LanceDB for the storage: `endpoint`, `region`, `allow_http`.
            advance: called with the number of documents done.

        Raises:
            UserError: the LanceDB cannot be written, or the table was made by another program or for another dimension.
        """
        with _plain_errors(uri):
            place = _Place(uri, table, storage_options)
            changed = _fill(place, vectors, advance)
            if approximate:
                _make_index(place.open(table), changed, partitions, sub_vectors)
            return cls(place, approximate=approximate, probes=PROBES, refine=CANDIDATES_PER_HIT)

    def find(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k documents with the greatest inner product with each query.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all). Where an approximate search finds fewer than k of them for
                a query, all of them are compared with it.

        Raises:
            UserError: the queries have another dimension than the vectors, or the LanceDB cannot be read.
        """
        if queries.shape[1] != self.dim:
            raise UserError(
                f"queries have {queries.shape[1]} dimensions, the vectors of {self._place} {self.dim}: "
                "encode both with the same model."
            )
        hits: list[list[Hit]] = []
        with _plain_errors(self._place.uri):
            ask, count = (self._nearest, self.num_docs) if allowed is None else self._among(allowed)
            wanted = min(k + 1, count)
            for start in range(0, len(queries) if k and wanted else 0, SEARCHES_AT_ONCE):
                batch = np.asarray(queries[start : start + SEARCHES_AT_ONCE], dtype=np.float32)
                for query, found in zip(batch, ask(batch, wanted, self.approximate), strict=True):
                    short = allowed is not None and self.approximate and len(found.scores) < min(k, count)
                    found = ask(query[None], wanted, False)[0] if short else found
                    hits.append(self._rank(query, found, k, ask, count))
        return hits or [[] for _ in queries]

    def _among(self, allowed: Allowed) -> tuple["_Ask", int]:
        """Return the search among the allowed documents, and their number."""
        rows = np.sort(self._all_rows["row"].to_numpy()[allowed.mask(self._all_rows["doc_id"])])
        if len(rows) >= DROPPED_ROWS * self.num_docs:
            return partial(self._nearest_kept, rows), len(rows)
        return partial(self._nearest, which=f"row IN ({', '.join(map(str, rows.tolist()))})"), len(rows)

    @cached_property
    def _all_rows(self) -> pa.Table:
        """Each document's row and id, which filters ask for."""
        return self._table.search().select(["row", "doc_id"]).to_arrow()

    def _nearest_kept(
        self, rows: Int[np.ndarray, " allowed"], queries: Float[np.ndarray, "queries dim"], k: int, approximate: bool
    ) -> list["_Nearest"]:
        """Find the k nearest of many documents, by asking for more and dropping the others."""
        fetched = math.ceil(k * self.num_docs / len(rows))
        while True:
            fetched = min(fetched + fetched // 2, self.num_docs)
            found = [nearest.kept(rows, k) for nearest in self._nearest(queries, fetched, approximate)]
            if fetched == self.num_docs or all(len(nearest.scores) == k for nearest in found):
                return found

    def _rank(self, query: Float[np.ndarray, " dim"], found: "_Nearest", k: int, ask: "_Ask", count: int) -> list[Hit]:
        """Select the k best documents.

        If documents that were not fetched may share the k-th score, this fetches more.
        """
        fetched = len(found.scores)
        while not self.approximate and k < fetched < count and found.scores[k - 1] == found.scores[-1]:
            fetched = min(2 * fetched, count)
            found = ask(query[None], fetched, False)[0]
        places = found.rows
        if len(self._positions):
            places = self._positions[np.minimum(found.rows, len(self._positions) - 1)]
        best = np.lexsort((places, -found.scores))[:k]
        return [Hit(found.doc_ids[i], float(found.scores[i])) for i in best]

    def _nearest(
        self, queries: Float[np.ndarray, "queries dim"], k: int, approximate: bool, *, which: str | None = None
    ) -> list["_Nearest"]:
        search = self._table.search(queries, vector_column_name="vector").distance_type("dot").limit(k)
        if which is not None:
            search = search.where(which, prefilter=True)
        search = search.nprobes(self.probes).refine_factor(self.refine) if approximate else search.bypass_vector_index()
        found = search.select(["row", "doc_id", "_distance"]).to_arrow()
        asked = found["query_index"].to_numpy() if "query_index" in found.column_names else np.zeros(len(found))
        scores = 1 - found["_distance"].to_numpy()  # LanceDB's distance is one minus the inner product
        rows, doc_ids = found["row"].to_numpy(), np.asarray(found["doc_id"].to_pylist(), dtype=object)
        masks = [asked == i for i in range(len(queries))]
        return [_Nearest(scores[mine], rows[mine], doc_ids[mine].tolist()) for mine in masks]


class _Nearest(NamedTuple):
    """The documents found for one query."""

    scores: Float[np.ndarray, " found"]
    rows: Int[np.ndarray, " found"]
    doc_ids: list[str]

    def kept(self, wanted: Int[np.ndarray, " wanted"], k: int) -> "_Nearest":
        """Keep the first k documents whose rows are wanted."""
        places = np.flatnonzero(np.isin(self.rows, wanted))[:k]
        return _Nearest(self.scores[places], self.rows[places], [self.doc_ids[place] for place in places])


_Ask = Callable[[Float[np.ndarray, "queries dim"], int, bool], list[_Nearest]]
"""Finds the k nearest documents of each query; the last argument says whether by the approximate index."""


@final
class _Place:
    """A LanceDB and the names of an index's tables in it."""

    def __init__(self, uri: str, table: str, storage_options: Mapping[str, str] | None) -> None:
        try:
            import lancedb
        except ModuleNotFoundError:
            raise UserError(
                "lancedb is not installed: --kind lance needs it; pip install 'shortlist[lance]'."
            ) from None
        self.uri, self.table, self.order = uri, table, f"{table}_order"
        self.connection: Any = lancedb.connect(uri, storage_options=dict(storage_options or {}))

    def __str__(self) -> str:
        return f"table {self.table} of {self.uri}"

    def has(self, name: str) -> bool:
        return name in self.connection.list_tables(limit=MOST_TABLES).tables

    def open(self, name: str) -> Any:
        return self.connection.open_table(name)

    def make(self, dim: int) -> Any:
        """Open the table, or make it if it does not exist.

        Raises:
            UserError: it was made by another program, or for vectors of another dimension.
        """
        wanted = _schema(dim)
        if not self.has(self.table):
            return self.connection.create_table(self.table, schema=wanted)
        table = self.open(self.table)
        if table.schema.names != wanted.names:
            raise UserError(f"{self}: is there and was not made by shortlist; choose another name.")
        if (found := table.schema.field("vector").type.list_size) != dim:
            raise UserError(f"{self}: holds vectors of {found} dimensions, these have {dim}; choose another name.")
        return table


def load_lance(
    vectors: VectorReader, folder: Path, *, uri: str | None, table: str, exact: bool, advance: Advance, **chosen: Any
) -> dict[str, Any]:
    """Fill the table of an index of the kind `lance`."""
    del folder
    if uri is None:
        raise not_given("--uri", "it says where the LanceDB tables are")
    LanceIndex.load(vectors, uri=uri, table=table, approximate=not exact, advance=advance, **chosen)
    return {}


def open_lance(folder: Path, built: Mapping[str, Any], how: Opening) -> LanceIndex:
    """Open an index of the kind `lance` in the LanceDB named in the folder's manifest."""
    del folder
    asked = {"probes": how.effort, "refine": how.refine}
    chosen: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return LanceIndex.open(uri=built["uri"], table=built["table"], approximate=not built["exact"], **chosen)


def _schema(dim: int) -> pa.Schema:
    vector = pa.list_(pa.float32(), dim)
    return pa.schema([("row", pa.int64()), ("doc_id", pa.string()), ("shard", pa.string()), ("vector", vector)])


def _fill(place: _Place, vectors: VectorReader, advance: Advance | None) -> bool:
    """Make the table hold exactly the living documents.

    Returns:
        Whether the table has changed.
    """
    table, living = place.make(vectors.dim), vectors.positions_of(np.arange(vectors.num_rows)) != DEAD
    held, gone = _survey(table, vectors)
    if len(gone):
        place.connection.drop_table(place.order, ignore_missing=True)  # marks the table as incomplete
        _delete(table, gone)
    for number, (start, stop) in enumerate(zip(vectors.starts[:-1], vectors.starts[1:], strict=True)):
        missing = living & ~held
        if missing[start:stop].any():
            table.add(pa.RecordBatchReader.from_batches(_schema(vectors.dim), _read(vectors, number, missing)))
        if advance is not None:
            advance(int(living[start:stop].sum()))
    _write_order(place, vectors, living)
    return bool(len(gone)) or not held[living].all()


def _survey(table: Any, vectors: VectorReader) -> tuple[Bool[np.ndarray, " rows"], Int[np.ndarray, " gone"]]:
    """Compare the rows of the table with the store.

    Returns:
        For each row of the store, whether the table holds it; and the rows of the table to delete, because they belong
        to another store, are dead, renamed or duplicated.
    """
    count, gone = np.zeros(vectors.num_rows, dtype=np.int64), [np.empty(0, dtype=np.int64)]
    doc_ids, hashes = vectors.doc_ids, vectors.shard_hashes
    for batch in table.search().select(["row", "doc_id", "shard"]).to_batches():
        rows = batch["row"].to_numpy()
        inside = np.minimum(rows, vectors.num_rows - 1)
        positions, shards = vectors.positions_of(inside), np.searchsorted(vectors.starts, inside, side="right") - 1
        theirs = zip(batch["doc_id"].to_pylist(), batch["shard"].to_pylist(), strict=True)
        ours = zip(positions.tolist(), shards.tolist(), strict=True)
        good = rows == inside
        good &= [
            position != DEAD and (doc_ids[position], hashes[shard]) == names
            for (position, shard), names in zip(ours, theirs, strict=True)
        ]
        np.add.at(count, rows[good], 1)
        gone.append(rows[~good])
    bad = np.unique(np.concatenate([*gone, np.flatnonzero(count > 1)]))
    held = count == 1
    held[bad[bad < vectors.num_rows]] = False
    return held, bad


def _delete(table: Any, rows: Int[np.ndarray, " rows"]) -> None:
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    for start in range(0, len(runs), RUNS_AT_ONCE):
        part = runs[start : start + RUNS_AT_ONCE]
        table.delete(" OR ".join(f"(row >= {run[0]} AND row <= {run[-1]})" for run in part))


def _read(vectors: VectorReader, number: int, wanted: Bool[np.ndarray, " rows"]) -> Iterator[pa.RecordBatch]:
    """Yield the wanted rows of a shard."""
    for block in vectors.blocks(WRITTEN_AT_ONCE, shards=[number], release=True):
        keep = wanted[block.rows.numpy()]
        floats = block.float32().numpy()[keep]
        doc_ids = [vectors.doc_ids[i] for i in block.positions.numpy()[keep].tolist()]
        lists = pa.FixedSizeListArray.from_arrays(pa.array(floats.reshape(-1)), vectors.dim)
        columns = [pa.array(block.rows.numpy()[keep]), pa.array(doc_ids, pa.string()), lists]
        columns.insert(2, pa.array([vectors.shard_hashes[number]] * len(doc_ids), pa.string()))
        yield pa.record_batch(columns, schema=_schema(vectors.dim))


def _write_order(place: _Place, vectors: VectorReader, living: Bool[np.ndarray, " rows"]) -> None:
    """Record that the table is complete, unless that is recorded already."""
    positions = vectors.positions_of(np.arange(vectors.num_rows))
    if (np.diff(positions[living]) > 0).all():
        positions = positions[:0]
    digest = hashlib.sha256(np.ascontiguousarray(positions).tobytes()).hexdigest()
    description = {"shards": vectors.shard_hashes, "positions": digest}
    there = place.has(place.order)
    if there and _described(place.open(place.order)) == description:
        return
    schema = pa.schema([("position", pa.int64())], metadata={"shortlist": json.dumps(description)})
    place.connection.create_table(
        place.order, pa.table([positions], schema=schema), mode="overwrite" if there else "create"
    )


def _described(order: Any) -> dict[str, Any]:
    return json.loads((order.schema.metadata or {}).get(b"shortlist", b'{"shards": []}'))


def _make_index(table: Any, changed: bool, partitions: int | None, sub_vectors: int | None) -> None:
    """Make or update the approximate index.

    It is made if it does not exist, is outgrown, or parameters are given. Otherwise new rows are added to it.
    """
    from lancedb.index import IvfPq

    there = [index for index in table.list_indices() if index.columns == ["vector"]]
    outgrown = any(index.num_unindexed_rows > index.num_indexed_rows for index in there)  # lists suit the old vectors
    if partitions or sub_vectors or outgrown or not there:
        config = IvfPq(distance_type="dot", num_partitions=partitions, num_sub_vectors=sub_vectors)
        table.create_index("vector", config=config)
    elif changed:
        table.optimize()


@contextmanager
def _plain_errors(uri: str) -> Iterator[None]:
    """Turn errors of LanceDB into a UserError of one line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"LanceDB at {uri}: {words[:MOST_WORDS]}{' ...' if len(words) > MOST_WORDS else ''}") from None
