"""Runs: which documents were found for each query, as files that every reader puts in the same order."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from pyarrow import csv

from shortlist.data.files import atomic_write
from shortlist.data.formats import SPACE, is_integer, split_columns
from shortlist.data.lines import MalformedError, numbered_lines, parse_lines, read_lines
from shortlist.errors import UserError
from shortlist.math.ordering import strictly_decreasing
from shortlist.records import Hit, Run

Ties = Literal["trec", "rank"]

RUN_COLUMNS = {  # the six columns of a TREC run, as pyarrow reads them
    "query_id": pa.dictionary(pa.int32(), pa.string()),
    "q0": pa.string(),
    "doc_id": pa.string(),
    "rank": pa.int64(),
    "score": pa.float64(),
    "tag": pa.string(),
}
_USED = ["query_id", "doc_id", "rank", "score"]
ORDERS = {
    "trec": [("query", "ascending"), ("score32", "descending"), ("doc_id", "descending")],
    "rank": [("query", "ascending"), ("rank", "ascending")],
}


class RunColumns(NamedTuple):
    """A run whose hits are columns, query after query, best first: millions of them in 20 bytes each and their ids."""

    query_ids: list[str]
    starts: Int[np.ndarray, " queries_and_one"]
    """The first hit of each query, and behind them the number of hits."""
    doc_ids: pa.StringArray
    scores: Float[np.ndarray, " hits"]

    def hits(self, query: int) -> list[Hit]:
        """The hits of a query, by its number."""
        span = slice(self.starts[query], self.starts[query + 1])
        doc_ids = self.doc_ids[span].to_numpy(zero_copy_only=False).tolist()
        return list(map(Hit._make, zip(doc_ids, self.scores[span].tolist(), strict=True)))

    def queries_of(self, numbers: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """The number of the query that each of these hits is of."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def pairs(self, numbers: Int[np.ndarray, " some"]) -> list[tuple[str, str]]:
        """Query id and document id of these hits."""
        query_ids = (self.query_ids[query] for query in self.queries_of(numbers).tolist())
        return list(zip(query_ids, self.doc_ids.take(pa.array(numbers)).to_pylist(), strict=True))


def read_run(path: Path, *, ties: Ties = "trec") -> Run:
    """The hits of a TREC run (`query Q0 document rank score tag`); queries in the order of their first line.

    Args:
        ties: `trec` orders a query's hits as trec_eval does: by score as a 32-bit float, equal scores by document id
            from last to first, whatever the rank column says. `rank` orders them by the rank column, equal ranks as
            in the file.

    Raises:
        UserError: a malformed line, a score that is not finite, a document twice for one query, no line at all.
    """
    columns = read_run_columns(path, ties=ties)
    with _collector_paused():
        return {query_id: columns.hits(query) for query, query_id in enumerate(columns.query_ids)}


def read_run_columns(path: Path, *, ties: Ties = "trec") -> RunColumns:
    """The same as columns; errors as of `read_run`."""
    table = _run_table(path) or _run_table_by_line(path)
    query = table["query_id"].unify_dictionaries().combine_chunks()
    table = table.drop_columns("query_id").append_column("query", query.indices)
    table = table.append_column("score32", table["score"].cast(pa.float32(), safe=False)).sort_by(ORDERS[ties])
    queries = table["query"].to_numpy()
    doc_ids = table["doc_id"].combine_chunks()
    pairs = doc_ids.dictionary_encode().indices.to_numpy().astype(np.int64) * len(query.dictionary) + queries
    if len(np.unique(pairs)) < len(pairs):
        _refuse_duplicate(path)
    starts = np.concatenate([[0], np.cumsum(np.bincount(queries, minlength=len(query.dictionary)))])
    return RunColumns(query.dictionary.to_pylist(), starts, doc_ids, table["score"].to_numpy())


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No search for cycles while millions of tuples are made that cannot form one: 4 times as fast at 7 million."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run_table(path: Path) -> pa.Table | None:
    """The run's columns, read many lines at a time; None where a line is not as simple as that takes."""
    first = next(numbered_lines(path), (0, 0, ""))[2]
    parse = csv.ParseOptions(delimiter="\t" if "\t" in first else " ", quote_char=False)
    convert = csv.ConvertOptions(column_types=RUN_COLUMNS, null_values=[], include_columns=_USED)
    try:
        with pa.input_stream(str(path), compression="detect") as file:
            table = csv.read_csv(
                file,
                read_options=csv.ReadOptions(column_names=list(RUN_COLUMNS)),
                parse_options=parse,
                convert_options=convert,
            )
    except (pa.ArrowInvalid, OSError):
        return None
    simple = np.isfinite(table["score"].to_numpy()).all() and table["doc_id"].index("").as_py() < 0
    return table if simple else None


def _run_table_by_line(path: Path) -> pa.Table:
    """The same table read line by line: any white space between columns, and an error that names the line."""
    rows = list(read_lines(path, _run_row))
    if not rows:
        raise UserError(f"{path}: holds no hits; expected lines of: query Q0 document rank score tag.")
    columns = zip(_USED, zip(*rows, strict=True), strict=True)
    return pa.table({name: pa.array(column, RUN_COLUMNS[name]) for name, column in columns})


def _run_row(line: str) -> tuple[str, str, int, float]:
    columns = split_columns(line)
    if len(columns) != 6:
        raise MalformedError(f"found {len(columns)} columns; expected 6: query Q0 document rank score tag.")
    query_id, _, doc_id, rank, score, _ = columns
    if not is_integer(rank):
        raise MalformedError(f"rank is {rank!r}; expected a whole number in column 4.")
    try:
        value = float(score)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise MalformedError(f"score is {score!r}; expected a finite number in column 5.")
    return query_id, doc_id, int(rank), value


def _refuse_duplicate(path: Path) -> NoReturn:
    seen: set[tuple[str, str]] = set()
    for number, _, (query_id, doc_id, *_) in parse_lines(path, _run_row):
        if (query_id, doc_id) in seen:
            raise UserError(
                f"{path}:{number}: document {doc_id!r} occurs twice for query {query_id!r}; "
                "a run names a document once per query."
            )
        seen.add((query_id, doc_id))
    raise UserError(f"{path}: changed while it was read; run the command again.")


def write_run(path: Path, run: Run | Iterator[tuple[str, list[Hit]]], tag: str = "shortlist") -> None:
    """Write a TREC run, whole or query by query, whose order every reader agrees on.

    Scores are written as 32-bit floats, each the nearest to its own that lies below the one before it: trec_eval
    ignores the rank column, keeps 32 bits and would break ties by document id.

    Raises:
        UserError: an id with white space.
        ValueError: hits that are not best first, or a score that is not finite.
    """
    with atomic_write(path) as file:
        parts = run.items() if isinstance(run, dict) else run
        for query_id, hits in parts:
            _refuse_space([query_id, tag, *(hit.doc_id for hit in hits)])
            texts = strictly_decreasing(np.array([hit.score for hit in hits], dtype=np.float64)).astype(str).tolist()
            file.writelines(
                f"{query_id} Q0 {hit.doc_id} {rank} {score} {tag}\n"
                for rank, (hit, score) in enumerate(zip(hits, texts, strict=True), 1)
            )


def _refuse_space(ids: list[str]) -> None:
    if "" in ids or SPACE.search("".join(ids)):
        found = next(name for name in ids if not name or SPACE.search(name))
        raise UserError(f"id {found!r} is empty or holds white space, which a run file cannot express; rename it.")
