import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist.data import seen
from shortlist.data.lines import MalformedError
from shortlist.data.seen import Seen, checked, distinct
from shortlist.errors import UserError
from shortlist.records import Document


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3)))
def test_an_id_is_new_exactly_where_it_occurs_first(names):
    ids = Seen()
    assert [ids.add(name) for name in names] == [name not in names[:place] for place, name in enumerate(names)]


def test_of_many_ids_every_one_is_new_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seen, "BUCKETS", 64)
    ids, names = Seen(), [str(number) for number in range(20_000)]
    assert all(map(ids.add, names))
    assert not any(map(ids.add, names))


def test_two_ids_that_share_one_of_their_hashes_are_still_told_apart(monkeypatch: pytest.MonkeyPatch):
    for name in ("crc32", "hash"):
        with monkeypatch.context() as patch:
            patch.setattr(seen, name, lambda _: 7, raising=False)
            ids = Seen()
            assert [ids.add(name) for name in ("a", "b", "a", "b")] == [True, True, False, False]


@pytest.mark.slow
def test_each_id_takes_about_nine_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seen, "BUCKETS", 64)
    ids = Seen()
    tracemalloc.start()
    for number in range(20_000):
        ids.add(str(number))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 <= held / 20_000 <= 10  # a set of the ids takes 90


def test_each_reading_of_a_corpus_knows_only_its_own_ids():
    first, second = (checked(lambda doc_id: Document(doc_id, "x"), allow_empty=True) for _ in range(2))
    assert first("a").doc_id == second("a").doc_id == "a"
    with pytest.raises(MalformedError, match="document id 'a' occurs twice"):
        first("a")


@pytest.mark.parametrize(("title", "text", "empty"), [("", "x", False), ("T", "", False), (" ", "\u2028\n", True)])
def test_a_document_is_empty_without_a_word_in_title_or_text(title: str, text: str, empty: bool):
    document = Document("a", text, title)
    assert checked(lambda _: document, allow_empty=True)(None) == document
    parse = checked(lambda _: document, allow_empty=False)
    if empty:
        with pytest.raises(MalformedError, match="document 'a' has neither title nor text"):
            parse(None)
    else:
        assert parse(None) == document


def test_a_document_that_comes_again_is_given_once_and_with_another_text_refused():
    one, two = Document("a", "one"), Document("b", "one")
    assert list(distinct([one, two, one, one, two], "here")) == [one, two]
    for other in (Document("a", "two"), Document("a", "one", "title")):
        with pytest.raises(UserError, match=r"^here: document 'a' has two different texts; .* --collection"):
            list(distinct([one, other], "here"))
