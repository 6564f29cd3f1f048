from shortlist.math.exclusion import count_own, without_own
from shortlist.records import Hit

RUN = {"a": [Hit("a", 3.0), Hit("b", 2.0), Hit("c", 1.0)], "b": [Hit("a", 3.0), Hit("c", 2.0), Hit("d", 1.0)], "c": []}


def test_a_query_keeps_as_many_hits_whether_or_not_it_has_found_itself():
    assert without_own(RUN, 2) == {"a": RUN["a"][1:], "b": RUN["b"][:2], "c": []}


def test_fewer_hits_than_asked_for_are_all_kept():
    assert without_own(RUN, 9) == {"a": RUN["a"][1:], "b": RUN["b"], "c": []}


def test_only_queries_that_have_found_themselves_are_counted():
    assert count_own(RUN) == 1
    assert count_own(without_own(RUN, 3)) == 0
