"""The package data-selection as a peer of select_speed.py, in an environment of its own."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

from data_selection import HashedNgramDSIR


def peak_gib() -> float:
    """The most memory that this process and its workers have held, GiB."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            values = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has ended
            continue
        if str(os.getpid()) in (values["Pid"].strip(), values["PPid"].strip()) and "VmHWM" in values:
            total += int(values["VmHWM"].split()[0])
    return total / 2**20


def select(pool: str, target: str, size: int, processes: int, out: Path) -> dict:
    """Fit, weigh and resample as its documentation shows; short texts count too."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    dsir = HashedNgramDSIR([pool], [target], cache_dir=str(out / "cache"), num_proc=processes, min_example_length=0)
    dsir.fit_importance_estimator()
    dsir.compute_importance_weights()
    dsir.resample(out_dir=str(out / "kept"), num_to_sample=size, cache_dir=str(out / "kept-cache"), top_k=True)
    seconds = time.perf_counter() - start
    peak = peak_gib()
    files = sorted((out / "kept").rglob("*.jsonl"))
    ids = [json.loads(line)["_id"] for path in files for line in path.read_text().splitlines()]
    return {"seconds": seconds, "peak_gib": peak, "ids": ids}


if __name__ == "__main__":
    pool, target, size, processes, out = sys.argv[1:]
    for _ in sys.stdin:
        print(json.dumps(select(pool, target, int(size), int(processes), Path(out))), flush=True)
