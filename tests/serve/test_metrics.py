from shortlist.serve.metrics import BUCKETS, Metrics, render


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
    assert [float(bar.split('le="')[1].split('"')[0]) for bar in bars] == [*BUCKETS, float("inf")]
    counts = dict(zip([*BUCKETS, float("inf")], [int(bar.split()[-1]) for bar in bars], strict=True))
    assert (counts[0.001], counts[0.0025], counts[0.25], counts[0.5], counts[30.0], counts[float("inf")]) == (
        *(0, 1, 1, 2, 2, 3),
    )
    assert 'shortlist_stage_seconds_sum{stage="bm25"} 100.302' in lines
    assert 'shortlist_stage_seconds_count{stage="bm25"} 3' in lines
