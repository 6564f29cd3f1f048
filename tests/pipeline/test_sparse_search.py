import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from scipy.sparse import load_npz
from sparse import write_masked, write_opensearch
from tiny import QUERIES, Tiny

from shortlist import Pipeline, SparseRetriever, ask, convert, encode, index, search
from shortlist.data.collections import open_collection
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run
from shortlist.data.stores.terms import TermReader, TermWriter
from shortlist.errors import UserError
from shortlist.index.sparse import SparseIndex, SparseSearch
from shortlist.math.terms import TermWeights, dot
from shortlist.settings.encode import Config as EncodeConfig


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model, its term weights, and an index over them."""
    folder = tmp_path_factory.mktemp("sparse")
    write_masked(folder / "model")
    how: dict[str, Any] = {"model": str(folder / "model"), "contract": "splade", "collection": str(tiny.collection)}
    encode.run(EncodeConfig(out=folder / "terms", **how))
    index.run(index.Config(kind="sparse", vectors=folder / "terms", out=folder / "sparse"))
    return folder


@pytest.fixture(scope="module")
def best(tiny: Tiny, made: Path) -> dict[str, list[str]]:
    """Every query's documents, best first, by the definition."""
    model, collection = (
        SparseRetriever.load(str(made / "model"), contract="splade"),
        open_collection(str(tiny.collection)),
    )
    queries, documents = collection.queries("test"), list(collection.corpus())
    scores = dot(model.encode_queries(queries), model.encode_documents(documents))
    order = np.argsort(-scores.round(4), axis=1, kind="stable")
    return {
        query.query_id: [documents[place].doc_id for place in row] for query, row in zip(queries, order, strict=True)
    }


def flags(tiny: Tiny, made: Path) -> dict[str, Any]:
    return {"model": str(made / "model"), "contract": "splade", "collection": str(tiny.collection)}


@pytest.mark.parametrize("where", ["terms", "sparse"])
@pytest.mark.parametrize("name", ["effort", "refine"])
def test_an_effort_that_changes_nothing_is_refused(tiny, made, tmp_path, where, name):
    found: dict[str, Any] = {"vectors": made / where} if where == "terms" else {"index": (made / where,)}
    found[name] = 3
    with pytest.raises(UserError, match=rf"--{name}: .*cannot be searched with more or less of it; leave it out"):
        search.run(search.Config(out=tmp_path / "run", **flags(tiny, made), **found))


@pytest.mark.parametrize("where", ["terms", "sparse"])
def test_search_finds_the_best_by_flags(tiny, made, best, tmp_path, where):
    found: dict[str, Any] = {"vectors": made / where} if where == "terms" else {"index": (made / where,)}
    search.run(search.Config(out=tmp_path / "run", k=3, **flags(tiny, made), **found))
    run = read_run(tmp_path / "run")
    assert {name: [hit.doc_id for hit in run[name]] for name in best} == {name: ids[:3] for name, ids in best.items()}


def test_ask_explains_by_the_terms_that_match(tiny, made, capsys):
    config = ask.Config(question="which apple", k=2, explain=True, index=(made / "sparse",), **flags(tiny, made))
    ask.run(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("terms: ")
    assert sum(line.strip().startswith("has ") for line in lines) == 2
    ask.run(ask.Config(**{**vars(config), "json": True}))
    said = json.loads(capsys.readouterr().out)
    assert list(said["terms"].values()) == sorted(said["terms"].values(), reverse=True)
    for result in said["results"]:
        products = [said["terms"][term] * weight for term, weight in said["matched"][result["doc_id"]]]
        assert sum(products) == pytest.approx(result["score"], rel=1e-5)


def test_texts_in_memory_are_searched(made):
    model = SparseRetriever.load(str(made / "model"), contract="splade")
    texts = ["the apple has a colour.", "which boat, which desk!"]
    found = Pipeline.from_texts(texts, retriever=model, bm25=False).answer(["which boat"], 2)[0].results
    scores = dot(model.encode_queries(["which boat"]), model.encode_documents(texts))[0]
    assert [int(result.document.doc_id) for result in found] == np.argsort(-scores).tolist()
    assert [result.score for result in found] == pytest.approx(sorted(scores, reverse=True), rel=1e-5)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ({"find": "dense", "vectors": "terms"}, "holds term weights, not one vector .* `find: sparse`"),
        ({"find": "late", "index": "sparse"}, "holds term weights, not token vectors"),
    ],
)
def test_a_search_of_another_kind_is_refused(tiny, made, step, why):
    places = {name: str(made / step[name]) for name in ("vectors", "index") if name in step}
    given = {**step, **places, "model": str(made / "model"), "contract": "splade"}
    with pytest.raises(UserError, match=why):
        Pipeline.load(str(tiny.collection), pipeline={"steps": {"one": given}})


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"dtype": "int8"}, "--dtype int8 is for dense and late models, and .* gives weights for terms"),
        ({"keep_tokens": 3}, "--keep-tokens is for late models"),
        ({"segments": "maxp"}, "--segments maxp is for models with one vector"),
    ],
)
def test_settings_without_use_for_sparse_models_are_refused(tiny, made, tmp_path, setting, why):
    with pytest.raises(UserError, match=why):
        encode.run(EncodeConfig(out=tmp_path, **flags(tiny, made), **setting))


def test_weights_are_pruned_and_narrowed_when_encoded(tiny, made, tmp_path):
    encode.run(EncodeConfig(out=tmp_path / "few", keep_terms=3, dtype="uint8", **flags(tiny, made)))
    whole, few = TermReader(made / "terms"), TermReader(tmp_path / "few")
    assert few.counts.tolist() == np.minimum(whole.counts, 3).tolist()
    for (terms, weights), (kept, heavy) in zip(whole.take(np.arange(9)), few.take(np.arange(9)), strict=True):
        assert set(kept.tolist()) == set(terms[np.argsort(-weights, kind="stable")[:3]].tolist())
        assert heavy == pytest.approx(np.sort(weights[np.isin(terms, kept)]) if len(kept) < 2 else heavy)
    assert "agreement" in (read_manifest(tmp_path / "few") or {})["results"]


def test_queries_that_are_looked_up_load_no_model(tiny, tmp_path):
    model = write_opensearch(tmp_path / "model")
    how: dict[str, Any] = {"model": str(model), "collection": str(tiny.collection)}
    encode.run(EncodeConfig(out=tmp_path / "terms", **how))
    pipeline = Pipeline.load(
        str(tiny.collection),
        pipeline={"steps": {"one": {"find": "sparse", "model": str(model), "vectors": str(tmp_path / "terms")}}},
    )
    assert "QueryLookup" in type(pipeline.steps[0].stage.retriever.model).__name__
    assert pipeline.answer(["which apple"], 3)[0].results


@pytest.fixture(scope="module")
def without(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An index that is searched by a lookup, in which no word of the first query weighs anything."""
    folder = tmp_path_factory.mktemp("lookup")
    model = write_opensearch(folder / "model", **dict.fromkeys(QUERIES[0].text.split(), 0.0))
    how: dict[str, Any] = {"model": str(model), "collection": str(tiny.collection)}
    encode.run(EncodeConfig(out=folder / "terms", **how))
    index.run(index.Config(kind="sparse", vectors=folder / "terms", out=folder / "index"))
    index.run(index.Config(collection=str(tiny.collection), out=folder / "words"))
    return {**how, "index": (folder / "index",)}


def test_a_query_without_terms_finds_nothing_and_is_counted(without, tmp_path, capsys):
    search.run(search.Config(out=tmp_path / "run", k=3, **without))
    run = read_run(tmp_path / "run")
    assert run.keys() == {query.query_id for query in QUERIES[1:12]}
    message = "search: 1 of 12 queries have no term that sparse could search by, such as q0; it found nothing for them."
    assert message in capsys.readouterr().err
    search.run(search.Config(out=tmp_path / "one", k=3, split="train", query_terms=1, **without))
    assert "search: 1 of 8 queries have no term" in capsys.readouterr().err
    both = {**without, "index": (without["index"][0].parent / "words", *without["index"])}
    search.run(search.Config(out=tmp_path / "both", k=3, **both))
    assert len(read_run(tmp_path / "both")) == 12
    assert "search: 1 of 12 queries have no term that sparse could search by, such as q0;" in capsys.readouterr().err


def test_a_question_without_terms_finds_nothing_and_is_told(without, capsys):
    ask.run(ask.Config(question=QUERIES[0].text, **without))
    out, err = capsys.readouterr()
    assert out == ""
    assert "ask: the question has no term that sparse could search by, so it found nothing.\n" in err
    assert "nothing found\n" in err
    ask.run(ask.Config(question=QUERIES[0].text, json=True, explain=True, **without))
    said = json.loads(capsys.readouterr().out)
    assert (said["terms"], said["matched"], said["results"]) == ({}, {}, [])
    ask.run(ask.Config(question=QUERIES[1].text, **without))
    assert "no term" not in capsys.readouterr().err


def test_terms_of_another_vocabulary_are_refused(made):
    model, store = SparseRetriever.load(str(made / "model"), contract="splade"), TermReader(made / "terms")
    other = Mock(terms=[*model.terms[:9], "else", *model.terms[10:]])
    with pytest.raises(UserError, match=r"terms: its vocabulary is not that .* term 9 is 'has' and 'else'\); search"):
        SparseSearch(other, SparseIndex(store))
    longer = Mock(terms=[*model.terms, "more"])
    with pytest.raises(UserError, match=r"\(\d+ and \d+ terms; term \d+ is '' and 'more'\)"):
        SparseSearch(longer, SparseIndex(store))


def test_a_store_without_a_record_of_its_model_must_have_the_models_vocabulary(tiny, made, tmp_path):
    store = TermReader(made / "terms")
    names = [name.upper() for name in store.vocabulary]
    TermWriter(tmp_path / "terms", names).write_shard(0, list(store.doc_ids), store.take(np.arange(store.num_docs)))
    with pytest.raises(UserError, match=r"its vocabulary is not that of the model") as error:
        search.run(search.Config(out=tmp_path / "run", vectors=tmp_path / "terms", **flags(tiny, made)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_term_weights_leave_as_a_matrix_and_as_impacts(made, tmp_path):
    store = TermReader(made / "terms")
    convert.run(convert.Config(sources=(str(made / "terms"),), out=tmp_path / "arrays", to="arrays"))
    matrix: Any = load_npz(tmp_path / "arrays/matrix.npz")
    assert matrix.shape == (store.num_docs, store.num_terms)
    assert np.array_equal(matrix.data, store.take(np.arange(store.num_docs)).weights)
    convert.run(convert.Config(sources=(str(made / "terms"),), out=tmp_path / "impacts", to="impacts", factor=10.0))
    records = [json.loads(line) for line in (tmp_path / "impacts/vectors.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == list(store.doc_ids)
    [(terms, weights)] = store.take(np.array([4]))
    expected = {store.vocabulary[t]: max(1, round(float(w) * 10)) for t, w in zip(terms, weights, strict=True)}
    assert records[4]["vector"] == expected


def test_term_weights_leave_for_pgvector(made, tmp_path):
    vectors = pytest.importorskip("pgvector")
    convert.run(convert.Config(sources=(str(made / "terms"),), out=tmp_path / "out", to="sparsevec"))
    store = TermReader(made / "terms")
    rows = [line.split("\t") for line in (tmp_path / "out/vectors.tsv").read_text().splitlines()]
    assert [doc_id for doc_id, _ in rows] == list(store.doc_ids)
    for (_, text), (terms, weights) in zip(rows, store.take(np.arange(store.num_docs)), strict=True):
        vector = vectors.SparseVector.from_text(text)
        assert (vector.dimensions(), vector.indices()) == (store.num_terms, terms.tolist())
        np.testing.assert_array_equal(np.float32(vector.values()), weights)
    one = f"{{{','.join(f'{term + 1}:{weight}' for term, weight in zip(*terms_of(store, 4), strict=True))}}}"
    assert rows[4][1] == f"{one}/{store.num_terms}"


def terms_of(store: TermReader, place: int) -> tuple[list[int], list[str]]:
    [(terms, weights)] = store.take(np.array([place]))
    return terms.tolist(), weights.astype(str).tolist()


def test_pgvectors_limits_are_respected(tmp_path, capsys):
    def written(name: str, most: int) -> Path:
        counts = np.array([0, most])
        weights = TermWeights(np.arange(most, dtype=np.int32), np.ones(most, np.float32), counts)
        TermWriter(tmp_path / name, [f"t{i}" for i in range(most)]).write_shard(0, ["a\\b\tc", "d"], weights)
        return tmp_path / name

    convert.run(convert.Config(sources=(str(written("some", 1001)),), out=tmp_path / "out", to="sparsevec"))
    assert "convert: 1 documents have more than 1,000 terms, which pgvector stores but" in capsys.readouterr().err
    assert (tmp_path / "out/vectors.tsv").read_text().startswith("a\\\\b\\tc\t{}/1001\nd\t{1:1.0,2:1.0,")
    with pytest.raises(
        UserError, match=r"document 'd' has 16,001 terms, and pgvector's sparsevec stores at most 16,000"
    ):
        convert.run(convert.Config(sources=(str(written("many", 16_001)),), out=tmp_path / "no", to="sparsevec"))


def test_term_weights_leave_as_an_inverted_index(made, tmp_path):
    pytest.importorskip("ciff_toolkit")
    from ciff_toolkit.read import CiffReader

    convert.run(convert.Config(sources=(str(made / "terms"),), out=tmp_path / "out", to="ciff", factor=10.0))
    store, found = TermReader(made / "terms"), {}
    with CiffReader(tmp_path / "out/index.ciff") as reader:
        header, lists = reader.read_header(), list(reader.read_postings_lists())
        documents = list(reader.read_documents())
    for one in lists:
        places = np.cumsum([posting.docid for posting in one.postings]).tolist()
        found |= {(place, one.term): posting.tf for place, posting in zip(places, one.postings, strict=True)}
        assert (one.df, one.cf) == (len(one.postings), sum(posting.tf for posting in one.postings))
    assert found == {
        (place, store.vocabulary[term]): max(1, round(float(weight) * 10))
        for place, (terms, weights) in enumerate(store.take(np.arange(store.num_docs)))
        for term, weight in zip(terms.tolist(), weights.tolist(), strict=True)
    }
    assert [one.term for one in lists] == sorted((one.term for one in lists), key=str.encode)
    assert [document.collection_docid for document in documents] == list(store.doc_ids)
    assert header.total_terms_in_collection == sum(document.doclength for document in documents) == sum(found.values())
    assert (header.num_docs, header.num_postings_lists) == (len(documents), len(lists))


def test_a_store_leaves_only_for_what_it_holds(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ciff_toolkit", None)
    with pytest.raises(
        UserError, match="--to ciff: ciff_toolkit is not installed, which it needs; pip install --no-deps"
    ):
        convert.run(convert.Config(sources=(str(made / "terms"),), out=tmp_path / "out", to="ciff"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="expected this source alone and --to arrays or impacts or ciff or sparsevec"):
        convert.run(convert.Config(sources=(str(made / "terms"),), out=tmp_path / "out", to="tevatron"))


def test_seismic_proposes_and_scores_are_exact(tiny, made, best, tmp_path, monkeypatch, capfd):
    pytest.importorskip("seismic")
    from shortlist.index import seismic

    monkeypatch.setattr(seismic, "FEW_ALLOWED", 0)
    index.run(index.Config(kind="seismic", vectors=made / "terms", out=tmp_path / "index", set=("effort=60",)))
    assert capfd.readouterr().out == ""  # the library would print a log
    search.run(search.Config(out=tmp_path / "run", k=3, index=(tmp_path / "index",), **flags(tiny, made)))
    search.run(search.Config(out=tmp_path / "exact", k=3, index=(made / "sparse",), **flags(tiny, made)))
    run, exact = read_run(tmp_path / "run"), read_run(tmp_path / "exact")
    scores = {(name, hit.doc_id): hit.score for name, hits in exact.items() for hit in hits}
    found = [(name, hit.doc_id, hit.score) for name, hits in run.items() for hit in hits]
    same = [scores[name, doc_id] == score for name, doc_id, score in found if (name, doc_id) in scores]
    assert all(same)
    assert len(same) > 0.9 * len(scores)


def test_seismic_is_said_to_be_missing(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "seismic", None)
    with pytest.raises(UserError, match=r"--kind seismic: seismic is not .* pip install 'shortlist\[sparse\]'"):
        index.run(index.Config(kind="seismic", vectors=made / "terms", out=tmp_path / "index"))
    assert not (tmp_path / "index").exists()
