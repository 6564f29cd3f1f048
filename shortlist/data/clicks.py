"""Click logs: what searchers were shown and clicked, added up by query and document."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from reprlib import repr as shown
from typing import Any, NamedTuple

from shortlist.data.lines import MalformedError, to_text
from shortlist.data.triplets import read_rows, text_id
from shortlist.errors import UserError, unknown
from shortlist.records import Group, Query

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "query": ("query", "query_text", "search_term", "q"),
    "document": ("document", "doc", "doc_id", "docid", "document_id", "clicked_doc_id", "product_id"),
    "position": ("position", "rank", "pos"),
    "clicks": ("clicks", "clicked", "click"),
    "impressions": ("impressions", "shown", "views"),
}
"""Names that a column usually has, in any case, by what it holds."""

NEEDED = ("query", "document")
"""What every log must have a column of."""

_WHOLE = re.compile(r"\d{1,15}(\.0+)?", re.ASCII)
_WORDS = {"true": 1, "false": 0}


class ClickRow(NamedTuple):
    """A row of a log: a document shown for a query, clicked or not."""

    query: str
    document: str
    """An id or a text."""
    clicks: int = 1
    impressions: int = 0
    position: int = 1


@dataclass(slots=True)
class Counts:
    """Clicks and impressions of one document for one query, over all rows."""

    clicks: int = 0
    impressions: int = 0
    weighted: float = 0.0
    """Clicks, each divided by the probability that its position is looked at."""

    def add(self, clicks: int, impressions: int, weighted: float) -> None:
        """Add the counts of another row."""
        self.clicks += clicks
        self.impressions += impressions
        self.weighted += weighted


ClickLog = dict[str, dict[str, Counts]]
"""query text -> document -> counts, in the order in which they first occur."""


class ChosenPairs(NamedTuple):
    """Training data chosen from a log, with numbers of pairs.

    A pair is a query and a document that was shown for it.
    """

    groups: list[Group]
    queries: dict[str, Query]
    pairs: int
    clicked: int
    few_clicks: int
    """Clicked pairs left out as they have too few clicks."""
    low_rate: int
    """Pairs with enough clicks left out as they have too few per impression."""
    doubtful: int
    """Clicked pairs with fewer than 1 click per 100 impressions, left out or not."""


def parse_columns(words: Sequence[str]) -> dict[str, str]:
    """Parse `--columns`: words such as `query=search_term` become {"query": "search_term"}.

    Raises:
        UserError: a word of another form, an unknown kind of column, a kind or a name that occurs twice.
    """
    given: dict[str, str] = {}
    for word in words:
        kind, _, name = word.partition("=")
        if not name:
            raise UserError(f"--columns {word}: expected KIND=NAME, such as query=search_term.")
        if kind not in USUAL_NAMES:
            raise UserError(f"--columns {word}: {unknown('column', kind, USUAL_NAMES)}")
        if kind in given or name in given.values():
            raise UserError(f"--columns {word}: {kind} or {name} occurs before; expected each once.")
        given[kind] = name
    return given


def _candidates(kind: str, names: Collection[str], given: Mapping[str, str]) -> list[str]:
    """List the columns that may be of a kind."""
    if kind in given:
        return [given[kind]] if given[kind] in names else []
    return [name for name in names if name.casefold() in USUAL_NAMES[kind] and name not in given.values()]


def find_columns(names: Collection[str], given: Mapping[str, str]) -> dict[str, str]:
    """Find the columns of a log by their usual names, or by those given.

    Raises:
        MalformedError: a column is missing, or two may be the same.
    """
    columns: dict[str, str] = {}
    for kind in USUAL_NAMES:
        found = _candidates(kind, names, given)
        if len(found) > 1:
            raise MalformedError(
                f"{' and '.join(map(repr, found))} may both be the column {kind!r}; say which with --columns "
                f"{kind}={found[0]}."
            )
        if found:
            columns[kind] = found[0]
        elif kind in given or kind in NEEDED:
            raise _no_column(kind, names, given)
    return columns


def _no_column(kind: str, names: Collection[str], given: Mapping[str, str], why: str = "") -> MalformedError:
    expected = repr(given[kind]) if kind in given else f"one of {', '.join(USUAL_NAMES[kind])}"
    found = ", ".join(sorted(map(str, names))) or "none"
    return MalformedError(
        f"no column is the {kind}{why} (found: {found}). Expected {expected}; name another with --columns {kind}=NAME."
    )


def may_be_clicks(names: Collection[str], given: Mapping[str, str]) -> bool:
    """Whether these names look like the columns of a click log.

    There must be a query and a document, and something that tells of clicks.
    """
    found = [kind for kind in USUAL_NAMES if _candidates(kind, names, given)]
    tells = len(found) > len(NEEDED) or any("click" in name.casefold() for name in names)
    return tells and set(NEEDED) <= set(found)


class RowParser:
    """Turns records of click logs into rows.

    The columns may have other names in each file, but must be of the same kinds in all records.
    """

    def __init__(self, given: Mapping[str, str], used_by: Mapping[str, str]):
        """Make a parser.

        Args:
            given: names of columns, by kind.
            used_by: flags that use a column, by its kind. Positions are read only where they are used.
        """
        self.given = given
        self._used_by = used_by
        self._columns: dict[tuple[str, ...], dict[str, str]] = {}
        self.kinds: list[str] = []
        """Kinds of columns that are read, once there is a record."""

    def __call__(self, record: Any) -> ClickRow:
        """Turn a record into a row; raises MalformedError where that cannot be done."""
        if not isinstance(record, dict):
            raise MalformedError(f"found a {type(record).__name__}; expected a JSON object, or a table with a header.")
        names = tuple(record)
        columns = self._columns.get(names) or self._look_up(names)
        query = " ".join(to_text(record[columns["query"]], "query").split())
        document = _document(record[columns["document"]])
        if not query or not document:
            raise MalformedError(f"{'document' if query else 'query'} is empty; name one, or remove the row.")
        clicks, impressions, position = 1, 0, 1
        if "clicks" in columns:
            clicks = _count(record[columns["clicks"]], "clicks")
        if "impressions" in columns:
            impressions = _count(record[columns["impressions"]], "impressions")
        if clicks and "position" in self._used_by:
            position = _count(record[columns["position"]], "position", least=1)
        return ClickRow(query, document, clicks, impressions, position)

    def _look_up(self, names: tuple[str, ...]) -> dict[str, str]:
        columns = find_columns(names, self.given)
        for kind, flag in self._used_by.items():
            if kind not in columns:
                raise _no_column(kind, names, self.given, f", which {flag} needs")
        if "position" not in self._used_by:
            columns.pop("position", None)
        if self._columns and list(columns) != self.kinds:
            raise MalformedError(
                f"its columns are {', '.join(columns)}; expected {', '.join(self.kinds)}, as in the records before it."
            )
        self.kinds = list(columns)
        self._columns[names] = columns
        return columns


def _document(value: Any) -> str:
    return str(value) if type(value) is int else to_text(value, "document").strip()


def _count(value: Any, kind: str, least: int = 0) -> int:
    """Read a whole number.

    A database may write it as 3.0 or "3", and 1 as true.
    """
    number: int | None = None
    if isinstance(value, str):
        word = value.strip().lower()
        number = int(word.partition(".")[0]) if _WHOLE.fullmatch(word) else _WORDS.get(word)
    elif isinstance(value, int) or (isinstance(value, float | Decimal) and float(value).is_integer()):
        number = int(value)
    if number is None or number < least:
        raise MalformedError(f"{kind} is {shown(value)}; expected a whole number from {least}.")
    return number


def read_clicks(name: str, parser: RowParser) -> Iterator[ClickRow]:
    """Yield the rows of a file or of `hf:ID`.

    Raises:
        UserError: the source cannot be read, or is not a click log.
    """
    return read_rows(name, parser, partial(may_be_clicks, given=parser.given), headed=True)


def check_bias(bias: Sequence[float]) -> None:
    """Refuse probabilities of being looked at that are not in (0, 1]."""
    for value in bias:
        if not 0 < value <= 1:
            raise UserError(f"--position-bias {value:g}: expected probabilities of more than 0 and at most 1.")


def add_up(rows: Iterable[ClickRow], bias: Sequence[float] = ()) -> ClickLog:
    """Add up the rows by query and document.

    Args:
        bias: probability that position 1, 2, 3 and so on is looked at; the last one counts for all positions below.
    """
    log: ClickLog = {}
    for query, document, clicks, impressions, position in rows:
        weighted = clicks / (bias[min(position, len(bias)) - 1] if bias else 1)
        log.setdefault(query, {}).setdefault(document, Counts()).add(clicks, impressions, weighted)
    return log


def with_ids(log: ClickLog, doc_ids: Mapping[str, str]) -> ClickLog:
    """Return the log with the ids of its documents; those without one are left out."""
    named: ClickLog = {}
    for query, documents in log.items():
        for document, counts in documents.items():
            if document in doc_ids:
                known = named.setdefault(query, {}).setdefault(doc_ids[document], Counts())
                known.add(counts.clicks, counts.impressions, counts.weighted)
    return named


def check_thresholds(min_clicks: float, min_rate: float) -> None:
    """Refuse thresholds that let through what was never clicked, or nothing at all."""
    if not 0 < min_clicks < math.inf:
        raise UserError(f"--min-clicks is {min_clicks:g}; expected more than 0.")
    if not 0 <= min_rate <= 1:
        raise UserError(f"--min-rate is {min_rate:g}; expected clicks per impression, from 0 to 1.")


def choose(log: ClickLog, *, min_clicks: float = 1.0, min_rate: float = 0.0) -> ChosenPairs:
    """Make a group of each query that has a document with enough clicks.

    Positives come by falling weighted clicks. Negatives are the documents that were shown for the query and never
    clicked, so what is left out is neither.
    """
    groups: list[Group] = []
    queries: dict[str, Query] = {}
    pairs = clicked = few_clicks = low_rate = doubtful = 0
    for text, documents in log.items():
        known = {doc_id: counts for doc_id, counts in documents.items() if counts.clicks}
        enough = {doc_id: counts for doc_id, counts in known.items() if round(counts.weighted, 9) >= min_clicks}
        kept = {doc_id: counts for doc_id, counts in enough.items() if _rate(counts) >= min_rate}
        pairs += len(documents)
        clicked += len(known)
        few_clicks += len(known) - len(enough)
        low_rate += len(enough) - len(kept)
        doubtful += sum(100 * counts.clicks < counts.impressions for counts in known.values())
        if kept:
            query = Query(text_id(text), text)
            positives = sorted(kept, key=lambda doc_id: -kept[doc_id].weighted)
            negatives = tuple(doc_id for doc_id in documents if doc_id not in known)
            groups.append(Group(query.query_id, tuple(positives), negatives))
            queries[query.query_id] = query
    return ChosenPairs(groups, queries, pairs, clicked, few_clicks, low_rate, doubtful)


def _rate(counts: Counts) -> float:
    """Return the clicks per impression; what was never shown, but clicked, has the highest rate."""
    return counts.clicks / counts.impressions if counts.impressions else math.inf
