from typing import Any

from shortlist.evaluation.formats import as_csv, as_latex
from shortlist.evaluation.report.summary import in_short

ROWS: list[dict[str, Any]] = [
    {"name": "BM25", "nDCG@10": 0.25, "queries": 9, "judged": 0.5, "ms_per_query": 1.5},
    {"name": "a & b_c", "nDCG@10": 0.5, "queries": 9, "judged": 1.0, "ms_per_query": 20.0}
    | {"difference": {"nDCG@10": {"mean": 0.25, "t_test": 0.01, "t_test_holm": 0.02}}},
]
RESULTS = {"measures": ["nDCG@10"], "rows": ROWS, "judged_at": 10, "relevance_level": 1}
MANIFEST = {"config": {"collection": "data", "split": "dev"}, "finished": "2026-11-29T10:00:00+00:00"}


def test_results_are_written_as_csv():
    assert as_csv(RESULTS).splitlines() == [
        "run,nDCG@10,p nDCG@10,queries,judged@10,ms/query",
        "BM25,0.25,,9,0.5,1.5",
        "a & b_c,0.5,0.02,9,1.0,20.0",
    ]
    assert as_csv({**RESULTS, "rows": [ROWS[0]]}).splitlines()[0] == "run,nDCG@10,queries,judged@10,ms/query"


def test_results_are_written_as_latex_with_the_best_bold_and_the_significant_marked():
    lines = as_latex(RESULTS).splitlines()
    assert lines[4:6] == [r"BM25 & 0.2500 \\", r"a \& b\_c & \textbf{0.5000}$^\dagger$ \\"]
    assert lines[0] == r"\begin{tabular}{lr}"


def test_two_sentences_say_what_won_by_how_much_at_what_cost_and_on_what():
    assert in_short(RESULTS, [MANIFEST, {"config": {"model": "minilm"}}]) == (
        "a & b_c is the best of 2 by nDCG@10, 0.5000: 0.2500 more than BM25 (p = 0.0200), at 20.0 ms a query against "
        "1.5 ms. Measured on 2026-11-29 with 9 queries of data, split dev, with minilm."
    )
    worse = [ROWS[1], ROWS[0] | {"difference": {"nDCG@10": {"t_test_holm": 0.3}}}]
    assert "a & b_c is the best of 2 by nDCG@10, 0.5000: 0.2500 more than BM25 (p = 0.3000, which may be chance)" in (
        in_short({**RESULTS, "rows": worse}, [MANIFEST])
    )
    alone = in_short({**RESULTS, "rows": [ROWS[0]]}, [{"config": {"qrels": "q.tsv"}}])
    assert alone == ("BM25 has nDCG@10 0.2500 over 9 queries, at 1.5 ms a query. Measured with 9 queries of q.tsv.")
