"""A server that searches within a budget of `shortlist tune`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from serving import Built

from shortlist.errors import UserError
from shortlist.pipeline.budget import steps_without
from shortlist.pipeline.spec import read_description
from shortlist.serve import Config, check_there, open_service
from shortlist.serve.app import create_app

VARIED = ["near.depth", "near.share"]
FRONT = [
    {"numbers": {"near.depth": 0}, "ms": 2.0, "held_out": 0.5},
    {"numbers": {"near.depth": 3, "near.share": 0.4}, "ms": 12.0, "held_out": 0.6},
]


@pytest.fixture(scope="module")
def served(built: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline that searches the collection's own words, and what tuning it measured."""
    folder = tmp_path_factory.mktemp("served")
    steps = {"words": {"find": "bm25"}, "near": {"rank": "pointwise", "model": str(built.tiny.reranker), "depth": 6}}
    collection, described = folder / "collection", folder / "pipeline.yaml"
    shutil.copytree(built.tiny.collection, collection)  # its own index is made beside it
    described.write_text(yaml.safe_dump({"collection": str(collection), "steps": steps}, sort_keys=False))
    costs = {"front": FRONT, "varied": VARIED, "of": steps_without(read_description(described), VARIED)}
    (folder / "costs.json").write_text(json.dumps(costs | {"measure": "nDCG@10"}))
    return {"pipeline": described, "costs": folder / "costs.json"}


@pytest.mark.parametrize(
    ("asked", "ranked", "said"),
    [
        ({"budget_ms": 12.0}, 3, "budget: 12 of 12 ms expected, nDCG@10 0.6000: near.depth 3, near.share 0.4"),
        ({"target_quality": 0.45}, None, "target: 2 ms expected, nDCG@10 0.5000 of 0.45 wanted: near.depth 0"),
    ],
)
def test_answers_are_those_within_the_budget(
    served: dict[str, Path], asked: dict[str, Any], ranked: int | None, said: str, capsys
):
    config = Config(**served, **asked)
    check_there(config)
    service = open_service(config)
    try:
        answered = TestClient(create_app(service)).post(
            "/search", json={"query": "which colour has the apple", "k": 8, "explain": True}
        )
    finally:
        service.close()
    [answer] = answered.json()["answers"]
    assert answer["milliseconds"].keys() - {"documents"} == {"words"} | ({"near"} if ranked else set())
    assert sum("near" in result["stages"] for result in answer["results"]) == (ranked or 0)
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"budget_ms": 1.0}, "--budget-ms 1: .* the least that is reachable is 2 ms"),
        ({"budget_ms": -3.0}, "--budget-ms is -3; expected more than 0"),
        ({"budget_ms": float("nan")}, "--budget-ms is nan; expected more than 0"),
        ({"budget_ms": 5.0, "target_quality": 0.5}, "give one of them"),
        ({"target_quality": 0.9}, "the best that was reached is nDCG@10 0.6000"),
        ({}, "--costs without --budget-ms or --target-quality"),
    ],
)
def test_a_budget_that_cannot_be_had_is_refused_before_anything_is_loaded(
    served: dict[str, Path], asked: dict[str, Any], words: str
):
    with pytest.raises(UserError, match=words):
        check_there(Config(**served, **asked))
