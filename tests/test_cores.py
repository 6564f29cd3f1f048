import os

import pytest

from shortlist.cli import main
from shortlist.cores import SHAPES_KEPT, WAITING, may_have_gpu, num_cores, share_cores, wait_briefly


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch):
    for name in WAITING:
        monkeypatch.setenv(name, "")  # so that it is put back, whatever becomes of it
        monkeypatch.delenv(name)


def test_the_command_line_lets_threads_that_wait_sleep():
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 10_000
    assert [os.environ[name] for name in SHAPES_KEPT] == ["32", "32"]


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_says_about_waiting_stays(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "7")
    wait_briefly()
    assert {known: os.environ[known] for known in WAITING if known in os.environ} == {name: "7"}


@pytest.mark.parametrize(("limit", "expected"), [("1", 1), ("1,2", 1), ("4096", None), ("", None), ("many", None)])
def test_omp_num_threads_limits_the_cores(limit: str, expected: int | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    there = num_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert num_cores() == (expected or there)


def test_parts_of_the_cores_have_a_thread_at_least(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shortlist.cores.num_cores", lambda: 6)
    assert share_cores(2) == {"OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "3"}
    assert share_cores(7) == {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}


def test_gpus_that_may_not_be_used_are_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shortlist.cores.GPUS", ("null",))  # a device that every machine has
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert may_have_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not may_have_gpu()
