"""Small copies of BEIR's data sets, each with what is odd about it, from the folder to the measure."""

import csv
import json
from pathlib import Path

import pytest

import shortlist.index as index_stage
from shortlist import search
from shortlist.data.beir import CQADUPSTACK, SETS, beir_set, parts_of, shares_ids
from shortlist.data.collections import open_collection
from shortlist.data.formats import read_qrels, write_qrels
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run, write_run
from shortlist.errors import UserError
from shortlist.evaluation.measure import per_query
from shortlist.records import Hit, Qrels, Run

ODD_IDS = [
    '"Heroes"_(album)',
    "<dbpedia:Animal_Farm>",
    "Müller,_Jürgen",
    "a'b",
    "東京",
    "-5",
    "#1",
    '"',
    "01",
]


def lay_out(folder: Path, corpus: list[dict], queries: list[dict], qrels: Qrels) -> Path:
    """The files of a data set as BEIR's zip files hold them: ids with a quote are quoted in the judgements."""
    (folder / "qrels").mkdir(parents=True)
    for name, records in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    with open(folder / "qrels/test.tsv", "w", encoding="utf-8", newline="") as file:
        rows = [(query_id, doc_id, grade) for query_id, judged in qrels.items() for doc_id, grade in judged.items()]
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("query-id", "corpus-id", "score"), *rows])
    return folder


def searched(collection: Path, **settings) -> Run:
    """What BM25 finds for the test queries."""
    out = collection.parent / f"{collection.name}.trec"
    index = collection.parent / f"{collection.name}.index"
    index_stage.run(index_stage.Config(collection=str(collection), out=index))
    search.run(search.Config(collection=str(collection), index=(index,), out=out, **{"k": 3, **settings}))
    return read_run(out)


def ids(run: Run) -> dict[str, list[str]]:
    return {query_id: [hit.doc_id for hit in hits] for query_id, hits in run.items()}


def texts(*texts: tuple[str, str]) -> list[dict]:
    return [{"_id": name, "title": "", "text": text, "metadata": {}} for name, text in texts]


def arguana(folder: Path) -> Path:
    """Every query is a document, and is answered by another that speaks of the same."""
    arguments = texts(("t-pro01a", "ban meat now"), ("t-con01b", "never ban meat"), ("t-con02b", "eat meat daily"))
    return lay_out(folder, arguments, arguments[:1], {"t-pro01a": {"t-con01b": 1}})


def quora(folder: Path) -> Path:
    """Questions under one range of numbers, whether they are asked or found."""
    asked = texts(("46", "which question should I ask"), ("134031", "what question should I ask"), ("7", "how to cook"))
    return lay_out(folder, asked, asked[:1], {"46": {"134031": 1}})


def msmarco(folder: Path) -> Path:
    """Queries and passages with numbers of their own: query 1 has nothing to do with passage 1, which answers it."""
    passages = texts(("1", "goldfish grow to the size of the tank"), ("2", "tank warfare"))
    return lay_out(folder, passages, texts(("1", "how do goldfish grow in a tank")), {"1": {"1": 1}})


@pytest.mark.parametrize(("build", "answer"), [(arguana, "t-con01b"), (quora, "134031")])
def test_a_query_that_is_a_document_does_not_find_itself(build, answer, tmp_path):
    collection = build(tmp_path / build.__name__)
    run = searched(collection, k=1)
    assert [found for (found,) in ids(run).values()] == [answer]
    assert per_query(run, open_collection(str(collection)).qrels("test"), ["nDCG@10"])["nDCG@10"] == {
        next(iter(run)): 1
    }
    kept = read_manifest(tmp_path / f"{collection.name}.trec")
    assert kept is not None
    assert kept["made_from"]["exclude_self"] is True


def test_equal_ids_say_nothing_where_queries_are_no_documents(tmp_path, capsys):
    run = searched(msmarco(tmp_path / "msmarco"))
    assert ids(run)["1"][0] == "1"
    assert "1 of 1 queries found the document of their own id (--exclude-self True: not)" in capsys.readouterr().err
    assert ids(searched(tmp_path / "msmarco", exclude_self=True, overwrite=True)) == {"1": ["2"]}


@pytest.mark.slow
def test_leaving_out_a_querys_own_document_is_another_job(tmp_path):
    collection = arguana(tmp_path / "arguana")
    first = searched(collection)
    with pytest.raises(UserError, match=r"another job .exclude_self: True there, False now"):
        searched(collection, exclude_self=False)
    assert searched(collection, exclude_self=True) == first
    assert "t-pro01a" in ids(searched(collection, exclude_self=False, overwrite=True))["t-pro01a"]


def test_a_search_that_leaves_nothing_out_is_the_job_that_it_was_before_one_could(tmp_path):
    searched(msmarco(tmp_path / "msmarco"))
    manifest = read_manifest(tmp_path / "msmarco.trec")
    assert manifest is not None
    assert "exclude_self" not in manifest["made_from"]


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("data/arguana", True),
        ("data/ArguAna/", True),
        ("irds:beir/arguana", True),
        ("irds:beir/quora/test", True),
        ("irds:nano-beir/arguana", True),
        ("hf:BeIR/quora", True),
        ("hf:/data/arguana", True),
        ("quora/scifact", False),
        ("quora/mine", False),
        ("irds:msmarco-passage", False),
        ("irds:quora", False),
        ("irds:beir/scifact/test", False),
        ("hf:quora/questions", False),
        ("cqadupstack/android", False),
    ],
)
def test_only_arguana_and_quora_share_ids_by_whatever_name_they_are_opened(name, shared):
    assert shares_ids(name) is shared


def test_a_folder_is_known_from_inside(tmp_path, monkeypatch):
    monkeypatch.chdir(arguana(tmp_path / "arguana"))
    assert shares_ids(".")


def test_a_set_is_known_by_its_name():
    assert beir_set("x/cqadupstack/gis") is SETS["cqadupstack"]
    assert beir_set("hf:mteb/cqadupstack-gis") is SETS["cqadupstack"]
    assert beir_set("irds:beir/webis-touche2020/v2") is SETS["webis-touche2020"]
    assert beir_set("x/cqadupstack/mine") is None


def test_the_parts_of_cqadupstack_are_its_twelve_by_folder_and_by_id(tmp_path):
    assert len(CQADUPSTACK) == 12
    assert parts_of("irds:beir/cqadupstack") == [f"irds:beir/cqadupstack/{part}" for part in CQADUPSTACK]
    assert parts_of("hf:mteb/cqadupstack") == [f"hf:mteb/cqadupstack-{part}" for part in CQADUPSTACK]
    for name in ("cqadupstack", "under-another-name"):
        for part in CQADUPSTACK:
            lay_out(tmp_path / name / part, texts(("1", part)), texts(("9", part)), {"9": {"1": 1}})
        assert parts_of(str(tmp_path / name)) == [str(tmp_path / name / part) for part in CQADUPSTACK]
    single = [
        str(tmp_path),
        str(tmp_path / "cqadupstack/gis"),
        "irds:beir/cqadupstack/gis",
        "irds:beir/scifact",
        "none",
    ]
    assert [parts_of(name) for name in single] == [[name] for name in single]
    (tmp_path / "cqadupstack/corpus.jsonl").touch()
    assert parts_of(str(tmp_path / "cqadupstack")) == [str(tmp_path / "cqadupstack")]


@pytest.mark.parametrize("name", ["cqadupstack", "irds:beir/cqadupstack"])
def test_a_collection_that_is_several_is_refused_with_their_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cqadupstack").mkdir()
    with pytest.raises(
        UserError, match=r"is 12 collections, and its score is the mean.*name one: .*android, "
    ) as caught:
        open_collection(name)
    assert all(part in str(caught.value) for part in parts_of(name))


def test_the_parts_of_cqadupstack_are_searched_and_measured_each_by_itself(tmp_path):
    scores = []
    for part, judged in (("android", {"1": "11"}), ("gis", {"1": "12", "2": "12", "3": "12"})):
        corpus = texts(("11", "battery"), ("12", "maps"))
        folder = lay_out(
            tmp_path / "cqadupstack" / part,
            corpus,
            texts(*((query_id, "battery") for query_id in judged)),
            {query_id: {doc_id: 1} for query_id, doc_id in judged.items()},
        )
        values = per_query(searched(folder), open_collection(str(folder)).qrels("test"), ["Success@1"])
        scores.append({name: sum(value.values()) / len(value) for name, value in values.items()})
    assert scores == [{"Success@1": 1.0}, {"Success@1": 0.0}]


def test_ids_of_every_kind_survive_from_the_corpus_to_the_measure(tmp_path):
    words = [f"word{number}" for number in range(len(ODD_IDS))]
    pairs = list(zip(ODD_IDS, words, strict=True))
    qrels = {query_id: {query_id: 1, "absent": 1} for query_id in ODD_IDS}
    collection = lay_out(tmp_path / "dbpedia-entity", texts(*pairs), texts(*pairs), qrels)
    assert open_collection(str(collection)).qrels("test") == qrels
    run = searched(collection)
    assert ids(run) == {name: [name] for name in ODD_IDS}
    assert per_query(run, qrels, ["RR@10"])["RR@10"] == dict.fromkeys(ODD_IDS, 1)


def test_a_run_with_odd_ids_is_read_back_as_it_was_written(tmp_path):
    run = {name: [Hit(other, 1.0) for other in ODD_IDS[:1]] + [Hit(name + "x", 0.5)] for name in ODD_IDS}
    write_run(tmp_path / "run.trec", run)
    assert read_run(tmp_path / "run.trec") == run


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"""Heroes""_(album)"', '"Heroes"_(album)'),
        ('"a""b"', 'a"b'),
        ('"Heroes"_(album)', '"Heroes"_(album)'),
        ('"Heroes"', '"Heroes"'),
        ('""', '""'),
        ('a""b', 'a""b'),
        ('"a"b""', '"a"b""'),
    ],
)
def test_an_id_in_beirs_judgements_may_be_quoted_and_may_hold_quotes(written, meant, tmp_path):
    (tmp_path / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{written}\t{written}\t1\n")
    assert read_qrels(tmp_path / "test.tsv") == {meant: {meant: 1}}
    (tmp_path / "trec.txt").write_text(f"1 0 {written} 1\n")
    assert read_qrels(tmp_path / "trec.txt") == {"1": {written: 1}}


def test_quotes_in_ids_are_written_and_read_back_in_judgements(tmp_path):
    qrels = {name: dict.fromkeys(ODD_IDS, 1) for name in ODD_IDS}
    write_qrels(tmp_path / "test.tsv", qrels)
    assert read_qrels(tmp_path / "test.tsv") == qrels


def test_touche_grades_below_zero_count_as_not_relevant(tmp_path):
    corpus = texts(("S51530f3f-Ae32a4a1b", "teachers tenure"), ("S96f2396e-Aaf079b43", "tenure"), ("c-1", "teachers"))
    qrels = {"1": {"S51530f3f-Ae32a4a1b": -2, "S96f2396e-Aaf079b43": 2, "c-1": -1, "gone-from-the-corpus": 1}}
    collection = lay_out(tmp_path / "webis-touche2020", corpus, texts(("1", "should teachers get tenure")), qrels)
    read = open_collection(str(collection)).qrels("test")
    assert read == qrels
    run, measures = searched(collection), ["nDCG@10", "RR@10", "AP", "R@100", "P@5"]
    assert len(run["1"]) == 3
    zeros = {"1": {doc_id: max(grade, 0) for doc_id, grade in read["1"].items()}}
    assert per_query(run, read, measures) == per_query(run, zeros, measures)
    assert per_query(run, read, ["R@100"])["R@100"] == {"1": 0.5}


def test_trec_covid_judges_documents_that_its_corpus_lacks_and_has_documents_without_text(tmp_path):
    corpus = [
        {
            "_id": "ug7v899j",
            "title": "Clinical features",
            "text": "",
            "metadata": {"url": "u", "pubmed_id": "11472636"},
        },
        {"_id": "02tnwd4m", "title": None, "text": "origin of the virus", "metadata": None},
        {"_id": "ejv2xln0", "text": "", "metadata": {}},
    ]
    qrels = {"1": {"005b2j4b": 2, "02tnwd4m": 1, "ug7v899j": 0}, "2": {"ug7v899j": 2}}
    queries = texts(("1", "virus origin"), ("2", "clinical features"), ("3", "not judged"))
    collection = lay_out(tmp_path / "trec-covid", corpus, queries, qrels)
    run = searched(collection)
    assert ids(run) == {"1": ["02tnwd4m"], "2": ["ug7v899j"]}
    values = per_query(run, open_collection(str(collection)).qrels("test"), ["R@100", "RR@10"])
    assert values == {"R@100": {"1": 0.5, "2": 1}, "RR@10": {"1": 1, "2": 1}}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    return pytest.importorskip("ir_datasets").registry


def test_each_set_has_its_test_queries_under_its_ir_datasets_id(registry):
    for known in SETS.values():
        for name in parts_of(f"irds:beir/{known.name}"):
            assert known.split in open_collection(name).splits()


def test_a_split_of_a_set_is_no_test_split_and_another_version_no_split(registry):
    assert open_collection("irds:beir/fiqa/dev").splits() == ["all", "dev"]
    assert open_collection("irds:beir/webis-touche2020").splits() == ["all", "test", "webis-touche2020"]
    assert open_collection("irds:beir/webis-touche2020/v2").splits() == ["all", "test", "v2"]


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("msmarco-passage", {"dev/small", "trec-dl-2019/judged", "trec-dl-2020/judged", "trec-dl-hard", "train"}),
        ("msmarco-document", {"dev", "trec-dl-2019/judged", "trec-dl-2020/judged", "train"}),
        ("msmarco-passage-v2", {"dev1", "trec-dl-2021/judged", "trec-dl-2022/judged", "trec-dl-2023/judged"}),
        ("msmarco-document-v2", {"dev1", "trec-dl-2021/judged", "trec-dl-2022/judged", "trec-dl-2023/judged"}),
    ],
)
def test_ir_datasets_has_ms_marco_and_its_tracks_as_splits(registry, name, splits):
    assert splits <= set(open_collection(f"irds:{name}").splits())


def test_a_small_copy_of_arguana_is_read_as_ir_datasets_reads_it(registry, tmp_path, monkeypatch):
    import ir_datasets
    from ir_datasets.datasets.beir import BeirDocs, BeirQrels, BeirQueries, BeirTitleDoc
    from ir_datasets.formats import GenericQuery
    from ir_datasets.util import LocalDownload

    folder = arguana(tmp_path / "files")
    corpus, queries, qrels = (LocalDownload(folder / f) for f in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"))
    parts = (BeirDocs("arguana", corpus, BeirTitleDoc), BeirQueries("arguana", queries, GenericQuery))
    small = ir_datasets.Dataset(*parts, BeirQrels(qrels, {}))
    monkeypatch.setitem(registry._registered, "beir/arguana", small)
    named, local = open_collection("irds:beir/arguana"), open_collection(str(folder))
    assert list(named.corpus()) == list(local.corpus())
    assert (named.queries("test"), named.qrels("test")) == (local.queries("test"), local.qrels("test"))
    index_stage.run(index_stage.Config(collection="irds:beir/arguana", out=tmp_path / "index"))
    out = tmp_path / "run.trec"
    search.run(search.Config(collection="irds:beir/arguana", index=(tmp_path / "index",), out=out, k=1))
    assert ids(read_run(out)) == {"t-pro01a": ["t-con01b"]}
