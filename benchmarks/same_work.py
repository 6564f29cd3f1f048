"""The work that `same_speed.py` times, done by whichever shortlist is first on the path, as often as it is told.

Only what every version has is used: the command line, `Retriever` and `Reranker`. A line of JSON on stdin is a task,
a line of JSON on stdout says how long it took and what came out.
"""

import contextlib
import hashlib
import io
import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import shortlist
from shortlist.cli import main

MEAN_LENGTH, SPREAD = 71, 0.4
"""Words of a passage: lognormal. Every word is a token."""
NUM_QUERIES = 100
WARM_UP = 2
"""Steps of a training that are not timed."""


class Done(NamedTuple):
    """How long a task took, and a hash of what it made."""

    seconds: float
    result: str


def prepare(folder: Path, *, docs: int) -> None:
    """Write a collection of random words, a backbone of 4 layers of 256 dimensions, a retriever and a reranker."""
    rng, drawn = random.Random(0), np.random.default_rng(0)
    words = sorted({"".join(rng.choice("aeiou" if i % 2 else "bdfgklmnprst") for i in range(6)) for _ in range(1000)})
    lengths = drawn.lognormal(np.log(MEAN_LENGTH) - SPREAD**2 / 2, SPREAD, docs).round().astype(int).clip(4, 190)
    texts = [" ".join(rng.choices(words, k=length)) for length in lengths]
    queries = [" ".join(rng.sample(text.split(), 4)) for text in texts[:NUM_QUERIES]]
    where = folder / "c"
    (where / "qrels").mkdir(parents=True)
    _write(where / "corpus.jsonl", [json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(texts)])
    _write(where / "queries.jsonl", [json.dumps({"_id": f"q{i}", "text": text}) for i, text in enumerate(queries)])
    judged = [f"q{i}\td{i}\t1" for i in range(len(queries))]
    _write(where / "qrels" / "train.tsv", ["query-id\tcorpus-id\tscore", *judged])
    ranked = [f"q{i} Q0 d{(i + j) % docs} {j + 1} {50 - j} first" for i in range(20) for j in range(50)]
    _write(folder / "first.trec", ranked)
    shape = ("--hidden", "256", "--layers", "4", "--heads", "4", "--vocab-size", "4000")
    do("init", "--collection", where, "--out", folder / "backbone", *shape)
    for kind in ("retriever", "reranker"):
        groups = ("--groups", _groups(folder)) if kind == "reranker" else ()
        do("train", kind, *training(folder), *groups, "--steps", "1", "--out", folder / kind)


def _groups(folder: Path) -> Path:
    path = folder / "groups.jsonl"
    groups = [{"query_id": f"q{i}", "positives": [f"d{i}"], "negatives": [f"d{i + 1}"]} for i in range(NUM_QUERIES - 1)]
    _write(path, [json.dumps(group) for group in groups])
    return path


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def do(*words: str | Path) -> None:
    """Run a command of shortlist in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, words)))
    if code:
        sys.exit(f"{' '.join(map(str, words))}: exit code {code}\n{err.getvalue()}")


def training(folder: Path) -> tuple[str | Path, ...]:
    """Settings of a training: 16 queries and their passages in a batch, in the form of MS MARCO."""
    lengths = ("--max-length", "196", "--batch-size", "16", "--warmup-steps", "1")
    return ("--backbone", folder / "backbone", "--collection", folder / "c", *lengths)


class Work:
    """Every task, on models that are loaded once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.retriever = shortlist.Retriever.load(str(folder / "retriever"))
        self.reranker = shortlist.Reranker.load(str(folder / "reranker"))
        lines = (folder / "c" / "corpus.jsonl").read_text("utf-8").splitlines()
        self.texts = [json.loads(line)["text"] for line in lines]

    def encode(self) -> Done:
        """Embed all passages, tokenising included."""
        return _timed(lambda: self.retriever.encode_documents(self.texts).tobytes())

    def score(self) -> Done:
        """Score half of the passages for one query."""
        texts = self.texts[: len(self.texts) // 2]
        return _timed(lambda: self.reranker.score(" ".join(texts[0].split()[:4]), texts).tobytes())

    def rerank(self) -> Done:
        """Run the command `rerank` on 20 queries with 10 candidates each, loading included."""
        folder = self.folder / "reranked"  # new each time, or the command would find its work done
        shutil.rmtree(folder, ignore_errors=True)

        def work() -> bytes:
            where = ("--collection", self.folder / "c", "--split", "train", "--run", self.folder / "first.trec")
            do("rerank", "--model", self.folder / "reranker", *where, "--depth", "10", "--out", folder / "out.trec")
            return (folder / "out.trec").read_bytes()

        return _timed(work)

    def train(self) -> Done:
        """Train a retriever for some steps; the seconds are those of a thousand tokens, after the first steps."""
        out = self.folder / "trained"
        shutil.rmtree(out, ignore_errors=True)
        do("train", "retriever", *training(self.folder), "--steps", "8", "--out", out)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
        speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line][WARM_UP:]
        losses = [str(line["loss"]).encode() for line in lines if "loss" in line]
        return Done(sum(1000 / speed for speed in speeds) / len(speeds), _hash(b" ".join(losses)))


def _timed(work: Callable[[], bytes]) -> Done:
    start = time.perf_counter()
    result = work()
    return Done(time.perf_counter() - start, _hash(result))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def serve(folder: Path) -> None:
    """Answer every line of stdin."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    torch.manual_seed(0)
    work: Work | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["task"] == "where":
            answer: object = str(Path(shortlist.__file__).parents[1])
        elif request["task"] == "prepare":
            answer = prepare(folder, docs=request["docs"])
        else:
            work = work or Work(folder)
            answer = getattr(work, request["task"])()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
