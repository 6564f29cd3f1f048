"""Encoding documents by late interaction: ours beside PyLate, on one thread.

    python benchmarks/late_encode.py --backbone MINILM --collection scifact --pylate ENV/bin/python \\
        --out benchmarks/late_encode.md

The model is the backbone with a random projection to 128 numbers, exported to PyLate's layout, which both sides load.
Each side encodes the same documents with its defaults, in a process of its own, one after the other, another side first
in each round. Seconds are those of the processor, so other work on the machine disturbs little; loading and a first
call are left out. Then both sides' vectors are compared.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

Encode = Callable[[], list[np.ndarray]]


def texts_of(folder: str, count: int) -> list[str]:
    """Read the titles and texts of the first documents of a BEIR folder."""
    lines = (Path(folder) / "corpus.jsonl").read_text("utf-8").splitlines()[:count]
    return [f"{record.get('title', '')} {record['text']}".strip() for record in map(json.loads, lines)]


def by_shortlist(model: str, texts: list[str]) -> Encode:
    """Prepare ours."""
    from shortlist import LateRetriever

    retriever = LateRetriever.load(model)
    retriever.encode_documents(texts[:2])
    return lambda: list(retriever.encode_documents(texts))


def by_pylate(model: str, texts: list[str]) -> Encode:
    """Prepare PyLate."""
    from pylate.models import ColBERT  # pyright: ignore[reportMissingImports]

    encoder: Any = ColBERT(model, device="cpu")
    encoder.encode(texts[:2], is_query=False, show_progress_bar=False)
    return lambda: encoder.encode(texts, is_query=False, show_progress_bar=False)


SIDES: dict[str, Callable[[str, list[str]], Encode]] = {"shortlist": by_shortlist, "PyLate": by_pylate}


def measure(side: str, model: str, texts: list[str], out: Path) -> dict[str, float]:
    """Encode once, keep the vectors, and return the time and the number of tokens."""
    import torch

    torch.set_num_threads(1)
    encode = SIDES[side](model, texts)
    start, wall = time.process_time(), time.perf_counter()
    vectors = encode()
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    np.savez(out, values=np.concatenate(vectors), counts=[len(one) for one in vectors])
    return {"seconds": seconds, "wall": wall}


def write_model(backbone: str, folder: Path) -> None:
    """Write the backbone with a random projection, in PyLate's layout."""
    import torch

    from shortlist import export
    from shortlist.models.folder import open_folder
    from shortlist.models.loading_late import late_to_train
    from shortlist.models.save import save_model

    torch.manual_seed(0)
    save_model(late_to_train(open_folder(backbone), dim=128), folder / "ours")
    export.run(export.Config(model=str(folder / "ours"), to="pylate", out=folder / "pylate"))


def compare(folder: Path) -> float:
    """The largest difference of two vectors' numbers."""
    ours, theirs = ({**np.load(folder / f"{side}.npz")} for side in SIDES)
    if not np.array_equal(ours["counts"], theirs["counts"]):
        sys.exit("the sides give documents different numbers of vectors")
    return float(np.abs(ours["values"] - theirs["values"]).max())


def run(options: argparse.Namespace, folder: Path) -> None:
    """Measure both sides in turns and write the table."""
    from measuring import conditions, publish, table, turns

    under = conditions(None, packages=("torch", "transformers"))
    write_model(options.backbone, folder)
    pythons = {"shortlist": sys.executable, "PyLate": options.pylate}
    alone = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in turns([*SIDES], options.rounds):
        for side in turn:
            given = ("--collection", options.collection, "--docs", str(options.docs), "--work", str(folder))
            command = [pythons[side], __file__, *given, "--side", side]
            printed = subprocess.run(command, check=True, capture_output=True, text=True, env=alone).stdout
            found[side].append(json.loads(printed.splitlines()[-1]))
            print(side, found[side][-1], file=sys.stderr, flush=True)
    seconds = {side: median(one["seconds"] for one in runs) for side, runs in found.items()}
    rows = [
        [side, f"{options.docs / taken:.1f}", f"{seconds['PyLate'] / taken:.2f}", ", ".join(
            f"{one['seconds']:.1f}" for one in found[side])]
        for side, taken in seconds.items()
    ]  # fmt: skip
    versions = "import pylate, torch, transformers; print(*[m.__version__ for m in (pylate, torch, transformers)])"
    theirs = subprocess.run([options.pylate, "-c", versions], check=True, capture_output=True, text=True).stdout.split()
    note = f"PyLate {theirs[0]} with torch {theirs[1]} and transformers {theirs[2]}, at its own batch size of 32."
    largest = f"Largest difference of two vectors' numbers: {compare(folder):.1e}."
    columns = ("side", "documents/s of processor time", "times PyLate", "seconds of each round")
    title = f"Encoding {options.docs:,} documents by late interaction"
    publish(title, under, [table(columns, rows), f"{note} {largest}"], options.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", help="folder of the backbone")
    parser.add_argument("--pylate", help="python of an environment that has PyLate")
    parser.add_argument("--collection", required=True, help="BEIR folder")
    parser.add_argument("--docs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown file to write too")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        texts, work = texts_of(options.collection, options.docs), options.work
        print(json.dumps(measure(options.side, str(work / "pylate"), texts, work / f"{options.side}.npz")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(options, Path(temporary))


if __name__ == "__main__":
    main()
