"""BM25's MRR@10 (or nDCG@10) by language: with English words, and with the language's own.

python benchmarks/languages.py FOLDER LANGUAGE... (xquad-r: a collection per code) or --collections FOLDER...
"""

import sys
from pathlib import Path

import numpy as np

from shortlist.data.collections import open_collection
from shortlist.evaluation.measure import per_query
from shortlist.index import analysis
from shortlist.index.bm25 import BM25Index
from shortlist.index.languages import language_name


def measured(folder: Path, analyser: analysis.Analyser, measure: str, split: str) -> float:
    """Build an index in a temporary folder, and measure what it finds."""
    analysis.ANALYSERS["measured"] = analyser
    collection = open_collection(str(folder))
    found = BM25Index.build(collection.corpus(), analyser="measured").search(collection.queries(split), 1000)
    return float(np.mean(list(per_query(found, collection.qrels(split), [measure], complete=True)[measure].values())))


def main(names: list[str]) -> None:
    """Print a line for each language or collection."""
    if names[0] == "--collections":
        for folder in map(Path, names[1:]):
            split = "dl19_sub" if "dl19" in folder.name else "test"
            for analyser in (analysis.first_english, analysis.english):
                value = measured(folder, analyser, "nDCG@10", split)
                print(f"{folder.name:14} {analyser.__name__:14} nDCG@10 {value:.4f}", flush=True)
        return
    for code in names[1:]:
        own = language_name(code)
        for name in ("english", own):
            value = measured(Path(names[0]) / code, analysis.ANALYSERS[name], "RR@10", "test")
            print(f"{code} {name:10} MRR@10 {value:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
