"""Typing errors and wrong paths are refused, and finished work is known, without loading PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import without_torch
from tiny import Tiny

from shortlist import index
from shortlist.cli import main

_RERANK = "rerank --model {reranker} --run {data}/queries.jsonl --collection {data} --out {out}"
CASES = {
    "serve": "nothing to serve",
    "serve --collection {data} --vectors {words} --retriever models/typo": "models/typo: cannot load a model",
    "serve --reranker {retriever}": "retriever: is a retriever; a reranker is wanted",
    "search --vectors {words} --collection {data} --out {out}": "--vectors without --model",
    "search --index {out} --collection {data} --out {out}": "no such file or folder",
    "search --index {words} --collection nowhere --out {out}": "nowhere: no such collection",
    "search --index {words} --collection {data} --out {out} --k 0": "--k is 0",
    "ask what --index {words} --collection {data} --reranker {retriever}": "is a retriever; a reranker is wanted",
    "ask  --index {words} --collection {data}": "the question is empty",
    "ask what --index {words} --collection {data} --depth 3": "name one with --reranker",
    "train reranker --backbone {llama} --collection {data} --out {out} --adapter yes": "unknown kind of adapter 'yes'",
    "train rerankre --backbone {llama} --collection {data} --out {out}": "unknown kind of model 'rerankre'",
    "train retriever --backbone {out}/none --collection {data} --out {out}": "none: cannot load a model",
    "train retriever --backbone {llama} --collection nowhere --out {out}": "nowhere: no such collection",
    "train retriever --backbone {llama} --collection {data} --out {out} --groups none": "--groups none: no such file",
    "train retriever --backbone {llama} --collection {data} --out {out} --batch-size 0": "--batch-size is 0",
    "train retriever --backbone {llama} --collection {data} --out {out} --contract berd": "unknown contract 'berd'",
    "train retriever --backbone {llama} --collection {data} --out {out} --four-bit": "--four-bit: weights in 4 bits",
    "encode --model models/typo --collection {data} --out {out}": "there is no such folder, and from the hub",
    "encode --model {reranker} --collection {data} --out {out}": "is a reranker; a retriever is wanted",
    "encode --model {llama} --collection {data} --out {out}": "has no contract.json",
    "encode --model {retriever} --collection {words} --out {out}": "is the index of `shortlist index`",
    "encode --model {retriever} --collection {data} --out {out} --shard-size 0": "--shard-size is 0",
    "rerank --model {retriever} --run {words} --collection {data} --out {out}": "no such file; expected a run",
    _RERANK + " --depth 0": "--depth is 0",
    "verify {data}": "no command of ours wrote it",
    "inspect models/typo": "models/typo: cannot load a model",
    "export {llama} --to onnx --out {out}": "has no contract.json",
    "push {out} --to me/mine": "no such folder",
    "init --collection {data} --out {out} --hidden 7": "--hidden 7",
    "init --collection nowhere --out {out}": "nowhere: no such collection",
    "convert nowhere.jsonl --out {out}": "nowhere.jsonl",
    "lengths --collection nowhere --model {llama} --out {out}": "nowhere: no such collection",
    "index --collection nowhere --out {out}": "nowhere: no such collection",
    "evaluate --runs nowhere.trec --collection {data}": "nowhere.trec",
    "run nowhere.yaml --out {out}": "nowhere.yaml: no such file",
    # settings that would change nothing
    _RERANK + " --window 9": "--window changes nothing with --segments whole",
    _RERANK + " --segments firstp --stride 9": "--stride changes nothing with --segments firstp",
    _RERANK + " --max-malformed 0.1": "--max-malformed is for methods that ask a language model, not for pointwise",
    "rerank --method listwise --run {data}/queries.jsonl --collection {data} --out {out} --long-queries skip": (
        "--long-queries is for --method pointwise, not for listwise"
    ),
    "encode --model {retriever} --collection {data} --out {out} --stride 9": "--stride changes nothing",
    "index --collection {data} --out {out} --dtype bfloat16": "--dtype is for --kind narrow, and BM25 has none",
    "index --collection {data} --out {out} --vectors {words}": "--vectors is for indexes over vectors",
    "index --collection {data} --out {out} --model x": "--model is for --check",
    "index --kind hnsw --vectors {words} --out {out} --k1 1.2": "--k1 is for --kind bm25, and hnsw has none",
    "index --kind hnsw --vectors {words} --out {out} --collection {data}": "--collection is for --check",
    "index --kind narrow --vectors {words} --out {out} --split dev": "--split is for --check",
    "fuse --runs a b --out {out} --collection {data}": "--collection is for --dev-runs, and there are none",
    "average a b --out {out} --measure AP": "--measure is for --greedy",
    "convert {data} --out {out} --factor 9": "--factor is for --to impacts and ciff",
    "lengths --collection {data} --model {llama} --out {out} --split test --sample 9": "--sample is for documents",
    "pool --runs a --out {out} --split dev": "--split is for --collection, and there is none",
    "evaluate --runs a --qrels b --split dev": "--split is for --collection, and there is none",
    "cut calibrate --run a --qrels b --recall 0.9 --out {out} --split dev": "--split is for --collection",
    "agree --judgements a b --measure AP": "--measure is for --runs, and there are none",
    "diagnose --run a --collection {data} --contract e5": "--contract is for --model, and there is none",
    "ask what --collection {data} --demo-folder x": "--demo-folder is for --demo",
    "mcp --reranker {reranker} --depth 9": "--depth is for a search, and there is no --collection or --pipeline",
    "serve --reranker {reranker} --reranker-share 0.5": "--reranker-share is for a search",
    "serve --reranker {reranker} --pipeline x.yaml --language german": "--language is said in the file of --pipeline",
    "mcp --collection {data} --port 9": "--port is for --http",
    "heads --model {llama} --collection {data} --out {out} --temperature 1": "--temperature is for --method core",
    "select --pool {data} --like x.txt --size 3 --what queries --out {out} --like-split dev": (
        "--like-split is for a collection in --like"
    ),
    "train retriever --backbone {llama} --collection {data} --out {out} --heldout-docs 9": (
        "--heldout-docs is for --heldout-split"
    ),
}
"""Commands, with words of the error that each of them ends with."""

USAGE = {
    "train retriever --backbon x": "--backbon",
    "encode --modle x": "--modle",
    "rerank --precision fp64": "fp64",
    "encode --model a --collection b --out c --dtype float8": "float8",
}
"""Commands that are typed wrongly, with words of the message."""


def answers(cases: dict[str, str], code: int, **names: object) -> list[str]:
    """Run commands where PyTorch cannot be imported, and list what went wrong."""
    given = [json.dumps(value) for value in (cases, code, {name: str(value) for name, value in names.items()})]
    found = subprocess.run([sys.executable, without_torch.__file__, *given], capture_output=True, text=True)
    return found.stdout.splitlines() + found.stderr.splitlines()


@pytest.fixture
def names(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the commands name; the hub is out of reach."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = tmp_path / "words"
    index.run(index.Config(collection=str(tiny.collection), out=words))
    folders = {"retriever": tiny.retriever, "reranker": tiny.reranker, "llama": tiny.llama}
    return {"data": tiny.collection, "words": words, "out": tmp_path / "out", **folders}


@pytest.mark.slow
def test_wrong_names_and_settings_are_refused_without_pytorch(names: dict[str, object]):
    assert answers(CASES, 1, **names) == ["done"]


def test_usage_errors_need_no_pytorch(names: dict[str, object]):
    assert answers(USAGE, 2, **names) == ["done"]


FINISHED = """
steps:
  words: {{stage: index, collection: {data}}}
  found: {{stage: search, index: $words, collection: {data}, split: train, k: 5}}
  groups: {{stage: mine, runs: [$found], collection: {data}, split: train, depth: 5, negatives: 2}}
  trained: {{stage: train, kind: reranker, backbone: {llama}, collection: {data}, groups: $groups, steps: 1}}
  vectors: {{stage: encode, model: {retriever}, collection: {data}}}
  dense: {{stage: search, model: {retriever}, vectors: $vectors, collection: {data}, k: 5}}
  both: {{stage: fuse, runs: [$dense, $dense]}}
  best: {{stage: rerank, model: {reranker}, run: $both, collection: {data}}}
  results: {{stage: evaluate, runs: [$both, $best], collection: {data}}}
"""


@pytest.mark.slow
def test_a_finished_recipe_says_so_without_pytorch(names: dict[str, object], tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(FINISHED.format(**names))
    assert main(["run", str(recipe), "--out", str(names["out"])]) == 0
    finished = f"run {recipe} --out {names['out']}"
    cases = {f"{finished} --processes {number}": "results.json is already done" for number in (1, 2)}
    assert answers(cases, 0) == ["done"]
