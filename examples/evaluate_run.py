"""Measure two runs and say whether they differ: python examples/evaluate_run.py [RUN_A RUN_B QRELS]"""

import sys
import tempfile
from pathlib import Path
from statistics import fmean

from tiny_collection import tiny_collection

from shortlist.data.collections import open_collection
from shortlist.data.formats import read_qrels
from shortlist.data.runs import read_run, write_run
from shortlist.evaluation.evaluate import difference
from shortlist.evaluation.measure import per_query
from shortlist.index.bm25 import BM25Index
from shortlist.records import Query


def two_runs() -> tuple[Path, Path, Path]:
    """Search the tiny collection with whole questions, and with the last word of each alone."""
    name, work = tiny_collection(), Path(tempfile.mkdtemp(prefix="shortlist-example-"))
    collection = open_collection(name)
    index, questions = BM25Index.build(collection.corpus()), collection.queries("train")
    last_words = [Query(question.query_id, question.text.split()[-1]) for question in questions]
    for out, queries in {"whole.trec": questions, "last-word.trec": last_words}.items():
        write_run(work / out, index.search(queries, k=10))
    return work / "whole.trec", work / "last-word.trec", Path(name) / "qrels/train.tsv"


path_a, path_b, path_qrels = map(Path, sys.argv[1:4]) if len(sys.argv) > 3 else two_runs()
qrels = read_qrels(path_qrels)
measures = ["nDCG@10", "RR@10", "R@100"]
values_a = per_query(read_run(path_a), qrels, measures)
values_b = per_query(read_run(path_b), qrels, measures)
for measure in measures:
    a, b = values_a[measure], values_b[measure]
    p = difference(b, a)["randomisation"]
    print(f"{measure:8}  {fmean(a.values()):.4f}  {fmean(b.values()):.4f}  p = {p:.3f}")
