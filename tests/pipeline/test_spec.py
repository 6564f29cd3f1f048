from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from shortlist.errors import UserError
from shortlist.pipeline.flags import Sources, from_flags
from shortlist.pipeline.spec import Description, Part, parse_description, read_description, written

WORDS = {"words": {"find": "bm25", "index": "w"}}
DENSE = {"dense": {"find": "dense", "model": "m", "vectors": "v"}}
CASCADE = WORDS | DENSE | {
    "hybrid": {"fuse": "zscore", "weights": [0.3, 0.7], "depth": 200},
    "cheap": {"rank": "pointwise", "model": "a", "depth": 100, "share": 0.6},
    "dear": {"rank": "pointwise", "model": "b", "depth": 20},
}  # fmt: skip


def test_a_file_becomes_a_value_whose_steps_read_those_before_them(tmp_path: Path):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"collection": "c", "steps": CASCADE}, sort_keys=False))
    assert read_description(tmp_path / "p.yaml") == Description(
        (
            Part("words", "find", "bm25", {"index": Path("w")}),
            Part("dense", "find", "dense", {"model": "m", "vectors": Path("v")}),
            Part("hybrid", "fuse", "zscore", {"weights": (0.3, 0.7)}, ("words", "dense"), 200),
            Part("cheap", "rank", "pointwise", {"model": "a"}, ("hybrid",), 100, 0.6),
            Part("dear", "rank", "pointwise", {"model": "b"}, ("cheap",), 20),
        ),
        "c",
    )
    assert read_description(tmp_path / "p.yaml", collection="other").collection == "other"


def test_what_is_written_down_is_read_again():
    description = parse_description({"collection": "c", "steps": CASCADE}, where="p")
    assert (
        parse_description(yaml.safe_load(yaml.safe_dump(written(description), sort_keys=False)), where="p")
        == description
    )


def test_a_step_says_which_it_reads():
    steps = WORDS | DENSE | {"r": {"rank": "pointwise", "model": "m", "of": "words"}}
    steps |= {"f": {"fuse": "rrf", "of": ["dense", "r"]}}
    assert [part.of for part in parse_description({"steps": steps}, where="p").steps] == [
        (),
        (),
        ("words",),
        ("dense", "r"),
    ]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "p.yaml: steps is {}; expected names with a step each"),
        ({"a": 3}, "steps.a is 3; expected settings, such as"),
        ({"a": {"fnd": "bm25"}}, "steps.a: unknown kind of step 'fnd': perhaps 'find'"),
        ({"a": {"find": "bm25", "rank": "pointwise"}}, "steps.a: found find, rank; expected one of"),
        ({"a": {"find": "bm52"}}, "steps.a: unknown find 'bm52': perhaps 'bm25'"),
        ({"a": {"find": ["bm25"]}}, "steps.a: unknown find"),
        ({"a": {"find": "index"}}, "steps.a: index is missing; `find: index` takes it"),
        ({"a": {"find": "bm25", "index": 3}}, "steps.a: index is 3; expected a path"),
        ({"a": {"find": "bm25", "index": "w", "depht": 3}}, "unknown setting of `find: bm25` 'depht': perhaps 'depth'"),
        ({"a": {"find": "bm25", "index": "w", "depth": "3"}}, "depth is '3'; expected a whole number"),
        ({"a": {"find": "bm25", "index": "w", "depth": 0}}, "steps.a: depth is 0; expected 1 or more"),
        ({"a": {"find": "bm25", "index": "w", "of": ["b"]}}, "unknown setting of `find: bm25` 'of'"),
        ({"d": {**DENSE["dense"], "engine": "rya"}}, "engine: unknown value 'rya': perhaps 'ray'"),
        (WORDS | DENSE, "steps.words is read by no later step"),
        (WORDS | {"r": {"rank": "pointwise", "model": "m", "share": 1.5}}, "steps.r: share is 1.5; expected 0 to 1"),
        (WORDS | {"r": {"rank": "pointwise", "model": "m", "of": ["wodrs"]}}, "unknown earlier step 'wodrs': perhaps"),
        (WORDS | {"f": {"fuse": "rrf"}}, "steps.f: reads words; expected two or more earlier steps"),
        ({"r": {"rank": "pointwise", "model": "m"}}, "steps.r: reads no step; expected 1 earlier step"),
        (WORDS | DENSE | {"f": {"fuse": "rrf", "weights": [1]}}, "steps.f: weights has 1 numbers for 2 first stages"),
        (WORDS | DENSE | {"f": {"fuse": "rrf", "weights": [1, -1]}}, "weights is 1, -1; expected finite numbers"),
        (WORDS | DENSE | {"f": {"fuse": "rrf", "weights": [1, "x"]}}, "weights is 'x'; expected a number"),
        (WORDS | DENSE | {"f": {"fuse": "zscore", "scale": "minmax"}}, "unknown setting of `fuse: zscore` 'scale'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(steps: Any, message: str):
    with pytest.raises(UserError) as error:
        parse_description({"steps": steps}, where="p.yaml")
    assert str(error.value).startswith("p.yaml: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_fields_than_collection_and_steps_are_refused():
    with pytest.raises(UserError, match="p: unknown field 'stesp': perhaps 'steps'"):
        parse_description({"stesp": WORDS}, where="p")
    with pytest.raises(UserError, match="p: collection is 3; expected a folder"):
        parse_description({"collection": 3, "steps": WORDS}, where="p")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0, "reranker": "m"}, "--depth is 0; expected 1 or more"),
        ({"reranker_share": 1.5}, "--reranker-share is 1.5; expected 0 to 1"),
        ({"reranker_share": 0.5}, "are a reranker's; name one with --reranker"),
        ({"reranker_contract": "bert"}, "--reranker-contract is a reranker's; name one with --reranker"),
        ({}, "nothing to search with"),
    ],
)
def test_flags_that_make_no_sense_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        from_flags(Sources(), **options)


@pytest.mark.parametrize("name", ["effort", "refine", "query_terms", "dims", "query_length", "contract", "prompt"])
def test_flags_of_a_search_with_a_model_are_refused_without_one(name: str):
    given: dict[str, Any] = {name: "bert" if name in ("contract", "prompt") else 3}
    with pytest.raises(
        UserError, match=f"--{name.replace('_', '-')} is for a search with a --model, and there is none"
    ):
        from_flags(Sources(**given), collection="any")


@pytest.mark.parametrize(("name", "value"), [("fusion", "zscore"), ("weights", (0.5,))])
def test_a_fusion_of_one_first_stage_is_refused(name: str, value: Any):
    with pytest.raises(UserError, match=f"--{name} is for several first stages, and there is one"):
        from_flags(replace(Sources(), **{name: value}), collection="any")
