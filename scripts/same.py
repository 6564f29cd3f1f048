"""Run every kind of work of the package that is first on the path, and print what came out; see scripts/same."""

import contextlib
import hashlib
import io
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

import shortlist
from shortlist.cli import main
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.records import Document, Query

NOT_COMPARED = ("manifest.json", "config.yaml", "loss.svg", "log.jsonl", "README.md", "results.json")
"""Files that hold times, paths or versions; what matters of them is printed by itself."""


def with_distill(command: list[str]) -> list[str] | None:
    """Before `--loss` there was one loss, and `--distill`, the share of another."""
    if "--loss" not in command or find_spec("shortlist.math.ranking"):
        return None
    first = command.index("--loss")
    last = next((i for i in range(first + 1, len(command)) if command[i].startswith("--")), len(command))
    said = dict(word.split("=") for word in command[first + 1 : last])
    older = ["--distill", said["kl"], "--teacher-temperature", said.get("kl.teacher_temperature", "1")]
    return command[:first] + older + command[last:]


OLDER: list[Callable[[list[str]], list[str] | None]] = [with_distill]
"""How a command of this checkout was said in an older one; None where it is said in the same way."""

NUM_DOCS, NUM_QUERIES = 400, 60


def write_collection(folder: Path) -> None:
    """Documents about a few of many made-up words each, and queries of some of their words."""
    rng = random.Random(0)
    words = [
        "".join(rng.choice("aeiou") if i % 2 else rng.choice("bdfgklmnprst") for i in range(6)) for _ in range(300)
    ]
    documents = [
        Document(f"d{i}", " ".join(rng.choices(words, k=rng.randint(5, 40))), rng.choice(words) if i % 3 else "")
        for i in range(NUM_DOCS)
    ]
    queries = [Query(f"q{i}", " ".join(rng.sample(documents[i].text.split(), 3))) for i in range(NUM_QUERIES)]
    write_corpus(folder / "corpus.jsonl", documents)
    write_queries(folder / "queries.jsonl", queries)
    for split, chosen in (("train", range(40)), ("test", range(40, NUM_QUERIES))):
        write_qrels(folder / "qrels" / f"{split}.tsv", {f"q{i}": {f"d{i}": 1 + i % 2} for i in chosen})


def do(*words: str | Path) -> str:
    """Run a command of shortlist in this process; returns what it printed."""
    command = [str(word) for word in words]
    out, err = io.StringIO(), io.StringIO()
    for attempt in [command, *(said for older in OLDER if (said := older(command)))][-1:]:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(attempt)
        if code:
            sys.exit(f"{' '.join(attempt)}: exit code {code}\n{err.getvalue()}")
    return out.getvalue()


def show(name: str, *contents: bytes | str) -> None:
    """Print a name and the hash of what belongs to it."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content.encode() if isinstance(content, str) else content)
    print(f"{name:28} {digest.hexdigest()[:16]}", flush=True)


def show_files(name: str, path: Path) -> None:
    """Print the hash of a file, or of each file in a folder."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and file.name not in NOT_COMPARED and not file.name.startswith("."):
            here = str(Path.cwd()).encode()  # in adapters, as the place of their base
            show(f"{name}/{file.relative_to(path)}" if path.is_dir() else name, file.read_bytes().replace(here, b""))


def show_losses(name: str, folder: Path) -> None:
    """Print losses and held-out measures of a training, as its log has them."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    told = ("step", "loss", "accuracy", "gradient_norm", "mrr@10", "MRR@10")
    lines = [" ".join(f"{key}={record[key]}" for key in told if key in record) for record in records]
    print(f"{name:28} {lines[0]} ... {lines[-1]}")
    show(f"{name} log", *lines)


def work() -> None:
    """All that is compared; the current folder is empty."""
    write_collection(Path("c"))
    where = ("--collection", "c")
    do("init", *where, "--out", "llama", "--hidden", "64", "--layers", "2", "--heads", "2", "--vocab-size", "400")
    show_files("init", Path("llama"))

    steps = ("--steps", "20", "--batch-size", "8", "--warmup-steps", "2", "--learning-rate", "1e-3")
    train = ("train", "retriever", "--backbone", "llama", *where, "--max-length", "48", "--query-length", "16", *steps)
    do(*train, "--out", "retriever", "--heldout-split", "test", "--heldout-steps", "10")
    do(*train, "--out", "retriever-lora", "--lora", "r=4,alpha=8,dropout=0.1,targets=q_proj+v_proj")
    do(*train, "--out", "retriever-cached", "--grad-cache", "--token-budget", "256")
    for name in ("retriever", "retriever-lora", "retriever-cached"):
        show_losses(name, Path(name))
        show_files(name, Path(name))

    do("index", "--kind", "bm25", *where, "--out", "bm25")
    show_files("bm25", Path("bm25"))
    do("encode", "--model", "retriever", *where, "--out", "vectors", "--shard-size", "150")
    do("encode", "--model", "retriever-lora", *where, "--out", "int8", "--dtype", "int8", "--precision", "bf16")
    do(
        "encode",
        "--model",
        "retriever",
        *where,
        "--out",
        "segments",
        "--segments",
        "maxp",
        "--window",
        "24",
        "--stride",
        "8",
    )
    for name in ("vectors", "int8", "segments"):
        show_files(name, Path(name))

    do("search", "--index", "bm25", *where, "--k", "50", "--out", "bm25.trec")
    do("search", "--index", "bm25", *where, "--k", "50", "--split", "train", "--out", "bm25-train.trec")
    dense = ("search", "--model", "retriever", "--vectors", "vectors", *where, "--k", "50")
    do(*dense, "--out", "dense.trec")
    do(*dense, "--split", "train", "--out", "dense-train.trec")
    do(*dense, "--index", "bm25", "--out", "hybrid.trec")
    do(*dense, "--index", "bm25", "--fusion", "zscore", "--weights", "2", "1", "--out", "zscore.trec")
    do("search", "--model", "retriever", "--vectors", "segments", *where, "--k", "20", "--out", "segments.trec")
    for name in ("bm25", "bm25-train", "dense", "dense-train", "hybrid", "zscore", "segments"):
        show_files(f"{name}.trec", Path(f"{name}.trec"))
    for kind, options in {
        "narrow": (),
        "hnsw": (),
        "ivf-flat": ("--set", "lists=8", "effort=4"),
        "ivf-pq": ("--set", "lists=4", "code_bytes=16"),
        "lance": ("--uri", "lance-tables"),
    }.items():
        do("index", "--kind", kind, "--vectors", "vectors", "--out", kind, *options)
        if kind != "lance":  # its files hold times
            show_files(kind, Path(kind))
        do("search", "--model", "retriever", "--index", kind, *where, "--k", "20", "--out", f"{kind}.trec")
        show_files(f"{kind}.trec", Path(f"{kind}.trec"))

    runs = ("--runs", "bm25-train.trec", "dense-train.trec")
    mine = ("mine", *runs, *where, "--split", "train", "--depth", "40", "--negatives", "6")
    do(*mine, "--out", "groups.jsonl")
    do(*mine, "--teacher", "bm25-train.trec", "--out", "taught.jsonl")
    show_files("groups", Path("groups.jsonl"))
    show_files("taught", Path("taught.jsonl"))

    train = ("train", "reranker", "--backbone", "retriever", *where, "--max-length", "64", *steps)
    do(*train, "--groups", "groups.jsonl", "--out", "reranker", "--negatives", "3")
    do(*train, "--groups", "groups.jsonl", "--out", "reranker-lora", "--lora", "paper", "--negatives", "3")
    do(*train, "--groups", "taught.jsonl", "--out", "distilled", 
       "--loss", "infonce=0.5", "kl=0.5", "kl.teacher_temperature=2")  # fmt: skip
    do("train", "retriever", "--backbone", "llama", *where, *steps, "--groups", "taught.jsonl", "--negatives", "2",
       "--loss", "infonce=0.7", "kl=0.3", "--out", "distilled-retriever")  # fmt: skip
    do(
        "train",
        "language-model",
        "--backbone",
        "llama",
        *where,
        *steps,
        "--max-length",
        "64",
        "--out",
        "language-model",
    )
    for name in ("reranker", "reranker-lora", "distilled", "distilled-retriever", "language-model"):
        show_losses(name, Path(name))
        show_files(name, Path(name))

    rerank = ("rerank", *where, "--run", "hybrid.trec", "--depth", "20")
    do(*rerank, "--model", "reranker", "--out", "reranked.trec")
    do(*rerank, "--model", "reranker-lora", "--precision", "bf16", "--out", "reranked-bf16.trec")
    do(*rerank, "--model", "reranker", "--segments", "maxp", "--window", "40", "--stride", "8", "--out", "maxp.trec")
    do(*rerank, "--model", "shortlist-mini/reranker", "--max-pairs", "100", "--out", "mini.trec")
    do("fuse", "--runs", "bm25.trec", "dense.trec", "--method", "zscore", "--out", "fused.trec")
    do("fuse", "--runs", "hybrid.trec", "reranked.trec", "--method", "weighted", "--depth", "10", "--out", "mixed.trec")
    for name in ("reranked", "reranked-bf16", "maxp", "mini", "fused", "mixed"):
        show_files(f"{name}.trec", Path(f"{name}.trec"))

    judged = ("--runs", "bm25.trec", "dense.trec", "hybrid.trec", "reranked.trec", *where)
    do("evaluate", *judged, "--measures", "nDCG@10", "RR@10", "R@20", "--out", "results.json")
    results = json.loads(Path("results.json").read_text("utf-8"))
    print(f"{'evaluate':28} {json.dumps(results)[:200]}")
    show("evaluate", re.sub(r'"ms_per_query": [^,}]*', "", json.dumps(results, sort_keys=True)))
    do("diagnose", "--run", "hybrid.trec", "--reranked", "reranked.trec", *where, "--out", "diagnosis.json")
    show_files("diagnose", Path("diagnosis.json"))
    do("lengths", "--model", "retriever", *where, "--out", "lengths")
    show_files("lengths", Path("lengths"))

    targets = {"retriever": "sentence-transformers", "retriever-lora": "peft", "reranker": "cross-encoder"}
    for model, target in {**targets, "reranker-lora": "merged"}.items():
        do("export", model, "--to", target, "--out", f"export-{model}")
        show_files(f"export-{model}", Path(f"export-{model}"))
    retriever = shortlist.Retriever.load("retriever")
    show("Retriever", retriever.encode_queries(["deki bada", "nothing"]).tobytes())
    show("Reranker", shortlist.Reranker.load("reranker").score("bada", ["deki bada", "nothing"]).tobytes())


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        work()
