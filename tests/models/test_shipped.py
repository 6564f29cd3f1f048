"""The models that come with the package: their files and numbers, and that they never saw what the demo searches."""

import json
import platform
from pathlib import Path

import numpy as np
import pytest
from named import reranker_to_train, retriever_to_train
from safetensors import safe_open

from shortlist import Document, Query, Reranker, Retriever, load_reranker
from shortlist.data.files import sha256
from shortlist.data.manifest import read_manifest
from shortlist.demo.functions.fingerprints import fingerprint, read_fingerprints
from shortlist.demo.functions.overlap import normalized
from shortlist.demo.functions.sources import collect_functions, standard_library
from shortlist.demo.functions.wheels import read_pins
from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.models.shipped import PAIR, shipped_folder, shipped_name
from shortlist.rerankers.language import how_to_open
from shortlist.rerankers.opening import open_language_model
from shortlist.text.prompts import named_prompt

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "recipes" / "shortlist-mini"
HASHES = {
    "retriever/model.safetensors": "a0cd8fb98c3df77fc75dddf07c3aad4e935140475e98de7daeb74f0341758731",
    "retriever/tokenizer.json": "7c73462a9ac0bbbef3765b49aede0a4cab826e18c17e3c6132c8f4ac1084ec36",
    "retriever/contract.json": "d033e2ab80942d5c68df1a1b5926558979faaac503d15d6e5e6277cca879270a",
    "reranker/model.safetensors": "ce045cc4993e4a0ae53f9986d57b5d0554e73da14e4a7c2dc48a455f9e5bb457",
    "reranker/tokenizer.json": "7c73462a9ac0bbbef3765b49aede0a4cab826e18c17e3c6132c8f4ac1084ec36",
    "reranker/contract.json": "c837b3ed44221c30d06b44ecf74f891a7b1c6f777df6930f989979e0ca9ab2ac",
    "language-model/model.safetensors": "e0899d257c5afd816f535f3c0cf2a8a56f586fe7a6bdc7a63173aa7e46e09d68",
    "language-model/tokenizer.json": "7c73462a9ac0bbbef3765b49aede0a4cab826e18c17e3c6132c8f4ac1084ec36",
}
KINDS_SHIPPED = ("retriever", "reranker", "language-model")
QUERY = Query("q", "Remove a directory and everything in it")
DOCUMENTS = [
    Document("rmtree", "def remove_tree(path):\n    for entry in os.scandir(path):\n        os.unlink(entry.path)"),
    Document("split", "def split_words(line, sep=None):\n    return [word.strip() for word in line.split(sep)]"),
    Document("", ""),
]
FIRST_NUMBERS = {"query": [0.094442, 0.033860, 0.119626, -0.016613], "rmtree": [0.039980, 0.044783, 0.060149, 0.010805]}
SIMILARITIES = [0.722318, 0.189908, 0.008060]
SCORES = [-4.149915, -5.305318, -4.628272]


def folder(kind: str) -> Path:
    found = shipped_folder(f"{PAIR}/{kind}")
    assert found is not None
    return found


@pytest.mark.parametrize("name", HASHES)
def test_the_files_are_those_that_were_made(name: str):
    assert sha256(folder(name.split("/")[0]) / name.split("/")[1]) == HASHES[name]


def test_all_are_small_and_in_bfloat16():
    paths = [folder(kind) / "model.safetensors" for kind in KINDS_SHIPPED]
    assert sum(path.stat().st_size for path in paths) <= 36_000_000
    for path in paths:
        with safe_open(path, framework="np") as weights:
            kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert {kind for name, kind in kinds.items() if name != "score.weight"} == {"BF16"}


@pytest.mark.parametrize("kind", KINDS_SHIPPED)
def test_each_says_how_it_was_made(kind: str):
    log = [json.loads(line) for line in (folder(kind) / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == len([record for record in log if "loss" in record])
    manifest = read_manifest(folder(kind))
    assert manifest is not None
    assert manifest["complete"]
    assert not Path(manifest["config"]["model"]).is_absolute()
    card = (folder(kind) / "README.md").read_text()
    assert "license: apache-2.0" in card


def test_the_retriever_embeds_the_golden_values():
    retriever = Retriever.load(PAIR)
    vectors = np.concatenate([retriever.encode_queries([QUERY]), retriever.encode_documents(DOCUMENTS)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[0, :4], FIRST_NUMBERS["query"], atol=1e-4)
    np.testing.assert_allclose(vectors[1, :4], FIRST_NUMBERS["rmtree"], atol=1e-4)
    np.testing.assert_allclose(vectors[0] @ vectors[1:].T, SIMILARITIES, atol=1e-4)


def test_the_reranker_scores_the_golden_values():
    scores = Reranker.load(PAIR).score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(scores, SCORES, atol=2e-3)
    assert scores[0] > max(scores[1:])


def test_the_language_model_prefers_what_answers_and_writes_a_query():
    reranker = load_reranker("pairwise", model=PAIR, sort="all")
    query = Query("q", "Read the configuration from a JSON file")
    config = Document("config", "def load_config(path):\n    with open(path) as file:\n        return json.load(file)")
    mean = Document("mean", "def average(numbers):\n    return sum(numbers) / len(numbers)")
    for shown in ([config, mean], [mean, config]):
        scores = reranker.score(query, shown)
        assert shown[int(scores.argmax())].doc_id == "config"
        assert scores[0] != scores[1]
    how = how_to_open({"model": PAIR})
    model, _ = open_language_model(prompt=named_prompt("queries"), reads="text", **how)
    [[(_, reply)]] = [list(part.items()) for part in model.replies([(Query("", ""), [config])])]
    assert {"load", "config", "file", "json"} & set(str(reply.answer).lower().split()), reply.answer


def test_the_name_is_that_of_the_kind_that_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert open_folder(PAIR).path == folder("retriever")
    assert open_folder(f"{PAIR}/reranker").path == folder("reranker")
    assert shipped_name(PAIR, "reranker") == f"{PAIR}/reranker"
    assert open_folder(PAIR, wanted="language-model").path == folder("language-model")
    assert open_folder(PAIR).identity == open_folder(str(folder("retriever"))).identity
    assert retriever_to_train(PAIR, empty=True).inputs.form.document
    assert reranker_to_train(f"{PAIR}/reranker", seed=0, empty=True).inputs.form.pair
    with pytest.raises(UserError):
        open_folder(f"{PAIR}/neither")
    monkeypatch.chdir(tmp_path)
    (tmp_path / PAIR).mkdir()
    assert open_folder(PAIR).path == Path(PAIR)  # a folder of that name is what its owner means
    assert shipped_name(PAIR, "reranker") == PAIR


@pytest.mark.skipif(not RECIPE.is_dir(), reason="needs the repository")
def test_nothing_that_the_demo_searches_was_learnt_from():
    seen = read_fingerprints(RECIPE / "fingerprints.npz")
    functions, _ = collect_functions(standard_library(), "standard library")
    texts = [text for function in functions for text in (normalized(function.summary), function.body)]
    prints = [fingerprint(text) for text in texts if len(text.split()) > 3]  # "return self other": said, and done
    assert len(seen) > 400_000
    assert len(functions) > 4_000
    shared = np.isin(np.array(prints, np.uint64), seen).sum()
    # Another Python's library is not the one that the text was kept apart from; it has a few functions of packages.
    assert shared <= (0 if platform.python_version_tuple()[:2] == ("3", "11") else 30)


def test_fingerprints_find_what_was_learnt_from():
    seen = read_fingerprints(RECIPE / "fingerprints.npz")
    sources = (RECIPE / "sources.tsv").read_text().splitlines()
    assert {line.split("\t")[0] for line in sources[1:]} == {pin.name for pin in read_pins(RECIPE / "packages.txt")}
    assert all(line.split("\t")[2] for line in sources[1:])  # a licence
    assert sum(int(line.split("\t")[4]) for line in sources[1:]) * 2 == pytest.approx(len(seen), rel=0.02)
