import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import Tiny

from shortlist import prune
from shortlist.data.groups import read_groups, write_groups
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.math.projection import GroupGradients
from shortlist.records import Group


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> prune.Config:
    groups = [Group(f"q{n}", (f"d{n}",), tuple(f"d{(n + step) % 12}" for step in (1, 2, 5))) for n in range(8)]
    write_groups(tmp_path / "groups.jsonl", groups)
    return prune.Config(
        groups=tmp_path / "groups.jsonl",
        collection=str(tiny.collection),
        model=str(tiny.retriever),
        out=tmp_path / "fewer.jsonl",
        size=4,
        strata=3,
    )


def test_groups_are_kept_as_they_were_in_their_order(config: prune.Config, capsys: pytest.CaptureFixture[str]):
    prune.run(config)
    before, kept = read_groups(config.groups), read_groups(config.out)
    places = [before.index(group) for group in kept]
    assert len(kept) == 4
    assert places == sorted(places)
    assert "kept 4 of 8 groups; 0 hardest ones" in capsys.readouterr().out
    prune.run(replace(config, json=True))
    printed = json.loads(capsys.readouterr().out)
    assert sum(stratum["taken"] for stratum in printed["strata"]) == 4
    assert printed == (read_manifest(config.out) or {})["results"]


def test_dev_groups_and_judged_pairs_of_a_split_decide_too(config: prune.Config, tmp_path: Path):
    prune.run(replace(config, dev_split="test", hardest=0.25, size=6, out=tmp_path / "split.jsonl"))
    prune.run(replace(config, dev_groups=config.groups, hardest=0.25, size=6, out=tmp_path / "groups2.jsonl"))
    prune.run(replace(config, hardest=0.25, size=6, out=tmp_path / "alone.jsonl"))
    results = [(read_manifest(tmp_path / f"{name}.jsonl") or {})["results"] for name in ("split", "groups2", "alone")]
    assert [each["kept"] for each in results] == [6, 6, 6]
    assert [each["hardest_left_out"] for each in results] == [2, 2, 2]
    highest = [each["strata"][-1]["high"] for each in results]
    assert len({*highest}) == 3


def test_a_score_is_influence_with_some_effort():
    groups = GroupGradients(np.array([[1.0, 0], [2, 0], [0, 1]]), np.array([[1.0, 0], [1, 0], [4, 0]]), np.zeros(3))
    dev = GroupGradients(np.array([[1.0, 0]]), np.array([[1.0, 0]]), np.zeros(1))
    assert prune.group_scores(groups, None, effort=1.0).tolist() == pytest.approx([0, 1 / 3, 1])
    assert prune.group_scores(groups, dev, effort=0.3).tolist() == pytest.approx([0.5, 1 + 0.3 / 3, 0.3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 9}, "--size is 9; expected 1 to 8: .* has 8 groups"),
        ({"size": 8, "hardest": 0.5}, "--hardest 0.5 leaves 4"),
        ({"hardest": 1.0}, "--hardest is 1"),
        ({"strata": 0}, "--strata is 0"),
        ({"temperature": 0.0}, "--temperature is 0"),
        ({"effort": 1.0}, "--effort is beside influence"),
        ({"split": "dev"}, "unknown split of .* 'dev'"),
    ],
)
def test_what_cannot_be_pruned_is_refused(config: prune.Config, tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        prune.run(replace(config, **change))


def test_a_query_without_a_text_is_refused(config: prune.Config):
    write_groups(config.groups, [Group("q11", ("d11",)), Group("q1", ("d1",))])
    with pytest.raises(UserError, match="query 'q11' has no text; split 'train'"):
        prune.run(replace(config, size=1))
