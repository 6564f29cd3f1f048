"""PostgreSQL as the place of an index: a connection, the tables, and errors that fit on a line and tell no password."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, LiteralString, final

from shortlist.errors import UserError

CONNECT_SECONDS = 10
"""Most seconds to wait for a server, unless the DSN says otherwise."""
HNSW_DIMS = 2000
"""Most numbers per vector that pgvector's HNSW takes in single precision; in half precision twice as many."""
_TABLES = """
    CREATE TABLE {vectors} (row bigint PRIMARY KEY, doc_id text NOT NULL, embedding vector({dim}) NOT NULL);
    CREATE TABLE {positions} (row bigint PRIMARY KEY, position bigint NOT NULL);
    CREATE TABLE {shards} (start bigint PRIMARY KEY, stop bigint, hash text NOT NULL, documents text NOT NULL)
"""


@final
class Database:
    """A connection, and the names of an index's tables in it."""

    def __init__(self, dsn: str, table: str) -> None:
        self._told, self.table = {"connect_timeout": CONNECT_SECONDS} | _read_dsn(dsn), table
        *schema, name = table.split(".")
        names = {"vectors": name} | {part: f"{name}_{part}" for part in ("positions", "shards", "hnsw")}
        if len(schema) > 1 or not all([*schema, name]) or max(len(n.encode()) for n in names.values()) > 63:
            raise UserError(f"table {table!r}: expected `name` or `schema.name`, short enough for `name_positions`.")
        self._names = {part: (*schema, name) for part, name in names.items()}
        self.connect()

    def connect(self) -> None:
        """Open a connection that knows the type `vector`.

        Raises:
            UserError: the database does not know it.
        """
        from pgvector.psycopg import register_vector

        psycopg = _driver()
        # Nothing is prepared: poolers such as PgBouncer hand every transaction to another server process.
        self.connection = psycopg.connect(**self._told, autocommit=True, prepare_threshold=None)
        try:
            register_vector(self.connection)
        except psycopg.ProgrammingError:
            self.connection.close()
            raise UserError("the database lacks the extension pgvector; run `CREATE EXTENSION vector` in it.") from None

    def run(self, statement: LiteralString, *values: Any, named: dict[str, Any] | None = None, **parts: Any) -> Any:
        """Execute a statement in which {vectors}, {positions}, {shards} and {hnsw} stand for the tables."""
        return self.connection.execute(self._fill_in(statement, **parts), named or values or None)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is run inside, or nothing; connects again if the connection was lost before."""
        if self.connection.closed:
            self.connect()
        with self.connection.transaction():
            yield

    def _fill_in(self, statement: LiteralString, **parts: Any) -> Any:
        from psycopg import sql

        names = {part: sql.Identifier(*name) for part, name in self._names.items()}
        return sql.SQL(statement).format(**names, **parts)

    def value(self, statement: LiteralString, *values: Any, **parts: Any) -> Any:
        """The one value that a query gives."""
        return self.run(statement, *values, **parts).fetchone()[0]

    def name(self, part: str) -> str:
        """A table's name, quoted as in a statement: what `regclass` takes."""
        from psycopg import sql

        return sql.Identifier(*self._names[part]).as_string(self.connection)

    def has(self, part: str) -> bool:
        """Whether a table, or the index `hnsw`, is there."""
        return self.value("SELECT to_regclass(%s) IS NOT NULL", self.name(part))

    def dim(self) -> int:
        """Numbers per vector in the table."""
        where = "attrelid = to_regclass(%s) AND attname = 'embedding'"
        return self.value(f"SELECT atttypmod FROM pg_attribute WHERE {where}", self.name("vectors"))

    def pgvector(self) -> tuple[int, ...]:
        """The version of the extension."""
        found = self.value("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        return tuple(int(part) for part in found.split("."))

    def copy(self, target: LiteralString, types: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Add rows to a table in bulk."""
        statement = self._fill_in(f"COPY {target} FROM STDIN WITH (FORMAT BINARY)")
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    def make_tables(self, dim: int) -> None:
        """Make the tables where they are not there.

        Raises:
            UserError: they are others' or for other vectors.
        """
        from psycopg import sql

        if not self.has("vectors"):
            with self.transaction():
                self.run(_TABLES, dim=sql.Literal(dim))
        elif not self.has("shards"):
            raise UserError(f"table {self.table} is there and was not made by shortlist; choose another name.")
        elif (found := self.dim()) != dim:
            raise UserError(
                f"table {self.table} holds vectors of {found} dimensions, these have {dim}: choose another name."
            )

    def make_hnsw(self, dim: int, m: int, ef_construction: int) -> None:
        """Make the index where it is not there, or was made with other numbers."""
        from psycopg import sql

        wanted = [f"m={m}", f"ef_construction={ef_construction}"]
        found = self.run("SELECT reloptions FROM pg_class WHERE oid = to_regclass(%s)", self.name("hnsw")).fetchone()
        if found == (wanted,):
            return
        if dim > HNSW_DIMS and self.pgvector() < (0, 7):
            raise UserError(
                f"an HNSW index of {dim} dimensions takes half precision, which pgvector has from version 0.7 on; "
                "update it, or search exactly."
            )
        with self.transaction():
            self.run("DROP INDEX IF EXISTS {hnsw}")
            self.run(
                "CREATE INDEX {bare} ON {vectors} USING hnsw (({key}) {kind}) WITH (m={m}, ef_construction={ef})",
                m=sql.Literal(m),
                ef=sql.Literal(ef_construction),
                bare=sql.Identifier(self._names["hnsw"][-1]),
                **hnsw_terms(dim),
            )


def hnsw_terms(dim: int) -> dict[str, Any]:
    """What is indexed, by which operators, and how a query becomes the same type."""
    from psycopg import sql

    if dim <= HNSW_DIMS:
        return {"key": sql.SQL("embedding"), "kind": sql.SQL("vector_ip_ops"), "cast": sql.SQL("")}
    half = sql.SQL("::halfvec({})").format(sql.Literal(dim))
    return {"key": sql.SQL("(embedding{})").format(half), "kind": sql.SQL("halfvec_ip_ops"), "cast": half}


def without_password(dsn: str) -> str:
    """A DSN as it may be shown and kept.

    Raises:
        UserError: it is none.
    """
    told = {word: value for word, value in _read_dsn(dsn).items() if "password" not in word}
    return _driver().conninfo.make_conninfo(**told)


def _driver() -> ModuleType:
    try:
        import pgvector.psycopg
        import psycopg
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        raise UserError(
            f"{name} is not installed: --kind pgvector needs it; pip install 'shortlist[pgvector]'."
        ) from None
    del pgvector
    return psycopg


def _read_dsn(dsn: str) -> dict[str, Any]:
    """What a DSN says. The libraries' own words for a bad one would quote it, with the password."""
    psycopg = _driver()
    try:
        told = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        told = {"host": "@"}
    if "@" in str(told.get("host", "")) or not str(told.get("port", "0")).replace(",", "").isdigit():
        raise UserError(
            "the DSN cannot be read; expected postgresql://user@host:port/database, special characters in percent "
            "code, or words such as host=... dbname=..."
        )
    return told


@contextmanager
def connected(dsn: str, table: str) -> Iterator[Database]:
    """Connect, and disconnect only if something goes wrong."""
    with plain_errors():
        database = Database(dsn, table)
        try:
            yield database
        except BaseException:
            database.connection.close()
            raise


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what the server or its client library says into one line."""
    psycopg = _driver()
    try:
        yield
    except psycopg.Error as error:
        raise UserError(f"PostgreSQL: {' '.join(str(error).split())}") from None
