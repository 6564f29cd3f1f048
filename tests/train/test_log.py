import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from shortlist.errors import UserError
from shortlist.train.log import TrainingLog, draw_loss, read_log


def training(step: int, loss: float = 1.0) -> dict[str, int | float]:
    return {"step": step, "loss": loss, "accuracy": 0.5, "learning_rate": 1e-4}


def write(folder: Path, records: list[dict], *, first_step: int = 0, tensorboard: bool = False) -> None:
    with TrainingLog(folder, first_step=first_step, tensorboard=tensorboard) as log:
        for record in records:
            log.write(record)


def test_every_record_is_a_line_that_is_there_at_once(tmp_path: Path):
    with TrainingLog(tmp_path, first_step=0, tensorboard=False) as log:
        log.write(training(1))
        log.write({"step": 1, "mrr@10": 0.25})
        lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [training(1), {"step": 1, "mrr@10": 0.25}] == read_log(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_records_of_steps_that_are_done_again_go_and_all_others_stay(tmp_path: Path):
    heldout = {"step": 2, "mrr@10": 0.5}
    write(tmp_path, [training(1), training(2), heldout, training(3), {"step": 3, "mrr@10": 0.6}])
    before = (tmp_path / "log.jsonl").read_text().splitlines()
    write(tmp_path, [training(3, loss=7.0)], first_step=2)
    assert read_log(tmp_path) == [training(1), training(2), heldout, training(3, loss=7.0)]
    assert (tmp_path / "log.jsonl").read_text().splitlines()[:3] == before[:3]


def test_a_run_that_starts_again_starts_an_empty_log(tmp_path: Path):
    write(tmp_path, [training(1)])
    write(tmp_path, [])
    assert read_log(tmp_path) == []


def test_a_line_torn_by_a_crash_is_no_record_and_goes(tmp_path: Path):
    write(tmp_path, [training(1), training(2)])
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert read_log(tmp_path) == [training(1), training(2)]
    write(tmp_path, [training(3)], first_step=2)
    assert read_log(tmp_path) == [training(1), training(2), training(3)]


@pytest.mark.parametrize(("line", "message"), [("nonsense", "not JSON"), ("[1]", "a JSON list"), ("{}", "no 'step'")])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str, message: str):
    (tmp_path / "log.jsonl").write_text(f"{json.dumps(training(1))}\n{line}\n")
    with pytest.raises(UserError, match=rf"log.jsonl:2: .*{message}"):
        write(tmp_path, [], first_step=5)


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_the_same_numbers_and_no_step_twice(tmp_path: Path):
    heldout = {"step": 2, "mrr@10": 0.5}
    write(tmp_path, [training(1, 4.0), training(2, 3.0), heldout, training(3, 9.0)], tensorboard=True)
    write(tmp_path, [training(3, 2.0)], first_step=2, tensorboard=True)
    assert scalars(tmp_path, "loss") == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert scalars(tmp_path, "mrr@10") == [(2, 0.5)]


def test_tensorboard_that_is_missing_is_said_before_the_log_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, [training(1)])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=r"pip install 'shortlist\[tensorboard\]'"):
        TrainingLog(tmp_path, first_step=0, tensorboard=True)
    assert read_log(tmp_path) == [training(1)]


RECORDS = [training(step, 8 / step) for step in range(1, 61)]


def drawn(folder: Path, records: list[dict]) -> str:
    write(folder, records)
    svg = draw_loss(folder).read_text("utf-8")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    return svg


def test_the_drawing_says_what_its_lines_are(tmp_path: Path):
    svg = drawn(tmp_path, [*RECORDS, {"step": 30, "mrr@10": 0.1}, {"step": 60, "mrr@10": 0.3}])
    for label in ("step", "training loss", "training loss, running mean", "held-out MRR@10"):
        assert f">{label}</text>" in svg


def test_without_held_out_records_there_is_one_axis(tmp_path: Path):
    assert "MRR" not in drawn(tmp_path, RECORDS)


def test_the_same_log_gives_the_same_drawing_byte_for_byte(tmp_path: Path):
    import matplotlib

    first = drawn(tmp_path / "a", RECORDS)
    with matplotlib.rc_context(
        {"axes.facecolor": "black", "svg.fonttype": "path"}
    ):  # as somebody's own settings may say
        assert drawn(tmp_path / "b", RECORDS) == first
    assert drawn(tmp_path / "c", RECORDS[:-1]) != first


@pytest.mark.parametrize("count", [0, 1])
def test_a_log_of_a_single_step_or_none_is_drawn_too(tmp_path: Path, count: int):
    drawn(tmp_path, RECORDS[:count])


@pytest.mark.slow
def test_a_long_run_makes_no_large_drawing(tmp_path: Path):
    assert len(drawn(tmp_path, [training(step, step * step % 9973) for step in range(1, 50_000)])) < 300_000
