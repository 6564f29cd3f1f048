"""How many processes train, and that those which `train` starts end where one does."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import kill_when
from tiny import Tiny

from shortlist import train
from shortlist.cli import main
from shortlist.commands import carry_out
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.settings import processes as settings
from shortlist.settings import train_job
from shortlist.settings.processes import num_processes
from shortlist.settings.train import Config


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> Config:
    values: dict[str, Any] = {"kind": "retriever", "backbone": str(tiny.llama), "collection": str(tiny.collection)}
    values |= {"batch_size": 4, "steps": 4, "learning_rate": 0.01, "warmup_steps": 2, "checkpoint_steps": 2}
    return Config(**values, out=tmp_path / "out")


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU of four cores, for which even the tiniest model and shortest training is large enough."""
    monkeypatch.setattr(settings, "num_cores", lambda: 4)
    monkeypatch.setattr(settings, "may_have_gpu", lambda: False)
    monkeypatch.setattr(train_job, "may_have_gpu", lambda: False)
    monkeypatch.setattr(settings, "SHARED_BYTES", (1, 1 << 30))
    monkeypatch.setattr(settings, "SHARED_STEPS", 1)
    monkeypatch.delenv("RANK", raising=False)


@pytest.mark.usefixtures("four_cores")
def test_the_number_of_processes_follows_from_cores_and_settings(config: Config, monkeypatch: pytest.MonkeyPatch):
    assert num_processes(config) == 4
    assert num_processes(replace(config, processes=3)) == 3
    assert num_processes(replace(config, sharded=True)) == 1
    monkeypatch.setattr(settings, "num_cores", lambda: 64)
    assert num_processes(config) == settings.MOST_PROCESSES


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    "change", [{"SHARED_STEPS": 5}, {"SHARED_BYTES": (1, 10)}, {"SHARED_BYTES": (1 << 30, 1 << 31)}]
)
def test_what_is_too_short_too_tiny_or_too_large_trains_in_one(
    config: Config, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
):
    for name, value in change.items():
        monkeypatch.setattr(settings, name, value)
    assert num_processes(config) == 1


@pytest.mark.usefixtures("four_cores")
def test_with_gpus_or_under_torchrun_no_processes_are_started(config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "0")
    assert num_processes(config) == 1
    assert not train_job.starts(replace(config, processes=2))
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(settings, "may_have_gpu", lambda: True)
    assert num_processes(config) == 1


@pytest.mark.usefixtures("four_cores")
def test_the_command_starts_them_with_all_settings(config: Config, monkeypatch: pytest.MonkeyPatch):
    started: list[Any] = []
    monkeypatch.setattr(train_job, "run_together", lambda *given, **options: started.append((*given, options)))
    carry_out("train", config)
    [(command, processes, options)] = started
    assert command[:2] == ["train", "retriever"]
    assert {"--processes=4", "--batch-size=4", f"--out={config.out}"} <= {*command}
    assert (processes, options) == (4, {"on_gpus": False})
    assert not train_job.starts(replace(config, dry_run=True))


@pytest.mark.usefixtures("four_cores")
def test_another_number_of_processes_may_not_go_on(config: Config, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(config)
    assert num_processes(config) == 1  # as it was begun, whatever the cores
    manifest = config.out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"processes": 1', '"processes": 2'))
    assert num_processes(config) == 2
    with pytest.raises(UserError, match="was begun with 2 processes, and 1 would end with other last digits"):
        train.run(config)


def test_a_number_of_processes_that_is_not_at_work_is_refused(config: Config):
    with pytest.raises(UserError, match="--processes 2: 1 at work; the command line starts as many"):
        train.run(replace(config, processes=2))
    with pytest.raises(UserError, match="--processes is 0; expected at least 1"):
        train.run(replace(config, processes=0))


@pytest.mark.slow
def test_two_processes_end_where_one_does_and_go_on_to_the_same_bytes(config: Config, tmp_path: Path):
    words = ["train", "retriever", "--backbone", config.backbone, "--collection", config.collection, "--steps", "4"]
    words += ["--batch-size", "4", "--learning-rate", "0.01", "--warmup-steps", "2", "--checkpoint-steps", "2"]
    for processes in (1, 2):
        assert main([*words, "--out", str(tmp_path / f"in-{processes}"), "--processes", str(processes)]) == 0
    logs = [(tmp_path / f"in-{processes}/log.jsonl").read_text().splitlines() for processes in (1, 2)]
    alone, both = ([json.loads(line)["loss"] for line in log] for log in logs)
    assert both == pytest.approx(alone, rel=1e-5)
    manifest = read_manifest(tmp_path / "in-2")
    assert manifest is not None
    assert (manifest["decided"]["processes"], manifest["results"]["processes"]) == (2, 2)
    broken = tmp_path / "broken"
    command = [*words, "--out", str(broken), "--processes", "2"]
    kill_when(lambda: any(broken.glob("checkpoints/step-*")), command)
    time.sleep(1)  # until those that it has started have noticed
    assert main([*words, "--out", str(broken)]) == 0  # with as many
    assert (broken / "model.safetensors").read_bytes() == (tmp_path / "in-2/model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_error_of_several_processes_is_one_line(config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    words = ["--backbone", config.backbone, "--collection", config.collection, "--out", str(tmp_path / "out")]
    assert main(["train", "retriever", *words, "--processes", "2", "--heldout-split", "nosuch"]) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("shortlist train: ")
    assert "nosuch" in line
