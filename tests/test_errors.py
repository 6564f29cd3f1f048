import pytest

from shortlist.errors import UserError, unknown


def test_a_near_name_is_offered():
    assert str(unknown("stage", "rernak", ["rerank", "search"])) == "unknown stage 'rernak': perhaps 'rerank'?"


def test_several_near_names_are_offered_nearest_first():
    message = str(unknown("loss", "infonc", ["infonce", "infonce2", "margin"]))
    assert message == "unknown loss 'infonc': perhaps 'infonce' or 'infonce2'?"


def test_all_names_are_listed_where_none_is_near():
    assert str(unknown("loss", "xyz", ["b", "a"])) == "unknown loss 'xyz': known: a, b."
    assert str(unknown("loss", "xyz", [])) == "unknown loss 'xyz': known: none."


def test_it_is_an_error_for_the_caller_to_raise():
    with pytest.raises(UserError):
        raise unknown("loss", "x", {"y": 1})
