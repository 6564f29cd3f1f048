import json
import shutil
from dataclasses import MISSING, dataclass, fields, make_dataclass, replace
from hashlib import sha256
from pathlib import Path
from stat import S_IMODE
from threading import Thread

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from shortlist.config import NotInJob, SpeedOnly, at_defaults
from shortlist.data import jobs, manifest, outputs
from shortlist.data.claims import lock_file
from shortlist.data.jobs import Job, JobSpec, is_done, start_job
from shortlist.data.manifest import identity, ms_per_query, read_manifest, same_identity
from shortlist.errors import UserError

WRITES = ("result", "more", "half", "old", "deep", "a", "zz", "part-*", "new part")
"""What the stage in these tests writes into its folder as it goes."""


@dataclass(frozen=True, kw_only=True)
class Config:
    out: NotInJob[Path]
    source: Path | None = None
    size: int = 3
    shape: str = "round"
    speed: SpeedOnly[int | None] = 1
    json: NotInJob[bool] = False
    overwrite: NotInJob[bool] = False


@pytest.fixture(params=["file", "folder"])
def folder(request: pytest.FixtureRequest) -> bool:
    return request.param == "folder"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "source.txt").write_text("the source")
    return Config(out=tmp_path / "out", source=tmp_path / "source.txt")


def begin(config: Config, *, folder: bool, stage: str = "fuse", **options) -> Job:
    assert config.source is not None
    options = {"writes": WRITES} | options
    return start_job(config, JobSpec(stage, {"source": identity(config.source)}, folder=folder, **options))


def work(config: Config, *, folder: bool) -> Job:
    """Begin and, unless it is done, write the output and finish."""
    job = begin(config, folder=folder)
    if not job.done:
        (job.out / "result" if folder else job.out).write_text(f"result of size {config.size}")
        job.finish(counted=7)
    return job


def result(config: Config, folder: bool) -> str:
    return (config.out / "result" if folder else config.out).read_text()


def test_work_is_begun_finished_and_found_done(config: Config, folder: bool, capsys: pytest.CaptureFixture[str]):
    first, second = work(config, folder=folder), work(config, folder=folder)
    assert (first.done, first.resuming, second.done) == (False, False, True)
    assert "already done" in capsys.readouterr().err
    found = read_manifest(config.out)
    assert found is not None
    assert (found["complete"], found["stage"], found["results"]["counted"]) == (True, "fuse", 7)
    assert found["results"]["peak_bytes"] > 2**20
    assert found["config"]["size"] == 3
    assert {"version", "commit", "started", "finished"} < found.keys()


def test_a_folder_holds_its_manifest_and_settings_and_a_file_has_its_manifest_beside_it(tmp_path: Path, config: Config):
    work(config, folder=True)
    assert {path.name for path in config.out.iterdir()} == {"manifest.json", "config.yaml", "result"}
    assert yaml.safe_load((config.out / "config.yaml").read_text())["size"] == 3
    work(replace(config, out=tmp_path / "run.trec"), folder=False)
    assert (tmp_path / "run.trec.manifest.json").is_file()


def test_a_manifest_lists_what_was_written_and_what_lies_aside(config: Config, tmp_path: Path):
    job = begin(config, folder=True, aside=("log", "no such file"))
    (config.out / "result").write_text("result")
    (config.out / "log").write_text("log")
    job.finish()
    found = read_manifest(config.out)
    assert found is not None
    assert found["files"] == {"result": {"size": 6, "sha256": sha256(b"result").hexdigest()}}
    assert found["aside"] == ["config.yaml", "log", "no such file"]
    work(replace(config, out=tmp_path / "run.trec"), folder=False)
    file = read_manifest(tmp_path / "run.trec")
    assert file is not None
    assert file["files"] == {"run.trec": {"size": 16, "sha256": sha256(b"result of size 3").hexdigest()}}


def test_a_users_own_file_in_an_output_is_never_listed(config: Config, tmp_path: Path):
    work(config, folder=True)
    (config.out / "notes.txt").write_text("mine")
    (tmp_path / "source.txt").write_text("another source")
    for _ in range(2):  # the second continues an update that was killed
        job = begin(config, folder=True, update=("source",))
        assert job.updating
        (job.out / "more").write_text("a new part")
        assert "changing" in (read_manifest(config.out) or {})
    job.finish()
    found = read_manifest(config.out)
    assert found is not None
    assert sorted(found["files"]) == ["more", "result"]
    assert "changing" not in found
    outputs.list_again(config.out)
    again = read_manifest(config.out)
    assert again is not None
    assert sorted(again["files"]) == ["more", "result"]


def test_weights_are_for_everybody_who_may_read_the_manifest(config: Config):
    job = begin(config, folder=True, aside=["checkpoints"])
    weights = config.out / "checkpoints" / "model.safetensors"
    weights.parent.mkdir()
    save_file({"a": np.zeros(3)}, weights)
    weights.chmod(0o600)
    (config.out / "manifest.json").chmod(0o640)
    job.finish()
    assert S_IMODE(weights.stat().st_mode) == 0o640


def test_work_that_was_not_finished_is_resumed(config: Config, folder: bool):
    begin(config, folder=folder)
    again = begin(config, folder=folder)
    assert (again.done, again.resuming) == (False, True)


def test_work_whose_output_has_gone_is_done_again(config: Config, folder: bool):
    work(config, folder=folder)
    shutil.rmtree(config.out) if folder else config.out.unlink()
    assert not work(config, folder=folder).done
    assert work(config, folder=folder).done


def test_what_cannot_change_the_result_makes_no_other_job(config: Config, folder: bool):
    work(config, folder=folder)
    assert work(replace(config, speed=9, json=True, overwrite=True), folder=folder).done


def test_a_setting_without_effect_beside_the_others_makes_no_other_job(config: Config, folder: bool):
    work(config, folder=folder)
    flat = replace(config, shape="flat")
    with pytest.raises(UserError, match="shape: round there, flat now"):
        begin(flat, folder=folder)
    assert begin(flat, folder=folder, as_if=at_defaults(flat, ["shape"])).done
    assert begin(replace(config, overwrite=True, size=9), folder=folder, as_if=config).done


def test_only_a_setting_that_there_is_can_be_put_to_its_default(config: Config):
    for name in ("shpae", "out"):
        with pytest.raises(KeyError):
            at_defaults(config, [name])


def test_a_jobs_id_says_what_is_unlike_the_defaults_in_whatever_order_it_stands(config: Config, tmp_path: Path):
    assert begin(config, folder=False).manifest["made_from"].keys() == {"source"}
    job = begin(replace(config, out=tmp_path / "b", size=4, shape="flat"), folder=False).manifest
    assert job["made_from"] == {"size": 4, "shape": "flat", "source": identity(tmp_path / "source.txt")}
    turned = [(f.name, f.type, *([] if f.default is MISSING else [f.default])) for f in reversed(fields(Config))]
    backwards = make_dataclass("Backwards", turned, kw_only=True)
    other = backwards(out=tmp_path / "c", source=config.source, size=4, shape="flat")
    assert begin(other, folder=False).manifest["job"] == job["job"]


def test_a_setting_that_is_new_makes_no_other_job_while_it_is_left_out(config: Config, folder: bool):
    work(config, folder=folder)
    added = make_dataclass("Added", [("colour", str, "red")], bases=(Config,), frozen=True, kw_only=True)
    assert begin(added(out=config.out, source=config.source), folder=folder).done
    with pytest.raises(UserError, match="colour: nothing there, blue now"):
        begin(added(out=config.out, source=config.source, colour="blue"), folder=folder)


def test_another_version_of_a_stage_makes_another_job(config: Config, folder: bool):
    first = work(config, folder=folder)
    with pytest.raises(UserError, match=r"\(of another version of `shortlist fuse`, .*\); .* --overwrite"):
        begin(config, folder=folder, version=2)
    again = begin(replace(config, overwrite=True), folder=folder, version=2)
    assert (again.resuming, again.manifest["job"] == first.manifest["job"]) == (False, False)
    assert begin(config, folder=folder, version=2).resuming


def format_2(config: Config, *, folder: bool, stage: str = "fuse", complete: bool = True) -> str:
    """Write an output of `work` with a manifest of format 2, which names every setting; returns its job id."""
    assert config.source is not None
    made_from = {"size": config.size, "shape": config.shape, "source": identity(config.source)}
    job = sha256(json.dumps([2, stage, made_from], sort_keys=True).encode()).hexdigest()
    settings = {f.name: v if isinstance(v := getattr(config, f.name), int) else str(v) for f in fields(config)}
    content = {"format": 2, "stage": stage, "job": job, "complete": complete, "version": "0.1.0", "commit": None}
    content |= {"started": "2026-11-28T12:00:00+00:00", "config": settings, "made_from": made_from, "decided": {"p": 1}}
    if folder:
        config.out.mkdir()
        (config.out / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    path = config.out / "manifest.json" if folder else config.out.with_name(f"{config.out.name}.manifest.json")
    path.write_text(json.dumps(content, indent=2) + "\n")
    (config.out / "result" if folder else config.out).write_text(f"result of size {config.size}")
    return job


@pytest.mark.parametrize("size", [3, 4])
def test_an_output_of_format_2_is_recognised_as_done_and_left_as_it_is(config: Config, folder: bool, size: int):
    config = replace(config, size=size)
    job = format_2(config, folder=folder)
    before = read_manifest(config.out)
    assert work(replace(config, speed=9, json=True), folder=folder).done
    assert read_manifest(config.out) == before
    assert begin(config, folder=folder).manifest["job"] == job


def test_work_of_format_2_that_was_not_finished_is_resumed_under_its_id(config: Config, folder: bool):
    job = format_2(config, folder=folder, complete=False)
    again = begin(config, folder=folder)
    assert (again.done, again.resuming, again.manifest["job"]) == (False, True, job)
    assert again.decide("p", lambda: 2) == 1
    again.finish()
    found = read_manifest(config.out)
    assert found is not None
    assert (found["format"], found["job"], found["made_from"].keys()) == (3, job, {"source"})
    assert begin(config, folder=folder).done


def test_another_job_of_format_2_is_refused_with_the_difference_alone(config: Config, folder: bool):
    format_2(config, folder=folder)
    with pytest.raises(UserError, match=r"--out .*out: holds another job \(size: 3 there, 4 now\); .* --overwrite"):
        work(replace(config, size=4), folder=folder)
    with pytest.raises(UserError, match=r"\(of `shortlist fuse`\)"):
        begin(config, folder=folder, stage="mine")
    again = replace(config, size=4, overwrite=True)
    if not folder:
        assert not work(again, folder=False).done
        return
    with pytest.raises(UserError, match=r"was written by version 0\.1\.0, which did not list its files"):
        work(again, folder=True)
    assert result(config, True) == "result of size 3"


def test_an_output_of_format_2_is_updated(config: Config, tmp_path: Path):
    format_2(config, folder=True)
    (tmp_path / "source.txt").write_text("another source")
    assert begin(config, folder=True, update=["source"]).updating
    with pytest.raises(UserError, match="size: 3 there, 4 now; source: the contents of"):
        begin(replace(config, size=4), folder=True, update=["source"])


def test_what_was_made_from_an_output_of_format_2_is_recognised_too(config: Config, tmp_path: Path):
    job = format_2(config, folder=True)
    then = Config(out=tmp_path / "then", source=config.out)
    format_2(then, folder=False, stage="mine")
    assert identity(config.out) == f"job:{job}"
    assert begin(config, folder=True).done
    assert begin(then, folder=False, stage="mine").done


def test_a_manifest_of_no_known_format_is_of_another_version(config: Config, folder: bool):
    format_2(config, folder=folder)
    path = config.out / "manifest.json" if folder else config.out.with_name("out.manifest.json")
    path.write_text(path.read_text().replace('"format": 2', '"format": 4'))
    with pytest.raises(UserError, match=r"holds another job \(of another version of `shortlist fuse`, 0\.1\.0\)"):
        work(config, folder=folder)


def test_an_input_under_another_name_with_the_same_contents_makes_no_other_job(
    config: Config, folder: bool, tmp_path: Path
):
    work(config, folder=folder)
    (tmp_path / "copy.txt").write_text("the source")
    assert work(replace(config, source=tmp_path / "copy.txt"), folder=folder).done


def test_another_job_is_refused_with_the_difference(config: Config, folder: bool, tmp_path: Path):
    work(config, folder=folder)
    with pytest.raises(UserError, match=r"--out .*out: holds another job \(size: 3 there, 4 now\); .* --overwrite"):
        work(replace(config, size=4), folder=folder)
    with pytest.raises(UserError, match=r"\(of `shortlist fuse`\)"):
        begin(config, folder=folder, stage="mine")
    (tmp_path / "source.txt").write_text("another source")
    with pytest.raises(UserError, match=r"source: the contents of .*source.txt changed"):
        work(config, folder=folder)
    (tmp_path / "other.txt").write_text("third")
    with pytest.raises(UserError, match=r"size: 3 there, 4 now; source: .*source.txt there, .*other.txt now"):
        work(replace(config, size=4, source=tmp_path / "other.txt"), folder=folder)
    assert result(config, folder) == "result of size 3"


def test_overwrite_makes_room_for_another_job(config: Config, folder: bool):
    job = begin(config, folder=folder)
    if folder:
        (config.out / "old" / "deep").mkdir(parents=True)
        (config.out / "old" / "deep" / "part").write_text("a part")
    (job.out / "result" if folder else job.out).write_text("result")
    job.finish()
    assert not work(replace(config, size=4, overwrite=True), folder=folder).resuming
    assert result(config, folder) == "result of size 4"
    assert not (config.out / "old").exists()
    assert work(replace(config, size=4), folder=folder).done


@pytest.mark.parametrize("complete", [True, False])
def test_overwrite_deletes_what_is_listed_and_leaves_and_names_the_rest(
    config: Config, complete: bool, capsys: pytest.CaptureFixture[str]
):
    out = config.out
    first = begin(config, folder=True, parts="result")
    (out / "result").write_text("result")
    if complete:
        first.finish()
    del first  # as by a kill
    (out / ".git").mkdir()
    (out / ".git" / "x").write_text("mine")
    (out / "model").mkdir()
    (out / "model" / "manifest.json").write_text("{}")
    (out / "model" / "weights").write_text("another output")
    (out / "thesis.txt").write_text("mine")
    left = [".git", "model", "thesis.txt"]
    other = replace(config, size=4, overwrite=True)
    capsys.readouterr()
    job = begin(other, folder=True, parts="result")
    assert f"out: left {', '.join(left)}, which no command of ours wrote" in capsys.readouterr().err
    assert not (out / "result").exists()
    (out / "result").write_text("new")
    job.finish()
    found = read_manifest(out)
    assert found is not None
    assert [*found["files"]] == ["result"]
    assert (out / "model" / "weights").read_text() == "another output"
    assert (out / ".git" / "x").exists()


def test_overwriting_that_was_killed_leaves_nothing_that_counts_as_done(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    job = begin(config, folder=True)
    for name in ("a", "result"):
        (job.out / name).write_text(name)
    job.finish()
    del job
    (config.out / "thesis.txt").write_text("mine")
    unlink = Path.unlink

    def crash(path: Path, missing_ok: bool = False) -> None:
        if path.name == "result":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            begin(replace(config, size=4, overwrite=True), folder=True)
    again = begin(config, folder=True)
    assert not again.done
    again.finish()
    found = read_manifest(config.out)
    assert found is not None
    assert "thesis.txt" not in found["files"]


@pytest.mark.parametrize("place", ["", "deep", "result"])
def test_overwrite_never_deletes_an_input(config: Config, folder: bool, place: str):
    job = begin(config, folder=folder)
    if folder:
        (config.out / "deep").mkdir()
        (config.out / "deep" / "part").write_text("a part")
    (job.out / "result" if folder else job.out).write_text("result of size 3")
    job.finish()
    del job
    source = config.out / place if folder else config.out
    other = replace(config, source=source, size=4, overwrite=True)
    with pytest.raises(UserError, match=r"--out .*out: --source .* is there, and would be deleted; choose another"):
        begin(other, folder=folder)
    with pytest.raises(UserError, match=r"is there, and would be deleted"):
        begin(replace(config, size=4, overwrite=True), folder=folder, reads=[source])
    assert result(config, folder) == "result of size 3"


def test_a_failed_run_without_results_is_no_obstacle(config: Config):
    failed = begin(config, folder=True, parts="part-*")
    (config.out / "half").write_text("no result")
    del failed
    job = begin(replace(config, size=4), folder=True, parts="part-*")
    assert (job.done, job.resuming) == (False, False)
    assert not (config.out / "half").exists()
    (config.out / "part-1").write_text("to go on from")
    del job
    with pytest.raises(UserError, match="holds another job"):
        begin(config, folder=True, parts="part-*")
    assert begin(replace(config, size=4), folder=True, parts="part-*").resuming


def test_a_second_command_is_told_who_is_at_work(config: Config, folder: bool):
    job = begin(config, folder=folder)
    seen: list[str] = []

    def second() -> None:
        for other in (config, replace(config, size=4), replace(config, size=4, overwrite=True)):
            try:
                begin(other, folder=folder)
            except UserError as error:
                seen.append(str(error))

    thread = Thread(target=second)
    thread.start()
    thread.join()
    assert [("`shortlist fuse` is at work there" in message) for message in seen] == [True] * 3
    (job.out / "result" if folder else job.out).write_text("x")
    job.finish()
    del job
    assert begin(config, folder=folder).done


def test_a_finished_output_that_may_not_be_written_is_still_done(config: Config):
    work(config, folder=True)
    config.out.chmod(0o500)
    try:
        assert begin(config, folder=True).done
    finally:
        config.out.chmod(0o700)


def test_a_change_that_was_interrupted_shows_and_keeps_others_files_apart(config: Config):
    work(config, folder=True)
    (config.out / "notes").write_text("mine")

    def interrupted() -> None:
        with outputs.changing(config.out, stage="fuse", writes=WRITES):
            (config.out / "new part").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "changing" in begin(config, folder=True).manifest
    with outputs.changing(config.out, stage="fuse", writes=WRITES):
        pass
    found = begin(config, folder=True).manifest
    assert ("changing" in found, sorted(found["files"])) == (False, ["new part", "result"])


def test_what_somebody_puts_into_a_running_or_unfinished_output_is_never_ours(
    config: Config, capsys: pytest.CaptureFixture[str]
):
    out = config.out
    job = begin(config, folder=True, writes=["half", "old/part"])
    (out / "old").mkdir()
    for name in ("half", "notes.txt", "old/notes.txt", "old/part"):
        (out / name).write_text(name)
    with job.result() as work:
        (work / "deep").mkdir()
        (work / "deep" / "weights").write_text("weights")
        (out / "deep").mkdir()
        (out / "deep" / "notes.txt").write_text("mine")
    del job  # killed, with its result moved in
    job = begin(config, folder=True, writes=["half", "old/part"])
    assert job.resuming
    job.finish()
    found = read_manifest(out)
    assert found is not None
    assert sorted(found["files"]) == ["deep/weights", "half", "old/part"]
    begin(replace(config, size=4, overwrite=True), folder=True)
    assert "left deep, notes.txt, old, which no command of ours wrote" in capsys.readouterr().err
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert left == ["config.yaml", "deep/notes.txt", "manifest.json", "notes.txt", "old/notes.txt"]


def test_a_result_replaces_nothing_that_somebody_has_put_there(config: Config):
    job = begin(config, folder=True, writes=())
    (config.out / "table").write_text("mine")

    def write() -> None:
        with job.result() as work:
            (work / "other").write_text("ours")
            (work / "table").write_text("ours")

    with pytest.raises(
        UserError, match=r"out/table: was put there by somebody else, and a file of the result has this"
    ):
        write()
    assert sorted(path.name for path in config.out.iterdir()) == [".lock", "config.yaml", "manifest.json", "table"]
    (config.out / "table").unlink()
    write()
    write()  # what is ours is replaced
    job.finish()
    assert not begin(replace(config, size=4, overwrite=True), folder=True, writes=()).resuming
    assert not (config.out / "table").exists()


def test_an_unfinished_output_of_a_version_that_did_not_say_what_it_writes_is_ours_whole(config: Config):
    begin(config, folder=True, writes=())
    path = config.out / "manifest.json"
    path.write_text(json.dumps({name: v for name, v in json.loads(path.read_text()).items() if name != "writes"}))
    (config.out / "shard-00000.json").write_text("of the other job")
    begin(replace(config, size=4), folder=True, writes=())
    assert not (config.out / "shard-00000.json").exists()


def test_what_is_done_is_known_without_a_claim(config: Config, folder: bool):
    assert config.source is not None
    spec = JobSpec("fuse", {"source": identity(config.source)}, folder=folder)
    assert not is_done(config, spec)
    work(config, folder=folder)
    lock = lock_file(config.out, folder)
    for done in (is_done, start_job):
        lock.touch()  # as after a kill behind the last step
        done(config, spec)
        assert not lock.exists()
    assert is_done(config, spec)
    assert not is_done(replace(config, size=4), spec)
    assert not is_done(config, spec._replace(folder=not folder))


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_command_of_ours_wrote_is_never_touched(config: Config, folder: bool, overwrite: bool):
    if folder:
        config.out.mkdir()
        (config.out / "thesis.tex").write_text("years of work")
        (config.out / "manifest.json").write_text('{"name": "of something else"}')
    else:
        config.out.write_text("years of work")
    with pytest.raises(UserError, match="no command of ours wrote it; choose another name or move it away"):
        work(replace(config, overwrite=overwrite), folder=folder)
    assert (config.out / "thesis.tex" if folder else config.out).read_text() == "years of work"


def test_overwriting_follows_no_link_out_of_the_folder(config: Config, tmp_path: Path):
    work(config, folder=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (config.out / "link").symlink_to(tmp_path / "mine")
    work(replace(config, size=4, overwrite=True), folder=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    (config.out / "result").unlink()
    (config.out / "result").symlink_to(tmp_path / "mine" / "thesis.tex")
    assert not begin(replace(config, size=5, overwrite=True), folder=True).done
    assert not (config.out / "result").is_symlink()
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_an_empty_folder_is_free_to_use(config: Config):
    config.out.mkdir()
    assert not work(config, folder=True).done


def test_a_folder_where_a_file_belongs_is_refused_and_the_reverse(config: Config):
    config.out.mkdir()
    with pytest.raises(UserError, match="is a folder, and this command writes a file"):
        work(config, folder=False)
    config.out.rmdir()
    config.out.write_text("a file")
    with pytest.raises(UserError, match="is a file, and this command writes a folder"):
        work(config, folder=True)


@pytest.mark.parametrize("at", ["manifest.json", "config.yaml"])
def test_a_crash_at_the_very_beginning_does_not_lock_the_folder(
    config: Config, monkeypatch: pytest.MonkeyPatch, at: str
):
    write = jobs.atomic_write

    def crash(path: Path, *mode: str):
        if path.name == at:
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{at}.{'0' * 16}.partial").write_text("half")  # what kill -9 leaves
            raise KeyboardInterrupt
        return write(path, *mode)

    with monkeypatch.context() as patch:
        for module in (jobs, manifest):
            patch.setattr(module, "atomic_write", crash)
        with pytest.raises(KeyboardInterrupt):
            begin(config, folder=True)
    assert not work(config, folder=True).done
    assert work(config, folder=True).done


def test_a_crash_while_making_room_does_not_lock_the_folder(config: Config, monkeypatch: pytest.MonkeyPatch):
    job = begin(config, folder=True)
    for name in ("result", "zz"):
        (job.out / name).write_text(name)
    job.finish()
    del job
    unlink = Path.unlink

    def crash(path: Path, missing_ok: bool = False) -> None:
        if path.name == "zz":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    other = replace(config, size=4, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            begin(other, folder=True)
    assert not work(other, folder=True).done
    assert result(other, True) == "result of size 4"


def test_a_broken_manifest_is_named(config: Config, folder: bool):
    work(config, folder=folder)
    path = config.out / "manifest.json" if folder else config.out.with_name("out.manifest.json")
    for broken in ("{", "[]"):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"manifest.json: not a manifest of ours"):
            work(config, folder=folder)


def test_a_file_is_known_by_its_contents(tmp_path: Path):
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    assert identity(tmp_path / "a") == identity(str(tmp_path / "b")) != identity(tmp_path / "c")


def test_a_folder_of_others_is_known_by_names_and_contents(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "a").write_text("text")
    assert identity(tmp_path / "one") == identity(tmp_path / "two")
    (tmp_path / "one" / ".hidden").write_text("of the system")
    assert identity(tmp_path / "one") == identity(tmp_path / "two")
    (tmp_path / "one" / "deep" / "a").rename(tmp_path / "one" / "deep" / "b")
    assert identity(tmp_path / "one") != identity(tmp_path / "two")
    (tmp_path / "one" / "deep" / "b").rename(tmp_path / "one" / "deep" / "a")
    (tmp_path / "one" / "deep" / "a").write_text("Text")
    assert identity(tmp_path / "one") != identity(tmp_path / "two")


def test_a_folder_of_ours_is_known_by_the_files_that_it_lists(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    work(config, folder=True)
    before = identity(config.out)
    (config.out / "notes").write_text("mine")
    shutil.copytree(config.out, tmp_path / "copy")
    assert identity(tmp_path / "copy") == identity(config.out) == before
    (config.out / "result").write_text("Result of size 3")
    with pytest.raises(UserError, match=r"out/result: its contents are not those that were written"):
        identity(config.out)
    with monkeypatch.context() as patch:
        patch.setenv("SHORTLIST_NO_VERIFY", "1")
        assert identity(config.out) == before
    (config.out / "result").unlink()
    with pytest.raises(UserError, match=r"out/result: is missing; make it again"):
        identity(config.out)


def test_a_folder_whose_manifest_lists_no_files_is_known_by_its_job(config: Config):
    job = begin(config, folder=True)
    job.finish()
    assert identity(config.out) == f"job:{job.manifest['job']}"


def test_what_was_made_from_an_input_that_has_changed_is_done_again(config: Config, tmp_path: Path):
    work(config, folder=True)
    then = Config(out=tmp_path / "then", source=config.out)
    work(then, folder=False)
    assert work(then, folder=False).done
    (config.out / "result").write_text("repaired")
    outputs.list_again(config.out)
    with pytest.raises(UserError, match=r"source: the contents of .*out changed"):
        begin(then, folder=False)
    assert not begin(replace(then, overwrite=True), folder=False).done


def test_what_was_made_without_comparing_is_no_work_of_a_command_that_compares(
    config: Config, folder: bool, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setenv("SHORTLIST_NO_VERIFY", "1")
        work(config, folder=folder)
        assert work(config, folder=folder).done
    with pytest.raises(UserError, match=r"holds another job \(made with --no-verify, from what may be damaged\)"):
        work(config, folder=folder)
    assert not work(replace(config, overwrite=True), folder=folder).done
    monkeypatch.setenv("SHORTLIST_NO_VERIFY", "1")
    assert work(config, folder=folder).done


def test_an_identity_without_an_adapters_base_is_still_recognised():
    assert same_identity("job:a", "job:a")
    assert same_identity("job:a", "job:a+sha256:b")
    assert not same_identity("job:a+sha256:b", "job:a+sha256:c")
    assert not same_identity("job:a+sha256:b", "job:a")


def test_an_output_that_was_never_finished_is_no_input(config: Config):
    begin(config, folder=True)
    with pytest.raises(UserError, match=r"out: `shortlist fuse` has not finished here; run it again"):
        identity(config.out)
    with pytest.raises(UserError, match="no such file or folder"):
        identity(config.out / "nowhere")


def test_the_time_per_query_comes_from_the_runs_manifest(config: Config):
    begin(config, folder=False)
    assert ms_per_query(config.out) == 0.0
    job = begin(config, folder=False)
    config.out.write_text("a run")
    job.finish(ms_per_query=2.5)
    assert ms_per_query(config.out) == 2.5
    assert ms_per_query(config.out.with_name("other")) == 0.0


def test_settings_in_the_manifest_are_plain_values(config: Config):
    job = begin(config, folder=False)
    assert json.loads(json.dumps(job.manifest)) == job.manifest
    assert job.manifest["config"]["source"] == str(config.source)
