import gzip
import importlib
import json
import pickle
from pathlib import Path

import pytest

from shortlist.data.collections import FolderCollection, open_collection
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.texts import ChangedError
from shortlist.errors import UserError
from shortlist.records import Document, Query

DOCUMENTS = [Document("d1", "one\u2028uno", "First"), Document("d2", "two"), Document("d3", "")]
QUERIES = [Query("q2", "which is two?"), Query("q1", "which is one?"), Query("q3", "which is three?")]
TEST = {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}
TRAIN = {"q3": {"d3": 1}}


def beir(folder: Path, gz: str = "") -> Path:
    write_corpus(folder / f"corpus.jsonl{gz}", DOCUMENTS)
    write_queries(folder / f"queries.jsonl{gz}", QUERIES)
    write_qrels(folder / f"qrels/test.tsv{gz}", TEST)
    write_qrels(folder / f"qrels/train-small.tsv{gz}", TRAIN)
    return folder


def tsv(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(text.encode())


def trec(qrels):
    return [(q, 0, d, relevance) for q, judged in qrels.items() for d, relevance in judged.items()]


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_a_beir_folder_gives_its_corpus_queries_and_judgements(tmp_path, gz):
    collection = open_collection(str(beir(tmp_path / "c", gz)))
    assert list(collection.corpus()) == DOCUMENTS
    assert collection.splits() == ["test", "train-small"]
    assert collection.queries("test") == QUERIES[:2]
    assert collection.qrels("test") == TEST
    assert collection.queries("train-small") == QUERIES[2:]
    assert list(collection.documents(["d3", "d1", "d3"]).items()) == [("d3", DOCUMENTS[2]), ("d1", DOCUMENTS[0])]
    assert collection.missing(["x2", "d1", "x1"]) == ["x2", "x1"]


def test_an_msmarco_passage_folder_gives_its_corpus_queries_and_judgements(tmp_path):
    tsv(tmp_path / "collection.tsv", [("7", "seven"), ("8", "eight")])
    tsv(tmp_path / "queries.dev.small.tsv", [("1", "x"), ("2", "y")])
    tsv(tmp_path / "qrels.dev.small.tsv", [("2", 0, "8", 1)])
    tsv(tmp_path / "queries.eval.tsv", [("3", "z")])
    collection = open_collection(str(tmp_path))
    assert list(collection.corpus()) == [Document("7", "seven"), Document("8", "eight")]
    assert collection.splits() == ["dev.small", "eval"]
    assert (collection.queries("dev.small"), collection.qrels("dev.small")) == ([Query("2", "y")], {"2": {"8": 1}})
    assert collection.queries("eval") == [Query("3", "z")]
    with pytest.raises(UserError, match="split 'eval' has no judgements"):
        collection.qrels("eval")


def test_an_msmarco_document_folder_keeps_url_and_title(tmp_path):
    tsv(tmp_path / "msmarco-docs.tsv.gz", [("D1", "http://u", "T", "body"), ("D2", "http://v", "", "more")])
    tsv(tmp_path / "msmarco-doctrain-queries.tsv.gz", [("1", "x")])
    tsv(tmp_path / "msmarco-doctrain-qrels.tsv.gz", [("1", 0, "D2", 1)])
    collection = open_collection(str(tmp_path))
    assert collection.documents(["D1"]) == {"D1": Document("D1", "body", "T", "http://u")}
    assert (collection.splits(), collection.queries("train")) == (["train"], [Query("1", "x")])


def test_a_collection_without_judgements_has_one_split_with_every_query(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl", DOCUMENTS)
    write_queries(tmp_path / "queries.jsonl", QUERIES)
    assert open_collection(str(tmp_path)).splits() == ["all"]
    assert open_collection(str(tmp_path)).queries("all") == QUERIES


def test_documents_are_looked_up_without_reading_the_corpus_again(tmp_path, monkeypatch):
    collection = FolderCollection(beir(tmp_path / "c"))
    collection.documents(["d1"])
    monkeypatch.setattr("shortlist.data.texts.corpus_offsets", None)
    assert collection.documents(["d2"]) == {"d2": DOCUMENTS[1]}


def test_identity_follows_the_contents_of_just_the_parts_asked_for(tmp_path):
    one, two = open_collection(str(beir(tmp_path / "one"))), open_collection(str(beir(tmp_path / "two")))
    parts = ("corpus", "queries", "qrels/test")
    assert one.identity(*parts) == two.identity(*parts)
    write_qrels(tmp_path / "two/qrels/test.tsv", TRAIN)
    assert one.identity(*parts) != two.identity(*parts)
    assert one.identity("corpus", "queries") == two.identity("corpus", "queries")
    assert len({one.identity(part) for part in (*parts, "qrels/train-small")}) == 4
    with pytest.raises(UserError, match="split 'dev' has no judgements"):
        one.identity("qrels/dev")
    with pytest.raises(ValueError, match="has the parts corpus, queries and qrels/SPLIT"):
        one.identity("documents")


def test_ids_that_the_collection_lacks_are_named_and_counted(tmp_path):
    collection = open_collection(str(beir(tmp_path)))
    with pytest.raises(UserError, match=r"has no document 'x1', 'x2', 'x3', ... \(4 of 5 asked for\)"):
        collection.documents(["x1", "d1", "x2", "x3", "x4"])
    write_qrels(tmp_path / "qrels/test.tsv", TEST | {"q9": {"d1": 1}})
    with pytest.raises(UserError, match=r"has no query 'q9' \(1 of 3 asked for\)"):
        collection.queries("test")


def test_an_unknown_split_names_the_near_one(tmp_path):
    collection = open_collection(str(beir(tmp_path)))
    for ask in (collection.queries, collection.qrels):
        with pytest.raises(UserError, match=r"unknown split of .* 'tset': perhaps 'test'"):
            ask("tset")


def test_a_folder_that_is_no_collection_says_what_was_found(tmp_path):
    with pytest.raises(UserError, match="no such collection; expected a folder"):
        open_collection(str(tmp_path / "none"))
    (tmp_path / "notes.md").touch()
    with pytest.raises(UserError, match=r"holds no corpus.jsonl .*\(found: notes.md\)"):
        open_collection(str(tmp_path))


@pytest.mark.slow
def test_the_collections_at_hand_have_the_counts_they_are_known_for(shared_data):
    scifact = open_collection(str(shared_data / "scifact"))
    assert sum(1 for _ in scifact.corpus()) == 5183
    assert (len(scifact.queries("train")), len(scifact.queries("test"))) == (809, 300)
    assert [sum(map(len, scifact.qrels(split).values())) for split in ("train", "test")] == [919, 339]
    dl19 = open_collection(str(shared_data / "msmarco-dl19"))
    assert (len(dl19.queries("dl19")), sum(map(len, dl19.qrels("dl19").values()))) == (43, 9260)
    cranfield = open_collection(str(shared_data / "cranfield"))
    assert cranfield.documents(["471"])["471"].text == ""


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_a_folder_counts_its_records_and_tells_the_bad_ones(tmp_path, gz):
    collection, told = open_collection(str(beir(tmp_path, gz))), []
    assert collection.num_docs() == 3
    with (gzip.open if gz else open)(tmp_path / f"corpus.jsonl{gz}", "ab") as file:
        file.write(b"\n{}\n")
    assert collection.num_docs() == 4
    assert list(collection.corpus(told.append)) == DOCUMENTS
    assert list(collection.corpus(told.append, allow_empty=False)) == DOCUMENTS[:2]
    assert [message.split(": ")[0].rpartition(":")[2] for message in told] == ["5", "3", "5"]
    with pytest.raises(UserError, match=r"corpus.jsonl.*:3: document 'd3' has neither title nor text"):
        list(collection.corpus(allow_empty=False))


@pytest.fixture
def irds(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    ir_datasets = pytest.importorskip("ir_datasets")
    from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
    from ir_datasets.util import LocalDownload

    tsv(tmp_path / "docs.tsv", [("d1", "one"), ("d2", "two")])
    tsv(tmp_path / "queries.tsv", [(q.query_id, q.text) for q in QUERIES])
    tsv(tmp_path / "qrels.txt", trec(TEST))
    docs = TsvDocs(LocalDownload(tmp_path / "docs.tsv"))
    queries = TsvQueries(LocalDownload(tmp_path / "queries.tsv"))
    qrels = TrecQrels(LocalDownload(tmp_path / "qrels.txt"), {})
    registered = {"tiny": (docs, queries), "tiny/test": (docs, queries, qrels), "tiny/bare": (queries,)}
    for name, parts in registered.items():
        monkeypatch.setitem(ir_datasets.registry._registered, name, ir_datasets.Dataset(*parts))
    return ir_datasets


def test_an_irds_id_has_the_ids_below_it_as_splits(irds):
    collection = open_collection("irds:tiny")
    assert collection.name == "irds:tiny"
    assert list(collection.corpus()) == [Document("d1", "one"), Document("d2", "two")]
    assert collection.documents(["d2"]) == {"d2": Document("d2", "two")}
    assert collection.splits() == ["all", "bare", "test", "tiny"]
    assert (collection.queries("test"), collection.qrels("test")) == (QUERIES[:2], TEST)
    assert collection.queries("all") == QUERIES
    assert collection.identity("corpus") != collection.identity("queries")


def test_an_irds_id_of_a_split_knows_that_split(irds):
    collection = open_collection("irds:tiny/test")
    assert collection.splits() == ["all", "test"]
    assert collection.queries("test") == QUERIES[:2]


def test_an_irds_document_keeps_title_and_url_apart_from_its_text(irds):
    from ir_datasets.datasets.beir import BeirTitleDoc
    from ir_datasets.datasets.msmarco_document import MsMarcoDocument

    class Docs:
        def docs_iter(self):
            yield MsMarcoDocument("D1", "http://u", "T", "body")
            yield BeirTitleDoc("d2", "text", "title")

    irds.registry._registered["tiny"] = irds.Dataset(type("D", (Docs,), {"docs_handler": lambda self: self})())
    assert list(open_collection("irds:tiny").corpus()) == [
        Document("D1", "body", "T", "http://u"),
        Document("d2", "text", "title"),
    ]


def test_irds_counts_its_records_and_tells_the_bad_ones(irds, tmp_path, monkeypatch):
    collection, told = open_collection("irds:tiny"), []
    assert collection.num_docs() == 2
    tsv(tmp_path / "docs.tsv", [("d1", "one"), ("d 2", "two"), ("d1", "again"), ("d3", ""), ("d4", "four")])
    documents = [Document("d1", "one"), Document("d4", "four")]
    assert list(collection.corpus(told.append, allow_empty=False)) == documents
    assert [message.split(": ")[:2] for message in told] == [["irds:tiny", f"record {n}"] for n in (2, 3, 4)]
    with pytest.raises(UserError, match="irds:tiny: record 2: document id 'd 2' is empty or holds white space"):
        list(collection.corpus())
    irds.load("tiny").docs_store().build()  # then ir_datasets knows the number without reading
    monkeypatch.setattr(collection, "_docs", None)
    assert collection.num_docs() == 5


def test_what_a_listener_raises_is_not_taken_for_a_fault_of_irds(irds, tmp_path):
    def full(message: str) -> None:
        raise OSError(28, "No space left on device")

    tsv(tmp_path / "docs.tsv", [("d 2", "two")])
    with pytest.raises(OSError, match="No space left"):
        list(open_collection("irds:tiny").corpus(full))


def test_an_irds_corpus_of_bad_records_alone_is_an_error_whoever_is_told(irds, tmp_path):
    tsv(tmp_path / "docs.tsv", [("d 2", "two")])
    with pytest.raises(UserError, match="irds:tiny: holds no documents"):
        list(open_collection("irds:tiny").corpus(lambda _: None))


def test_what_irds_lacks_is_one_line(irds):
    with pytest.raises(UserError, match="unknown ir_datasets id 'tiny/tset': perhaps 'tiny/test'"):
        open_collection("irds:tiny/tset")
    with pytest.raises(UserError, match="irds:tiny/bare: has no documents"):
        open_collection("irds:tiny/bare")
    with pytest.raises(UserError, match="split 'bare' has no judgements"):
        open_collection("irds:tiny").qrels("bare")
    with pytest.raises(UserError, match="irds:tiny: has no document 'd9'"):
        open_collection("irds:tiny").documents(["d9"])
    assert open_collection("irds:tiny").missing(["d9", "d1", "d8"]) == ["d9", "d8"]


CARD = """---
configs:
- config_name: corpus
  data_files: [{split: corpus, path: corpus.jsonl}]
- config_name: queries
  data_files: [{split: queries, path: queries.jsonl}]
"""
QRELS_CONFIG = """- config_name: default
  data_files: [{split: test, path: qrels/test.jsonl}]
"""


def hub_folder(folder: Path, card: str) -> str:
    write_corpus(folder / "corpus.jsonl", DOCUMENTS)
    write_queries(folder / "queries.jsonl", QUERIES)
    (folder / "README.md").write_text(card + "---\n")
    return f"hf:{folder}"


def check_hub(name: str) -> None:
    collection = open_collection(name)
    assert list(collection.corpus()) == DOCUMENTS
    assert collection.splits() == ["test"]
    assert (collection.queries("test"), collection.qrels("test")) == (QUERIES[:2], TEST)
    assert list(collection.documents(["d3", "d1", "d3"]).items()) == [("d3", DOCUMENTS[2]), ("d1", DOCUMENTS[0])]
    with pytest.raises(UserError, match=r"unknown split of .* 'tset': perhaps 'test'"):
        collection.queries("tset")
    with pytest.raises(UserError, match="has no document 'd9'"):
        collection.documents(["d9"])
    assert collection.missing(["d9", "d1", "d8"]) == ["d9", "d8"]


def test_beir_on_the_hub_is_read_with_judgements_in_the_same_repository(hub):
    name = hub_folder(hub, CARD + QRELS_CONFIG)
    rows = [{"query-id": q, "corpus-id": d, "score": float(s)} for q, judged in TEST.items() for d, s in judged.items()]
    (hub / "qrels").mkdir()
    (hub / "qrels/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_hub(name)


def test_beir_on_the_hub_is_read_with_judgements_in_the_repository_beside_it(hub):
    write_qrels(Path(f"{hub}-qrels/test.tsv"), TEST)
    check_hub(hub_folder(hub, CARD))


def test_the_identity_of_a_hub_collection_is_that_of_its_contents(hub):
    write_qrels(Path(f"{hub}-qrels/test.tsv"), TEST)
    parts = ("corpus", "queries", "qrels/test")
    name = hub_folder(hub, CARD)
    before = open_collection(name).identity(*parts)
    (hub / "corpus.jsonl").touch()
    assert open_collection(name).identity(*parts) == before
    write_corpus(hub / "corpus.jsonl", DOCUMENTS[:2])
    assert open_collection(name).identity(*parts) != before
    assert open_collection(name).identity("queries") == open_collection(name).identity("queries")


def test_a_tevatron_corpus_on_the_hub_is_a_collection_without_queries(hub):
    hub.mkdir()
    (hub / "corpus.jsonl").write_text(
        '{"docid": "7", "title": null, "text": "x"}\n{"docid": "8", "title": "T", "text": "y"}\n'
    )
    collection = open_collection(f"hf:{hub}")
    assert list(collection.corpus()) == [Document("7", "x"), Document("8", "y", "T")]
    assert collection.splits() == []
    with pytest.raises(UserError, match="unknown split"):
        collection.queries("test")


def test_the_hub_counts_its_records_and_tells_the_bad_ones(hub):
    hub.mkdir()
    rows = [("7", "x"), ("7", "y"), ("8", None), ("9", " "), ("10", "z")]
    (hub / "corpus.jsonl").write_text("".join(json.dumps({"docid": d, "text": t}) + "\n" for d, t in rows))
    collection, told = open_collection(f"hf:{hub}"), []
    assert collection.num_docs() == 5
    assert list(collection.corpus(told.append, allow_empty=False)) == [Document("7", "x"), Document("10", "z")]
    faults = [
        "record 2: document id '7' occurs twice",
        "record 3: the 'text' of the document is null",
        "record 4: document '9' has",
    ]
    assert all(m.startswith(f"hf:{hub}: {fault}") for m, fault in zip(told, faults, strict=True))
    assert len(collection.identity("corpus")) == 64


def test_a_hub_corpus_with_an_id_twice_or_no_text_is_refused(hub):
    hub.mkdir()
    (hub / "corpus.jsonl").write_text('{"docid": "7", "text": "x"}\n{"docid": "7", "text": "y"}\n')
    with pytest.raises(UserError, match="document id '7' occurs twice"):
        list(open_collection(f"hf:{hub}").corpus())
    (hub / "corpus.jsonl").write_text('{"docid": "7", "body": "x"}\n')
    with pytest.raises(UserError, match=r"record 1: document has no 'text' field .found: body, docid"):
        list(open_collection(f"hf:{hub}").corpus())


def test_a_hub_file_that_is_not_json_is_one_line(hub):
    hub.mkdir()
    (hub / "corpus.jsonl").write_text('{"docid": "7", "text":\n')
    with pytest.raises(UserError, match=r"cannot be read .*JSON parse error"):
        list(open_collection(f"hf:{hub}").corpus())


def test_what_the_hub_cannot_give_is_one_line(hub):
    for name in ("hf:nobody/nothing", f"hf:{hub}/none"):
        with pytest.raises(UserError, match=r"cannot be read .*check the id") as caught:
            open_collection(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["irds:beir/scifact", "hf:BeIR/scifact"])
def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch, name):
    def missing(module, *_):
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'shortlist\[hub\]'"):
        open_collection(name)


def test_documents_are_read_on_from_the_file_that_was_opened(tmp_path):
    collection = FolderCollection(beir(tmp_path))
    collection.documents(["d1"])
    assert collection.change() is None
    write_corpus(tmp_path / "corpus.jsonl", [Document("d2", "another text that is longer")])  # takes the name
    assert collection.documents(["d2", "d3"]) == {"d2": DOCUMENTS[1], "d3": DOCUMENTS[2]}
    assert collection.change() == "replaced"
    (tmp_path / "corpus.jsonl").unlink()
    assert collection.change() == "replaced"


@pytest.mark.parametrize("text", ["", "{}\n" * 9, '{"_id": "x", "text": "other"}\n' * 9], ids=["empty", "bad", "good"])
def test_a_corpus_that_was_rewritten_in_place_is_refused(tmp_path, text):
    collection = FolderCollection(beir(tmp_path))
    collection.documents(["d1"])
    (tmp_path / "corpus.jsonl").write_text(text)
    assert collection.change() == "rewritten"
    with pytest.raises(ChangedError, match=r"corpus\.jsonl: was rewritten while it was in use"):
        collection.documents(["d2"])


def test_another_process_reads_the_same_file_or_says_that_it_has_changed(tmp_path):
    collection = FolderCollection(beir(tmp_path))
    collection.documents(["d1"])
    sent = pickle.dumps(collection)
    assert pickle.loads(sent).documents(["d2"]) == {"d2": DOCUMENTS[1]}
    write_corpus(tmp_path / "corpus.jsonl", DOCUMENTS)
    with pytest.raises(ChangedError):
        pickle.loads(sent)


def test_a_line_may_be_longer_than_what_is_read_at_a_time(tmp_path):
    long = [Document("a", "word " * 20_000), Document("b", "é" * 16_383), Document("c", "end")]
    write_corpus(tmp_path / "corpus.jsonl", long)
    write_queries(tmp_path / "queries.jsonl", QUERIES)
    assert list(FolderCollection(tmp_path).documents(["c", "b", "a"]).values()) == long[::-1]
