import pytest

from shortlist.errors import UserError, in_python, unknown


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


def test_no_guess_is_better_than_a_far_one():
    assert str(unknown("command", "files", ["lengths", "fuse"])) == "unknown command 'files': known: fuse, lengths."


def test_errors_in_python_speak_of_parameters():
    with (
        pytest.raises(
            UserError, match=r"^give index, or retriever and max_length; `shortlist x --model m` makes it\.$"
        ),
        in_python(model="retriever"),
    ):
        raise UserError("give --index, or --model and --max-length; `shortlist x --model m` makes it.")
