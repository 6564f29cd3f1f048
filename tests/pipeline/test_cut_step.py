import json
from pathlib import Path

import pytest

from shortlist.data.rules import Rule
from shortlist.errors import UserError
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.opening import open_steps
from shortlist.pipeline.spec import Description, parse_description
from shortlist.pipeline.steps import STEPS, Step
from shortlist.records import Hit, Query

RUN = {"q1": [Hit("a", 8.0), Hit("b", 4.0), Hit("c", 1.0)], "q2": [Hit("a", 2.0), Hit("c", 1.9)]}


def described(**step) -> Description:
    steps = {"words": {"find": "index", "index": "index"}, "short": step}
    return parse_description({"collection": "c", "steps": steps}, where="here")


def kept(stage: Rule, depth: int | None = None) -> dict[str, str]:
    step = Step("short", STEPS["cut"], stage, ("words",), depth)
    queries = [Query(name, name) for name in ("q1", "q2", "q3")]
    found = STEPS["cut"].run(step, queries, {"words": RUN}, lambda doc_ids: {}, 10)
    return {query_id: "".join(hit.doc_id for hit in hits) for query_id, hits in found.run.items()}


def opened(**step) -> Rule:
    [_, part] = described(**step).steps
    return STEPS["cut"].open(STEPS["cut"].methods()[part.method], Opener(), part.settings)


def test_each_way_to_cut_keeps_the_first_hits(tmp_path: Path):
    assert kept(opened(cut="rank", at=2)) == {"q1": "ab", "q2": "ac", "q3": ""}
    assert kept(opened(cut="ratio", at=0.5)) == {"q1": "ab", "q2": "ac", "q3": ""}
    assert kept(opened(cut="score", at=3)) == {"q1": "ab", "q2": "", "q3": ""}
    assert kept(opened(cut="score", at=1), depth=1) == {"q1": "a", "q2": "a", "q3": ""}
    (tmp_path / "rule.json").write_text(json.dumps({"by": "score", "at": 1.95}))
    assert kept(opened(cut="rule", rule=str(tmp_path / "rule.json"))) == {"q1": "ab", "q2": "a", "q3": ""}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"cut": "rank"}, "steps.short: at is missing"),
        ({"cut": "rank", "at": 2, "share": 0.5}, "unknown setting of `cut: rank` 'share'"),
        ({"cut": "length", "at": 2}, "unknown cut 'length'"),
    ],
)
def test_what_is_no_cut_is_refused(step: dict, words: str):
    with pytest.raises(UserError, match=words):
        described(**step)


@pytest.mark.parametrize(("step", "words"), [({"cut": "rank", "at": 0}, "at 0"), ({"cut": "ratio", "at": 2}, "at 2")])
def test_numbers_out_of_range_are_refused(step: dict, words: str):
    with pytest.raises(UserError, match=words):
        opened(**step)


def test_a_rule_for_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made_by = [{"stage": "search", "model": None}, {"stage": "rerank", "model": "sha256:one"}]
    (tmp_path / "rule.json").write_text(json.dumps({"by": "rank", "at": 3, "made_by": made_by}))
    (tmp_path / "index").mkdir()
    monkeypatch.setitem(STEPS, "find", STEPS["find"]._replace(open=lambda method, opener, settings: None))
    steps = {
        "words": {"find": "index", "index": str(tmp_path / "index")},
        "short": {"cut": "rule", "rule": str(tmp_path / "rule.json")},
    }
    description = parse_description({"collection": "c", "steps": steps}, where="here")
    with pytest.raises(
        UserError, match=r"step 'short'.*run of model sha256:one, and the steps before it have no model"
    ):
        open_steps(description)
    (tmp_path / "rule.json").write_text(json.dumps({"by": "rank", "at": 3, "made_by": made_by[:1]}))
    assert open_steps(description)[1].stage == Rule("rank", 3, made_by[:1])
