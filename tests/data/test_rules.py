import json
from pathlib import Path

import pytest

from shortlist.data.rules import Rule, kept, read_rule, stages_and_models
from shortlist.errors import UserError
from shortlist.records import Hit

HITS = [Hit("a", 8.0), Hit("b", 4.0), Hit("c", 2.0), Hit("d", -1.0)]


@pytest.mark.parametrize(
    ("rule", "doc_ids"),
    [
        (Rule("rank", 2), "ab"),
        (Rule("rank", 9), "abcd"),
        (Rule("ratio", 0.5), "ab"),
        (Rule("ratio", 0.25), "abc"),
        (Rule("score", 2.5), "ab"),
        (Rule("score", -1.0), "abcd"),
        (Rule("score", 9.0), ""),
    ],
)
def test_a_rule_keeps_the_first_hits(rule: Rule, doc_ids: str):
    assert "".join(hit.doc_id for hit in kept(rule, HITS, where="run")) == doc_ids
    assert kept(rule, [], where="run") == []


def test_a_share_of_a_score_below_0_is_refused():
    with pytest.raises(UserError, match=r"run: the best score is -1; `ratio` needs scores above 0"):
        kept(Rule("ratio", 0.5), [Hit("a", -1.0)], where="run")


def test_what_is_no_rule_is_refused(tmp_path: Path):
    path = tmp_path / "rule.json"
    with pytest.raises(UserError, match="no such file; expected a rule"):
        read_rule(path)
    for content in ({}, {"by": "rang", "at": 3}, {"by": "rank", "at": "3"}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"rule.json: is no rule"):
            read_rule(path)
    path.write_text(json.dumps({"by": "score", "at": 0.5}))
    assert read_rule(path) == Rule("score", 0.5)


def test_a_rule_depends_on_stages_and_models_and_not_on_costs():
    stages = [{"stage": "search", "ms": 3.0}, {"stage": "rerank", "ms": 9.0, "model": "m"}, {"stage": "cut", "ms": 1}]
    assert stages_and_models(stages) == [{"stage": "search", "model": None}, {"stage": "rerank", "model": "m"}]
    assert stages_and_models([]) is None
