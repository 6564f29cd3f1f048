"""Late models: the vectors of every token, encoded by the command that encodes one for each text."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from late import DIM, write_stanford
from processes import kill_when
from tiny import DOCUMENTS, Tiny

from shortlist import encode, verify
from shortlist.cli import main
from shortlist.data.formats import write_corpus
from shortlist.data.stores.shards import CODEBOOK, finished_shards
from shortlist.data.stores.tokens import RESIDUALS, TokenReader, TokenWriter, as_stored
from shortlist.encode.embedding import EMBEDDINGS, Shard
from shortlist.errors import UserError
from shortlist.math.maxsim import TokenVectors
from shortlist.math.thinning import thinned
from shortlist.models.late_retriever import LateRetriever
from shortlist.records import Document


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_stanford(tmp_path_factory.mktemp("late") / "model"))


@pytest.fixture
def config(tiny: Tiny, model: str, tmp_path: Path) -> encode.Config:
    return encode.Config(model=model, collection=str(tiny.collection), out=tmp_path / "vectors", shard_size=5)


def write_texts(folder: Path, documents: list[Document]) -> str:
    write_corpus(folder / "corpus.jsonl", documents)
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n')
    return str(folder)


def embedded(model: str, documents: list[Document]) -> TokenVectors:
    vectors = LateRetriever.load(model).encode_documents(documents)
    assert isinstance(vectors, TokenVectors)
    return vectors


def holds(out: Path, expected: TokenVectors, documents: list[Document], atol: float = 1e-6) -> None:
    store = TokenReader(out)
    assert list(store.doc_ids) == [document.doc_id for document in documents]
    found = store.take(np.arange(store.num_docs))
    assert found.counts.tolist() == expected.counts.tolist()
    np.testing.assert_allclose(found.values, expected.values, atol=atol)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in ("manifest.json", "config.yaml")}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "residual4"])
def test_a_late_model_gives_a_token_store_in_corpus_order(
    config: encode.Config, dtype: Any, capsys: pytest.CaptureFixture[str]
):
    encode.run(replace(config, dtype=dtype))
    expected = embedded(config.model, DOCUMENTS)
    holds(config.out, expected, DOCUMENTS, atol={"float32": 1e-6, "residual4": 0.5}.get(dtype, 0.01))
    results = json.loads((config.out / "manifest.json").read_text())["results"]
    assert {name: results[name] for name in ("num_docs", "num_tokens", "dim", "dtype")} == {
        "num_docs": 12,
        "num_tokens": len(expected.values),
        "dim": DIM,
        "dtype": dtype,
    }
    assert "token_pooling" not in results
    said = re.findall("agreement with fp32 in float32 on 12 documents: cosine ([01][.][0-9]+)", capsys.readouterr().err)
    assert [float(cosine) > 0.9 for cosine in said] == ([] if dtype == "float32" else [True])
    files = json.loads((config.out / "manifest.json").read_text())["files"]
    assert (CODEBOOK in files) == (dtype in RESIDUALS)


def test_vectors_are_pooled_and_kept_before_they_are_stored(config: encode.Config, capsys: pytest.CaptureFixture[str]):
    encode.run(replace(config, pool_tokens=2.0, keep_tokens=4))
    holds(config.out, thinned(embedded(config.model, DOCUMENTS), factor=2.0, budget=4), DOCUMENTS)
    assert TokenReader(config.out).counts.max() == 4
    assert "agreement with fp32 in float32" in capsys.readouterr().err
    manifest = json.loads((config.out / "manifest.json").read_text())
    assert (manifest["results"]["token_pooling"], manifest["config"]["pool_tokens"]) == ("hierarchical", 2.0)
    with pytest.raises(UserError, match=r"keep_tokens: 4 there, 5 now"):
        encode.run(replace(config, pool_tokens=2.0, keep_tokens=5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": "maxp"}, "--segments maxp is for models with one vector for each text, and .* a vector for each"),
        ({"segments": "avgp"}, "--segments avgp is for models with one vector"),
        ({"pool_tokens": 0.5}, "--pool-tokens is 0.5; expected at least 1"),
        ({"pool_tokens": float("nan")}, "--pool-tokens is nan; expected at least 1"),
        ({"keep_tokens": 0}, "--keep-tokens is 0; expected at least 1"),
        ({"dtype": "residual1"}, f"token vectors have {DIM} dimensions, and residual1 packs 8"),
    ],
)
def test_settings_that_make_no_sense_for_a_late_model_are_refused(config: encode.Config, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        encode.run(replace(config, **change))
    assert finished_shards(config.out) == []


@pytest.mark.parametrize("change", [{"pool_tokens": 2.0}, {"keep_tokens": 9}, {"dtype": "residual2"}])
def test_settings_of_late_models_are_refused_for_others(tiny: Tiny, config: encode.Config, change: dict):
    with pytest.raises(UserError, match=r"is for late models, and .* gives one vector for each text; leave it out"):
        encode.run(replace(config, model=str(tiny.retriever), **change))
    assert not config.out.exists()


@pytest.mark.parametrize("last", [0, 2])
def test_an_interrupted_encoding_goes_on_to_the_same_bytes(
    config: encode.Config, monkeypatch: pytest.MonkeyPatch, last: int
):
    config = replace(config, dtype="residual2", shard_size=3)
    write = TokenWriter.write_rows

    def until_interrupted(self: TokenWriter, number: int, *shard: Any) -> None:
        if number == last:
            raise KeyboardInterrupt
        write(self, number, *shard)

    with monkeypatch.context() as patch:
        patch.setattr(TokenWriter, "write_rows", until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode.run(config)
    assert finished_shards(config.out) == list(range(last))
    assert (config.out / CODEBOOK).exists()
    encode.run(config)
    whole = replace(config, out=config.out.with_name("whole"))
    encode.run(whole)
    assert contents(config.out) == contents(whole.out)


@pytest.mark.slow
def test_a_killed_encoding_goes_on_to_the_same_bytes(model: str, tmp_path: Path):
    texts = [Document(f"x{i}", f"{DOCUMENTS[i % 12].text} {DOCUMENTS[i % 7].text}") for i in range(300)]
    write_texts(tmp_path / "c", texts)

    def command(out: Path) -> list[str]:
        paths = ["--model", model, "--collection", str(tmp_path / "c"), "--out", str(out)]
        return ["encode", *paths, "--shard-size", "10", "--dtype", "residual2", "--pool-tokens", "2"]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    kill_when(lambda: len(finished_shards(broken)) >= 3, command(broken))
    assert len(finished_shards(broken)) < 30
    assert main(command(broken)) == 0
    assert main(command(whole)) == 0
    assert contents(broken) == contents(whole)


@pytest.mark.parametrize("dtype", ["float32", "residual4"])
def test_an_update_embeds_what_is_new_and_keeps_the_codebook(
    config: encode.Config, dtype: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = replace(config, collection=write_texts(tmp_path / "c", DOCUMENTS), dtype=dtype)
    encode.run(config)
    before = TokenReader(config.out)
    codebook = (config.out / CODEBOOK).read_bytes() if dtype in RESIDUALS else None
    documents = [Document("new", "the lamp has a price"), *DOCUMENTS[:3], *DOCUMENTS[5:]]
    write_texts(tmp_path / "c", documents)
    encode.run(replace(config, update=True))
    for compacted in (False, True):
        if compacted:
            encode.run(replace(config, compact=True))
        store = TokenReader(config.out)
        assert list(store.doc_ids) == [document.doc_id for document in documents]
        old = before.take(np.array([0, 1, 2, *range(5, 12)]))
        assert np.array_equal(store.take(np.arange(1, 11)).values, old.values)  # not embedded nor rounded again
        exact = embedded(config.model, documents[:1]).values
        assert (store.take(np.array([0])).values * exact).sum(1).min() > 0.5
        assert verify.misplaced(config.out) is None
        assert (config.out / CODEBOOK).read_bytes() == codebook if codebook else not (config.out / CODEBOOK).exists()
    assert (store.num_docs, store.num_rows) == (11, 11)
    assert "encode: dropped the vectors of 2 documents that are gone." in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [CODEBOOK, "shard-00001.counts", "shard-00000.codes", "shard-00002.json"])
def test_damage_is_found_and_repaired_to_the_same_bytes(
    config: encode.Config, damaged: str, capsys: pytest.CaptureFixture[str]
):
    encode.run(replace(config, dtype="residual4"))
    before = contents(config.out)
    path = config.out / damaged
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert main(["verify", str(config.out)]) == 1
    assert damaged in capsys.readouterr().err
    assert main(["verify", str(config.out), "--repair"]) == 0
    assert contents(config.out) == before
    assert main(["verify", str(config.out)]) == 0
    assert "12 documents, each once; every byte is as it was written." in capsys.readouterr().out


def test_a_store_that_was_updated_is_repaired_without_its_codebook(config: encode.Config, tmp_path: Path):
    config = replace(config, collection=write_texts(tmp_path / "c", DOCUMENTS), dtype="residual4")
    encode.run(config)
    write_texts(tmp_path / "c", DOCUMENTS[3:])
    encode.run(replace(config, update=True))
    (config.out / CODEBOOK).write_bytes(b"")
    assert main(["verify", str(config.out), "--repair"]) == 0
    assert main(["verify", str(config.out)]) == 0
    assert list(TokenReader(config.out).doc_ids) == [document.doc_id for document in DOCUMENTS[3:]]


def test_other_shards_wait_for_the_one_that_a_codebook_is_fitted_to(tmp_path: Path):
    def come(*numbers: int) -> Iterator[tuple[Shard]]:
        yield from ((Shard(number, [], np.empty((0, 1), dtype=np.float32), b""),) for number in numbers)

    def go(dtype: str, *numbers: int) -> list[int]:
        return [shard.number for (shard,) in EMBEDDINGS["LateRetriever"].arrange(tmp_path, dtype, come(*numbers))]

    assert go("residual2", 2, 1, 0, 4, 3) == [0, 2, 1, 4, 3]
    assert go("residual2", 2, 1) == [2, 1]
    assert go("int8", 2, 1, 0) == [2, 1, 0]
    (tmp_path / CODEBOOK).touch()
    assert go("residual2", 2, 1, 0) == [2, 1, 0]


@pytest.mark.slow
def test_processes_write_the_store_that_one_would(config: encode.Config):
    encode.run(replace(config, shard_size=2, workers=2, dtype="residual4"))
    one = replace(config, shard_size=2, dtype="residual4", out=config.out.with_name("one"))
    encode.run(one)
    store, alone = TokenReader(config.out), TokenReader(one.out)
    assert store.counts.tolist() == alone.counts.tolist()
    assert store.codebook is not None
    assert alone.codebook is not None
    np.testing.assert_allclose(store.codebook.centroids, alone.codebook.centroids, atol=1e-5)
    assert (store.take(np.arange(12)).values * alone.take(np.arange(12)).values).sum(1).mean() > 0.99


def test_a_forecast_is_of_tokens_and_writes_nothing(config: encode.Config, capsys: pytest.CaptureFixture[str]):
    encode.run(replace(config, dry_run=True, dtype="residual4"))
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if not line.startswith("on"))
    expected = embedded(config.model, DOCUMENTS).counts.mean()
    assert said["vectors"] == f"{expected:.1f} for each document"
    assert not config.out.exists()
    sizes = [EMBEDDINGS["LateRetriever"].vector_bytes(128, f"residual{bits}") for bits in (1, 2, 4)]
    assert sizes == [18, 34, 66]


def test_a_shard_of_a_late_model_is_bounded_by_its_tokens(config: encode.Config):
    choose = EMBEDDINGS["LateRetriever"].shard_size
    contract = LateRetriever.load(config.model).contract
    lengths = [choose(replace(config, shard_size=20_000), contract.with_lengths(document=n)) for n in (14, 180, 10**6)]
    assert lengths == [20_000, 2912, 1]


def test_a_store_says_how_it_would_round_before_it_is_there():
    vectors = TokenVectors(np.eye(4, 8, dtype=np.float32), np.array([3, 1]))
    for dtype in ("float32", "float16", "int8", "residual4"):
        found = as_stored(vectors, dtype)
        assert found.counts.tolist() == [3, 1]
        assert (found.values * vectors.values).sum(1).min() > 0.4
