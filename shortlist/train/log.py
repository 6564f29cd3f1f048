"""Log of a training run: JSON lines, TensorBoard's files, and a drawing of the loss."""

import json
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from shortlist.data.figures import write_svg
from shortlist.data.files import atomic_write, open_text
from shortlist.data.lines import MalformedError, parse_json
from shortlist.errors import UserError
from shortlist.math.smoothing import running_mean
from shortlist.settings.train import DRAWING, EVENTS, LOG

MEASURE, REWARD, HELDOUT_LOSS = "mrr@10", "heldout_reward", "heldout_loss"
"""Keys of the measurement in held-out records: rewards for answers that are rewarded, the loss of preferences. Other
records hold a `loss`."""
HELDOUT_NAMES = {MEASURE: "held-out MRR@10", REWARD: "held-out reward", HELDOUT_LOSS: "held-out loss"}
"""What they are called in a drawing."""

Record = dict[str, int | float]
"""The measurements of a step, by name; `step` counts from 1."""

MOST_POINTS = 2000
"""Most points of a drawn line; more would not be visible."""


@final
class TrainingLog:
    """A run's records, appended to `log.jsonl` one by one; a context manager.

    Args:
        folder: the run's folder; records of steps after `first_step` are removed, as those steps are repeated.
        first_step: number of steps already done.
        tensorboard: also write the numbers for TensorBoard, into the folder `tensorboard`.

    Raises:
        UserError: TensorBoard is asked for but not installed, or the existing log cannot be read.
    """

    def __init__(self, folder: Path, *, first_step: int, tensorboard: bool) -> None:
        self._tensorboard = _writer(folder / EVENTS, first_step) if tensorboard else None
        kept = [record for record in read_log(folder) if record["step"] <= first_step]
        with atomic_write(folder / LOG) as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        self._file = open(folder / LOG, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def write(self, record: Record) -> None:
        """Add a record: its `step`, counted from 1, and numbers by name."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for name in record.keys() - {"step"}:
                self._tensorboard.add_scalar(name, record[name], record["step"])


def read_log(folder: Path) -> list[Record]:
    """Read the records of a run so far; none if there is no log.

    An incomplete last line, left by a crash, is skipped.

    Raises:
        UserError: a complete line is not a record.
    """
    path = folder / LOG
    if not path.exists():
        return []
    with open_text(path) as file:
        return [_record(path, number, line) for number, line in enumerate(file, 1) if line.endswith("\n")]


def _record(path: Path, number: int, line: str) -> Record:
    try:
        record = parse_json(line)
    except MalformedError as error:
        raise UserError(f"{path}:{number}: {error}") from None
    if "step" not in record:
        raise UserError(f"{path}:{number}: has no 'step'; expected a record of a training run. Remove the line.")
    return record


def draw_loss(folder: Path) -> Path:
    """Draw the training log of a folder into its `loss.svg`.

    The drawing has the loss of every step, its running mean, and the held-out MRR@10, reward or loss.
    """
    records = read_log(folder)
    write_svg(folder / DRAWING, partial(draw_records, records))
    return folder / DRAWING


def draw_records(records: list[Record], figure: Any) -> None:
    """Draw a run's records on a figure."""
    training, heldout = [r for r in records if "loss" in r], [r for r in records if "loss" not in r]
    steps = np.array([record["step"] for record in training])
    losses = np.array([record["loss"] for record in training], dtype=float)
    axes = figure.add_subplot(xlabel="step", ylabel="training loss")
    if len(steps):
        thin = slice(None, None, -(-len(steps) // MOST_POINTS))
        smooth = running_mean(losses, len(losses) // 20)
        axes.plot(steps[thin], losses[thin], color="#9ecae1", linewidth=0.8, marker="." if len(steps) == 1 else "")
        axes.plot(steps[thin], smooth[thin], color="#08519c", linewidth=1.6, label="training loss, running mean")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color="#dddddd", linewidth=0.5)
    lines = axes.get_lines()[1:]
    if heldout:
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        key, name = next((key, name) for key, name in HELDOUT_NAMES.items() if key in heldout[0])
        right.set(ylabel=name, **({"ylim": (0, 1)} if key == MEASURE else {}))
        points = [record["step"] for record in heldout], [record[key] for record in heldout]
        lines += right.plot(*points, color="#d94801", marker="o", markersize=3, label=name)
    figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False)


def _writer(folder: Path, first_step: int) -> Any:
    """Open TensorBoard's writer; records of later steps from an interrupted run are hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard: the package is not installed; pip install 'shortlist[tensorboard]'.") from None
    return SummaryWriter(str(folder), purge_step=first_step + 1)
