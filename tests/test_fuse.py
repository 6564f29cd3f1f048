import json
from pathlib import Path

import pytest

from shortlist import fuse
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.math.fusion import FUSIONS


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, ...]:
    first, second = tmp_path / "first.trec", tmp_path / "second.trec"
    first.write_text("q1 Q0 a 1 9 x\nq1 Q0 b 2 5 x\nq1 Q0 c 3 1 x\nq2 Q0 a 1 3 x\n")
    second.write_text("q1 Q0 c 1 0.9 y\nq1 Q0 d 2 0.1 y\n")
    return first, second


def fused(path: Path) -> dict[str, list[str]]:
    return {query_id: [hit.doc_id for hit in hits] for query_id, hits in read_run(path).items()}


def test_runs_become_one_run(runs: tuple[Path, ...], tmp_path: Path):
    fuse.run(fuse.Config(runs=runs, out=tmp_path / "out.trec"))
    assert fused(tmp_path / "out.trec") == {"q1": ["c", "a", "b", "d"], "q2": ["a"]}


def test_weights_depth_and_method_reach_the_output(runs: tuple[Path, ...], tmp_path: Path):
    config = fuse.Config(runs=runs, out=tmp_path / "out.trec", method="weighted", weights=(1.0, 0.1), k=2)
    fuse.run(config)
    assert fused(tmp_path / "out.trec") == {"q1": ["a", "b"], "q2": ["a"]}


def test_queries_missing_from_a_run_are_reported(
    runs: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fuse.run(fuse.Config(runs=runs, out=tmp_path / "out.trec"))
    assert "1 of 2 queries" in capsys.readouterr().err
    results = json.loads((tmp_path / "out.trec.manifest.json").read_text())["results"]
    assert (results["num_queries"], results["in_all_runs"]) == (2, 1)


def test_the_work_is_done_once_and_another_job_is_refused(
    runs: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.trec"
    fuse.run(fuse.Config(runs=runs, out=out))
    fuse.run(fuse.Config(runs=runs, out=out))
    assert "already done" in capsys.readouterr().err
    with pytest.raises(UserError, match="another job"):
        fuse.run(fuse.Config(runs=runs, out=out, method="zscore"))


def test_the_stage_offers_every_fusion():
    assert set(fuse.Config.__annotations__["method"].__args__) == set(FUSIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": ()}, "two or more"),
        ({"k": 0}, "--k is 0"),
        ({"weights": (1.0,)}, "1 numbers for 2 runs"),
        ({"runs": (Path("absent.trec"), Path("absent.trec"))}, "no such file"),
    ],
)
def test_what_cannot_be_fused_is_refused(runs: tuple[Path, ...], tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        fuse.run(fuse.Config(**({"runs": runs, "out": tmp_path / "out.trec"} | change)))
    assert not (tmp_path / "out.trec").exists()
