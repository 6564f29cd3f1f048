"""Vectors at fewer dimensions, stored so or cut when they are read."""

from pathlib import Path

import numpy as np
import pytest
from tiny import DOCUMENTS, QUERIES, Tiny

import shortlist.index as index_stage
from shortlist import Retriever, encode, search
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run
from shortlist.data.stores.vectors import VectorReader
from shortlist.errors import UserError
from shortlist.index.opening import check_vectors
from shortlist.models.folder import open_folder
from shortlist.pipeline import Pipeline


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of all 32 dimensions and of 8."""
    folder = tmp_path_factory.mktemp("dims")
    for name, dims in (("32", None), ("8", 8)):
        out = folder / name
        encode.run(encode.Config(model=str(tiny.retriever), collection=str(tiny.collection), out=out, dims=dims))
    return folder


@pytest.fixture(scope="module")
def short(tiny: Tiny) -> Retriever:
    return Retriever.load(str(tiny.retriever), dims=8)


def test_a_retriever_cuts_its_vectors_and_scales_them_again(tiny: Tiny, short: Retriever):
    whole = Retriever.load(str(tiny.retriever)).encode_documents(DOCUMENTS)[:, :8]
    assert short.dim == 8
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(short.encode_documents(DOCUMENTS), expected, atol=1e-6)
    with pytest.raises(UserError, match="has vectors of 32 dimensions, dims has 33"):
        Retriever.load(str(tiny.retriever), dims=33)
    with pytest.raises(UserError, match="dims is 0"):
        Retriever.load(str(tiny.retriever), dims=0)


def test_a_store_holds_the_cut_vectors_and_says_so(made: Path, short: Retriever):
    store = VectorReader(made / "8")
    np.testing.assert_allclose(store.take(np.arange(12)), short.encode_documents(DOCUMENTS), atol=1e-6)
    manifest = read_manifest(made / "8")
    assert manifest is not None
    assert (manifest["config"]["dims"], manifest["results"]["dim"]) == (8, 8)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_vectors_cut_when_they_are_read_are_those_of_the_store(dtype: str, made: Path, tiny: Tiny, tmp_path: Path):
    out = made / "32"
    if dtype != "float32":
        out = tmp_path / dtype
        encode.run(
            encode.Config(
                model=str(tiny.retriever), collection=str(tiny.collection), out=out, dtype=dtype, shard_size=5
            )
        )
    cut, expected = VectorReader(out, dim=8), VectorReader(made / "8").take(np.arange(12))
    atol = {"float32": 1e-6, "float16": 1e-3, "int8": 0.03}[dtype]
    np.testing.assert_allclose(cut.take(np.array([7, 3, 3])), expected[[7, 3, 3]], atol=atol)
    np.testing.assert_allclose(np.concatenate([block.float32() for block in cut.blocks(5)]), expected, atol=atol)
    raw = VectorReader(out, dim=8, unit=False).take(np.arange(12))
    np.testing.assert_allclose(raw, VectorReader(out).take(np.arange(12))[:, :8], atol=1e-6)


@pytest.mark.parametrize(("store", "dims"), [("8", None), ("8", 8), ("32", 8)])
def test_search_finds_the_same_in_stored_and_in_cut_vectors(
    store: str, dims: int | None, made: Path, tiny: Tiny, short: Retriever, tmp_path: Path
):
    common = {"collection": str(tiny.collection), "model": str(tiny.retriever), "k": 3}
    search.run(search.Config(**common, vectors=made / store, dims=dims, out=tmp_path / "run.trec"))
    scores = short.encode_queries(QUERIES) @ short.encode_documents(DOCUMENTS).T
    run = read_run(tmp_path / "run.trec")
    for query, row in zip(QUERIES, scores, strict=True):
        hits = run[query.query_id]
        assert [hit.doc_id for hit in hits] == [f"d{i}" for i in np.argsort(-row)[:3]]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1][:3], atol=1e-5)


def test_an_index_over_cut_vectors_is_searched_by_cut_queries(made: Path, tiny: Tiny, tmp_path: Path):
    index_stage.run(index_stage.Config(vectors=made / "8", kind="narrow", out=tmp_path / "narrow"))
    runs = [
        Pipeline.load(str(tiny.collection), retriever=str(tiny.retriever), **where).trace(QUERIES[:2], 3).last.run
        for where in ({"index": tmp_path / "narrow"}, {"vectors": made / "8"}, {"vectors": made / "32", "dims": 8})
    ]
    found = [[[hit.doc_id for hit in hits] for hits in run.values()] for run in runs]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("store", "dims", "message"),
    [
        ("8", 16, "holds vectors of 8 dimensions, dims is 16; encode again with dims 16"),
        ("8", 32, "holds vectors of 8 dimensions, dims is 32; encode again"),
        ("32", 0, "dims is 0"),
    ],
)
def test_dimensions_that_the_vectors_lack_are_refused(store: str, dims: int, message: str, made: Path, tiny: Tiny):
    with pytest.raises(UserError, match=message):
        Pipeline.load(str(tiny.collection), retriever=str(tiny.retriever), vectors=made / store, dims=dims)


def test_an_index_is_not_cut(made: Path, tiny: Tiny, tmp_path: Path):
    index_stage.run(index_stage.Config(vectors=made / "32", kind="narrow", out=tmp_path / "narrow"))
    with pytest.raises(UserError, match="holds vectors of 32 dimensions, dims is 8; index vectors encoded with"):
        Pipeline.load(str(tiny.collection), retriever=str(tiny.retriever), index=tmp_path / "narrow", dims=8)


def test_the_model_and_dimensions_of_a_store_are_checked_against_its_contract(made: Path, tiny: Tiny):
    check_vectors(made / "8", open_folder(str(tiny.retriever)))
    check_vectors(made / "32", open_folder(str(tiny.retriever)))
