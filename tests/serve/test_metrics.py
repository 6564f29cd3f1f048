import json
import os
import subprocess
import sys
from pathlib import Path

from shortlist.serve.metrics import BARS, Metrics, render


def test_counters_add_up_by_label():
    metrics = Metrics()
    for status in ("200", "429", "200"):
        metrics.count("shortlist_requests_total", path="/search", status=status)
    lines = render(metrics.values()).splitlines()
    assert 'shortlist_requests_total{path="/search",status="200"} 2' in lines
    assert 'shortlist_requests_total{path="/search",status="429"} 1' in lines
    assert "# TYPE shortlist_requests_total counter" in lines


def test_a_histograms_bars_are_in_order_and_each_holds_those_below_it():
    metrics = Metrics()
    for seconds in (0.3, 0.002, 100.0):
        metrics.observe("shortlist_stage_seconds", seconds, stage="bm25")
    lines = [line for line in render(metrics.values()).splitlines() if 'stage="bm25"' in line]
    bars = [line for line in lines if "_bucket" in line]
    assert [float(bar.split('le="')[1].split('"')[0]) for bar in bars] == [*BARS, float("inf")]
    counts = dict(zip([*BARS, float("inf")], [int(bar.split()[-1]) for bar in bars], strict=True))
    assert (counts[0.001], counts[0.0025], counts[0.25], counts[0.5], counts[30.0], counts[float("inf")]) == (
        *(0, 1, 1, 2, 2, 3),
    )
    assert 'shortlist_stage_seconds_sum{stage="bm25"} 100.302' in lines
    assert 'shortlist_stage_seconds_count{stage="bm25"} 3' in lines


def test_processes_add_up_what_they_count_and_forget_what_waited_in_one_that_has_ended(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (os.getppid(), ended.pid):
        (tmp_path / f"{pid}.json").write_text(json.dumps({"shortlist_tokens_total": 5, "shortlist_queue_requests": 3}))
    metrics = Metrics(shortlist_queue_requests=lambda: 1)
    metrics.count("shortlist_tokens_total", 2)
    assert metrics.together() == {"shortlist_tokens_total": 2, "shortlist_queue_requests": 1}
    metrics.share(tmp_path)
    assert metrics.together() == {"shortlist_tokens_total": 12, "shortlist_queue_requests": 4}
    assert json.loads((tmp_path / f"{os.getpid()}.json").read_text()) == metrics.values()
