import gzip
import json
import shutil
from pathlib import Path

import pytest

from shortlist.data.collections import open_collection
from shortlist.errors import UserError
from shortlist.records import Document, Query

PASSAGE = {"pid": "msmarco_passage_00_1", "passage": "goldfish grow", "spans": "(0,1)", "docid": "msmarco_doc_00_2"}
PAGE = {"docid": "msmarco_doc_00_2", "url": "u", "title": "Fish", "headings": "H", "body": "goldfish grow"}


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(text.encode())


def check(folder: Path, doc_id: str, **files: str) -> None:
    """Each split's queries are those judged, and the judgements are those of the file."""
    for grade, (split, names) in enumerate(files.items(), 1):
        queries, qrels = names.split()
        put(folder / queries, "1\tdo goldfish grow\n2\tnot judged\n")
        put(folder / qrels, f"1 Q0 {doc_id} {grade}\n")
        collection = open_collection(str(folder))
        assert collection.queries(split) == [Query("1", "do goldfish grow")]
        assert collection.qrels(split) == {"1": {doc_id: grade}}
    assert open_collection(str(folder)).splits() == sorted(files)


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_passages_have_the_tracks_of_2019_and_2020_beside_them_under_their_official_names(tmp_path, gz):
    put(tmp_path / f"collection.tsv{gz}", "7\tgoldfish grow\n")
    put(tmp_path / "2019qrels-docs.txt", "1 Q0 D7 3\n")  # of the other corpus
    dl19, dl20 = (f"msmarco-test20{year}-queries.tsv{gz} 20{year}qrels-pass.txt" for year in (19, 20))
    ours = {"dev": f"queries.dev.tsv{gz} qrels.dev.tsv{gz}", "dl21": "topics.dl21.txt qrels.dl21.txt"}
    check(tmp_path, "7", dl19=dl19, dl20=dl20, **ours)


def test_documents_have_the_tracks_of_2019_and_2020_beside_them_under_their_official_names(tmp_path):
    put(tmp_path / "msmarco-docs.tsv", "D7\tu\tFish\tgoldfish grow\n")
    put(tmp_path / "2019qrels-pass.txt", "1 Q0 7 3\n")  # of the other corpus
    dl19, dl20 = (f"msmarco-test20{year}-queries.tsv.gz 20{year}qrels-docs.txt" for year in (19, 20))
    check(tmp_path, "D7", dl19=dl19, dl20=dl20, dev="msmarco-docdev-queries.tsv.gz msmarco-docdev-qrels.tsv.gz")


def test_the_second_ms_marco_is_a_file_of_objects_with_the_tracks_of_2021_to_2023(tmp_path):
    put(tmp_path / "p/msmarco_v2_passage.jsonl", json.dumps(PASSAGE) + "\n")
    names = [f"20{year}_queries.tsv 20{year}.qrels.pass" for year in (21, 22, 23)]
    tracks = {"dl21": f"{names[0]}.final.txt", "dl22": f"{names[1]}.withDupes.txt", "dl23": f"{names[2]}.withDupes.txt"}
    check(tmp_path / "p", PASSAGE["pid"], dev="passv2_dev_queries.tsv passv2_dev_qrels.tsv", **tracks)
    assert list(open_collection(str(tmp_path / "p")).corpus()) == [Document(PASSAGE["pid"], "goldfish grow")]
    put(tmp_path / "d/msmarco_v2_doc.jsonl", json.dumps(PAGE) + "\n")
    names = [f"20{year}_queries.tsv 20{year}.qrels.docs" for year in (21, 22, 23)]
    tracks = {"dl21": f"{names[0]}.final.txt", "dl22": f"{names[1]}.inferred.txt", "dl23": f"{names[2]}.withDupes.txt"}
    check(tmp_path / "d", PAGE["docid"], dev2="docv2_dev2_queries.tsv docv2_dev2_qrels.tsv", **tracks)
    document = Document(PAGE["docid"], "goldfish grow", "Fish", "u")
    assert open_collection(str(tmp_path / "d")).documents([PAGE["docid"]]) == {PAGE["docid"]: document}


@pytest.mark.parametrize(
    ("file", "joined", "irds"),
    [
        ("msmarco_v2_passage/msmarco_passage_00.gz", "msmarco_v2_passage.jsonl", "irds:msmarco-passage-v2"),
        ("msmarco_doc_00.gz", "msmarco_v2_doc.jsonl", "irds:msmarco-document-v2"),
    ],
)
def test_the_second_ms_marco_in_many_files_says_how_to_join_them(tmp_path, file, joined, irds):
    put(tmp_path / file, "")
    with pytest.raises(UserError, match=rf"many files; join them .`zcat \*.gz > {joined}`.* or use {irds}\."):
        open_collection(str(tmp_path))


@pytest.mark.slow
def test_real_topics_and_judgements_are_found_by_the_names_that_they_have(shared_data, tmp_path):
    for path in (shared_data / "trec-dl").glob("*/*"):
        shutil.copy(path, tmp_path)
    put(tmp_path / "collection.tsv", "7\tgoldfish grow\n")
    collection = open_collection(str(tmp_path))
    sizes = {"dl19-passage": (43, 9260), "dl19-doc": (43, 16258), "msmarco-passage.dev-subset": (6980, 7437)}
    for split, (num_queries, num_judgements) in sizes.items():
        assert len(collection.queries(split)) == num_queries
        assert sum(map(len, collection.qrels(split).values())) == num_judgements


@pytest.mark.parametrize("second", ["qrels.dev.txt", "qrels.dev.tsv.gz"])
def test_a_split_with_two_files_is_refused_where_it_is_read(tmp_path, second):
    put(tmp_path / "collection.tsv", "7\tgoldfish grow\n")
    for name in ("qrels.dev.tsv", second, "qrels.test.tsv"):
        put(tmp_path / name, "1 0 7 1\n")
    for name in ("queries.dev.tsv", "queries.test.tsv", "topics.test.tsv"):
        put(tmp_path / name, "1\tdo goldfish grow\n")
    collection = open_collection(str(tmp_path))
    with pytest.raises(
        UserError, match=r"has 2 files for the judgements of split 'dev', qrels.dev\..* and qrels.dev\."
    ):
        collection.qrels("dev")
    with pytest.raises(UserError, match="has 2 files for the judgements of split 'dev'"):
        collection.identity("qrels/dev")
    with pytest.raises(
        UserError, match=r"2 files for the queries of split 'test', queries\.test\.tsv and topics\.test\.tsv"
    ):
        collection.queries("test")
    assert collection.qrels("test") == {"1": {"7": 1}}


def test_a_folder_with_two_corpora_is_refused(tmp_path):
    put(tmp_path / "corpus.jsonl", '{"_id": "1", "text": "x"}\n')
    put(tmp_path / "corpus.jsonl.gz", '{"_id": "1", "text": "y"}\n')
    with pytest.raises(UserError, match=r"2 files for the collection, corpus\.jsonl and corpus\.jsonl\.gz; keep one"):
        open_collection(str(tmp_path))
