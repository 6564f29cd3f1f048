"""What the tests of pipelines search."""

from pathlib import Path
from typing import Any

import pytest
from tiny import Tiny

from shortlist import encode, index


@pytest.fixture(scope="session")
def built(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors, an index of words, and two indexes over the vectors."""
    folder = tmp_path_factory.mktemp("built")
    encode.run(encode.Config(model=str(tiny.retriever), collection=str(tiny.collection), out=folder / "vectors"))
    index.run(index.Config(collection=str(tiny.collection), out=folder / "words"))
    for kind in ("narrow", "hnsw"):
        index.run(index.Config(kind=kind, vectors=folder / "vectors", out=folder / kind))  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="session")
def cascade(tiny: Tiny, built: Path) -> dict[str, Any]:
    """Two first stages, a weighted fusion, two rerankers in a row."""
    dense = {"find": "dense", "model": str(tiny.retriever), "vectors": str(built / "vectors"), "depth": 11}
    return {
        "collection": str(tiny.collection),
        "steps": {
            "words": {"find": "bm25", "index": str(built / "words"), "depth": 8},
            "vectors": dense,
            "both": {"fuse": "weighted", "of": ["words", "vectors"], "weights": [0.3, 0.7], "depth": 10},
            "first": {"rank": "pointwise", "model": str(tiny.reranker), "depth": 7, "share": 0.5},
            "second": {"rank": "pointwise", "model": str(tiny.reranker), "depth": 3},
        },
    }
