import gc
import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import bm25s
import numpy as np
import pytest

from shortlist import index
from shortlist.errors import UserError
from shortlist.index import analysis
from shortlist.index.analysis import ANALYSERS, BEFORE
from shortlist.index.bm25 import BM25_FILES, COUNTS, LENGTHS, BM25Index
from shortlist.index.postings import BLOCK_TOKENS
from shortlist.index.protocols import SearchesTerms
from shortlist.records import Document, Hit, Query

DOCUMENTS = [
    Document("d1", "A cat sat on the mat."),
    Document("d2", "Cats chase the dogs, and dogs chase the cats.", title="Chasing"),
    Document("d3", "An entirely different matter"),
    Document("d4", ""),
]


def search(built: BM25Index, text: str, k: int = 10) -> list[Hit]:
    return built.search([Query("q", text)], k)["q"]


def test_scores_equal_lucenes_formula_worked_out_by_hand():
    documents = [Document("a", "red red blue"), Document("b", "green")]
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 / (2 + 0.9 * (1 - 0.4 + 0.4 * 3 / 2))
    (hit,) = search(BM25Index.build(documents), "red")
    assert hit.doc_id == "a"
    assert hit.score == pytest.approx(expected, abs=1e-6)


def test_a_word_twice_in_a_query_counts_twice():
    built = BM25Index.build(DOCUMENTS)
    assert search(built, "mat mat")[0].score == pytest.approx(2 * search(built, "mat")[0].score)


def test_terms_are_searched_as_the_text_that_gives_them_and_with_other_weights():
    built = BM25Index.build(DOCUMENTS)
    query = Query("q", "the mat of a cat")
    [terms] = built.query_terms([query])
    assert terms == [("mat", 1.0), ("cat", 1.0)]
    assert built.find_by_terms([terms], 10) == [search(built, query.text)]
    [found] = built.find_by_terms([[("mat", 0.25), ("unheard", 9.0), ("mat", 0.25)]], 10)
    assert found == [Hit("d1", pytest.approx(search(built, "mat")[0].score / 2))]
    assert built.find_by_terms([[("cat", 1.0), ("mat", -9.0)]], 10) == [search(built, "cat")[:1]]
    assert isinstance(built, SearchesTerms)


def test_title_and_text_are_both_searched():
    built = BM25Index.build([Document("a", "text", title="title"), Document("b", "other")])
    assert [hit.doc_id for hit in search(built, "title")] == ["a"]
    assert [hit.doc_id for hit in search(built, "text")] == ["a"]


def test_equal_scores_come_in_corpus_order_also_where_k_cuts_between_them():
    texts = ["words", "words among others", "nothing of the kind"]
    built = BM25Index.build([Document(str(i), texts[i % 3]) for i in range(300)])
    whole = search(built, "words", 300)
    assert [hit.doc_id for hit in whole] == [str(i) for i in [*range(0, 300, 3), *range(1, 300, 3)]]
    assert search(built, "words", 7) == whole[:7]
    assert search(built, "words", 107) == whole[:107]


def test_the_best_k_are_the_first_of_all():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    documents = [Document(str(i), " ".join(rng.choice(words, size=rng.integers(1, 20)))) for i in range(300)]
    built = BM25Index.build(documents)
    whole = search(built, "w1 w2 w3", 300)
    assert [hit.score for hit in whole] == sorted((hit.score for hit in whole), reverse=True)
    assert search(built, "w1 w2 w3", 10) == whole[:10]


@pytest.mark.parametrize("text", ["", "the of", "unheard", "…"])
def test_a_query_without_a_known_word_finds_nothing(text: str):
    assert search(BM25Index.build(DOCUMENTS), text) == []


def test_a_saved_index_searches_as_before_and_holds_no_pickle(tmp_path: Path):
    built = BM25Index.build(DOCUMENTS, analyser="code")
    built.save(tmp_path / "index")
    loaded = BM25Index.load(tmp_path / "index")
    assert len(loaded) == 4
    assert search(loaded, "chasing cats") == search(built, "chasing cats") != []
    for path in (tmp_path / "index").iterdir():
        if path.suffix == ".npy":
            assert np.load(path, allow_pickle=False).dtype != object
        elif path.suffix == ".txt":
            assert path.read_text("utf-8").split() == ["d1", "d2", "d3", "d4"]
        else:
            json.loads(path.read_text("utf-8"))


def by_bm25s(documents: list[Document], analyser: str) -> bm25s.BM25:
    """What bm25s makes of the same words, all of them in memory."""
    vocabulary: dict[str, int] = {}
    words = [ANALYSERS[analyser](f"{document.title} {document.text}") for document in documents]
    tokens = [[vocabulary.setdefault(word, len(vocabulary)) for word in row] for row in words]
    scores = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
    scores.index((tokens, vocabulary), create_empty_token=False, show_progress=False)
    return scores


def random_documents(count: int, *, longest: int = 20, num_words: int = 30) -> list[Document]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, longest, count)
    return [
        Document(f"é{i}", " ".join(f"w{n}" for n in rng.integers(0, num_words, length)))
        for i, length in enumerate(lengths)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("block", [3, 100, 1000, BLOCK_TOKENS])
def test_however_small_the_blocks_the_files_are_those_of_bm25s(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shortlist.index.postings.BLOCK_TOKENS", block)
    documents = random_documents(300)
    BM25Index.build(documents, folder=tmp_path / "ours")
    by_bm25s(documents, "english").save(tmp_path / "theirs", show_progress=False)
    theirs = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    own = {"doc_ids.txt", "index.json", COUNTS, LENGTHS}
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {*theirs} | own
    for name in theirs:
        read = json.loads if name.endswith(".json") else bytes
        assert read((tmp_path / "ours" / name).read_bytes()) == read((tmp_path / "theirs" / name).read_bytes()), name


@pytest.mark.slow
def test_memory_grows_by_a_few_bytes_per_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shortlist.index.postings.BLOCK_TOKENS", 1000)

    def peak(num_docs: int) -> int:
        documents = (Document(f"document-{i}", f"w{i % 50} w{i % 7} a b c d e f") for i in range(num_docs))
        tracemalloc.start()
        BM25Index.build(documents, analyser="whitespace", folder=tmp_path / str(num_docs))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1000)  # what is loaded on first use is not the corpus's
    assert peak(5000) - peak(1000) < 4000 * 40


def test_an_index_built_in_a_folder_is_the_one_that_is_loaded_from_it(tmp_path: Path):
    built = BM25Index.build(DOCUMENTS, folder=tmp_path)
    built.save(tmp_path)
    assert search(BM25Index.load(tmp_path), "chasing cats") == search(built, "chasing cats") != []
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_an_index_in_a_temporary_folder_takes_it_away():
    built = BM25Index.build(DOCUMENTS)
    folder = built._folder
    assert folder.exists()
    del built
    gc.collect()
    assert not folder.exists()


def test_a_build_that_breaks_off_leaves_no_index(tmp_path: Path):
    def documents() -> Iterator[Document]:
        yield from DOCUMENTS
        raise UserError("line 5 is damaged")

    BM25Index.build(DOCUMENTS, folder=tmp_path)
    with pytest.raises(UserError, match="line 5"):
        BM25Index.build(documents(), folder=tmp_path)
    with pytest.raises(UserError, match="not a whole BM25 index"):
        BM25Index.load(tmp_path)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_an_index_cut_short_is_refused(tmp_path: Path):
    for name in BM25_FILES[:-1]:
        BM25Index.build(DOCUMENTS, folder=tmp_path)
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(UserError, match="not a whole BM25 index"):
            BM25Index.load(tmp_path)


def test_a_document_id_with_a_line_end_is_refused():
    with pytest.raises(UserError, match=r"'a\\nb' holds a line end"):
        BM25Index.build([Document("a\nb", "text")])


@pytest.mark.parametrize(("query", "found"), [("Häuser", ["a"]), ("das Haus", ["a"]), ("der", []), ("Frauen", ["b"])])
def test_queries_are_read_in_the_language_of_the_index(query: str, found: list[str], tmp_path: Path):
    documents = [Document("a", "Das Haus steht."), Document("b", "Ein Auto fährt der Frau davon.")]
    BM25Index.build(documents, analyser="german", folder=tmp_path)
    assert [hit.doc_id for hit in search(BM25Index.load(tmp_path), query)] == found


@pytest.mark.parametrize("documents", [[], [Document("a", "the"), Document("b", "")]])
def test_a_corpus_without_words_is_refused(documents: list[Document]):
    with pytest.raises(UserError, match="hold no word"):
        BM25Index.build(documents)


def test_an_unknown_analyser_is_answered_with_a_near_name():
    with pytest.raises(UserError, match="'english'"):
        BM25Index.build(DOCUMENTS, analyser="englsh")


@pytest.mark.parametrize("settings", [{"k1": -1.0}, {"b": 1.5}])
def test_constants_out_of_range_are_refused(settings: dict):
    with pytest.raises(UserError, match="expected k1 of 0 or more and b from 0 to 1"):
        BM25Index.build(DOCUMENTS, **settings)


def test_a_folder_without_an_index_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not a whole BM25 index"):
        BM25Index.load(tmp_path)


def test_the_stage_indexes_a_collection_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "collection"
    folder.mkdir()
    lines = [json.dumps({"_id": d.doc_id, "title": d.title, "text": d.text}) for d in DOCUMENTS]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    config = index.Config(collection=str(folder), out=tmp_path / "index")
    index.run(config)
    assert search(BM25Index.load(tmp_path / "index"), "mat")[0].doc_id == "d1"
    assert json.loads((tmp_path / "index/manifest.json").read_text())["results"]["num_docs"] == 4
    index.run(config)
    assert "already done" in capsys.readouterr().err


def test_importing_the_room_loads_neither_bm25s_nor_torch():
    program = "import sys, shortlist.index; print({'bm25s', 'numba', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


@pytest.mark.slow
def test_real_text_is_scored_as_by_bm25s(shared_data: Path):
    from shortlist.data.collections import open_collection

    documents = list(islice(open_collection(str(shared_data / "scifact")).corpus(), 500))
    ours, theirs = BM25Index.build(documents), by_bm25s(documents, "english")
    assert ours._vocabulary == theirs.vocab_dict
    for number in range(len(ours._vocabulary)):
        start, stop = theirs.scores["indptr"][number : number + 2]
        assert np.array_equal(ours._index.postings(number).documents, theirs.scores["indices"][start:stop])
        assert np.array_equal(ours._index.postings(number).weights, theirs.scores["data"][start:stop])
    for text in ("cells of the immune system", "cells cells", ""):
        tokens = theirs.get_tokens_ids(ANALYSERS["english"](text))
        found = [[(token, 1.0) for token in tokens]]
        assert np.array_equal(ours._index.scores(found[0]), theirs.get_scores_from_ids(tokens))


@pytest.mark.slow
def test_scifact_is_ranked_as_well_as_by_anserini(shared_data: Path):
    from shortlist.data.collections import open_collection
    from shortlist.evaluation.measure import per_query

    collection = open_collection(str(shared_data / "scifact"))
    run = BM25Index.build(collection.corpus()).search(collection.queries("test"), 100)
    values = per_query(run, collection.qrels("test"), ["nDCG@10", "R@100"])
    assert np.mean(list(values["nDCG@10"].values())) == pytest.approx(0.679, abs=0.003)
    assert np.mean(list(values["R@100"].values())) == pytest.approx(0.925, abs=0.002)


def test_an_index_whose_words_other_libraries_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(analysis, "version", lambda name: "2.2.0")
        BM25Index.build([Document("a", "Häuser")], analyser="german", folder=tmp_path / "index")
    with pytest.raises(
        UserError, match=r"other libraries \(PyStemmer 2\.2\.0 then, .* now\); the same `shortlist index`"
    ):
        BM25Index.load(tmp_path / "index")
    BM25Index.build([Document("a", "Häuser")], analyser="dutch", folder=tmp_path / "index")
    with monkeypatch.context() as patch:
        patch.setitem(analysis.ANALYSERS, "dutch", analysis.ANALYSERS["german"])
        with pytest.raises(UserError, match=r"other stems \(stop words and stems\)"):
            BM25Index.load(tmp_path / "index")
    BM25Index.load(tmp_path / "index")


def test_an_index_of_before_is_searched_by_the_stems_it_was_built_with(tmp_path: Path, capsys):
    documents = [Document("d1", "archaeology"), Document("d2", "archaeologist archaeological")]
    BM25Index.build(documents, analyser="en", folder=tmp_path / "new")
    assert search(BM25Index.load(tmp_path / "new"), "archaeology", 1)[0].doc_id == "d1"
    assert json.loads((tmp_path / "new/index.json").read_text())["analyser"] == "english"
    assert capsys.readouterr().err == ""
    ANALYSERS["before"] = BEFORE["english"]
    try:
        BM25Index.build(documents, analyser="before", folder=tmp_path / "old")
    finally:
        del ANALYSERS["before"]
    described = json.loads((tmp_path / "old/index.json").read_text()) | {"analyser": "english"}
    del described["rules"], described["depends_on"]
    (tmp_path / "old/index.json").write_text(json.dumps(described))
    assert [hit.doc_id for hit in search(BM25Index.load(tmp_path / "old"), "archaeology")] == ["d1"]
    assert "is searched by the english stems that it was built with; build it again" in capsys.readouterr().err


def test_texts_are_searched_with_their_positions_as_ids():
    built = BM25Index.build(["a cat on a mat", "dogs"])
    assert built.search("cats", 1) == {"0": [Hit("0", pytest.approx(built.search(["cats"], 1)["0"][0].score))]}
    assert [len(terms) for terms in built.query_terms("cat mat")] == [2]
    assert len(BM25Index.build("a cat on a mat")) == 1
