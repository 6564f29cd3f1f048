import json
from pathlib import Path
from typing import Any

import pytest

from shortlist.errors import UserError
from shortlist.pipeline.budget import Budget, forecast_ms, steps_without, with_budget, within_budget
from shortlist.pipeline.spec import Description, parse_description, written

STEPS = {
    "words": {"find": "bm25", "index": "w"},
    "near": {"rank": "pointwise", "model": "a", "depth": 60},
}
VARIED = ["near.depth", "near.share"]
FRONT = [
    {"numbers": {"near.depth": 0}, "ms": 2.0, "held_out": 0.5},
    {"numbers": {"near.depth": 10, "near.share": 0.4}, "ms": 12.0, "held_out": 0.6},
    {"numbers": {"near.depth": 60, "near.share": 0.8}, "ms": 62.0, "held_out": 0.7},
]


def described(**more: Any) -> Description:
    return parse_description({"collection": "c", "steps": STEPS} | more, where="test")


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    """What `shortlist tune` would write."""
    content = {"front": FRONT, "varied": VARIED, "of": steps_without(described(), VARIED), "measure": "nDCG@10"}
    (tmp_path / "costs.json").write_text(json.dumps(content))
    return tmp_path / "costs.json"


def test_a_forecast_adds_the_fixed_parts_and_those_for_each_document():
    costs = {
        "words": {"fixed_ms": 3.0},
        "near": {"fixed_ms": 2.0, "ms_per_document": 0.5},
        "documents": {"fixed_ms": 1.0, "ms_per_document": 0.1},
    }
    assert forecast_ms(costs, {"near": 40.0}, 10) == pytest.approx(3 + 2 + 20 + 1 + 4)
    assert forecast_ms(costs, {"near": 4.0}, 10) == pytest.approx(3 + 2 + 2 + 1 + 1)
    assert forecast_ms(costs, {}, 10) == pytest.approx(3 + 1 + 1)  # the reranker is left out


@pytest.mark.parametrize(("budget", "depth"), [(2.0, None), (12.0, 10), (61.9, 10), (1000.0, 60)])
def test_a_budget_gives_the_best_numbers_within_it(costs: Path, budget: float, depth: int | None, capsys):
    found = within_budget(with_budget(described(), Budget(budget, None, costs)))
    assert [part.depth for part in found.steps if part.name == "near"] == ([] if depth is None else [depth])
    assert (found.budget_ms, found.costs) == (None, None)
    assert f"of {budget:g} ms expected" in capsys.readouterr().err


def test_a_description_may_hold_its_budget(costs: Path):
    description = described(budget_ms=12, costs=str(costs))
    assert parse_description(written(description), where="test") == description
    assert within_budget(description).steps[1].depth == 10
    assert within_budget(with_budget(description, Budget(62.0, None, None))).steps[1].depth == 60
    assert within_budget(described()) == described()


@pytest.mark.parametrize(("target", "depth"), [(0.2, None), (0.5, None), (0.51, 10), (0.6, 10), (0.7, 60)])
def test_a_target_gives_the_cheapest_numbers_that_reached_it(costs: Path, target: float, depth: int | None, capsys):
    found = within_budget(with_budget(described(), Budget(None, target, costs)))
    assert [part.depth for part in found.steps if part.name == "near"] == ([] if depth is None else [depth])
    assert (found.target_quality, found.costs) == (None, None)
    assert f"of {target:g} wanted" not in capsys.readouterr().out
    assert within_budget(described(target_quality=target, costs=str(costs))) == found


def test_a_target_that_nothing_reached_is_refused_with_the_best_that_was(costs: Path):
    content = json.loads(costs.read_text())
    content["front"][2]["held_out"] = 0.69987
    costs.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"--target-quality 0.7: .* the best that was reached is nDCG@10 0.6999, in 62"):
        within_budget(with_budget(described(), Budget(None, 0.7, costs)))
    assert within_budget(with_budget(described(), Budget(None, 0.6999, costs))).steps[1].depth == 60


def test_a_budget_and_a_target_contradict(costs: Path):
    with pytest.raises(UserError, match=r"--budget-ms with --target-quality: .* give one of them"):
        within_budget(with_budget(described(), Budget(5.0, 0.5, costs)))
    with pytest.raises(UserError, match="--target-quality without --costs"):
        within_budget(with_budget(described(), Budget(None, 0.5, None)))
    with pytest.raises(UserError, match="--target-quality is nan; expected more than 0"):
        within_budget(with_budget(described(), Budget(None, float("nan"), costs)))
    said = described(budget_ms=2, costs=str(costs))  # what a flag says replaces what the file says
    assert within_budget(with_budget(said, Budget(None, 0.7, None))).steps[1].depth == 60


def test_what_cannot_be_had_is_refused(costs: Path):
    with pytest.raises(UserError, match=r"--budget-ms 1: .* the least that is reachable is 2 ms"):
        within_budget(with_budget(described(), Budget(1.0, None, costs)))
    with pytest.raises(UserError, match="--budget-ms without --costs"):
        within_budget(with_budget(described(), Budget(1.0, None, None)))
    with pytest.raises(UserError, match="--costs without --budget-ms"):
        within_budget(with_budget(described(), Budget(None, None, costs)))
    with pytest.raises(UserError, match="--budget-ms is -1; expected more than 0"):
        within_budget(with_budget(described(), Budget(-1.0, None, costs)))
    with pytest.raises(UserError, match="budget_ms is 'fast'; expected a number"):
        described(budget_ms="fast")
    other = described(steps={**STEPS, "near": STEPS["near"] | {"model": "b"}})
    with pytest.raises(UserError, match="costs of other steps"):
        within_budget(with_budget(other, Budget(50.0, None, costs)))


@pytest.mark.parametrize(
    "content", [None, "[]", "{}", '{"front": [{"ms": 1}], "varied": [], "of": {}, "measure": "P@1"}']
)
def test_what_is_no_file_of_costs_is_refused(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "costs.json").write_text(content)
    with pytest.raises(UserError, match=r"expected the costs\.json of `shortlist tune`|costs.json"):
        within_budget(with_budget(described(), Budget(5.0, None, tmp_path / "costs.json")))


def test_a_dearer_setting_that_is_worse_on_queries_not_seen_is_not_taken(costs: Path):
    content = json.loads(costs.read_text())
    content["front"][2]["held_out"] = 0.55
    costs.write_text(json.dumps(content))
    assert within_budget(with_budget(described(), Budget(1000.0, None, costs))).steps[1].depth == 10


def test_other_numbers_are_the_same_pipeline(costs: Path):
    fewer = described(steps={**STEPS, "near": STEPS["near"] | {"depth": 5, "share": 0.1}})
    assert within_budget(with_budget(fewer, Budget(62.0, None, costs))).steps[1].depth == 60
