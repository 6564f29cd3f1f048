from pathlib import Path

import numpy as np
import pytest

from shortlist.data.stores.vectors import VectorWriter
from shortlist.errors import UserError
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.opening import open_steps
from shortlist.pipeline.spec import Description, parse_description, written
from shortlist.pipeline.steps import STEPS, Found, Step
from shortlist.records import Hit, Query

RUN = {"q1": [Hit("a", 9.0), Hit("twin", 8.5), Hit("b", 8.0), Hit("c", 5.0)], "q2": []}


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    rows = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    VectorWriter(tmp_path / "vectors", 3).write_shard(0, ["a", "twin", "b", "c"], rows)
    return tmp_path / "vectors"


def described(**step) -> Description:
    steps = {"words": {"find": "index", "index": "index"}, "varied": step}
    return parse_description({"collection": "c", "steps": steps}, where="here")


def found(most: int, depth: int | None = None, **step) -> Found:
    [_, part] = described(**step).steps
    stage = STEPS["diversify"].open(STEPS["diversify"].methods()[part.method], Opener(), part.settings)
    opened = Step("varied", STEPS["diversify"], stage, ("words",), part.depth or depth)
    queries = [Query(name, name) for name in ("q1", "q2")]
    return STEPS["diversify"].run(opened, queries, {"words": RUN}, lambda doc_ids: {}, most)


def order(result: Found) -> str:
    return " ".join(hit.doc_id for hit in result.run["q1"])


def test_the_step_chooses_as_many_as_are_wanted(vectors: Path):
    how = {"diversify": "mmr", "vectors": str(vectors), "lambda": 0.5}
    result = found(3, **how)
    assert (order(result), result.num_placed, result.run["q2"]) == ("a b c twin", {"q1": 3, "q2": 0}, [])
    assert [hit.score for hit in result.run["q1"]] == [4, 3, 2, 1]
    assert order(found(4, **how, k=2)) == "a b twin c"
    assert order(found(4, **how, depth=3)) == "a b twin c"
    assert order(found(4, **how | {"lambda": 1})) == "a twin b c"


@pytest.mark.parametrize("cut", [{"cut": "ratio", "at": 0.5}, {"cut": "score", "at": 2}, {"cut": "rule"}])
def test_what_only_counts_down_is_cut_by_rank_alone(cut: dict, vectors: Path, tmp_path: Path):
    (tmp_path / "rule.json").write_text('{"by": "ratio", "at": 0.5}')
    cut = cut | ({"rule": str(tmp_path / "rule.json")} if cut["cut"] == "rule" else {})
    words, varied = {"find": "index", "index": "index"}, {"diversify": "mmr", "vectors": str(vectors)}
    few = {"cut": "rank", "at": 9}
    with pytest.raises(UserError, match=rf"steps.short: `cut: {cut['cut']}` looks at scores.* of varied .*only count"):
        parse_description({"steps": {"words": words, "varied": varied, "few": few, "short": cut}}, where="here")
    for steps in ({"varied": varied, "few": few}, {"short": cut, "varied": varied}):
        parse_description({"steps": {"words": words} | steps}, where="here")
    (tmp_path / "rule.json").write_text('{"by": "rank", "at": 5}')
    by_rank = {"cut": "rule", "rule": str(tmp_path / "rule.json")}
    parse_description({"steps": {"words": words, "varied": varied, "short": by_rank}}, where="here")


def test_a_description_is_written_as_it_was_read(vectors: Path):
    one = described(diversify="mmr", vectors=str(vectors), k=5, **{"lambda": 0.3})
    assert parse_description(written(one), where="here") == one
    assert written(one)["steps"]["varied"]["lambda"] == 0.3


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"diversify": "mmr"}, "vectors is missing; `diversify: mmr` takes it"),
        ({"diversify": "mmr", "vectors": "v", "lamda": 0.5}, "unknown setting of `diversify: mmr` 'lamda'"),
        ({"diversify": "mmr", "vectors": "v", "lambda": "much"}, "expected a number"),
    ],
)
def test_what_is_no_such_step_is_refused(step: dict, words: str):
    with pytest.raises(UserError, match=words):
        described(**step)


@pytest.mark.parametrize("more", [{"lambda": 2}, {"k": 0}])
def test_numbers_out_of_range_are_refused(vectors: Path, more: dict):
    with pytest.raises(UserError, match="expected 0 to 1, and 1 or more documents"):
        found(3, diversify="mmr", vectors=str(vectors), **more)


def test_vectors_of_another_collection_are_refused(tmp_path: Path):
    VectorWriter(tmp_path / "others", 2).write_shard(0, ["x"], np.ones((1, 2), dtype=np.float32))
    with pytest.raises(UserError, match="has no vector of any document of the step before"):
        found(3, diversify="mmr", vectors=str(tmp_path / "others"))
    steps = {"words": {"find": "bm25", "index": str(tmp_path)}, "varied": {"diversify": "mmr", "vectors": "nowhere"}}
    description = parse_description({"steps": steps}, where="here")
    with pytest.raises(UserError, match="no such file or folder; step 'varied' reads it"):
        open_steps(description)
