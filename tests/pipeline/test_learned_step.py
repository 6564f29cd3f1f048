import json
from pathlib import Path

import pytest

from shortlist.errors import UserError
from shortlist.pipeline.flags import Sources, from_flags
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.spec import parse_description
from shortlist.pipeline.steps import STEPS, Step
from shortlist.records import Hit, Query

FUSER = {
    "learner": "logistic",
    "features": ["reciprocal_rank"],
    "runs": [{}, {}],
    "parameters": {"weights": [1.0, 3.0, 0.0], "bias": 0.0},
}


def described(**step) -> list:
    steps = {"a": {"find": "index", "index": "a"}, "b": {"find": "index", "index": "b"}, "both": step}
    return [*parse_description({"collection": "c", "steps": steps}, where="here").steps]


def test_a_learned_fusion_is_a_step(tmp_path: Path):
    (tmp_path / "fuser.json").write_text(json.dumps(FUSER))
    part = described(fuse="learned", fuser=str(tmp_path / "fuser.json"))[-1]
    stage = STEPS["fuse"].open(STEPS["fuse"].methods()[part.method], Opener(), part.settings)
    runs = {"a": {"q": [Hit("x", 2.0), Hit("y", 1.0)]}, "b": {"q": [Hit("y", 2.0), Hit("z", 1.0)]}}
    found = STEPS["fuse"].run(Step("both", STEPS["fuse"], stage, part.of), [Query("q", "")], runs, lambda _: {}, 2)
    assert found.run == {"q": [Hit("y", 3.5), Hit("z", 1.5)]}


def test_a_learned_fusion_without_its_file_or_with_weights_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="fuser is missing"):
        described(fuse="learned")
    with pytest.raises(UserError, match="unknown setting of `fuse: learned` 'weights'"):
        described(fuse="learned", fuser="x", weights=[1, 2])
    with pytest.raises(UserError, match="no such file"):
        STEPS["fuse"].open(STEPS["fuse"].methods()["learned"], Opener(), {"fuser": tmp_path / "none.json"})
    with pytest.raises(UserError, match="--fusion: unknown fusion 'learned'"):
        from_flags(Sources(fusion="learned"), collection="c")
