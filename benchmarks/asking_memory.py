"""Memory of reranking few and many queries with a language model.

    python benchmarks/asking_memory.py --queries 10 1000 --out benchmarks/asking_memory.md

A tiny random model reranks lists of DL19's candidates, whose queries are repeated under other ids and with other words,
so that no answer is known. Each number of queries is done in a process of its own.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from asking_speed import Work, load_lists, make_model
from measuring import conditions, in_a_process, peak_gib, publish, quiet, table

from shortlist.cores import keep_few_shapes
from shortlist.rerankers import Candidates

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "pairwise, all pairs of 4": ("pairwise", {"sort": "all"}),
    "listwise by one token, 4 of 8 at once": ("listwise", {"prompt": "first", "window": 4, "stride": 2}),
    "listwise written, 4 of 8 at once": ("listwise", {"window": 4, "stride": 2}),
}
DEPTHS = {"pairwise": 4, "listwise": 8}


def reranked(model: Path, data: Path, name: str, count: int) -> tuple[float, float, float]:
    """Rerank so many queries, and return GiB before, GiB at most, and seconds."""
    quiet()
    method, settings = METHODS[name]
    lists = load_lists(data, DEPTHS[method])
    opened = Work(model, lists).reranker(method, **settings)

    def all_lists() -> Any:
        for number in range(count):
            query, documents = lists[number % len(lists)]
            yield Candidates(query._replace(query_id=f"{number}", text=f"{query.text} {number}"), documents)

    before, start = peak_gib(), time.perf_counter()
    assert sum(1 for _ in opened.score_lists(list(all_lists()))) == count
    return before, peak_gib(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/msmarco-dl19"))
    parser.add_argument("--queries", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    keep_few_shapes()  # as the commands do
    quiet()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        texts = [document.text for _, documents in load_lists(given.data, 20) for document in documents]
        model = make_model(Path(folder) / "llama", "tiny", texts)
        for name in METHODS:
            least = None
            for count in given.queries:
                before, most, seconds = in_a_process(reranked, model, given.data, name, count)
                least = least or most
                rows.append(
                    [name, f"{count:,}", f"{before:.3f}", f"{most:.3f}", f"{most / least:.3f}", f"{seconds:.0f}"]
                )
    columns = ["", "queries", "GiB before", "peak GiB", "of the first", "seconds"]
    publish("Memory of asking a language model", conditions(None), [table(columns, rows)], given.out)


if __name__ == "__main__":
    main()
