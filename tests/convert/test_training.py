import json
import pickle
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from named import load_retriever
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist import convert
from shortlist.cli import main
from shortlist.convert import Config, training
from shortlist.convert.settings import OF_STORES
from shortlist.convert.writing import judgements
from shortlist.data import pickles, sources
from shortlist.data.collections import open_collection
from shortlist.data.exclusions import find_excluded
from shortlist.data.export import LAYOUTS
from shortlist.data.formats import read_corpus, read_qrels, read_queries, write_qrels
from shortlist.data.groups import open_groups, read_groups, write_groups
from shortlist.data.runs import read_run
from shortlist.data.stores.vectors import VectorReader
from shortlist.data.triplets import text_id
from shortlist.errors import UserError
from shortlist.models.run import embed_documents, embed_queries
from shortlist.records import Group

TEXTS = [document.text.strip() for document in DOCUMENTS]
GROUPS = [Group(f"q{i}", (f"d{i}",), tuple(f"d{(i + j) % 12}" for j in range(1, 2 + i % 3))) for i in range(8)]
GROUPS.append(Group("q0", ("d0", "d9"), ("d4",)))  # a query may have several


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    write_groups(tmp_path / "groups.jsonl", GROUPS)
    return tmp_path / "groups.jsonl"


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def converted(out: Path, *sources: object, **settings) -> Path:
    convert.run(Config(sources=tuple(map(str, sources)), out=out, **settings))
    return out


def texts(doc_ids: tuple[str, ...]) -> list[str]:
    return [TEXTS[int(doc_id[1:])] for doc_id in doc_ids]


def test_a_converted_collection_excludes_what_its_source_does(tiny: Tiny, tmp_path: Path):
    shutil.copytree(tiny.collection, tmp_path / "c")
    plain = converted(tmp_path / "plain", tmp_path / "c")
    assert not (plain / "exclude").exists()
    (tmp_path / "c" / "exclude").mkdir()
    (tmp_path / "c" / "exclude" / "train.tsv").write_text("q1\td4\nq1\td5\nq2\td9\n")
    with pytest.raises(UserError, match=r"holds another job .exclude"):
        converted(plain, tmp_path / "c")
    out = str(converted(tmp_path / "out", tmp_path / "c"))
    expected = {"q1": frozenset({"d4", "d5"}), "q2": frozenset({"d9"})}
    assert find_excluded(None, out, "train").by_query == expected


def triplets(path: Path) -> Path:
    """The groups as sentence-transformers' triplets of texts, one line per negative."""
    queries = {query.query_id: query.text for query in QUERIES}
    return write_lines(
        path,
        *(
            {"anchor": queries[group.query_id], "positive": positive, "negative": negative}
            for group in GROUPS
            for positive in texts(group.positives)
            for negative in texts(group.negatives)
        ),
    )


def test_texts_become_a_collection_with_groups_and_a_split(tmp_path: Path):
    lines = [
        {"anchor": "which?", "positive": "one", "negative": "two"},
        {"anchor": "else?", "positive": "two", "negative": "three"},
        {"anchor": "which?", "positive": "one", "negative": "three"},
    ]
    out = converted(tmp_path / "out", write_lines(tmp_path / "t.jsonl", *lines))
    one, two, three = map(text_id, ("one", "two", "three"))
    which, other = text_id("which?"), text_id("else?")
    assert read_groups(out / "groups.jsonl") == [Group(which, (one,), (two, three)), Group(other, (two,), (three,))]
    assert [document.text for document in read_corpus(out / "corpus.jsonl")] == ["one", "two", "three"]
    assert [query.text for query in read_queries(out / "queries.jsonl")] == ["which?", "else?"]
    assert read_qrels(out / "qrels" / "train.tsv") == {which: {one: 1}, other: {two: 1}}
    results = json.loads((out / "manifest.json").read_text())["results"]
    assert (results["groups"], results["queries"]) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_a_converted_folder_trains_at_once(tiny: Tiny, tmp_path: Path, kind: str):
    out = converted(tmp_path / "out", triplets(tmp_path / "t.jsonl"))
    flags = ["--collection", out, "--groups", out / "groups.jsonl", "--out", tmp_path / "model", "--batch-size", 4]
    command = ["train", kind, "--backbone", tiny.llama, *flags, "--steps", 2, "--negatives", 1]
    assert main(list(map(str, command + (["--contract", "repllama"] if kind == "retriever" else [])))) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_several_files_are_read_as_one(tmp_path: Path):
    first = write_lines(tmp_path / "a.jsonl", ["which?", "one", "two"])
    second = write_lines(tmp_path / "b.jsonl", ["which?", "one", "three"], ["else?", "two"])
    out = converted(tmp_path / "out", first, second)
    assert [len(group.negatives) for group in read_groups(out / "groups.jsonl")] == [2, 0]
    assert len(list(read_corpus(out / "corpus.jsonl"))) == 3


@pytest.mark.parametrize("to", ["tevatron", "tevatron-old"])
def test_groups_come_back_from_tevatron_as_they_went(tiny: Tiny, tmp_path: Path, groups: Path, to: str):
    there = converted(tmp_path / "there", groups, to=to, collection=str(tiny.collection))
    source = open_groups(str(there / "train.jsonl"))
    assert source.groups == GROUPS
    assert source.queries == {query.query_id: query for query in QUERIES[:8]}
    collection = str(there) if to == "tevatron" else None
    back = converted(tmp_path / "back", there / "train.jsonl", collection=collection)
    assert (back / "groups.jsonl").read_bytes() == groups.read_bytes()
    used = {doc_id for group in GROUPS for doc_id in group.positives + group.negatives}
    found = {document.doc_id: document.text.strip() for document in read_corpus(back / "corpus.jsonl")}
    assert found == {each.doc_id: each.text.strip() for each in DOCUMENTS if collection or each.doc_id in used}
    assert read_qrels(back / "qrels" / "train.tsv")["q0"] == {"d0": 1, "d9": 1}


@pytest.mark.slow
def test_what_is_written_for_sentence_transformers_loads_and_trains_there(
    tiny: Tiny, tmp_path: Path, groups: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    datasets = pytest.importorskip("datasets")
    peer, losses = map(pytest.importorskip, ("sentence_transformers", "sentence_transformers.losses"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_groups(groups, [*GROUPS, Group("q7", ("d7",))])
    out = converted(tmp_path / "out", groups, to="sentence-transformers", collection=str(tiny.collection))
    assert "left out 1 groups without negatives" in capsys.readouterr().err
    table = datasets.load_dataset("json", data_files=str(out / "train.jsonl"), split="train")
    assert table.column_names == ["anchor", "positive", "negative"]
    assert len(table) == sum(len(group.positives) * len(group.negatives) for group in GROUPS)
    assert table[0] == {"anchor": QUERIES[0].text, "positive": TEXTS[0], "negative": TEXTS[1]}
    model = peer.SentenceTransformer(str(tiny.bert), device="cpu")
    options = {"output_dir": str(tmp_path / "model"), "max_steps": 1, "report_to": [], "use_cpu": True}
    training = peer.SentenceTransformerTrainingArguments(**options, save_strategy="no")
    loss = losses.MultipleNegativesRankingLoss(model)
    trained = peer.SentenceTransformerTrainer(model=model, args=training, train_dataset=table, loss=loss).train()
    assert np.isfinite(trained.training_loss)


def test_judged_pairs_become_pairs_for_sentence_transformers(tiny: Tiny, tmp_path: Path):
    out = converted(tmp_path / "out", tiny.collection, to="sentence-transformers")
    first, *others = map(json.loads, (out / "train.jsonl").read_text().splitlines())
    assert first == {"anchor": QUERIES[0].text, "positive": TEXTS[0]}
    assert len(others) == 7


@pytest.mark.parametrize("to", LAYOUTS)
def test_texts_go_straight_into_the_layout_of_another_tool(tmp_path: Path, to: str):
    source = write_lines(tmp_path / "t.jsonl", {"query": "which?", "pos": ["one"], "neg": ["two"]})
    out = converted(tmp_path / "out", source, to=to)
    line = (out / "train.jsonl").read_text()
    assert "which?" in line
    assert (out / "corpus.jsonl").exists() == (to == "tevatron")
    assert ('"two"' in line) == (to != "tevatron")
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_flagembeddings_data_comes_back_as_it_went(tiny: Tiny, tmp_path: Path, groups: Path):
    there = converted(tmp_path / "there", groups, to="flagembedding", collection=str(tiny.collection))
    again = converted(tmp_path / "again", there / "train.jsonl", to="flagembedding")
    merged = (again / "train.jsonl").read_text().splitlines()
    assert merged[1:] == (there / "train.jsonl").read_text().splitlines()[1:8]  # the first and the last are one query
    assert json.loads(merged[0])["pos"] == texts(("d0", "d9"))


def test_ids_of_triples_are_looked_up_in_the_collection(tiny: Tiny, tmp_path: Path):
    (tmp_path / "ids.tsv").write_text("q3\td3\td4\nq1\td1\td2\nq3\td3\td5\n")
    out = converted(tmp_path / "out", tmp_path / "ids.tsv", collection=str(tiny.collection))
    assert read_groups(out / "groups.jsonl") == [Group("q3", ("d3",), ("d4", "d5")), Group("q1", ("d1",), ("d2",))]
    assert read_queries(out / "queries.jsonl") == [QUERIES[3], QUERIES[1]]
    assert list(read_corpus(out / "corpus.jsonl")) == DOCUMENTS


def test_a_collection_keeps_its_grades_and_gets_groups(tiny: Tiny, tmp_path: Path):
    source = converted(tmp_path / "source", tiny.collection, split="test")
    write_qrels(source / "qrels" / "graded.tsv", {"q1": {"d1": 2, "d2": 0}, "q2": {"d3": 0}})
    out = converted(tmp_path / "out", source, split="graded")
    assert read_qrels(out / "qrels" / "graded.tsv") == {"q1": {"d1": 2, "d2": 0}, "q2": {"d3": 0}}
    assert read_groups(out / "groups.jsonl") == [Group("q1", ("d1",), grades=(2,))]
    assert open_collection(str(out)).queries("graded") == QUERIES[1:3]
    write_qrels(source / "qrels" / "empty.tsv", {"q2": {"d3": 0}})
    with pytest.raises(UserError, match="no document is relevant in split 'empty'"):
        converted(tmp_path / "none", source, split="empty")


def test_judgements_are_the_positives_of_all_groups():
    groups = [Group("q", ("a",), ("b",)), Group("r", ("b",)), Group("q", ("c",))]
    assert judgements(groups) == {"q": {"a": 1, "c": 1}, "r": {"b": 1}}


def test_the_work_is_done_once_and_another_job_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_lines(tmp_path / "t.jsonl", ["which?", "one", "two"])
    out = converted(tmp_path / "out", source)
    converted(out, source, allow_pickle=True)
    assert "already done" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"holds another job \(to: shortlist there, tevatron now\)"):
        converted(out, source, to="tevatron")
    write_lines(source, ["which?", "one", "three"])
    with pytest.raises(UserError, match=r"the contents of .* changed"):
        converted(out, source)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    with pytest.raises(UserError, match="no command of ours wrote it"):
        converted(tmp_path / "theirs", source)


def test_ctrl_c_leaves_no_half_file_and_the_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_lines(tmp_path / "t.jsonl", ["which?", "one", "two"])
    whole, read = converted(tmp_path / "whole", source), training.read_documents

    def interrupted(name: str):
        yield next(read(name))
        raise KeyboardInterrupt

    for to in ("shortlist", "flagembedding"):
        out = tmp_path / to
        monkeypatch.setattr(training, "read_documents", interrupted)
        with pytest.raises(KeyboardInterrupt):
            converted(out, source, to=to)
        monkeypatch.setattr(training, "read_documents", read)
        assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "manifest.json"]
        converted(out, source, to=to)
    for name in ("corpus.jsonl", "queries.jsonl", "groups.jsonl", "qrels/train.tsv"):
        assert (tmp_path / "shortlist" / name).read_bytes() == (whole / name).read_bytes()


PASSAGES = {
    "query_id": "q",
    "query": "which?",
    "positive_passages": [{"docid": "a", "title": "", "text": "one"}],
    "negative_passages": [{"docid": "b", "title": "", "text": "two"}],
}
BY_ID = {"query_id": "q0", "query_text": "which?", "positive_document_ids": ["d0"], "negative_document_ids": []}


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        ([], {}, "a.jsonl: holds no records"),
        ([{"text": "x"}], {}, r"a.jsonl:1: a record of no known layout \(found: text\)"),
        ([["x", "y"], ["x"]], {}, "a.jsonl:2: found 1 texts"),
        ([BY_ID], {}, "a.jsonl: holds ids of documents, not their texts; name the collection .* --collection"),
        ([BY_ID | {"positive_document_ids": ["d99"]}], {"collection": "TINY"}, "lacks 1 documents .* 'd99'"),
        ([{"query_id": "q9", "positives": ["d1"], "negatives": []}], {"collection": "TINY"}, "1 of 1 .* first 'q9'"),
        ([PASSAGES | {"positive_passages": []}], {}, "a.jsonl:1: group of query 'q' has no positive"),
        ([PASSAGES, PASSAGES | {"query": "else?"}], {}, "query 'q' has two different texts"),
        (
            [PASSAGES, PASSAGES | {"negative_passages": [{"docid": "a", "text": "other"}]}],
            {},
            "a.jsonl: document 'a' has two different texts",
        ),
        ([PASSAGES | {"negative_passages": [{"docid": "b"}]}], {}, "a.jsonl:1: document has no 'text' field"),
    ],
    ids=[
        *("empty", "unknown", "malformed", "ids-alone", "no-document", "no-query", "no-positive"),
        *("query-twice", "document-twice", "no-text"),
    ],
)
def test_what_cannot_be_converted_is_refused(tiny: Tiny, tmp_path: Path, records: list, settings: dict, message: str):
    source = write_lines(tmp_path / "a.jsonl", *records)
    settings = {name: str(tiny.collection) if value == "TINY" else value for name, value in settings.items()}
    with pytest.raises(UserError, match=message):
        converted(tmp_path / "out", source, **settings)
    assert not (tmp_path / "out" / "groups.jsonl").exists()


def test_sources_that_do_not_go_together_are_refused(tiny: Tiny, tmp_path: Path):
    first, second = write_lines(tmp_path / "a.jsonl", ["x", "y"]), write_lines(tmp_path / "b.jsonl", PASSAGES)
    with pytest.raises(UserError, match=r"b.jsonl: holds passages, but .*a.jsonl texts; convert them one at a time"):
        converted(tmp_path / "out", first, second)
    with pytest.raises(UserError, match="one collection can be converted at a time"):
        converted(tmp_path / "out", tiny.collection, tiny.collection)
    with pytest.raises(UserError, match="is a collection itself, so --collection is of no use"):
        converted(tmp_path / "out", tiny.collection, collection="x")
    other = write_lines(tmp_path / "c.jsonl", PASSAGES | {"query": "else?"})
    with pytest.raises(UserError, match=r"c.jsonl: query 'q' has another text in the sources before it"):
        converted(tmp_path / "out", second, other)
    with pytest.raises(UserError, match="no source is named"):
        converted(tmp_path / "out")
    with pytest.raises(UserError, match="nowhere: no such file"):
        converted(tmp_path / "out", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_layout_that_does_not_exist_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", "a", "--out", str(tmp_path / "out"), "--to", "tevatrn"]) == 2
    assert "tevatrn" in capsys.readouterr().err


def test_the_stage_offers_every_layout():
    assert set(Config.__annotations__["to"].__args__) == {"shortlist", *LAYOUTS, *OF_STORES}


def pickled(path: Path, vectors: np.ndarray, doc_ids: list[str]) -> Path:
    path.write_bytes(pickle.dumps((vectors, doc_ids)))
    return path


def test_pickled_vectors_become_a_store_that_is_searched_with_their_model(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(pickles, "SHARD_SIZE", 5)
    model = load_retriever(str(tiny.retriever)).eval()
    vectors, doc_ids = embed_documents(model, DOCUMENTS), [document.doc_id for document in DOCUMENTS]
    first, second = (pickled(tmp_path / f"{a}.pkl", vectors[a:b], doc_ids[a:b]) for a, b in ((0, 7), (7, 12)))
    out = converted(tmp_path / "out", first, second, allow_pickle=True)
    err = capsys.readouterr().err
    assert err.count("a pickle can run any code") == 1
    assert "nothing says which model made these vectors" in err
    store = VectorReader(out)
    assert list(store.doc_ids) == doc_ids
    np.testing.assert_array_equal(store.take(np.arange(12)), vectors)
    assert len(store.shard_hashes) == 3
    flags = ["--model", tiny.retriever, "--vectors", out, "--collection", tiny.collection, "--out", tmp_path / "r.trec"]
    assert main(list(map(str, ["search", *flags, "--k", 3]))) == 0
    scores = embed_queries(model, QUERIES) @ vectors.T
    expected = [[doc_ids[i] for i in np.argsort(-row)[:3]] for row in scores]
    found = read_run(tmp_path / "r.trec")
    assert [[hit.doc_id for hit in found[query.query_id]] for query in QUERIES] == expected


def test_half_precision_stays_as_it_is(tmp_path: Path):
    vectors = np.float16([[0.1, 1e-7], [3, 4]])
    store = VectorReader(converted(tmp_path / "out", pickled(tmp_path / "a", vectors, ["a", "b"]), allow_pickle=True))
    assert store.dtype == "float16"
    np.testing.assert_array_equal(store.take(np.arange(2)), vectors.astype(np.float32))


def test_a_pickle_is_read_only_if_that_is_allowed_and_runs_nothing_even_then(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return subprocess.call, (["mkdir", str(tmp_path / "mark")],)

    source = pickled(tmp_path / "a.pkl", np.zeros((1, 2), dtype="f4"), [Trap()])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"a.pkl: is a pickle, and reading one can run any code .* --allow-pickle"):
        converted(tmp_path / "out", source)
    with pytest.raises(UserError, match=r"asks for subprocess\.call"):
        converted(tmp_path / "out", source, allow_pickle=True)
    assert not (tmp_path / "mark").exists()
    assert not list((tmp_path / "out").glob("shard-*"))


@pytest.mark.parametrize(
    ("second", "settings", "message"),
    [
        (
            (np.zeros((1, 3), dtype="f4"), ["b"]),
            {},
            "b.pkl: holds float32 vectors of dim 3, but .*a.pkl float32 of dim 2",
        ),
        ((np.zeros((1, 2), dtype="f2"), ["b"]), {}, "b.pkl: holds float16 vectors of dim 2, but"),
        ((np.zeros((1, 2), dtype="f4"), ["a"]), {}, "b.pkl: document 'a' occurs twice"),
        ((np.float32([[0, np.nan]]), ["b"]), {}, "vector of document 'b' is not finite"),
        ((np.zeros((1, 2), dtype="f4"), ["b"]), {"to": "tevatron"}, "--to and --collection are of no use"),
    ],
    ids=["dim", "dtype", "twice", "nan", "to"],
)
def test_vectors_that_do_not_go_together_are_refused(tmp_path: Path, second: tuple, settings: dict, message: str):
    first = pickled(tmp_path / "a.pkl", np.ones((1, 2), dtype="f4"), ["a"])
    with pytest.raises(UserError, match=message):
        converted(tmp_path / "out", first, pickled(tmp_path / "b.pkl", *second), allow_pickle=True, **settings)


@pytest.mark.slow
def test_what_the_hub_has_is_told_apart_as_files_are(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    write_lines(folder / "train.jsonl", {"query": "which?", "positive": "one", "negative": "two"})
    out = converted(tmp_path / "texts", f"hf:{folder}")
    assert [document.text for document in read_corpus(out / "corpus.jsonl")] == ["one", "two"]
    converted(tmp_path / "texts", f"hf:{folder}")
    assert "already done" in capsys.readouterr().err
    write_lines(folder / "train.jsonl", BY_ID)
    out = converted(tmp_path / "ids", f"hf:{folder}", collection=str(tiny.collection))
    assert read_groups(out / "groups.jsonl") == [Group("q0", ("d0",))]


def test_a_collection_of_the_hub_is_told_by_its_splits_whose_names_become_those_of_files(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    there = open_collection(str(tiny.collection))
    parts = {name: getattr(there, name) for name in ("name", "corpus", "num_docs", "documents", "missing")}
    answers = {"queries": lambda _: there.queries("train"), "qrels": lambda _: there.qrels("train")}
    hub = SimpleNamespace(**parts, **answers, splits=lambda: ["train/judged"], identity=lambda *_: "contents")
    for module in (training, sources):
        monkeypatch.setattr(module, "open_collection", lambda _: hub)
    out = converted(tmp_path / "out", "hf:somebody/something", split="train/judged")
    assert open_collection(str(out)).qrels("train-judged") == there.qrels("train")


def test_texts_that_a_collection_has_become_its_documents(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
):
    out = converted(tmp_path / "all", triplets(tmp_path / "t.jsonl"), collection=str(tiny.collection))
    read = {group.query_id: group for group in read_groups(out / "groups.jsonl")}
    assert read[text_id(QUERIES[1].text)] == GROUPS[1]._replace(query_id=text_id(QUERIES[1].text))
    assert [document.doc_id for document in read_corpus(out / "corpus.jsonl")] == [d.doc_id for d in DOCUMENTS]
    capsys.readouterr()
    other = write_lines(tmp_path / "o.jsonl", ["which", DOCUMENTS[3].text.strip(), "new"], ["which", "new", TEXTS[4]])
    out = converted(tmp_path / "some", other, collection=str(tiny.collection))
    assert read_groups(out / "groups.jsonl") == [Group(text_id("which"), ("d3", text_id("new")), ("d4",))]
    assert [document.text for document in read_corpus(out / "corpus.jsonl")][12:] == ["new"]
    assert "convert: 2 of 3 texts are documents of" in capsys.readouterr().err


@pytest.mark.parametrize("indent", [None, 2])
def test_one_json_array_is_read_as_its_records(tmp_path: Path, tiny: Tiny, indent: int | None):
    records = [{"query": "which?", "pos": ["one"], "neg": ["two"]}, {"query": "else?", "pos": ["two"], "neg": []}]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=indent))
    out = converted(tmp_path / "out", tmp_path / "a.json")
    assert [len(group.negatives) for group in read_groups(out / "groups.jsonl")] == [1, 0]
    (tmp_path / "g.json").write_text(json.dumps([group._asdict() for group in GROUPS], indent=indent))
    assert open_groups(str(tmp_path / "g.json")).groups == GROUPS
    for text, message in (('[{"query": "x"}\n', "begins as one JSON array of records"), ("[\n1]", "record 1")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=message):
            converted(tmp_path / "bad", tmp_path / "bad.json")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_other_columns_is_refused_by_what_it_has(tmp_path: Path, delimiter: str):
    (tmp_path / "faq.csv").write_text(f'id{delimiter}title{delimiter}text\n1{delimiter}t{delimiter}"x, y"\n')
    with pytest.raises(UserError, match=r"faq.csv:2: a record of no known layout \(found: id, text, title\)"):
        converted(tmp_path / "out", tmp_path / "faq.csv")


LOG = "query,doc_id,position,clicks,impressions\n" + "".join(
    f"{query.text},d{i},1,3,10\n{query.text},d{(i + 1) % 12},2,1,10\n{query.text},d{(i + 2) % 12},3,0,10\n"
    for i, query in enumerate(QUERIES)
)


def test_clicks_become_training_data(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "log.csv").write_text(LOG)
    command = ["convert", tmp_path / "log.csv", "--collection", tiny.collection, "--out"]
    assert main(list(map(str, [*command, tmp_path / "out", "--position-bias", 1, 0.25]))) == 0
    err = capsys.readouterr().err
    assert "log.csv: read as a click log, by the names of its columns; --as says what it is." in err
    assert "36 pairs of a query and a document, 24 of them clicked; left out 0 by --min-clicks 1 and 0 by" in err
    assert "0 of the clicked pairs have fewer than 1 click per 100 impressions" in err
    name = text_id(QUERIES[3].text)
    groups = {group.query_id: group for group in read_groups(tmp_path / "out" / "groups.jsonl")}
    assert groups[name] == Group(name, ("d4", "d3"), ("d5",))
    assert read_qrels(tmp_path / "out" / "qrels" / "train.tsv")[name] == {"d4": 1, "d3": 1}
    assert (tmp_path / "out" / "corpus.jsonl").read_bytes() == (tiny.collection / "corpus.jsonl").read_bytes()
    said = ["--as", "clicks", "--position-bias", 1, 0.25]
    assert main(list(map(str, [*command, tmp_path / "out", *said]))) == 0
    assert "already done" in capsys.readouterr().err
    assert main(list(map(str, [*command, tmp_path / "few", "--min-clicks", 2, "--min-rate", 0.3]))) == 0
    assert "left out 12 by --min-clicks 2 and 0 by --min-rate 0.3" in capsys.readouterr().err


def test_clicks_and_texts_are_divided_among_splits(tiny: Tiny, tmp_path: Path):
    (tmp_path / "log.csv").write_text(LOG)
    lines = [[query.text, f"text {number}"] for number, query in enumerate(QUERIES)]
    texts, shares = write_lines(tmp_path / "t.jsonl", *lines), ("train=.5", "test=.5")
    clicks = converted(tmp_path / "clicks", tmp_path / "log.csv", collection=str(tiny.collection), split=shares)
    for out in (clicks, converted(tmp_path / "texts", texts, split=shares)):
        train, test = (read_qrels(out / "qrels" / f"{split}.tsv") for split in ("train", "test"))
        assert {*train} | {*test} == {text_id(query.text) for query in QUERIES}
        assert not {*train} & {*test}
        assert [group.query_id for group in read_groups(out / "groups.jsonl")] == list(train)
        assert len(open_collection(str(out)).queries("test")) == len(test)
    assert "as: null" in (clicks / "config.yaml").read_text()
    (tmp_path / "saved.yaml").write_text("as: clicks\nsplit: [train=.5, test=.5]\nout: X\ncollection: Y\ncolumns: []\n")
    flags = ["--config", str(tmp_path / "saved.yaml"), "--out", str(clicks), "--collection", str(tiny.collection)]
    assert main(["convert", str(tmp_path / "log.csv"), *flags]) == 0


def test_clicked_documents_may_be_texts_and_missing_ones_are_left_out_on_demand(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = write_lines(
        tmp_path / "log.jsonl",
        {"q": "which", "clicked_doc_id": TEXTS[3]},
        {"q": "which", "clicked_doc_id": "d3"},
        {"q": "which", "clicked_doc_id": "gone"},
    )
    with pytest.raises(UserError, match=r"lacks 1 of 3 clicked documents, the first 'gone'; .* --skip-missing"):
        converted(tmp_path / "out", source, collection=str(tiny.collection))
    out = converted(tmp_path / "out", source, collection=str(tiny.collection), skip_missing=True, min_clicks=2.0)
    assert read_groups(out / "groups.jsonl") == [Group(text_id("which"), ("d3",))]
    assert "lacks 1 of 3 clicked documents and 0 others; left them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (LOG, {"collection": None}, "is a click log; name the collection that was clicked with --collection"),
        (LOG, {"min_clicks": 9.0}, "no pair is left"),
        (
            LOG,
            {"split": ("train=.5", "dev=.5"), "to": "tevatron"},
            "--split names 2 splits, but --to tevatron writes one",
        ),
        ("q,doc,clicks\n", {"as_": "clicks"}, "no rows; expected at least one"),
        ("q,doc,clicks\na,d1,1\n", {"min_rate": 0.1}, "no column is the impressions, which --min-rate needs"),
        (
            "query,positive\na,b\n",
            {"min_rate": 0.1, "skip_missing": True},
            "holds texts, .* --min-rate, --skip-missing; ",
        ),
    ],
    ids=["collection", "nothing-left", "to", "no-rows", "no-impressions", "no-clicks"],
)
def test_click_logs_that_cannot_be_used_are_refused(
    tiny: Tiny, tmp_path: Path, text: str, settings: dict, message: str
):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        converted(tmp_path / "out", tmp_path / "log.csv", **{"collection": str(tiny.collection)} | settings)
    assert not (tmp_path / "out").exists()


def test_shares_are_refused_where_a_collection_says_which_queries_there_are(tiny: Tiny, tmp_path: Path):
    with pytest.raises(UserError, match="--split: the queries are those of one split of a collection; name one, not 2"):
        converted(tmp_path / "out", tiny.collection, split=("train=.5", "dev=.5"))
