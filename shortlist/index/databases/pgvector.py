"""Vectors in PostgreSQL, searched with its extension pgvector (the extra `pgvector`).

Any machine that reaches the database can search them. An index called `vectors` is three tables: `vectors` (row,
doc_id, embedding), `vectors_positions` (row, position) and `vectors_shards` (the loaded shards of the store and their
documents). Positions have a table of their own because an update may change all of them, and a changed row of `vectors`
would have to be inserted into the HNSW graph again.

The server's settings decide how much memory and how many processes it uses. A DSN can carry settings, as in
`postgresql://host/database?options=-c%20maintenance_work_mem%3D4GB`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from shortlist.data.allowed import Allowed
from shortlist.data.stores.shards import DEAD
from shortlist.data.stores.vectors import VectorReader
from shortlist.errors import UserError, not_given
from shortlist.index.databases.postgres import HNSW_DIMS, Database, connected, hnsw_terms, plain_errors
from shortlist.index.protocols import Opening
from shortlist.progress import Advance
from shortlist.records import Hit

ROWS_AT_ONCE = 1000
"""The number of vectors read from the store at a time."""
EF_SEARCH = 200
"""Candidates that HNSW keeps while it searches, unless another number is given."""
MOST_EF_SEARCH = 1000
"""The largest value that pgvector allows."""
_DELETE_GONE = """
    DELETE FROM {vectors} AS v WHERE row >= %s AND row < %s
    AND NOT EXISTS (SELECT FROM wanted AS w WHERE w.row = v.row AND w.doc_id = v.doc_id)
"""
_MISSING = "SELECT row FROM wanted AS w WHERE NOT EXISTS (SELECT FROM {vectors} AS v WHERE v.row = w.row)"
# The exact query sorts by an expression around the operator, for which PostgreSQL cannot use an index of the operator.
_EXACT = """
    SELECT doc_id, score FROM (
        SELECT row, doc_id, (embedding <#> %(query)s) * -1 AS score FROM {vectors} {which}
        ORDER BY score DESC FETCH FIRST %(k)s ROWS WITH TIES
    ) AS found LEFT JOIN {positions} USING (row) ORDER BY score DESC, position LIMIT %(k)s
"""
_APPROXIMATE = """
    SELECT doc_id, score FROM (
        SELECT row, doc_id, (embedding <#> %(query)s) * -1 AS score FROM {vectors} {which}
        ORDER BY {key} <#> %(query)s{cast} LIMIT %(k)s
    ) AS found LEFT JOIN {positions} USING (row) ORDER BY score DESC, position
"""
_ALLOWED = "WHERE doc_id = ANY(%(allowed)s::text[])"
_ALLOWED_WHOLES = "WHERE regexp_replace(doc_id, '#[^#]*$', '') = ANY(%(allowed)s::text[])"
"""For segments, whose ids are `d#0`; every server can do these, also one that may only be read."""


@final
class PgVectorIndex:
    """A table of vectors in PostgreSQL, searched by inner product; made by `load` or `open`.

    Attributes:
        dim: numbers per vector.
        num_docs: the number of documents in the table.
        shard_hashes: the loaded shards, in row order; `VectorReader.beyond` counts the documents that they lack.
    """

    def __init__(self, database: Database, *, approximate: bool, ef_search: int) -> None:
        self._database, self.approximate, self.ef_search = database, approximate, ef_search
        if not (database.has("vectors") and database.has("shards")):
            raise UserError(f"PostgreSQL has no table {database.table} filled by `shortlist index --kind pgvector`.")
        if approximate and not database.has("hnsw"):
            raise UserError(
                f"table {database.table} has no HNSW index: make it with `shortlist index`, or search exactly."
            )
        self.dim = database.dim()
        self.num_docs: int = database.value("SELECT count(*) FROM {vectors}")
        self.shard_hashes: list[str] = [
            found for (found,) in database.run("SELECT hash FROM {shards} ORDER BY start").fetchall()
        ]

    @classmethod
    def open(
        cls, *, dsn: str, table: str = "vectors", approximate: bool = False, ef_search: int = EF_SEARCH
    ) -> "PgVectorIndex":
        """Open an index in the database, without the vector store.

        Args:
            dsn: as in `load`.
            table: the name of the table.
            approximate: search the HNSW index instead of every vector.
            ef_search: the number of candidates that HNSW keeps, or k if that is more. Before pgvector 0.8 no search
                finds more than MOST_EF_SEARCH.

        Raises:
            UserError: the server cannot be reached, there is no such table, or `approximate` is set and there is no
                HNSW index.
        """
        with connected(dsn, table) as database:
            return cls(database, approximate=approximate, ef_search=ef_search)

    @classmethod
    def load(
        cls,
        vectors: VectorReader,
        *,
        dsn: str,
        table: str = "vectors",
        approximate: bool = False,
        m: int = 16,
        ef_construction: int = 64,
        ef_search: int = EF_SEARCH,
        advance: Advance | None = None,
    ) -> "PgVectorIndex":
        """Make the table hold exactly the documents of a store.

        Every shard is loaded in a transaction, so an interrupted load continues with the next shard. If the store has
        changed, only the changes are loaded.

        Args:
            dsn: `postgresql://user@host/database` or `key=value` words; better put the password in PGPASSWORD or
                ~/.pgpass.
            table: the name of the table, `schema.name` if it is not on the search path.
            approximate: make an HNSW index too. For more than HNSW_DIMS numbers per vector it is in half precision, and
                its hits are scored in full precision.
            m: neighbours of each vector in the graph.
            ef_construction: the number of candidates for these neighbours.
            ef_search: as in `open`.
            advance: called with the number of documents done.

        Raises:
            UserError: the server cannot be reached or refuses, pgvector is missing or too old, or the table was made by
                another program or for another dimension.
        """
        if approximate and vectors.dim > 2 * HNSW_DIMS:
            raise UserError(
                f"{vectors.dim} dimensions are more than pgvector's HNSW takes ({2 * HNSW_DIMS:,}): search exactly."
            )
        with connected(dsn, table) as database:
            database.run("SELECT pg_advisory_lock(hashtext(%s))", database.name("vectors"))  # one load at a time
            database.make_tables(vectors.dim)
            _fill(database, vectors, advance)
            if approximate:
                database.make_hnsw(vectors.dim, m, ef_construction)
            database.run("SELECT pg_advisory_unlock_all()")
            return cls(database, approximate=approximate, ef_search=ef_search)

    def close(self) -> None:
        """Close the connection."""
        self._database.connection.close()

    @property
    def disk_bytes(self) -> int:
        """Bytes of the tables and their indexes on the server's disk."""
        names = [self._database.name(part) for part in ("vectors", "positions", "shards")]
        with plain_errors():
            return sum(self._database.value("SELECT pg_total_relation_size(%s::regclass)", name) for name in names)

    @property
    def memory_bytes(self) -> int:
        """Bytes that a search reads, best kept in memory: the HNSW graph or all vectors."""
        part = "hnsw" if self.approximate else "vectors"
        with plain_errors():
            return self._database.value("SELECT pg_table_size(%s::regclass)", self._database.name(part))

    def find(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k documents with the greatest inner product with each query.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all). Where an approximate search finds fewer than k of them for
                a query, all of them are compared with it.

        Raises:
            UserError: the queries have another dimension than the vectors, or the server refuses.
        """
        if queries.shape[1] != self.dim:
            raise UserError(
                f"queries have {queries.shape[1]} dimensions, the vectors in table {self._database.table} {self.dim}: "
                "encode both with the same model."
            )
        with plain_errors(), self._database.transaction():
            for setting, value in self._settings(k).items():
                self._database.run("SELECT set_config(%s, %s, true)", setting, value)
            return [self._find(query, k, allowed) for query in np.asarray(queries, dtype=np.float32)]

    def _find(self, query: Float[np.ndarray, " dim"], k: int, allowed: Allowed | None) -> list[Hit]:
        from psycopg import sql

        named, which = {"query": query, "k": k}, ""
        if allowed is not None:
            named, which = {**named, "allowed": allowed.doc_ids}, _ALLOWED_WHOLES if allowed.of_segments else _ALLOWED
        ways = [(_APPROXIMATE, hnsw_terms(self.dim))] if self.approximate else []
        found: list[tuple[str, float]] = []
        for statement, terms in [*ways, (_EXACT, {})]:
            found = self._database.run(statement, named=named, which=sql.SQL(which), **terms).fetchall()
            if allowed is None or len(found) == k:
                break
        return [Hit(doc_id, score) for doc_id, score in found]

    def _settings(self, k: int) -> dict[str, str]:
        if not self.approximate:
            return {"jit": "off"}
        ef_search = min(max(self.ef_search, k), MOST_EF_SEARCH)
        settings = {"jit": "off", "enable_seqscan": "off", "hnsw.ef_search": str(ef_search)}
        return settings | ({"hnsw.iterative_scan": "strict_order"} if self._database.pgvector() >= (0, 8) else {})


def load_pgvector(
    vectors: VectorReader, folder: Path, *, dsn: str | None, table: str, exact: bool, advance: Advance, **chosen: int
) -> dict[str, Any]:
    """Fill the table of an index of the kind `pgvector`."""
    del folder
    if dsn is None:
        raise not_given("--dsn", "it says which PostgreSQL database")
    PgVectorIndex.load(vectors, dsn=dsn, table=table, approximate=not exact, advance=advance, **chosen)
    return {}


def open_pgvector(folder: Path, built: Mapping[str, Any], how: Opening) -> PgVectorIndex:
    """Open an index of the kind `pgvector` in the database named in the folder's manifest."""
    del folder
    effort = {"ef_search": how.effort} if how.effort else {}
    return PgVectorIndex.open(dsn=built["dsn"], table=built["table"], approximate=not built["exact"], **effort)


def _fill(database: Database, vectors: VectorReader, advance: Advance | None) -> None:
    starts = vectors.starts.tolist()
    shards = list(zip(starts, starts[1:], vectors.shard_hashes, strict=False))
    changed = False
    for shard in database.run("SELECT start, stop, hash FROM {shards}").fetchall():
        if shard not in shards:
            _drop_shard(database, *shard[:2])
            changed = True
    for place, shard in enumerate(shards):
        rows = np.arange(*shard[:2])
        rows = rows[vectors.positions_of(rows) != DEAD]
        changed |= _load_shard(database, vectors, place, shard, rows)
        if advance is not None:
            advance(len(rows))
    if changed:  # removes the dead rows from the HNSW graph too
        database.run("VACUUM (ANALYZE) {vectors}, {positions}")


def _drop_shard(database: Database, start: int, stop: int) -> None:
    with database.transaction():
        for part in ("vectors", "positions"):
            database.run(f"DELETE FROM {{{part}}} WHERE row >= %s AND row < %s", start, stop)
        database.run("DELETE FROM {shards} WHERE start = %s", start)


def _load_shard(
    database: Database, vectors: VectorReader, place: int, shard: tuple[int, int, str], rows: Int[np.ndarray, " rows"]
) -> bool:
    """Make the database hold exactly these rows of a shard, in one transaction.

    Returns:
        Whether the database has changed.
    """
    start, stop, _ = shard
    positions = vectors.positions_of(rows).tolist()
    doc_ids = [vectors.doc_ids[position] for position in positions]
    documents = list(zip(rows.tolist(), positions, doc_ids, strict=True))
    digest = hashlib.sha256(repr(documents).encode()).hexdigest()
    if database.value("SELECT count(*) FROM {shards} WHERE (start, documents) = (%s, %s)", start, digest):
        return False
    with database.transaction():
        database.run("CREATE TEMPORARY TABLE wanted (row bigint, position bigint, doc_id text) ON COMMIT DROP")
        database.copy("wanted", ["int8", "int8", "text"], documents)
        database.run(_DELETE_GONE, start, stop)
        database.run("DELETE FROM {positions} WHERE row >= %s AND row < %s", start, stop)
        database.run("INSERT INTO {positions} SELECT row, position FROM wanted")
        missing = {row for (row,) in database.run(_MISSING).fetchall()}
        new = _read(vectors, place, {row: doc_id for row, _, doc_id in documents if row in missing})
        database.copy("{vectors}", ["int8", "text", "vector"], new)
        database.run("DELETE FROM {shards} WHERE start = %s", start)
        database.run("INSERT INTO {shards} VALUES (%s, %s, %s, %s)", *shard, digest)
    return True


def _read(vectors: VectorReader, place: int, doc_ids: dict[int, str]) -> Iterator[tuple[int, str, np.ndarray]]:
    """Yield the row, document id and vector for some rows of a shard."""
    if doc_ids:
        for block in vectors.blocks(ROWS_AT_ONCE, shards=[place], release=True):
            for row, vector in zip(block.rows.tolist(), block.float32().numpy(), strict=True):
                if row in doc_ids:
                    yield row, doc_ids[row], vector
