"""The stage `index` over vectors: its kinds, its check, its dry run, and what it says of vectors that have changed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shortlist import index
from shortlist.cli import main
from shortlist.data.collections import open_collection
from shortlist.data.formats import write_corpus
from shortlist.data.stores.shards import finished_shards
from shortlist.data.stores.snapshots import document_keys, missing, pin, read_known, renew
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.index.check import compare_with_exact, hit_overlap
from shortlist.index.flat import FlatIndex
from shortlist.index.opening import kind_of, open_index
from shortlist.index.protocols import Opening
from shortlist.records import Document, Hit, Query

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((1200, 16), dtype=np.float32)
DOCUMENTS = [Document(f"d{i}", f"text {i}") for i in range(1200)]
QUERIES = RNG.standard_normal((8, 16), dtype=np.float32)
FILES = ["narrow", "hnsw", "ivf-flat", "ivf-pq"]


def write(folder: Path, number: int, documents: list[Document]) -> None:
    rows = VECTORS[[int(document.doc_id[1:]) for document in documents]]
    doc_ids = [document.doc_id for document in documents]
    VectorWriter(folder, 16).write_shard(number, doc_ids, rows, document_keys(documents))


def claim(folder: Path, job: str) -> None:
    folder.mkdir(exist_ok=True)
    manifest = {"stage": "encode", "job": job, "complete": True, "made_from": {"model": "m"}, "config": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Vectors of the first 1,000 documents, as `encode` leaves them."""
    for number, start in enumerate(range(0, 1000, 300)):
        write(tmp_path / "vectors", number, DOCUMENTS[start : min(start + 300, 1000)])
    claim(tmp_path / "vectors", "one")
    return tmp_path / "vectors"


def update(store: Path, documents: list[Document]) -> None:
    pin(store)
    done = finished_shards(store)
    write(store, done[-1] + 1, list(missing(documents, read_known(store, done), lambda _: None)))
    renew(store, documents)
    claim(store, "two")


def best(folder: Path, k: int = 10) -> list[list[Hit]]:
    return FlatIndex(VectorReader(folder)).find(QUERIES, k)


def best_rounded(folder: Path) -> list[list[Hit]]:
    return [[Hit(doc_id, pytest.approx(score, abs=1e-5)) for doc_id, score in hits] for hits in best(folder)]


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_is_built_once_and_found_again(
    store: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    command = ["index", "--kind", kind, "--vectors", str(store), "--out", str(tmp_path / "index")]
    assert main(command) == 0
    opened = open_index(tmp_path / "index", Opening(effort=None if kind == "narrow" else 200, refine=20))
    assert hit_overlap(opened.find(QUERIES, 10), best(store), 10) == 1
    capsys.readouterr()
    assert main(command) == 0
    assert "already done" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["made_from"]["vectors"] == "job:one"
    assert (manifest["results"]["num_docs"], manifest["results"]["model"]) == (1000, "m")


def test_words_are_cut_as_their_language_asks(tmp_path: Path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "die Häuser"}\n{"_id": "b", "text": "die Katze"}\n')
    config = index.Config(collection=str(tmp_path), out=tmp_path / "index", language="german")
    index.run(config)
    found = BM25Index.load(config.out).search([Query("q", "ein Haus für die Katze")], 10)["q"]
    assert [hit.doc_id for hit in found] == ["a", "b"]  # "die" stops, and Häuser is more than one Haus
    with pytest.raises(UserError, match="unknown analyser 'germann': perhaps 'german'"):
        index.run(replace(config, language="germann", overwrite=True))


@pytest.mark.parametrize("kind", ["hnsw", "ivf-flat", "ivf-pq"])
def test_an_index_says_that_its_vectors_are_newer_and_finds_what_both_hold(
    store: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    index.run(index.Config(kind=kind, vectors=store, out=tmp_path / "index"))
    update(store, DOCUMENTS[200:1200])
    capsys.readouterr()
    opened = open_index(tmp_path / "index", Opening(effort=200, refine=20))
    assert f"is older than {store}; 200 new documents are not in it" in capsys.readouterr().err
    old = [[hit for hit in hits if int(hit.doc_id[1:]) < 1000] for hits in best(store, 1000)]
    assert hit_overlap(opened.find(QUERIES, 10), old, 10) == 1


def test_a_narrow_index_of_older_vectors_is_refused(store: Path, tmp_path: Path):
    index.run(index.Config(kind="narrow", vectors=store, out=tmp_path / "index"))
    update(store, DOCUMENTS[200:1200])
    with pytest.raises(UserError, match=r"is older than .*; build it with `shortlist index --overwrite` again"):
        open_index(tmp_path / "index")


def test_vectors_that_have_moved_are_named(store: Path, tmp_path: Path):
    index.run(index.Config(kind="ivf-flat", vectors=store, out=tmp_path / "index"))
    moved = store.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="vectors: holds no vectors"):
        open_index(tmp_path / "index")
    assert (
        hit_overlap(open_index(tmp_path / "index", Opening(vectors=moved)).find(QUERIES, 1000), best(moved, 5), 5) == 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_check_prints_recall_speed_memory_and_disk(
    store: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    command = ["index", "--kind", kind, "--vectors", str(store), "--out", str(tmp_path / "index"), "--check"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"{kind} over 1,000 documents, 200 documents as queries" in out
    recalls = dict(re.findall(r"recall@(\d+) +([\d.]+)\n", out))
    assert list(recalls) == ["10", "100", "1000"]
    assert float(recalls["10"]) > 0.9
    assert re.search(r"queries/s +[\d,.]+ \(exact search [\d,.]+\)\none query +[\d,.]+ ms", out)
    assert re.search(r"memory +-?[\d,.]+ MiB\ndisk +[\d.]+ MiB", out)
    assert main(command) == 0
    assert "recall@10 " in capsys.readouterr().out


@pytest.mark.slow
def test_a_table_is_brought_up_to_date_by_the_same_command(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("lancedb")
    command = ["index", "--kind", "lance", "--uri", str(tmp_path / "tables"), "--vectors", str(store), "--exact"]
    command += ["--out", str(tmp_path / "index")]
    assert main(command) == 0
    assert open_index(tmp_path / "index").find(QUERIES, 10) == best_rounded(store)
    update(store, DOCUMENTS[200:1200])
    capsys.readouterr()
    open_index(tmp_path / "index")
    assert f"is older than {store}; `shortlist index` with the same settings" in capsys.readouterr().err
    assert main([*command, "--check"]) == 0
    assert "recall@1000  1.0000" in capsys.readouterr().out
    store.rename(tmp_path / "gone")
    assert hit_overlap(open_index(tmp_path / "index").find(QUERIES, 10), best(tmp_path / "gone"), 10) == 1


def test_a_password_is_never_kept(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("psycopg")
    monkeypatch.setattr(index, "build_index", lambda *given, **more: {"dsn": given[-1]["dsn"]})
    dsn = "postgresql://me:hidden@localhost/texts"
    config = index.Config(kind="pgvector", vectors=store, dsn=dsn, out=tmp_path / "index")
    index.run(config)
    kept = "".join(path.read_text() for path in (tmp_path / "index").iterdir())
    assert "user=me" in kept
    assert kept.count("hidden") == 1  # what the fake has put there


def test_recall_is_the_share_of_the_best_that_is_found():
    wanted = [[Hit("a", 3), Hit("b", 2), Hit("c", 1)], [Hit("x", 3), Hit("y", 2)]]
    found = [[Hit("b", 9), Hit("a", 1)], [Hit("z", 1), Hit("x", 0)]]
    assert hit_overlap(found, wanted, 1) == 0
    assert hit_overlap(found, wanted, 2) == (1 + 1 / 2) / 2
    assert hit_overlap(found, wanted, 3) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_an_exact_index_is_found_to_be_one(store: Path):
    findings = compare_with_exact(
        lambda: FlatIndex(VectorReader(store)), FlatIndex(VectorReader(store)), QUERIES, k=100
    )
    assert findings.recalls == {10: 1, 100: 1}
    assert findings.per_second > 0 < findings.exact_alone_ms


@pytest.mark.parametrize("kind", FILES)
def test_a_dry_run_says_what_it_takes_and_writes_nothing(
    store: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    index.run(index.Config(kind=kind, vectors=store, out=tmp_path / "index", dry_run=True))
    out = capsys.readouterr().out
    assert re.search(r"documents +1,000\ndisk +about [\d.]+ MiB\nmemory +about [\d.]+ MiB while searching\n", out)
    assert re.search(r"time +about .* s, from building it over 1,000 documents here", out)
    assert not (tmp_path / "index").exists()


def test_a_dry_run_over_words_measures_on_its_first_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [json.dumps({"_id": d.doc_id, "text": d.text}) for d in DOCUMENTS]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    index.run(index.Config(collection=str(tmp_path), out=tmp_path / "index", dry_run=True))
    assert "from building it over 1,200 documents here" in capsys.readouterr().out
    assert not (tmp_path / "index").exists()


def test_parameters_are_chosen_by_name(store: Path, tmp_path: Path):
    config = index.Config(kind="hnsw", vectors=store, out=tmp_path / "index", set=("links=9", "effort=77"))
    index.run(config)
    parameters = json.loads((tmp_path / "index" / "index.json").read_text())["parameters"]
    assert (parameters["links"], parameters["effort"]) == (9, 77)
    with pytest.raises(UserError, match=r"holds another job \(set: "):
        index.run(replace(config, set=("links=10",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": None}, "--vectors is missing: hnsw indexes"),
        ({"vectors": Path("nowhere")}, "nowhere: no such file or folder"),
        ({"set": ("link=3",)}, "unknown parameter of an hnsw index 'link': perhaps 'links'"),
        ({"set": ("links",)}, "--set links: expected name=value with a whole number"),
        ({"kind": "narrow", "set": ("links=3",)}, "unknown parameter of a narrow index 'links'"),
        ({"kind": "bm25"}, "--collection is missing"),
        ({"kind": "bm25", "check": True}, "BM25 is exact"),
        ({"kind": "pgvector"}, "--dsn is missing"),
        ({"kind": "lance"}, "--uri is missing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(store: Path, tmp_path: Path, change: dict, message: str):
    config = index.Config(kind="hnsw", vectors=store, out=tmp_path / "index")
    with pytest.raises(UserError, match=message):
        index.run(replace(config, **change))


def test_what_another_command_wrote_is_named(tmp_path):
    claim(tmp_path / "vectors", "one")
    with pytest.raises(UserError, match=r"--index .*: is the vectors of `shortlist encode`, which --vectors names"):
        kind_of(tmp_path / "vectors")
    index.run(index.Config(collection=words(tmp_path), out=tmp_path / "words"))
    with pytest.raises(UserError, match=r"words: is the index of `shortlist index`, which --index names; expected"):
        VectorReader(tmp_path / "words")
    with pytest.raises(UserError, match=r"is the index of `shortlist index`, .*expected a collection"):
        open_collection(str(tmp_path / "words"))


def words(folder: Path) -> str:
    write_corpus(folder / "collection/corpus.jsonl", ["one text"])
    return str(folder / "collection")
