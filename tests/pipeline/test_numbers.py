from typing import Any

import pytest

from shortlist.errors import UserError
from shortlist.pipeline.numbers import draw_settings, parse_choices, usual_choices, with_numbers
from shortlist.pipeline.spec import Description, parse_description


def steps(**more: dict[str, Any]) -> Description:
    first = {
        "words": {"find": "bm25", "index": "w"},
        "dense": {"find": "dense", "model": "m", "vectors": "v"},
        "both": {"fuse": "zscore"},
        "cheap": {"rank": "pointwise", "model": "a", "depth": 60, "share": 0.3},
        "dear": {"rank": "pointwise", "model": "b", "depth": 20},
    }
    return parse_description({"collection": "c", "steps": first | more}, where="test")


def test_numbers_replace_those_of_the_steps():
    changed = {part.name: part for part in with_numbers(steps(), {"both.weights": (0.2, 0.8), "dear.depth": 7}).steps}
    assert changed["both"].settings["weights"] == (0.2, 0.8)
    assert (changed["dear"].depth, changed["cheap"].depth) == (7, 60)
    assert with_numbers(steps(), {}) == steps()


def test_a_reranker_of_depth_0_is_left_out():
    found = with_numbers(steps(), {"cheap.depth": 0, "cheap.share": 0.5})
    assert [(part.name, part.of) for part in found.steps][2:] == [("both", ("words", "dense")), ("dear", ("both",))]
    assert [part.name for part in with_numbers(steps(), {"cheap.depth": 0, "dear.depth": 0}).steps] == [
        "words",
        "dense",
        "both",
    ]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"near.depth": 3}, "unknown step 'near'"),
        ({"dense.model": 3}, "unknown number 'dense.model'"),
        ({"cheap.depth": -1}, "steps.cheap: depth is -1; expected 1 or more"),
        ({"cheap.share": 1.5}, "share is 1.5; expected 0 to 1"),
        ({"both.weights": (1.0, 2.0, 3.0)}, "3 numbers for 2 first stages"),
        ({"dear.depth": 0}, "a cut looks at the scores of dear"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        with_numbers(steps(few={"cut": "score", "at": 0.5}), numbers, where="--vary")


def test_choices_are_read():
    assert parse_choices(["a.depth=10,20", "both.weights=0.3:0.7,1:0", "a.share=0.5,1"]) == {
        "a.depth": [10, 20],
        "both.weights": [(0.3, 0.7), (1.0, 0.0)],
        "a.share": [0.5, 1],
    }
    for wrong in ("a.depth", "depth=3", "a.depth=", "a.depth=many"):
        with pytest.raises(UserError, match=r"expected STEP\.FIELD=VALUES"):
            parse_choices([wrong])


def test_depths_shares_and_weights_vary_up_to_those_described():
    choices = usual_choices(steps(), lambda part: False)
    assert choices["cheap.depth"] == [0, 5, 10, 20, 50, 60]
    assert choices["dear.depth"] == [0, 5, 10, 20]
    assert choices["cheap.share"] == [0.2, 0.3, 0.4, 0.6, 0.8, 1.0]
    assert len(choices["both.weights"]) == 11
    assert 0 not in usual_choices(steps(few={"cut": "score", "at": 0.5}), lambda part: False)["dear.depth"]


def test_before_a_reranker_of_whole_lists_nothing_varies():
    assert usual_choices(steps(), lambda part: part.name == "cheap").keys() == {"cheap.share", "dear.share"}
    assert usual_choices(steps(), lambda part: part.name == "dear").keys() == {"dear.share"}


@pytest.mark.parametrize("most", [30, 5000])
def test_settings_narrow_from_step_to_step(most: int):
    choices = usual_choices(steps(), lambda part: False)
    settings = draw_settings(steps(), choices, most=most)
    assert settings[0] == {}
    assert len({tuple(numbers.items()) for numbers in settings}) == len(settings) <= most
    for numbers in settings[1:]:
        assert numbers["dear.depth"] <= numbers["cheap.depth"] or numbers["cheap.depth"] == 0
        assert ("cheap.share" in numbers) == (numbers["cheap.depth"] > 0)


def test_a_product_too_large_to_list_is_drawn_from():
    choices = {f"both.{name}": list(range(1000)) for name in ("k", "depth")}  # a million combinations
    settings = draw_settings(steps(), choices, most=50)
    assert len(settings) == 50
    assert settings == draw_settings(steps(), choices, most=50)
    assert settings[1:] != draw_settings(steps(), choices, most=50, seed=1)[1:]
    assert [tuple(numbers.values()) for numbers in settings[1:]] == sorted(
        tuple(numbers.values()) for numbers in settings[1:]
    )
