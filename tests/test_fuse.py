import json
from dataclasses import replace
from pathlib import Path

import pytest

from shortlist import fuse
from shortlist.data.headers import read_run_header
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


@pytest.mark.parametrize("method", FUSIONS)
def test_queries_fused_one_by_one_are_as_fused_together(runs: tuple[Path, ...], method: str):
    whole, seconds = [read_run(path) for path in runs], []
    one = dict(fuse.one_by_one(FUSIONS[method], whole, weights=[0.3, 0.7], seconds=seconds))
    assert one == FUSIONS[method](whole, weights=[0.3, 0.7])
    assert len(seconds) == 2


def test_the_stage_offers_every_fusion(runs: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FUSIONS, "first", lambda runs, weights: runs[0])
    fuse.run(fuse.Config(runs=runs, out=tmp_path / "out.trec", method="first"))
    assert fused(tmp_path / "out.trec") == fused(runs[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": ()}, "two or more"),
        ({"method": "zcore"}, "--method: unknown fusion 'zcore': perhaps 'zscore'"),
        ({"k": 0}, "--k is 0"),
        ({"weights": (1.0,)}, "1 numbers for 2 runs"),
        ({"depth": 0}, "--depth is 0"),
        ({"dev_runs": (Path("a"),)}, "1 files for 2 runs"),
        ({"dev_runs": (Path("a"), Path("b")), "weights": (1.0, 1.0)}, "no --weights"),
        ({"dev_runs": (Path("a"), Path("b"))}, "without --collection"),
        ({"runs": (Path("absent.trec"), Path("absent.trec"))}, "no such file"),
        ({"method": "learned"}, "either --dev-runs with --collection"),
        ({"method": "learned", "weights": (1.0, 1.0)}, "--weights is for other methods"),
        ({"method": "learned", "fuser": Path("absent.json"), "learner": "trees"}, "learned already"),
        ({"method": "learned", "fuser": Path("absent.json")}, "no such file"),
        ({"fuser": Path("absent.json")}, "--fuser is for --method learned"),
        ({"learner": "trees"}, "--learner is for --method learned"),
    ],
)
def test_what_cannot_be_fused_is_refused(runs: tuple[Path, ...], tmp_path: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        fuse.run(fuse.Config(**({"runs": runs, "out": tmp_path / "out.trec"} | change)))
    assert not (tmp_path / "out.trec").exists()


def test_below_the_depth_the_first_run_goes_on(tmp_path: Path):
    first, second = tmp_path / "first.trec", tmp_path / "second.trec"
    first.write_text("".join(f"q1 Q0 {doc_id} {rank} {10 - rank} x\n" for rank, doc_id in enumerate("abcd", 1)))
    second.write_text("".join(f"q1 Q0 {doc_id} {rank} {10 - rank} x\n" for rank, doc_id in enumerate("badc", 1)))
    config = fuse.Config(runs=(first, second), out=tmp_path / "out.trec", method="zscore", weights=(0.4, 0.6), depth=2)
    fuse.run(config)
    assert fused(tmp_path / "out.trec") == {"q1": ["b", "a", "c", "d"]}


@pytest.fixture
def judged(tmp_path: Path) -> fuse.Config:
    """Two searchers, the first right for one query of split dev, the second for the three others."""
    data, lines = tmp_path / "data", {"first": "", "second": ""}
    qrels = "query-id\tcorpus-id\tscore\n"
    for number in range(4):
        lines["first"] += f"q{number} Q0 wrong 1 {9 if number else 1} x\nq{number} Q0 right 2 {5 - number} x\n"
        lines["second"] += f"q{number} Q0 right 1 {9 if number else 2} x\nq{number} Q0 wrong 2 {5 - number} x\n"
        qrels += f"q{number}\tright\t1\n"
    (data / "qrels").mkdir(parents=True)
    (data / "corpus.jsonl").write_text('{"_id": "right", "text": "r"}\n{"_id": "wrong", "text": "w"}\n')
    (data / "queries.jsonl").write_text("".join(f'{{"_id": "q{n}", "text": "q"}}\n' for n in range(4)))
    (data / "qrels" / "dev.tsv").write_text(qrels)
    paths = []
    for name, text in lines.items():
        paths.append(tmp_path / f"{name}.trec")
        paths[-1].write_text(text)
    own = tuple(paths)
    return fuse.Config(runs=own, out=tmp_path / "out.trec", method="zscore", dev_runs=own, collection=str(data))


def test_weights_are_those_that_are_best_on_the_dev_runs(
    judged: fuse.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fuse.run(judged)
    results = json.loads((tmp_path / "out.trec.manifest.json").read_text())["results"]
    assert results["weights"][1] > 0.5
    assert sum(results["weights"]) == pytest.approx(1)
    assert results["dev_value"] == (3 + 1 / 2) / 4
    assert [hits[0] for hits in fused(tmp_path / "out.trec").values()] == ["wrong", "right", "right", "right"]
    assert "with MRR@10 0.8750 on the dev runs" in capsys.readouterr().err


def test_weights_are_chosen_without_excluded_documents(judged: fuse.Config, tmp_path: Path):
    (tmp_path / "list.tsv").write_text("q1 wrong\nq2 wrong\nq3 wrong\n")
    fuse.run(replace(judged, exclude=tmp_path / "list.tsv"))
    results = json.loads((tmp_path / "out.trec.manifest.json").read_text())["results"]
    assert (results["dev_value"], results["excluded"]) == (1, 6)


def test_the_list_of_the_dev_runs_collection_is_read_without_being_named(judged: fuse.Config, tmp_path: Path):
    folder = Path(str(judged.collection)) / "exclude"
    folder.mkdir()
    (folder / "dev.tsv").write_text("q1 wrong\nq2 wrong\nq3 wrong\n")
    fuse.run(judged)
    results = json.loads((tmp_path / "out.trec.manifest.json").read_text())["results"]
    assert (results["dev_value"], results["excluded"]) == (1, 6)


def test_dev_runs_of_queries_that_nobody_judged_are_refused(judged: fuse.Config, tmp_path: Path):
    other = tmp_path / "other.trec"
    other.write_text("x1 Q0 right 1 2 x\n")
    with pytest.raises(UserError, match="none of their queries is judged"):
        fuse.run(replace(judged, dev_runs=(other, other)))
    with pytest.raises(UserError, match="measure"):
        fuse.run(replace(judged, measure="MRRR@10"))


def test_excluded_documents_are_left_out_before_fusing(
    runs: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "list.tsv").write_text("q1 a\nq1 d\nq9 c\n")
    fuse.run(fuse.Config(runs=runs, out=tmp_path / "out.trec", exclude=tmp_path / "list.tsv"))
    assert fused(tmp_path / "out.trec") == {"q1": ["c", "b"], "q2": ["a"]}
    assert "left out 2 hits" in capsys.readouterr().err


def test_a_header_says_what_the_run_was_made_from(runs: tuple[Path, ...], tmp_path: Path):
    fuse.run(fuse.Config(runs=runs, out=tmp_path / "plain.trec"))
    fuse.run(fuse.Config(runs=runs, out=tmp_path / "out.trec", header=True))
    header = read_run_header(tmp_path / "out.trec")
    assert header is not None
    assert (header["tag"], header["method"]["retrieval"]) == ("rrf", [{"name": "fuse"}])
    assert read_run(tmp_path / "out.trec") == read_run(tmp_path / "plain.trec")


def test_what_was_learned_fuses_other_runs_of_the_same_searchers(
    judged: fuse.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fuse.run(replace(judged, method="learned"))
    told = capsys.readouterr()
    assert "over 4 queries, each fused by what others taught (best run 0.8750, rrf " in told.out
    assert "4 of 4 queries are among the judged ones it learned from" in told.err
    saved = fuse.fuser_path(judged.out)
    again = tmp_path / "again.trec"
    fuse.run(fuse.Config(runs=judged.runs, out=again, method="learned", fuser=saved))
    assert again.read_text() == judged.out.read_text()
    assert fused(again)["q1"] == ["right", "wrong"]
    with pytest.raises(UserError, match="names 3 files; --fuser was learned from 2 runs"):
        fuse.run(fuse.Config(runs=(*judged.runs, again), out=tmp_path / "x.trec", method="learned", fuser=saved))


def test_runs_of_other_searchers_than_it_learned_from_are_refused(judged: fuse.Config, tmp_path: Path):
    fuse.run(replace(judged, method="learned"))
    saved = fuse.fuser_path(judged.out)
    content = json.loads(saved.read_text())
    content["runs"][0]["made_by"] = [{"stage": "search", "model": "another"}]
    saved.write_text(json.dumps(content))
    both = tmp_path / "both.trec"
    fuse.run(fuse.Config(runs=judged.runs, out=both))
    with pytest.raises(UserError, match=r"both\.trec: was not made as run 1 that"):
        fuse.run(fuse.Config(runs=(both, both), out=tmp_path / "x.trec", method="learned", fuser=saved))


def test_a_learned_fusion_says_so_where_none_is_better(judged: fuse.Config, capsys: pytest.CaptureFixture[str]):
    fuse.run(replace(judged, method="learned"))
    measured = json.loads(fuse.fuser_path(judged.out).read_text())["measured"]
    worse = measured["learned"] < max(measured["rrf"], measured["zscore"])
    assert worse == ("bring more judged queries" in capsys.readouterr().err)
    fuse.run(replace(judged, method="learned"))
    assert capsys.readouterr().out.startswith("MRR@10")
