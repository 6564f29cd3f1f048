import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import load_retriever
from tiny import DOCUMENTS, QUERIES, Tiny, write_collection

import shortlist.index as index_stage
from shortlist import encode, search
from shortlist.data.formats import write_qrels
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run
from shortlist.data.stores.vectors import VectorReader
from shortlist.errors import UserError
from shortlist.index.dense import DenseSearch
from shortlist.index.flat import FlatIndex
from shortlist.math.fusion import rrf, weighted
from shortlist.models.retriever import Retriever
from shortlist.models.run import embed_documents, embed_queries
from shortlist.models.save import save_model
from shortlist.pipeline import Pipeline
from shortlist.pipeline.flags import from_flags
from shortlist.pipeline.steps import FUSED_DEPTH
from shortlist.records import Run
from shortlist.text.inputs import Inputs
from shortlist.text.segments import named_segments


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index and vectors."""
    folder = tmp_path_factory.mktemp("search")
    index_stage.run(index_stage.Config(collection=str(tiny.collection), out=folder / "index"))
    encode.run(encode.Config(model=str(tiny.retriever), collection=str(tiny.collection), out=folder / "vectors"))
    return folder


def test_an_index_and_vectors_older_than_their_collection_say_so(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(tiny.collection, tmp_path / "c")
    index_stage.run(index_stage.Config(collection=str(tmp_path / "c"), out=tmp_path / "index"))
    encode.run(encode.Config(model=str(tiny.retriever), collection=str(tmp_path / "c"), out=tmp_path / "vectors"))
    config = search.Config(
        collection=str(tmp_path / "c"),
        index=(tmp_path / "index",),
        model=str(tiny.retriever),
        vectors=tmp_path / "vectors",
        out=tmp_path / "run.trec",
    )
    search.run(config)
    assert "was not made from" not in capsys.readouterr().err
    with (tmp_path / "c" / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "new", "text": "a new document"}\n')
    search.run(config)
    err = capsys.readouterr().err
    for name, way in (("index", "index` with the same settings"), ("vectors", "encode --update`")):
        said = f"{tmp_path / name}: was not made from what {tmp_path / 'c'} holds now; `shortlist {way} brings it up"
        assert said in err


@pytest.fixture
def sparse(tiny: Tiny, made: Path, tmp_path: Path) -> search.Config:
    return search.Config(collection=str(tiny.collection), index=(made / "index",), k=5, out=tmp_path / "run.trec")


@pytest.fixture
def dense(tiny: Tiny, made: Path, tmp_path: Path) -> search.Config:
    return search.Config(
        collection=str(tiny.collection),
        model=str(tiny.retriever),
        vectors=made / "vectors",
        k=5,
        out=tmp_path / "run.trec",
    )


@pytest.fixture
def both(dense: search.Config, made: Path) -> search.Config:
    return replace(dense, index=(made / "index",))


def found(config: search.Config) -> Run:
    search.run(config)
    assert config.out is not None
    return read_run(config.out)


def ids(run: Run) -> dict[str, list[str]]:
    return {query_id: [hit.doc_id for hit in hits] for query_id, hits in run.items()}


def test_bm25_finds_the_document_with_the_querys_rare_word(sparse: search.Config):
    run = found(sparse)
    assert list(run) == [query.query_id for query in QUERIES]
    assert all(hits[0].doc_id == "d" + query_id[1:] for query_id, hits in run.items())
    assert all(0 < len(hits) <= 5 for hits in run.values())


def test_dense_search_ranks_by_the_similarity_of_vectors(dense: search.Config, tiny: Tiny):
    model = load_retriever(str(tiny.retriever)).eval()
    scores = torch.from_numpy(embed_queries(model, QUERIES) @ embed_documents(model, DOCUMENTS).T)
    run = found(dense)
    for query, row in zip(QUERIES, scores, strict=True):
        best = row.topk(5)
        assert [hit.doc_id for hit in run[query.query_id]] == [f"d{i}" for i in best.indices.tolist()]
        assert [hit.score for hit in run[query.query_id]] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_many_queries_are_searched_in_parts(both: search.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = found(replace(both, out=tmp_path / "whole"))
    monkeypatch.setattr(search, "HITS_AT_ONCE", 14)  # two queries of five hits
    parts = found(replace(both, out=tmp_path / "parts"))
    assert list(parts) == list(whole)
    assert ids(parts) == ids(whole)


@pytest.mark.slow
def test_index_and_vectors_together_are_searched_and_fused(
    sparse: search.Config, dense: search.Config, both: search.Config, tmp_path: Path
):
    parts = [found(replace(one, k=100, out=tmp_path / name)) for one, name in ((sparse, "a"), (dense, "b"))]
    expected = {query_id: hits[:5] for query_id, hits in rrf(parts).items()}
    assert ids(found(replace(both, out=tmp_path / "c"))) == ids(expected)
    assert ids(expected) != {query_id: ranked[:5] for query_id, ranked in ids(parts[0]).items()}


def test_only_the_queries_of_the_split_are_searched(sparse: search.Config):
    assert len(found(replace(sparse, split="train"))) == 8


def test_the_manifest_says_how_long_a_query_takes(dense: search.Config):
    found(dense)
    assert dense.out is not None
    manifest = read_manifest(dense.out)
    assert manifest is not None
    assert manifest["results"]["num_queries"] == 12
    assert manifest["results"]["ms_per_query"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"collection": None}, "--collection is missing"),
        ({"k": 0}, "--k is 0"),
        ({"model": None}, "--vectors without --model"),
        ({"vectors": None, "index": (Path("nowhere"),)}, "nowhere: no such file or folder"),
        ({"vectors": Path("nowhere")}, "nowhere: no such file or folder"),
        ({"index": (Path("nowhere"),)}, "nowhere: no such file or folder"),
        ({"split": "tets"}, "perhaps 'test'"),
        ({"pipeline": Path("nowhere.yaml")}, "--pipeline says what is searched; leave out --model, --vectors"),
        ({"engine": "ray", "vectors": Path("nowhere")}, "nowhere: no such file or folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused(dense: search.Config, change: dict, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        search.run(replace(dense, **change))
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_another_model_are_refused(dense: search.Config, tiny: Tiny, tmp_path: Path):
    other = load_retriever(str(tiny.retriever))
    for p in other.parameters():
        p.data += 0.1
    save_model(other, tmp_path / "other")
    with pytest.raises(UserError, match=r"vectors: its vectors were not made by what --model .*other holds now"):
        search.run(replace(dense, model=str(tmp_path / "other")))


def test_vectors_that_were_never_finished_are_refused(dense: search.Config, tmp_path: Path, made: Path):
    folder = tmp_path / "vectors"
    folder.mkdir()
    for path in (made / "vectors").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    with pytest.raises(UserError, match="`shortlist encode` has not finished here; run it again"):
        search.run(replace(dense, vectors=folder))


def test_the_same_search_is_done_once_and_other_queries_are_another_job(
    tiny: Tiny, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    collection = write_collection(tmp_path / "collection")
    config = search.Config(collection=str(collection), index=(made / "index",), out=tmp_path / "run.trec")
    first = found(config)
    write_qrels(collection / "qrels" / "test.tsv", {f"q{i}": {"d0": 2} for i in range(12)})
    assert found(config) == first
    assert "already done" in capsys.readouterr().err
    write_qrels(collection / "qrels" / "test.tsv", {"q3": {"d3": 1}})
    with pytest.raises(UserError, match="collection: the contents of"):
        search.run(config)
    assert list(found(replace(config, overwrite=True))) == ["q3"]


def test_queries_without_judgements_are_all_searched(tiny: Tiny, made: Path, tmp_path: Path):
    collection = write_collection(tmp_path / "collection")
    shutil.rmtree(collection / "qrels")
    config = search.Config(collection=str(collection), index=(made / "index",), split="all", out=tmp_path / "run.trec")
    assert len(found(config)) == 12


def test_dense_searches_as_deep_as_there_are_documents(dense: search.Config, tiny: Tiny, made: Path):
    retriever = Retriever.load(str(tiny.retriever))
    run = DenseSearch(retriever, FlatIndex(VectorReader(made / "vectors"))).search(QUERIES[:2], 99)
    assert [len(hits) for hits in run.values()] == [12, 12]


def test_two_first_stages_are_fused_as_asked(both: search.Config, sparse: search.Config, dense: search.Config):
    run = found(replace(both, fusion="weighted", weights=(0.25, 0.75), k=12, overwrite=True))
    words, vectors = (
        Pipeline.open(from_flags(one, collection=one.collection)).trace(QUERIES, FUSED_DEPTH).last.run
        for one in (sparse, dense)
    )
    assert ids(run) == ids(weighted([words, vectors], weights=(0.25, 0.75)))
    with pytest.raises(UserError, match="--weights has 3 numbers for 2 first stages"):
        search.run(replace(both, weights=(1.0, 2.0, 3.0), overwrite=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["narrow", "hnsw", "ivf-flat", "ivf-pq"])
def test_an_index_over_vectors_finds_what_exact_search_does(
    dense: search.Config, both: search.Config, made: Path, tmp_path: Path, kind: str
):
    index_stage.run(index_stage.Config(kind=kind, vectors=made / "vectors", out=tmp_path / "index"))
    exact = found(dense)
    over = replace(dense, vectors=None, index=(tmp_path / "index",), out=tmp_path / "over.trec", refine=8)
    over = replace(over, effort=None if kind == "narrow" else 12)
    run = found(over)
    assert ids(run) == ids(exact)
    assert [h.score for h in run["q3"]] == pytest.approx([h.score for h in exact["q3"]], abs=1e-6)
    hybrid = replace(over, index=(*both.index, tmp_path / "index"), overwrite=True)
    assert ids(found(hybrid)) == ids(found(replace(both, overwrite=True)))


def test_vectors_of_another_contract_are_refused(tiny: Tiny, tmp_path: Path):
    made = encode.Config(
        model=str(tiny.llama), contract="repllama", collection=str(tiny.collection), out=tmp_path / "v", max_length=9
    )
    encode.run(made)
    where = {"collection": str(tiny.collection), "model": str(tiny.llama), "vectors": tmp_path / "v"}
    config = search.Config(**where, out=tmp_path / "run.trec")
    search.run(replace(config, contract="repllama"))
    with pytest.raises(UserError, match=r"v: its vectors were made with the input contract repllama, which is not"):
        search.run(replace(config, contract="bert", out=tmp_path / "other.trec"))


@pytest.mark.parametrize("kind", [None, "narrow", "hnsw"])
def test_a_document_is_found_by_its_best_segment(tiny: Tiny, dense: search.Config, kind: Any, tmp_path: Path):
    segments = {"segments": "maxp", "window": 16, "stride": 4}
    encode.run(encode.Config(model=dense.model, collection=dense.collection, out=tmp_path / "v", **segments))  # type: ignore[arg-type]
    asked = replace(dense, vectors=tmp_path / "v", k=5)
    if kind:
        index_stage.run(index_stage.Config(kind=kind, vectors=tmp_path / "v", out=tmp_path / "index"))
        asked = replace(asked, vectors=None, index=(tmp_path / "index",))
    run = found(asked)
    retriever = load_retriever(str(tiny.retriever)).eval()
    retriever.inputs = Inputs(retriever.inputs.form.with_lengths(document=16), retriever.inputs.tokenizer)
    parts = [list(named_segments(retriever.inputs, [document], stride=4)) for document in DOCUMENTS]
    assert max(map(len, parts)) > 1
    vectors = embed_queries(retriever, QUERIES)
    scores = np.stack([(vectors @ embed_documents(retriever, some).T).max(1) for some in parts], axis=1)
    for query, row in zip(QUERIES, scores, strict=True):
        best = np.argsort(-row, kind="stable")[:5]
        assert [hit.doc_id for hit in run[query.query_id]] == [DOCUMENTS[i].doc_id for i in best]
        assert [hit.score for hit in run[query.query_id]] == pytest.approx(row[best].tolist(), abs=1e-6)


def test_judged_queries_without_a_text_are_left_out_and_counted_if_asked(
    sparse: search.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_collection(tmp_path / "collection")
    write_qrels(folder / "qrels" / "test.tsv", {"q0": {"d0": 1}, "gone": {"d1": 1}, "blank": {"d2": 1}})
    with (folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": "blank", "text": " "}\n')
    config = replace(sparse, collection=str(folder))
    with pytest.raises(UserError, match="query 'blank' has no text"):
        search.run(config)
    assert list(found(replace(config, skip_missing=True))) == ["q0"]
    message = "search: left out 2 of 3 queries; "
    assert message in capsys.readouterr().err
    write_qrels(folder / "qrels" / "test.tsv", {"gone": {"d1": 1}})
    with pytest.raises(UserError, match="no query of split 'test' is left to search with"):
        search.run(replace(config, skip_missing=True, overwrite=True))


def test_excluded_documents_leave_before_the_cut_and_before_later_steps(made: Path, tiny: Tiny, tmp_path: Path, capsys):
    shutil.copytree(tiny.collection, tmp_path / "c")
    how = {"collection": str(tmp_path / "c"), "index": (made / "index",), "k": 3}
    search.run(search.Config(**how, out=tmp_path / "all.trec"))
    found = {query_id: [hit.doc_id for hit in hits] for query_id, hits in read_run(tmp_path / "all.trec").items()}
    (tmp_path / "list.tsv").write_text(f"q0\t{found['q0'][0]}\nq0\t{found['q0'][1]}\nq1\tunknown\n")
    search.run(search.Config(**how, out=tmp_path / "some.trec", exclude=tmp_path / "list.tsv"))
    left = {query_id: [hit.doc_id for hit in hits] for query_id, hits in read_run(tmp_path / "some.trec").items()}
    assert left["q0"][0] == found["q0"][2]
    assert len(left["q0"]) == 3  # others have moved up
    assert {query_id: ids for query_id, ids in left.items() if query_id != "q0"} == {
        query_id: ids for query_id, ids in found.items() if query_id != "q0"
    }
    assert "search: left out 2 hits that" in capsys.readouterr().err
    (tmp_path / "c" / "exclude").mkdir()
    (tmp_path / "list.tsv").rename(tmp_path / "c" / "exclude" / "test.tsv")
    search.run(search.Config(**how, out=tmp_path / "own.trec"))  # the collection's own list
    assert (tmp_path / "own.trec").read_bytes() == (tmp_path / "some.trec").read_bytes()
