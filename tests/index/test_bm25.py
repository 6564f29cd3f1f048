import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shortlist import index
from shortlist.errors import UserError
from shortlist.index.bm25 import ANALYSERS, STOP_WORDS, BM25Index, code, english
from shortlist.records import Document, Hit, Query

DOCUMENTS = [
    Document("d1", "A cat sat on the mat."),
    Document("d2", "Cats chase the dogs, and dogs chase the cats.", title="Chasing"),
    Document("d3", "An entirely different matter"),
    Document("d4", ""),
]


def search(built: BM25Index, text: str, k: int = 10) -> list[Hit]:
    return built.search([Query("q", text)], k)["q"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cats' owner's house", ["cat", "owner", "hous"]),
        ("O'Neil’s U.S.A. wi-fi", ["o'neil", "u.s.a", "wi", "fi"]),
        ("1,000.5 km² at 3.14; x,y C++", ["1,000.5", "km", "3.14", "x", "y", "c"]),
        ("foo_bar __ naïve été", ["foo_bar", "naïv", "été"]),
        ("東京 हिन्दी", ["東", "京", "हिन्दी"]),
        ("us s relational conditional", ["us", "s", "relat", "condit"]),
        ("to be or not to be", []),
    ],
)
def test_english_words_are_those_of_lucenes_english_analyzer(text: str, expected: list[str]):
    assert english(text) == expected


def test_there_are_lucenes_33_stop_words():
    assert len(STOP_WORDS) == 33


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parseISODate", ["pars", "iso", "date", "parseisodate"]),
        ("HTTPServer2(snake_case)", ["http", "server", "2", "snake", "case", "httpserver2", "snake_case"]),
        ("for x in __init__:", ["x", "init"]),
        ("parsing dates", ["pars", "date"]),
    ],
)
def test_code_is_split_into_the_parts_of_identifiers_beside_the_whole(text: str, expected: list[str]):
    assert code(text) == expected


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
        else:
            json.loads(path.read_text("utf-8"))


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


def test_the_stage_offers_every_analyser():
    hint = index.Config.__annotations__["analyser"]
    assert set(hint.__args__) == set(ANALYSERS)


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


def test_scifact_is_ranked_as_well_as_by_anserini(shared_data: Path):
    from shortlist.data.collections import open_collection
    from shortlist.evaluate import per_query

    collection = open_collection(str(shared_data / "scifact"))
    run = BM25Index.build(collection.corpus()).search(collection.queries("test"), 100)
    values = per_query(run, collection.qrels("test"), ["nDCG@10", "R@100"])
    assert np.mean(list(values["nDCG@10"].values())) == pytest.approx(0.679, abs=0.003)
    assert np.mean(list(values["R@100"].values())) == pytest.approx(0.925, abs=0.002)
