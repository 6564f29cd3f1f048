"""Runs: the documents found for each query, in files that all readers order alike."""

import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from pyarrow import csv

from shortlist.data.files import atomic_write
from shortlist.data.formats import SPACE, is_integer, is_number, split_columns
from shortlist.data.headers import after_header, write_header
from shortlist.data.lines import MalformedError, parse_lines
from shortlist.data.manifest import check_output
from shortlist.errors import UserError
from shortlist.math.ordering import strictly_decreasing
from shortlist.progress import say
from shortlist.records import Hit, Run

Ties = Literal["trec", "rank"]

QUERY_ID = pa.dictionary(pa.int32(), pa.string())
TREC = {  # the columns of a TREC run, as pyarrow reads them
    "query_id": QUERY_ID,
    "q0": pa.string(),
    "doc_id": pa.string(),
    "rank": pa.int64(),
    "score": pa.float64(),
    "tag": pa.string(),
}
SHORT = {"query_id": QUERY_ID, "doc_id": pa.string(), "value": pa.float64()}
"""A run of three columns; the last holds ranks (MS MARCO) or scores."""
VALUES = {
    "rank": "rank ranks ranking position pos",
    "score": "score scores sim similarity relevance rel value logit probability bm25",
}
"""Meanings of the last of three columns, with the words of a header that say so."""
UNUSED = ("q0", "tag")
FORMS = {len(TREC): TREC, len(SHORT): SHORT}
MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number with random-looking bits: a product with it spreads over all 64 bits."""
RUN_FIELDS = "expected 6 (query Q0 document rank score tag) or 3 (query document, and score or rank)"


class RunColumns(NamedTuple):
    """A run as columns of hits, query after query, best first.

    Millions of hits take 20 bytes each, and their ids.
    """

    query_ids: list[str]
    starts: Int[np.ndarray, " queries_and_one"]
    """The first hit of each query, followed by the number of hits."""
    doc_ids: pa.StringArray
    scores: Float[np.ndarray, " hits"]

    def hits(self, query: int) -> list[Hit]:
        """Return the hits of a query, by its number."""
        span = slice(self.starts[query], self.starts[query + 1])
        doc_ids = self.doc_ids[span].to_numpy(zero_copy_only=False).tolist()
        return list(map(Hit._make, zip(doc_ids, self.scores[span].tolist(), strict=True)))

    def queries_of(self, numbers: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """Return the number of the query that each of these hits belongs to."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def pairs(self, numbers: Int[np.ndarray, " some"]) -> list[tuple[str, str]]:
        """Return (query id, document id) of each of these hits."""
        query_ids = (self.query_ids[query] for query in self.queries_of(numbers).tolist())
        return list(zip(query_ids, self.doc_ids.take(pa.array(numbers)).to_pylist(), strict=True))


@final
class StoredRun(Mapping[str, list[Hit]]):
    """A run of columns as a mapping, which makes a query's hits when asked.

    It takes less than half the memory of a dict.
    """

    def __init__(self, columns: RunColumns) -> None:
        self.columns = columns
        self._numbers = {query_id: number for number, query_id in enumerate(columns.query_ids)}

    def __getitem__(self, query_id: str) -> list[Hit]:
        return self.columns.hits(self._numbers[query_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def read_run(path: Path, *, ties: Ties = "trec") -> dict[str, list[Hit]]:
    """Read the hits of a TREC run, or of a run of three columns.

    The lines of a TREC run are `query Q0 document rank score tag`. Three columns are `query document`, and the score or
    the rank, as a header says; without one they are ranks if the numbers of every query are 1, 2, 3 ... Queries come
    in the order of their first line.

    Args:
        ties: `trec` orders a query's hits as trec_eval does: by score as a 32-bit float, equal scores by document id
            from last to first, whatever the rank column says. `rank` orders them by the rank column, equal ranks as in
            the file. A file without scores gets -rank as scores; in a file without ranks, the order of the lines is the
            rank.

    Raises:
        UserError: a malformed line, a score that is not finite, a document twice for one query, no line at all.
    """
    columns = read_run_columns(path, ties=ties)
    with _collector_paused():
        return {query_id: columns.hits(query) for query, query_id in enumerate(columns.query_ids)}


def open_run(path: Path, *, ties: Ties = "trec") -> StoredRun:
    """Read a run for a single pass over its queries.

    Arguments and errors are as in `read_run`.
    """
    return StoredRun(read_run_columns(path, ties=ties))


def read_run_columns(path: Path, *, ties: Ties = "trec") -> RunColumns:
    """Read a run as columns; arguments and errors are as in `read_run`."""
    check_output(path)
    table = _run_table(path) or _run_table_by_line(path)
    column = table["query_id"].unify_dictionaries().combine_chunks()
    queries, query_ids = column.indices.to_numpy(), column.dictionary.to_pylist()
    doc_ids = table["doc_id"].combine_chunks()
    pairs = np.sort(_fingerprints(doc_ids) ^ (queries.astype(np.uint64) * MIX))
    if (pairs[1:] == pairs[:-1]).any():
        _refuse_duplicate(path)
    starts = np.concatenate([[0], np.cumsum(np.bincount(queries, minlength=len(query_ids)))])
    ranks, scores = _ranks_and_scores(path, table, queries, starts)
    order = _order(queries, scores.astype(np.float32), doc_ids) if ties == "trec" else _sorted(queries, ranks)
    if order is not None:
        doc_ids, scores = doc_ids.take(pa.array(order)), scores[order]
    return RunColumns(query_ids, starts, doc_ids, scores)


def _ranks_and_scores(
    path: Path, table: pa.Table, queries: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if "value" not in table.column_names:
        return table["rank"].to_numpy(), table["score"].to_numpy()
    values, meaning = table["value"].to_numpy(), _meaning(_form(path).header)
    ascending = values[np.lexsort((values, queries))]
    expected = np.arange(1, len(values) + 1) - np.repeat(starts[:-1], np.diff(starts))
    if meaning == "rank" or (meaning is None and np.array_equal(ascending, expected)):
        return values, -values
    if meaning is None and len(values) > len(starts) and _look_like_ranks(queries, values):
        say(
            f"{path}: its third column has whole numbers that rise from line to line of every query, and is taken for "
            "scores, the highest first; if it holds ranks, put a line `query-id corpus-id rank` before the first."
        )
    return np.arange(len(values)), values


def _meaning(header: str | None) -> str | None:
    """Return what a header calls the last column: `rank`, `score` or neither (None)."""
    words = set(re.split("[^a-z0-9]+", split_columns(header)[-1].lower())) if header else set()
    return next((meaning for meaning, names in VALUES.items() if words & set(names.split())), None)


def _look_like_ranks(queries: np.ndarray, values: np.ndarray) -> bool:
    order = np.argsort(queries, kind="stable")
    queries, values = queries[order], values[order]
    rising = (queries[1:] > queries[:-1]) | (values[1:] > values[:-1])
    return bool(rising.all() and (values >= 0).all() and (values % 1 == 0).all())


def _sorted(queries: np.ndarray, keys: np.ndarray) -> np.ndarray | None:
    """Return the order by query and key, or None if already in order.

    Hits with equal keys stay in their order.
    """
    if _follow(queries, keys).all():
        return None
    return np.lexsort((keys, queries))


def _follow(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each hit but the first may come after the one before it."""
    return (queries[1:] > queries[:-1]) | ((queries[1:] == queries[:-1]) & (keys[1:] >= keys[:-1]))


def _order(queries: np.ndarray, scores: np.ndarray, doc_ids: pa.StringArray) -> np.ndarray | None:
    """Return trec_eval's order, or None if the hits are already in it.

    It sorts by query, falling score, falling document id.
    """
    order = _sorted(queries, -scores)
    if order is not None:
        queries, scores = queries[order], scores[order]
    equal = (queries[1:] == queries[:-1]) & (scores[1:] == scores[:-1])
    if not equal.any():
        return order
    order = np.arange(len(queries)) if order is None else order
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    group = np.cumsum(np.append(True, ~equal))[tied]
    table = pa.table({"group": group, "doc_id": doc_ids.take(pa.array(order[tied])), "place": order[tied]})
    order[tied] = table.sort_by([("group", "ascending"), ("doc_id", "descending")])["place"].to_numpy()
    return order


def _ends(texts: pa.StringArray) -> np.ndarray:
    """Return the offsets of texts in their buffer: the first start, then every end."""
    return np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]


def _fingerprints(texts: pa.StringArray) -> np.ndarray:
    """Return a 64-bit number for each text; different texts almost surely get different numbers."""
    ends, data = _ends(texts), texts.buffers()[2]
    letters = np.concatenate([np.frombuffer(data or b"", np.uint8), np.zeros(8, np.uint8)])
    words = np.ndarray(len(letters) - 7, "<u8", letters, strides=(1,))  # the eight bytes that start at each byte
    starts, lengths = ends[:-1], np.diff(ends)
    masks = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
    values = lengths.astype(np.uint64) * MIX
    for at in range(0, lengths.max(initial=0), 8):
        word = words[np.minimum(starts + at, len(words) - 1)] & masks[np.clip(lengths - at, 0, 8)]
        values = (values ^ word) * MIX
        values ^= values >> np.uint64(29)
    return values


def run_columns(run: Run) -> RunColumns:
    """Convert a run to columns."""
    hits = [hit for query_hits in run.values() for hit in query_hits]
    starts = np.concatenate([[0], np.cumsum([len(query_hits) for query_hits in run.values()], dtype=np.int64)])
    doc_ids = pa.array([hit.doc_id for hit in hits], pa.string())
    return RunColumns(list(run), starts, doc_ids, np.array([hit.score for hit in hits], dtype=np.float64))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector while millions of tuples are made.

    They cannot form cycles; without the search for cycles, 7 million are made 4 times as fast.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Form(NamedTuple):
    """The format of the lines of a run file."""

    columns: dict[str, pa.DataType]
    delimiter: str
    header: str | None
    """The first line, if it names the columns (BEIR)."""
    first_line: int
    """Number of the file's first line that is no comment."""

    @property
    def used(self) -> list[str]:
        return [name for name in self.columns if name not in UNUSED]


def _form(path: Path) -> _Form:
    number, _, first = next(after_header(path), (1, 0, ""))
    columns = split_columns(first)
    header = first if len(columns) == len(SHORT) and not is_number(columns[-1]) else None
    return _Form(FORMS.get(len(columns), TREC), "\t" if "\t" in first else " ", header, number)


def _run_table(path: Path) -> pa.Table | None:
    """Read the run's columns, many lines at a time.

    The result is None if a line is not simple enough for this.
    """
    form = _form(path)
    read = csv.ReadOptions(
        column_names=list(form.columns), skip_rows=form.first_line - 1 + int(form.header is not None)
    )
    parse = csv.ParseOptions(delimiter=form.delimiter, quote_char=False)
    convert = csv.ConvertOptions(column_types=form.columns, null_values=[], include_columns=form.used)
    try:
        with pa.input_stream(str(path), compression="detect") as file:
            table = csv.read_csv(file, read_options=read, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, OSError):
        return None
    named = all(np.diff(_ends(chunk)).min(initial=1) > 0 for chunk in table["doc_id"].chunks if len(chunk))
    simple = len(table) and named and np.isfinite(table[form.used[-1]].to_numpy()).all()
    return table if simple else None


def _run_table_by_line(path: Path) -> pa.Table:
    """Read the same table line by line.

    Any white space may stand between columns, and an error names the line.
    """
    form = _form(path)
    rows = [row for _, row in _rows(path, form)]
    if not rows:
        raise UserError(f"{path}: holds no hits; {RUN_FIELDS}.")
    columns = zip(form.used, zip(*rows, strict=True), strict=True)
    return pa.table({name: pa.array(column, form.columns[name]) for name, column in columns})


def _rows(path: Path, form: _Form) -> Iterator[tuple[int, tuple]]:
    """Yield (line number, the values in use) of each line."""
    for number, _, row in parse_lines(path, partial(_run_row, form)):
        if row is not None and number >= form.first_line:
            yield number, row


def _run_row(form: _Form, line: str) -> tuple | None:
    if line == form.header or (line[:1] == "#" and line[1:2] in ("", " ", "\t")):
        return None
    columns = split_columns(line)
    if len(columns) != len(form.columns):
        raise MalformedError(f"found {len(columns)} columns; {RUN_FIELDS}, the same on every line.")
    row = dict(zip(form.columns, columns, strict=True))
    if "rank" in row and not is_integer(row["rank"]):
        raise MalformedError(f"rank is {row['rank']!r}; expected a whole number in column 4.")
    score = row.get("score", columns[-1])
    if not is_number(score):
        place = list(form.columns).index(form.used[-1]) + 1
        raise MalformedError(f"score is {score!r}; expected a finite number in column {place}.")
    return (*(int(row[name]) if name == "rank" else row[name] for name in form.used[:-1]), float(score))


def _refuse_duplicate(path: Path) -> None:
    """Raise a UserError that names the line where a document occurs again.

    Nothing is raised where two ids only had the same fingerprint.
    """
    seen: set[tuple[str, str]] = set()
    for number, (query_id, doc_id, *_) in _rows(path, _form(path)):
        if (query_id, doc_id) in seen:
            raise UserError(
                f"{path}:{number}: document {doc_id!r} occurs twice for query {query_id!r}; "
                "a run names a document once per query."
            )
        seen.add((query_id, doc_id))


def write_run(
    path: Path,
    run: Run | Iterator[tuple[str, list[Hit]]],
    tag: str = "shortlist",
    *,
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write a TREC run whose order every reader agrees on.

    The run is given whole or query by query. Scores are written as 32-bit floats, each the nearest to the given one
    that lies below the score before it: trec_eval ignores the rank column, keeps 32 bits and would break ties by
    document id.

    Args:
        header: ir_metadata to write as comments before the first line.

    Raises:
        UserError: an id with white space.
        ValueError: hits that are not best first, or a score that is not finite.
    """
    with atomic_write(path) as file:
        if header is not None:
            write_header(file, header)
        parts = run.items() if isinstance(run, Mapping) else run
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
