from collections.abc import Iterator
from datetime import date
from inspect import unwrap

import numpy as np
import pytest

from shortlist.data import metadata
from shortlist.data.metadata import Metadata
from shortlist.data.where import DEEPEST, LONGEST_FILTER, WhereError, matches
from shortlist.records import Document

ROWS = {
    "a": {"year": 2020, "lang": "de", "tags": ["x", "y"], "end": 3, "draft": True, "due": date(2024, 5, 1)},
    "b": {"year": "n.d.", "lang": "en", "tags": "x", "end": 4.5, "due": "2023-12-31"},
    "c": {"lang": None, "tags": [], "sizes": [1, 2.5], "more": {"a": 1}, "draft": False, "last-modified": 7},
    "d": {"year": 2021, "tags": ["it's", 3], "big": 2**70},
}


class Corpus:
    """A collection, which counts how often it is read."""

    def __init__(self, rows: dict[str, dict] = ROWS) -> None:
        self.rows, self.num_read = rows, 0

    def corpus(self) -> Iterator[Document]:
        self.num_read += 1
        for doc_id, row in self.rows.items():
            yield Document(doc_id, "text", title=f"Title {doc_id}", metadata=row)


@pytest.fixture(scope="module")
def known() -> Metadata:
    return Metadata(Corpus())


def found(known: Metadata, where: str) -> str:
    return "".join(known.allowed(where))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("year >= 2020", "ad"),
        ("2020 < year", "d"),
        ("year != 2020", "bd"),
        ("year <> 2020", "bd"),
        ("not year = 2020", "bd"),
        ("not (year >= 2020)", "b"),
        ("year = 'n.d.'", "b"),
        ("year < 2020.5", "a"),
        ("year in (2020, 'n.d.')", "ab"),
        ("year in (2020.0, 7)", "a"),
        ("year between 2021 and 2030", "d"),
        ("year not between 2021 and 2030", "ab"),
        ("year = -2020 or -1 < year", "ad"),
        ("year = 20200000000000000000000", ""),
        ("big > 1e20", "d"),
        ("lang in ('de', 'fr')", "a"),
        ("lang not in ('de')", "b"),
        ("lang is null", "cd"),
        ("lang is not null and year is null", ""),
        ("lang like 'd%' or lang like '_n'", "ab"),
        ("lang not like 'd%'", "b"),
        ("lang like 'D%'", ""),
        ("lang ilike 'D%'", "a"),
        ("tags has 'x'", "ab"),
        ("tags HAS 'it''s'", "d"),
        ("tags has 3", "d"),
        ("'y' in tags", "a"),
        ("tags in ('y', 'x', 'z')", "ab"),
        ("not tags has 'x'", "cd"),
        ("tags is null", ""),
        ("sizes has 1 and sizes has 2.5", "c"),
        ("draft", "a"),
        ("not draft", "c"),
        ("draft = false", "c"),
        ("draft is true", "a"),
        ("draft is not true", "c"),
        ('end < 4 and "end" > 2', "a"),
        ("due >= '2024-01-01'", "a"),
        ("more is not null", "c"),
        ('"last-modified" = 7', "c"),
        ("title = 'Title b' or doc_id = 'd'", "bd"),
        ("url = ''", "abcd"),
        ("year = 2020 or lang = 'en' and tags has 'y'", "a"),
        ("(year = 2020 or lang = 'en') and tags has 'x'", "ab"),
        ("YEAR_ = 1 or year = 2020", "WhereError"),
    ],
)
def test_a_filter_finds_what_it_says(known, where, expected):
    if expected == "WhereError":
        with pytest.raises(WhereError):
            found(known, where)
    else:
        assert found(known, where) == expected


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("yaer = 1", "at character 1: unknown field 'yaer': perhaps 'year'? Fields: big, doc_id, "),
        ("year = 1 and weight > 3", "at character 14: unknown field 'weight': known: big, "),
        ("lang = 'de' and lang >= 3", "at character 17: lang holds text, and 3 is a number."),
        ("draft = 'yes'", "draft holds true or false, and 'yes' is text."),
        ("sizes = 1", "sizes holds lists of numbers, and 1 is a number; say sizes has 1."),
        ("more = 1", "more holds objects, and 1 is a number."),
        ("draft > true", "draft holds true or false, which are compared by = and != only."),
        ("lang like 3", "lang is compared with 3 by `like`; expected text, in which % stands for any text."),
        ('lang = "de"', "at character 8: lang is compared with another field, de; text stands in single quotes: 'de'."),
        ('lang in ("de")', "is no value; expected a number, a text, true or false; text stands in single quotes: 'de'"),
        ("year = null", "nothing equals null; expected `is null` or `is not null`."),
        ("year is 3", "year is compared by `is`; expected null, true or false behind it."),
        ("year in ()", "year is compared with an empty list"),
        ("", "is empty; expected a filter such as year >= 2020 and lang = 'de'."),
        ("  ", "is empty;"),
        ("-- nothing", "is not one filter"),
        ("year >= ", "at character 6: cannot be read near '>='"),
        ("(year = 1", "at character 9: cannot be read near '1'"),
        ("year = 1)", "at character 9: cannot be read near ')'"),
        ("year 1", "at character 6: cannot be read near '1'"),
        ("lang = 'x", "at character 8: a text is not closed"),
        ("tags has", "cannot be read near 'has'"),
        ("a.b = 1", "at character 2: found '.'"),
        ("year + 1 = 3", "at character 6: found '+'"),
        ("last-modified = 7", "(a name with other signs than letters, digits and _ stands in double quotes)"),
        ("lower(lang) = 'de'", "is no field"),
        ("lang = 'a' 'b'", "is no value"),
        ("5", "is no condition"),
        ("drop table x; select 1", "found ';'"),
        ("year = 1; year = 2", "found ';'"),
        ("year = (select 1)", "cannot be read near"),
        ("year = 1 union select 1", "cannot be read near"),
        ("year = :a", "found ':'"),
        ("(" * (DEEPEST + 1), f"has more than {DEEPEST} of and, or, not and parentheses"),
        ("x" * (LONGEST_FILTER + 1), f"has {LONGEST_FILTER + 1:,} characters; expected at most {LONGEST_FILTER:,}."),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_says_where(known, where, said):
    with pytest.raises(WhereError) as raised:
        known.allowed(where)
    message = str(raised.value)
    assert said in message
    assert message.startswith("where ")
    assert "\n" not in message
    assert len(message) < 400


def test_a_document_without_the_field_fits_neither_a_comparison_nor_its_opposite(known):
    for where in ("lang = 'de'", "not lang = 'de'", "lang != 'de'", "lang in ('de')", "not lang in ('de')"):
        assert not {"c", "d"} & {*known.allowed(where)}


def test_a_corpus_is_read_once_and_only_when_a_filter_asks(monkeypatch):
    monkeypatch.setattr(metadata, "DOCUMENTS_READ_AT_ONCE", 2)  # several parts, of which some lack a field
    corpus = Corpus()
    known = Metadata(corpus)
    assert corpus.num_read == 0
    allowed = known.allowed("year >= 2020 and tags is not null")
    assert [*allowed] == ["a", "d"]
    assert known.allowed("year >= 2020 and tags is not null") is allowed
    assert known.allowed("sizes has 1 or due = '2024-05-01'").doc_ids == ["a", "c"]
    assert known.allowed("end > 3.5").doc_ids == ["b"]
    assert corpus.num_read == 1
    known.allowed("title like '%a'")
    known.allowed("title like '%b'")
    assert corpus.num_read == 2


def test_only_the_last_filters_are_kept(known, monkeypatch):
    monkeypatch.setattr(metadata, "FILTERS_KEPT", 2)
    first = known.allowed("year > 1")
    known.allowed("year > 2")
    assert known.allowed("year > 1") is first
    known.allowed("year > 3")
    known.allowed("year > 4")
    assert known.allowed("year > 1") is not first


def test_values_of_numpy_and_others_from_python_are_sorted_too():
    known = Metadata(Corpus({"a": {"n": np.int64(3), "o": object()}, "b": {"n": np.float32(2.5), "t": ("x",)}}))
    assert found(known, "n > 2.75") == "a"
    assert found(known, "o is not null or t has 'x'") == "ab"


def test_a_corpus_without_metadata_can_be_filtered_by_id(monkeypatch):
    known = Metadata(Corpus({"a": {}, "b": {}}))
    assert found(known, "doc_id != 'a'") == "b"
    with pytest.raises(WhereError, match="unknown field 'year': known: doc_id, title, url"):
        known.allowed("year = 1")
    assert unwrap(matches)("doc_id = 'a'", known).tolist() == [True, False]
