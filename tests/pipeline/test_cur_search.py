import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from named import reranker_to_train
from tiny import DOCUMENTS, QUERIES, Tiny, shaken, write_collection

from shortlist import Pipeline, encode, index, search
from shortlist.data.formats import write_corpus
from shortlist.data.manifest import stages
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.models.save import save_model
from shortlist.rerankers.reranker import Reranker
from shortlist.settings.encode import Config as EncodeConfig


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the reranker's scores, vectors of the retriever, and an index of words."""
    folder, data = tmp_path_factory.mktemp("cur"), str(tiny.collection)
    queries, model = tiny.collection / "queries.jsonl", str(tiny.reranker)
    index.run(index.Config(kind="cur", collection=data, queries=queries, model=model, out=folder / "cur"))
    encode.run(EncodeConfig(model=str(tiny.retriever), collection=data, out=folder / "vectors"))
    index.run(index.Config(collection=data, out=folder / "words"))
    return folder


def step(tiny: Tiny, made: Path, **changes: Any) -> dict[str, Any]:
    given = {"find": "cur", "index": str(made / "cur"), "model": str(tiny.reranker), "budget": 8}
    given |= changes
    return {"steps": {"cur": {name: value for name, value in given.items() if value is not None}}}


def over_vectors(tiny: Tiny, made: Path, **changes: Any) -> dict[str, Any]:
    vectors = {"vectors": str(made / "vectors"), "retriever": str(tiny.retriever)}
    return step(tiny, made, **{"index": None} | vectors | changes)


@pytest.mark.parametrize("how", ["scores", "vectors", "both", "inverse", "nearest"])
def test_with_a_budget_of_all_documents_the_hits_are_the_rerankers_order(tiny: Tiny, made: Path, how: str):
    described = {
        "scores": step(tiny, made, budget=12),
        "vectors": over_vectors(tiny, made, budget=12),
        "both": over_vectors(tiny, made, index=str(made / "cur"), budget=12),
        "inverse": step(tiny, made, fit="inverse", anchors=4, budget=12),
        "nearest": over_vectors(tiny, made, fit="inverse", budget=12),
    }[how]
    pipeline = Pipeline.load(str(tiny.collection), pipeline=described)
    scores = Reranker.load(str(tiny.reranker)).score(QUERIES[0], DOCUMENTS)
    found = pipeline.search(QUERIES[0].text, 12)
    assert [result.document.doc_id for result in found] == [f"d{place}" for place in np.argsort(-scores)]
    np.testing.assert_allclose([result.score for result in found], np.sort(scores)[::-1], atol=1e-5)


def test_by_the_querys_own_vector_alone_it_is_reranking_what_the_retriever_finds(tiny: Tiny, made: Path):
    data = str(tiny.collection)
    alone = Pipeline.load(data, pipeline=over_vectors(tiny, made, fit="inverse", prior=1.0, rounds=3, budget=5))
    plain = Pipeline.load(
        data, retriever=str(tiny.retriever), vectors=made / "vectors", reranker=str(tiny.reranker), depth=5
    )
    for query in QUERIES[:4]:
        found, expected = alone.search(query.text, 5), plain.search(query.text, 5)
        assert [hit.document.doc_id for hit in found] == [hit.document.doc_id for hit in expected]
        np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-5)


def test_a_run_counts_the_pairs_that_were_read(tiny: Tiny, made: Path, tmp_path: Path):
    described = step(tiny, made)
    described["steps"]["again"] = {"rank": "pointwise", "model": str(tiny.reranker), "depth": 3}
    (tmp_path / "cur.yaml").write_text(json.dumps({"collection": str(tiny.collection), **described}))
    search.run(search.Config(pipeline=tmp_path / "cur.yaml", k=5, out=tmp_path / "run"))
    assert {len(hits) for hits in read_run(tmp_path / "run").values()} == {5}
    first, second = stages(tmp_path / "run")
    assert (first["pairs_per_query"], second["pairs_per_query"]) == (8, 3)
    assert first["num_parameters"] == second["num_parameters"]
    assert first["model"] == second["model"]


def test_queries_are_searched_a_few_at_a_time(tiny: Tiny, made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "RERANKED_AT_ONCE", 5)
    pipeline = Pipeline.load(str(tiny.collection), pipeline=step(tiny, made))
    parts = list(search.search(pipeline, QUERIES, 5))
    assert [len(part.run) for part in parts] == [5, 5, 2]
    assert [part.num_read for part in parts] == [{"cur": 40}, {"cur": 40}, {"cur": 16}]


def test_a_filter_is_kept(tiny: Tiny, made: Path, tmp_path: Path):
    documents = [one._replace(metadata={"even": not number % 2}) for number, one in enumerate(DOCUMENTS)]
    folder = write_collection(tmp_path / "data")
    write_corpus(folder / "corpus.jsonl", documents)
    queries, model = folder / "queries.jsonl", str(tiny.reranker)
    index.run(index.Config(kind="cur", collection=str(folder), queries=queries, model=model, out=tmp_path / "cur"))
    pipeline = Pipeline.load(str(folder), pipeline=step(tiny, made, index=str(tmp_path / "cur"), budget=12))
    found = pipeline.search("which colour has the apple", 12, where="even = true")
    assert {result.document.doc_id for result in found} == {f"d{number}" for number in range(0, 12, 2)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fit": "inverse", "anchors": 4, "budget": 3},
            "with budget 3, rounds 5 and prior 0.5; expected a budget of 4 or more",
        ),
        ({"rounds": 0}, "rounds 0"),
        (
            {"fit": "inverse", "anchors": 50, "budget": 60},
            "anchors is 50; the index holds 12 anchor queries and 12 documents",
        ),
        ({"fit": "other"}, "other"),
        ({"index": "words"}, "words: an index of kind bm25; `find: cur` searches one of kind cur"),
        ({"index": None}, "takes an index of the kind cur, or vectors, or both"),
        ({"vectors": "vectors", "fit": "inverse"}, "or both, of which `fit: inverse` takes one"),
        ({"vectors": "vectors"}, "retriever is missing"),
        ({"retriever": "vectors"}, "a retriever is used with vectors"),
        ({"anchors": 4}, "anchors are read by `fit: inverse` over an index"),
        ({"prior": 0.1}, "a prior is used by `fit: inverse` over vectors"),
        ({"index": None, "vectors": "vectors", "fit": "inverse", "anchors": 3}, "anchors are read by"),
        ({"index": None, "vectors": "vectors", "fit": "inverse", "prior": 1.5}, "prior 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny: Tiny, made: Path, changes: dict[str, Any], message: str):
    changes = {
        name: str(made / value) if isinstance(value, str) and name != "fit" else value
        for name, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        Pipeline.load(str(tiny.collection), pipeline=step(tiny, made, **changes))


def test_another_models_index_is_refused(tiny: Tiny, made: Path, tmp_path: Path):
    save_model(shaken(reranker_to_train(str(tiny.llama), None, seed=0)), tmp_path / "other")
    with pytest.raises(UserError, match=r"its scores were not made by what model .*other holds now"):
        Pipeline.load(str(tiny.collection), pipeline=step(tiny, made, model=str(tmp_path / "other")))


def test_another_collections_index_is_refused(tiny: Tiny, made: Path, tmp_path: Path):
    folder = write_collection(tmp_path / "data")
    write_corpus(folder / "corpus.jsonl", [*DOCUMENTS[:-1], DOCUMENTS[-1]._replace(text="another text")])
    with pytest.raises(UserError, match=r"holds scores of other documents than .*data has now"):
        Pipeline.load(str(folder), pipeline=step(tiny, made))


def test_other_ways_to_search_it_are_refused(tiny: Tiny, made: Path):
    data, only = str(tiny.collection), {"find": "index", "index": str(made / "cur")}
    with pytest.raises(UserError, match="an index of kind cur; search it with `find: cur`"):
        Pipeline.load(data, pipeline={"steps": {"any": only}})
    with pytest.raises(UserError, match=r"an index of kind cur; search it by a .*pipeline with `find: cur`"):
        Pipeline.load(data, index=made / "cur")
