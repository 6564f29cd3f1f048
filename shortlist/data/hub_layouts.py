"""Layouts of data sets on the hub: where documents, queries and judgements are.

LitSearch (https://arxiv.org/abs/2407.18940), BRIGHT (https://arxiv.org/abs/2407.12883) and FutureQueryEval have layouts
of their own; all others are read as BEIR's.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

from shortlist.data.beir import BRIGHT
from shortlist.data.formats import add_judgement, to_document, to_judged, to_judgement, to_query
from shortlist.data.lines import MalformedError, OnBad, parse_records
from shortlist.errors import UserError, unknown
from shortlist.progress import say
from shortlist.records import Document, Qrels, Query

EXCLUDES_NONE = "N/A"
"""What BRIGHT writes where a query excludes no document."""
CORRECTED = {"biology": 393, "sustainable_living": 1073, "stackoverflow": 580, "robotics": 521, "earth_science": 589}
"""Judgements of BRIGHT's tasks that were completed later, by castorini/eval, issue 100."""
ORIGINAL = {"biology": 372, "sustainable_living": 576, "stackoverflow": 478, "robotics": 520, "earth_science": 585}
"""Judgements of the same tasks as they were first published."""


@runtime_checkable
class Tables(Protocol):
    """The configurations of a data set, each with its tables by split."""

    name: str
    configs: Sequence[str]

    def has_files(self, files: Sequence[str]) -> bool:
        """Whether the data set consists of these files, to be read one by one."""
        ...

    def load(self, config: str | None) -> Mapping[str, Any]:
        """Return the tables of a configuration by split."""
        ...

    def load_file(self, file: str) -> Any:
        """Return the rows of a table with a header, or lines named `text`."""
        ...

    def load_beside(self, suffix: str) -> Mapping[str, Any]:
        """Return the tables of the data set whose name ends in `suffix` besides."""
        ...


@runtime_checkable
class HubLayout(Protocol):
    """Reads the parts of a collection from the tables of a data set."""

    def corpus(self) -> Any:
        """Return the table of documents."""
        ...

    def document(self, row: Mapping[str, Any]) -> Document:
        """Read a document from its row."""
        ...

    def splits(self) -> list[str]:
        """List the splits that have judgements."""
        ...

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        """Read the queries of a split, judged or not."""
        ...

    def qrels(self, split: str) -> Qrels:
        """Read the judgements of a split."""
        ...

    def excluded(self, split: str) -> dict[str, list[str]]:
        """Return the documents that a query must not find, where it has any."""
        ...


def rows_of(table: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, a thousand read at a time."""
    for columns in table.iter(batch_size=1000):
        yield from records_of(columns)


def records_of(columns: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of some columns."""
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


@final
class BeirLayout:
    """BEIR's configurations `corpus` and `queries`, or a Tevatron corpus without queries.

    Judgements are in the configuration `qrels` or `default`, or in the data set of the same name followed by `-qrels`.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def corpus(self) -> Any:
        return self._table("corpus")

    def _table(self, part: str) -> Any:
        """Return the rows of the configuration `part`, or of the only one.

        The split is the one named `part` or `train`, or the only one, whatever its name.
        """
        tables = self._tables.load(part if part in self._tables.configs else None)
        table = tables.get(part, tables.get("train", next(iter(tables.values())) if len(tables) == 1 else None))
        if table is None:
            raise unknown(f"{part} split of {self._tables.name}", part, tables)
        return table

    def document(self, row: Mapping[str, Any]) -> Document:
        return to_document(row)

    @cached_property
    def _judged(self) -> Mapping[str, Any]:
        if "queries" not in self._tables.configs:
            return {}
        config = next((name for name in ("qrels", "default") if name in self._tables.configs), None)
        return self._tables.load(config) if config else self._tables.load_beside("-qrels")

    def splits(self) -> list[str]:
        return sorted(self._judged)

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        del split  # all splits share a table
        return list(parse_records(self._tables.name, rows_of(self._table("queries")), to_query, on_bad))

    def qrels(self, split: str) -> Qrels:
        qrels: Qrels = {}
        rows = rows_of(self._judged[split])
        for _ in parse_records(self._tables.name, rows, lambda row: add_judgement(qrels, *to_judgement(row))):
            pass
        return qrels

    def excluded(self, split: str) -> dict[str, list[str]]:
        del split
        return {}


@final
class FilesLayout:
    """FutureQueryEval's files: corpus.tsv and queries.tsv with a header, qrels.txt as TREC writes judgements.

    Queries have a category each, which is a split too: `category-Sports`. https://arxiv.org/abs/2508.16757
    """

    FILES = ("corpus.tsv", "queries.tsv", "qrels.txt")

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def corpus(self) -> Any:
        return self._tables.load_file("corpus.tsv")

    def document(self, row: Mapping[str, Any]) -> Document:
        return to_document({name: value for name, value in _texts(row).items() if value is not None})

    @cached_property
    def _asked(self) -> list[tuple[Query, str]]:
        rows = map(_texts, rows_of(self._tables.load_file("queries.tsv")))
        asked = parse_records(self._tables.name, rows, lambda row: (to_query(row), row.get("category") or ""), None)
        return list(asked)

    def splits(self) -> list[str]:
        return sorted({"test", *(f"category-{category}" for _, category in self._asked if category)})

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        del on_bad
        return [query for query, category in self._asked if split in ("test", f"category-{category}")]

    @cached_property
    def _qrels(self) -> Qrels:
        qrels: Qrels = {}
        rows = rows_of(self._tables.load_file("qrels.txt"))
        add = partial(_add_line, qrels)
        for _ in parse_records(self._tables.name, (row["text"] for row in rows), add):
            pass
        return qrels

    def qrels(self, split: str) -> Qrels:
        asked = {query.query_id for query in self.queries(split)}
        return {query_id: judged for query_id, judged in self._qrels.items() if query_id in asked}

    def excluded(self, split: str) -> dict[str, list[str]]:
        del split
        return {}


def _texts(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Return a row of a table as texts, its numbers too."""
    return {name: None if value is None else str(value) for name, value in row.items()}


def _add_line(qrels: Qrels, line: str) -> None:
    """Add a line of judgements."""
    add_judgement(qrels, *to_judged(line))


class BenchmarkQuery(NamedTuple):
    """A query of a benchmark, with its relevant documents and what its row says besides."""

    query: Query
    relevant: list[str]
    row: Mapping[str, Any]


def _the_only(tables: Mapping[str, Any], wanted: str, name: str) -> Any:
    """Return the table of a split, or the only table."""
    if wanted in tables:
        return tables[wanted]
    if len(tables) == 1:
        return next(iter(tables.values()))
    raise unknown(f"split of {name}", wanted, tables)


@final
class LitSearchLayout:
    """LitSearch's configurations `query` and `corpus_clean`.

    The split `test` has all queries; the others are those with one value of a field of the queries: `specificity-0`,
    `quality-2`, `query_set-inline_acl`. A paper's citations are its metadata.
    """

    FIELDS = ("query_set", "specificity", "quality")

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def corpus(self) -> Any:
        return _the_only(self._tables.load("corpus_clean"), "full", self._tables.name)

    def document(self, row: Mapping[str, Any]) -> Document:
        cited = {"citations": [str(doc_id) for doc_id in row.get("citations") or ()]}
        text = row.get("abstract") or ""
        return to_document({"_id": row.get("corpusid"), "title": row.get("title"), "text": text, "metadata": cited})

    @cached_property
    def _asked(self) -> list[BenchmarkQuery]:
        table = _the_only(self._tables.load("query"), "full", self._tables.name)
        numbered = ({**row, "_id": number} for number, row in enumerate(rows_of(table)))
        return list(parse_records(self._tables.name, numbered, lambda row: _asked(row, "corpusids"), None))

    def splits(self) -> list[str]:
        parts = {f"{field}-{asked.row[field]}" for asked in self._asked for field in self.FIELDS if field in asked.row}
        return sorted({"test", *parts})

    def _of(self, split: str) -> list[BenchmarkQuery]:
        if split == "test":
            return self._asked
        field, _, value = split.partition("-")
        return [asked for asked in self._asked if str(asked.row.get(field)) == value]

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        del on_bad
        return [asked.query for asked in self._of(split)]

    def qrels(self, split: str) -> Qrels:
        return {asked.query.query_id: dict.fromkeys(asked.relevant, 1) for asked in self._of(split)}

    def excluded(self, split: str) -> dict[str, list[str]]:
        del split
        return {}


@final
class BrightLayout:
    """One task of BRIGHT, with passages or with the long documents that they come from.

    The split `test` asks what people asked; each configuration `MODEL_reason` is a split with the queries as a model
    has rewritten them, and the same judgements.
    """

    def __init__(self, tables: Tables, task: str, *, long: bool) -> None:
        self._tables, self._task, self._long = tables, task, long

    def corpus(self) -> Any:
        tables = self._tables.load("long_documents" if self._long else "documents")
        if self._task not in tables:
            kind = "long document" if self._long else "document"
            raise unknown(f"task of {self._tables.name} with {kind}s", self._task, tables)
        return tables[self._task]

    def document(self, row: Mapping[str, Any]) -> Document:
        return to_document({"_id": row.get("id"), "text": row.get("content")})

    def splits(self) -> list[str]:
        rewritten = [name for name in self._tables.configs if name.endswith("_reason")]
        return sorted(["test", *rewritten])

    @cached_property
    def _asked(self) -> dict[str, BenchmarkQuery]:
        field = "gold_ids_long" if self._long else "gold_ids"
        rows = rows_of(self._tables.load("examples")[self._task])
        asked = parse_records(self._tables.name, rows, lambda row: _asked(row, field), None)
        return {one.query.query_id: one for one in asked}

    def queries(self, split: str, on_bad: OnBad | None = None) -> list[Query]:
        if split == "test":
            return [asked.query for asked in self._asked.values()]
        return list(parse_records(self._tables.name, rows_of(self._tables.load(split)[self._task]), to_query, on_bad))

    def qrels(self, split: str) -> Qrels:
        del split
        return self._qrels

    @cached_property
    def _qrels(self) -> Qrels:
        qrels: Qrels = {query_id: dict.fromkeys(asked.relevant, 1) for query_id, asked in self._asked.items()}
        if self._task in ORIGINAL and not self._long:
            say(f"{self._tables.name}: {which_judgements(self._task, sum(map(len, qrels.values())))}")
        return qrels

    def excluded(self, split: str) -> dict[str, list[str]]:
        del split
        listed = {query_id: _ids(asked.row, "excluded_ids") for query_id, asked in self._asked.items()}
        return {query_id: kept for query_id, ids in listed.items() if (kept := [i for i in ids if i != EXCLUDES_NONE])}


def which_judgements(task: str, count: int) -> str:
    """Say which of a task's two sets of judgements so many are."""
    original, corrected = ORIGINAL[task], CORRECTED[task]
    which = {original: "the original ones", corrected: "the corrected ones"}.get(count, "neither of its two sets")
    return (
        f"{count:,} judgements, {which} ({original:,} were published first, {corrected:,} after correction); say which "
        "beside a score."
    )


def _asked(row: Mapping[str, Any], field: str) -> BenchmarkQuery:
    """Read a query, and the field with its relevant documents."""
    query = to_query({"_id": row.get("_id", row.get("id")), "text": row.get("query")})
    return BenchmarkQuery(query, _ids(row, field), row)


def _ids(row: Mapping[str, Any], field: str) -> list[str]:
    value = row.get(field)
    if not isinstance(value, list):
        found = "no such field" if field not in row else f"a {type(value).__name__}"
        raise MalformedError(f"the {field!r} of the query is {found}; expected a list of document ids.")
    return list(dict.fromkeys(map(str, value)))


class Named(NamedTuple):
    """A data set of the hub, and which part of it."""

    dataset_id: str
    task: str = ""
    long: bool = False


_TASK = re.compile(rf"(.+)/({'|'.join(BRIGHT)})(/long)?")


def divide_name(name: str) -> Named:
    """Divide a name such as `xlang-ai/BRIGHT/biology/long` into data set, task and setting."""
    match = _TASK.fullmatch(name)
    if match is None or match[1].strip("./").count("/") < 1:
        return Named(name)
    return Named(match[1], match[2], match[3] is not None)


def hub_layout(tables: Tables, asked: Named) -> HubLayout:
    """Choose the layout of a data set by its configurations.

    Raises:
        UserError: a task of BRIGHT is needed and not named, or named where there is none.
    """
    configs = set(tables.configs)
    if {"examples", "documents"} <= configs:
        if not asked.task:
            raise UserError(f"{tables.name}: has {len(BRIGHT)} tasks; name one, such as {tables.name}/{BRIGHT[0]}.")
        return BrightLayout(tables, asked.task, long=asked.long)
    if asked.task:
        raise UserError(
            f"{tables.name}: has no configurations examples and documents, as BRIGHT has; found "
            f"{', '.join(sorted(configs))}."
        )
    if tables.has_files(FilesLayout.FILES):
        return FilesLayout(tables)
    known: Callable[[Tables], HubLayout] = LitSearchLayout if {"query", "corpus_clean"} <= configs else BeirLayout
    return known(tables)
