"""The record of a training run: JSON lines, TensorBoard's files if asked for, and a drawing of the loss."""

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

LOG = "log.jsonl"
DRAWING = "loss.svg"
MEASURE = "mrr@10"
"""What held-out records are about; all others hold a `loss`."""

Record = dict[str, int | float]
"""What is measured of a step, by name; a `step` counts from 1."""

MOST_POINTS = 2000
"""A line of more shows nothing more."""


@final
class TrainingLog:
    """A run's records, appended to `log.jsonl` one by one; a context manager.

    Args:
        folder: the run's; what its log says about steps after `first_step` goes, as those steps are done again.
        first_step: number of steps already done.
        tensorboard: write the numbers for TensorBoard too, into the folder `tensorboard`.

    Raises:
        UserError: TensorBoard is asked for and not installed, or the log there cannot be read.
    """

    def __init__(self, folder: Path, *, first_step: int, tensorboard: bool) -> None:
        self._tensorboard = _writer(folder / "tensorboard", first_step) if tensorboard else None
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
    """The records of a run so far; none where there is no log. A last line that a crash tore is not one.

    Raises:
        UserError: another line is no JSON object.
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
    """Draw the log of a folder into its `loss.svg`: the loss of every step, its course, and the held-out MRR@10."""
    records = read_log(folder)
    write_svg(folder / DRAWING, partial(draw_records, records))
    return folder / DRAWING


def draw_records(records: list[Record], figure: Any) -> None:
    """Draw a run's records on a figure."""
    training, heldout = [r for r in records if "loss" in r], [r for r in records if MEASURE in r]
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
        right.set(ylabel="held-out MRR@10", ylim=(0, 1))
        points = [record["step"] for record in heldout], [record[MEASURE] for record in heldout]
        lines += right.plot(*points, color="#d94801", marker="o", markersize=3, label="held-out MRR@10")
    figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False)


def _writer(folder: Path, first_step: int) -> Any:
    """TensorBoard's writer; what an interrupted run wrote about later steps is no longer shown."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard: the package is not installed; pip install 'shortlist[tensorboard]'.") from None
    return SummaryWriter(str(folder), purge_step=first_step + 1)
