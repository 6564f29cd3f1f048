"""How fast `select` is beside the package data-selection (DSIR), and what both hold in memory.

    python benchmarks/select_speed.py --abstracts ../shared/data/scifact --passages ../shared/data/msmarco-dl19 \\
        --peer /work/peers/select/bin/python --out benchmarks/select_speed.md

The pool's texts are of 60 words, half of two abstracts each, half of two passages each. The target is 500 such texts of
abstracts that are not in the pool. Both sides read the same JSON lines, keep as many texts by the same formula (sum
over words and pairs, smoothing 0) and write them, in turns. Their buckets differ, so that the texts that they keep do
too. data-selection works in as many processes as it is told; its memory is the sum over them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro
from measuring import Peer, conditions, publish, table, turns

from shortlist.data.collections import open_collection
from shortlist.data.formats import full_text
from shortlist.data.manifest import read_manifest
from shortlist.progress import say

WORDS = 60
OURS = "shortlist select"


@dataclass(frozen=True, kw_only=True)
class Config:
    abstracts: str
    """Collection of the sort that the target is of."""
    passages: str
    """Collection of another sort."""
    peer: str
    """Python of an environment that has data-selection."""
    texts: int = 1_000_000
    """Texts of the pool."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes of data-selection."""
    size: int = 100_000
    """Texts to keep."""
    rounds: int = 3
    """Times each side runs."""
    seed: int = 0
    out: Path | None = None
    """Markdown file to write too."""


def pieces(texts: list[str], number: int, random: np.random.Generator) -> Iterator[str]:
    """Yield texts of 60 words: 30 in a row from one text and 30 from another."""
    words = [text.split() for text in texts if len(text.split()) >= WORDS]
    for sources in random.integers(len(words), size=(number, 2)).tolist():
        some: list[str] = []
        for source in sources:
            start = int(random.integers(len(words[source]) - WORDS // 2 + 1))
            some += words[source][start : start + WORDS // 2]
        yield " ".join(some)


def ours(pool: Path, target: Path, size: int, out: Path) -> dict[str, Any]:
    """Run the command `select`."""
    how = ["--by", "sum", "--smoothing", "0", "--size", str(size), "--out", str(out)]
    command = [sys.executable, "-m", "shortlist", "select", "--pool", str(pool), "--like", str(target), *how]
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    results = (read_manifest(out) or {})["results"]
    ids = [line.split("\t")[0] for line in (out / "weights.tsv").read_text("utf-8").splitlines()]
    return {"seconds": results["seconds"], "peak_gib": results["peak_bytes"] / 2**30, "ids": ids}


def write(folder: Path, texts: Iterator[tuple[str, str]]) -> str:
    """Write a collection, and return the path of its file."""
    folder.mkdir()
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts)
    return str(folder / "corpus.jsonl")


def main(config: Config) -> None:
    under = conditions(None)
    random = np.random.default_rng(config.seed)
    abstracts = [full_text(document) for document in open_collection(config.abstracts).corpus()]
    passages = [full_text(document) for document in open_collection(config.passages).corpus()]
    peers = [f"data-selection, processes: {count}" for count in config.processes]
    answers: dict[str, list[dict[str, Any]]] = {OURS: [], **{name: [] for name in peers}}
    with tempfile.TemporaryDirectory() as work:
        at = Path(work)
        half = config.texts // 2
        of_abstracts = ((f"a{n}", text) for n, text in enumerate(pieces(abstracts[500:], half, random)))
        of_passages = ((f"p{n}", text) for n, text in enumerate(pieces(passages, config.texts - half, random)))
        pool = write(at / "pool", (pair for both in zip(of_abstracts, of_passages, strict=True) for pair in both))
        target = write(at / "target", ((f"t{n}", text) for n, text in enumerate(pieces(abstracts[:500], 500, random))))
        for order in turns(list(answers), config.rounds):
            for name in order:
                if name == OURS:
                    answer = ours(at / "pool", at / "target", config.size, at / "ours")
                else:
                    given = (pool, target, str(config.size), name.split()[-1], at / "theirs")
                    with Peer(config.peer, "select_peer.py", *given) as peer:
                        answer = peer.ask("select")
                answers[name].append(answer)
                say(f"{name}: {answer['seconds']:.1f} s, {1024 * answer['peak_gib']:.0f} MiB")
    seconds = {name: median(answer["seconds"] for answer in each) for name, each in answers.items()}
    peaks = {name: median(answer["peak_gib"] for answer in each) for name, each in answers.items()}
    rows = []
    for name, each in answers.items():
        right = sum(doc_id.startswith("a") for doc_id in each[0]["ids"]) / len(each[0]["ids"])
        spread = f"{min(one['seconds'] for one in each):.1f}-{max(one['seconds'] for one in each):.1f}"
        row = [name, f"{seconds[name]:.1f}", spread, f"{config.texts / seconds[name]:,.0f}"]
        row += [f"{seconds[name] / seconds[OURS]:.2f}", f"{1024 * peaks[name]:,.0f}"]
        rows.append([*row, f"{peaks[name] / peaks[OURS]:.2f}", f"{right:.4f}"])
    columns = ["", "median s", "fastest-slowest", "texts/s", "times our time", "peak MiB", "times our memory", "right"]
    words = (
        f"{under}\n- {config.texts:,} texts of {WORDS} words, {config.size:,} kept; right: share of abstracts in these"
    )
    publish("Speed of selecting texts", words, [table(columns, rows)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
