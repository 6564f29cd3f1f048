"""What the tests of this room share."""

import pytest

from shortlist import Pipeline, encode, index


@pytest.fixture(scope="session")
def pipeline(tiny, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Words, vectors and a reranker over the tiny collection."""
    folder = tmp_path_factory.mktemp("pipeline")
    encode.run(encode.Config(model=str(tiny.retriever), collection=str(tiny.collection), out=folder / "vectors"))
    index.run(index.Config(collection=str(tiny.collection), out=folder / "words"))
    names = {"retriever": str(tiny.retriever), "vectors": folder / "vectors", "bm25": folder / "words"}
    return Pipeline.load(str(tiny.collection), **names, reranker=str(tiny.reranker))
