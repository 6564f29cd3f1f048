"""An index's connection to PostgreSQL and its tables there.

Errors are one line long and never contain the password.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, LiteralString, final

from shortlist.errors import UserError

CONNECT_SECONDS = 10
"""The most seconds to wait for a server, unless the DSN says otherwise."""
HNSW_DIMS = 2000
"""The most numbers per vector for pgvector's HNSW in single precision; in half precision it takes twice as many."""
_TABLES = """
    CREATE TABLE {vectors} (row bigint PRIMARY KEY, doc_id text NOT NULL, embedding vector({dim}) NOT NULL);
    CREATE TABLE {positions} (row bigint PRIMARY KEY, position bigint NOT NULL);
    CREATE TABLE {shards} (start bigint PRIMARY KEY, stop bigint, hash text NOT NULL, documents text NOT NULL)
"""


@final
class Database:
    """A connection to a database, and the names of an index's tables in it."""

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
            UserError: the database lacks the extension pgvector.
        """
        from pgvector.psycopg import register_vector

        psycopg = _driver()
        # No prepared statements: poolers such as PgBouncer may hand every transaction to another server process.
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
        """Run the statements of the block in one transaction.

        If the connection was lost before, this connects again.
        """
        if self.connection.closed:
            self.connect()
        with self.connection.transaction():
            yield

    def _fill_in(self, statement: LiteralString, **parts: Any) -> Any:
        from psycopg import sql

        names = {part: sql.Identifier(*name) for part, name in self._names.items()}
        return sql.SQL(statement).format(**names, **parts)

    def value(self, statement: LiteralString, *values: Any, **parts: Any) -> Any:
        """Run a query and return its single value."""
        return self.run(statement, *values, **parts).fetchone()[0]

    def name(self, part: str) -> str:
        """Return a table's name, quoted as in a statement, as `regclass` takes it."""
        from psycopg import sql

        return sql.Identifier(*self._names[part]).as_string(self.connection)

    def has(self, part: str) -> bool:
        """Whether a table or the index `hnsw` exists."""
        return self.value("SELECT to_regclass(%s) IS NOT NULL", self.name(part))

    def dim(self) -> int:
        """Return the numbers per vector in the table."""
        where = "attrelid = to_regclass(%s) AND attname = 'embedding'"
        return self.value(f"SELECT atttypmod FROM pg_attribute WHERE {where}", self.name("vectors"))

    def pgvector(self) -> tuple[int, ...]:
        """Return the version of the extension pgvector."""
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
        """Make the tables if they do not exist.

        Raises:
            UserError: they were made by another program, or for vectors of another dimension.
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
        """Make the HNSW index if it does not exist or has other parameters."""
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
    """Return the SQL for an HNSW index: its key, its operators, and the query's cast."""
    from psycopg import sql

    if dim <= HNSW_DIMS:
        return {"key": sql.SQL("embedding"), "kind": sql.SQL("vector_ip_ops"), "cast": sql.SQL("")}
    half = sql.SQL("::halfvec({})").format(sql.Literal(dim))
    return {"key": sql.SQL("(embedding{})").format(half), "kind": sql.SQL("halfvec_ip_ops"), "cast": half}


def without_password(dsn: str) -> str:
    """Remove the password from a DSN, so that it may be shown and kept.

    Raises:
        UserError: the DSN cannot be read.
    """
    parameters = {word: value for word, value in _read_dsn(dsn).items() if "password" not in word}
    return _driver().conninfo.make_conninfo(**parameters)


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
    """Parse a DSN.

    The library's error for a bad DSN would quote it with the password, so it is replaced.

    Raises:
        UserError: the DSN cannot be read.
    """
    psycopg = _driver()
    try:
        parameters = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        parameters = {"host": "@"}
    if "@" in str(parameters.get("host", "")) or not str(parameters.get("port", "0")).replace(",", "").isdigit():
        raise UserError(
            "the DSN cannot be read; expected postgresql://user@host:port/database, special characters in percent "
            "code, or words such as host=... dbname=..."
        )
    return parameters


@contextmanager
def connected(dsn: str, table: str) -> Iterator[Database]:
    """Connect to a database, and close the connection only if the block raises."""
    with plain_errors():
        database = Database(dsn, table)
        try:
            yield database
        except BaseException:
            database.connection.close()
            raise


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn errors of the server or its client library into a UserError of one line."""
    psycopg = _driver()
    try:
        yield
    except psycopg.Error as error:
        raise UserError(f"PostgreSQL: {' '.join(str(error).split())}") from None
