"""Sparse models open in sentence-transformers with the same numbers."""

import re
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import pytest
import torch
from sparse import TEXTS, write_masked

from shortlist import SparseRetriever, export
from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.models.loading_sparse import sparse_to_train
from shortlist.models.save import save_model
from shortlist.text.contract import InputContract, named_contract


def trained(folder: Path, contract: str = "splade", **reading: Any) -> Path:
    """A model of ours."""

    def adjust(found: InputContract) -> InputContract:
        return replace(found, reading=replace(found.reading, **reading))

    options: dict[str, Any] = {"adjust": adjust, "lookup": lambda inputs, size: torch.arange(size) / 10.0}
    model = sparse_to_train(open_folder(str(write_masked(folder / "bert"))), named_contract(contract), **options)
    save_model(model, folder / "model")
    return folder / "model"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("contract", "reading"), [("splade", {"pooling": "terms-sum"}), ("splade-doc", {"logs": 2})], ids=["sum", "lookup"]
)
def test_an_exported_model_gives_the_same_weights(contract: str, reading: dict[str, Any], tmp_path: Path):
    from sentence_transformers import SparseEncoder

    folder = trained(tmp_path, contract, **reading)
    export.run(export.Config(model=str(folder), to="sentence-transformers", out=tmp_path / "out"))
    copytree(tmp_path / "out", tmp_path / "foreign", ignore=ignore_patterns("contract.json", "manifest.json"))
    ours, theirs = SparseRetriever.load(str(folder)), SparseEncoder(str(tmp_path / "out"), device="cpu")
    for again in (SparseRetriever.load(str(tmp_path / "out")), SparseRetriever.load(str(tmp_path / "foreign"))):
        for encode, here, there in (
            (ours.encode_queries, again.encode_queries, theirs.encode_query),
            (ours.encode_documents, again.encode_documents, theirs.encode_document),
        ):
            expected, elsewhere = encode(TEXTS), np.asarray(there(TEXTS).to_dense())
            rows = np.repeat(np.arange(len(TEXTS)), expected.counts)
            np.testing.assert_allclose(elsewhere[rows, expected.terms], expected.weights, atol=1e-6)
            assert (elsewhere > 0).sum() == len(expected.terms)
            np.testing.assert_array_equal(here(TEXTS).terms, expected.terms)
            np.testing.assert_allclose(here(TEXTS).weights, expected.weights, atol=1e-6)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"queries": "tokens"}, "weighs the tokens of a text by a linear layer"),
        ({"keep_terms": 3}, "keeps some of the terms"),
        ({"logs": 3}, "applies the logarithm more than twice"),
    ],
)
def test_what_has_no_module_there_is_refused(reading: dict[str, Any], message: str, tmp_path: Path):
    folder = trained(tmp_path, **reading)
    with pytest.raises(UserError, match=re.escape(message)):
        export.run(export.Config(model=str(folder), to="sentence-transformers", out=tmp_path / "out"))
