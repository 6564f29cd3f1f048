"""Checkpoints of a training run, from which it continues as if never interrupted.

`checkpoints/step-000100/` is a model folder like the one training ends with (so it can encode and be evaluated), plus
the optimizer's moments and the state of the run. It is written atomically. A checkpoint written by several processes
holds the whole model, and any number of processes can continue from it.
"""

import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from shortlist.data.contents import check_files, list_files
from shortlist.data.files import atomic_folder, read_json
from shortlist.errors import UserError
from shortlist.models.adapters import adapter_state, load_adapter_state
from shortlist.models.folder import CHECKPOINT as STATE
from shortlist.models.save import Trainable, save_model, saved_names, saved_weights
from shortlist.settings.train import CHECKPOINTS
from shortlist.train.gather import ALONE, World, like, whole
from shortlist.train.optimizers import restore_state, state_of

MOMENTS = "optimizer.safetensors"
_ADAPTER = "adapter"
"""What an adapter holds besides weights has keys that start with this."""
_REMEDY = "delete this checkpoint; the same command goes on from the one before it, or from the start."


class State(NamedTuple):
    """State of a training run.

    Batches and dropout are functions of the seed and the step, so they need no state.
    """

    step: int = 0
    """Number of steps done."""
    token_budget: int = 0
    """The latest token budget, lower than asked for if memory ran out."""
    cached: bool = False
    best_step: int = 0
    """Step of the best held-out score so far; 0 if nothing has been measured."""
    best_score: float = -1e9


def save_checkpoint(
    out: Path,
    model: Trainable,
    optimizer: Optimizer,
    state: State,
    *,
    keep: int,
    adapter: Any = None,
    base: str | None = None,
    texts: Mapping[str, str] | None = None,
    world: World = ALONE,
) -> None:
    """Save a checkpoint, then remove all but the last `keep` and the best.

    Args:
        out: the run's output folder.
        adapter: as for `save_model`.
        base: as for `save_model`.
        texts: contents of more files, by name.
        world: the leading process writes, but all must call.
    """
    folder = _folder(out, state.step)
    weights = whole_weights(model, adapter=adapter is not None, world=world)
    moments = _collect(_moments(model, optimizer) | _of_adapter(adapter), world)
    if not world.leads or folder.exists():
        return
    with atomic_folder(folder) as partial:
        save_model(model, partial, adapter=adapter, base=base, weights=weights)
        save_file(moments, partial / MOMENTS)
        for name, text in (texts or {}).items():
            (partial / name).write_text(text, "utf-8")
        record = state._asdict() | {"files": list_files(partial)}
        record["sha256"] = _digest(record)
        (partial / STATE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    for old in checkpoints(out)[:-keep]:
        if old != _folder(out, state.best_step):
            shutil.rmtree(old)


def load_checkpoint(out: Path, model: Trainable, optimizer: Optimizer, *, adapter: Any = None) -> State | None:
    """Load a run's newest checkpoint and return its state; None if there is none.

    Args:
        adapter: as for `save_model`.

    Raises:
        UserError: a file of the checkpoint is missing or is not as it was written.
    """
    folders = checkpoints(out)
    if not folders:
        return None
    state = read_state(folders[-1])
    load_weights(out, model, state.step, adapter=adapter is not None)
    parameters, of_each = dict(model.named_parameters()), defaultdict[str, dict[str, Tensor]](dict)
    with safe_open(folders[-1] / MOMENTS, framework="pt") as moments:
        for key in moments.keys():  # noqa: SIM118 (not a dict)
            kind, _, name = key.partition("/")
            of_each[_ADAPTER if kind == _ADAPTER else name][name if kind == _ADAPTER else kind] = moments.get_tensor(
                key
            )
    if adapter is not None:
        load_adapter_state(adapter, of_each.pop(_ADAPTER, {}))
    for name, values in of_each.items():
        restore_state(optimizer, parameters[name], values)
    return state


def load_weights(out: Path, model: Trainable, step: int, *, adapter: bool = False) -> None:
    """Load the weights from a step's checkpoint into the model.

    Raises:
        UserError: as for `load_checkpoint`.
    """
    read_state(_folder(out, step))
    names = {key: name for name, key in saved_names(model, adapter=adapter).items()}
    tensors, found = model.state_dict(), False
    with torch.no_grad():
        for key, value in saved_weights(_folder(out, step)):
            tensors[names[key]].copy_(like(value, tensors[names[key]]))
            found = True
    if not found:
        raise UserError(f"{_folder(out, step)}: holds no weights; {_REMEDY}")


def read_state(folder: Path) -> State:
    """Read the state of a checkpoint, and compare its files with what the state lists.

    Raises:
        UserError: as for `load_checkpoint`.
    """
    record = read_json(folder / STATE)
    files, written = record.get("files", {}), record.pop("sha256", None)
    if written not in (None, _digest(record)) or ("files" in record) != (written is not None):
        raise UserError(f"{folder / STATE}: its contents are not those that were written; {_REMEDY}")
    check_files(folder, files, remedy=_REMEDY)
    try:
        return State(**{name: value for name, value in record.items() if name != "files"})
    except TypeError:
        raise UserError(f"{folder / STATE}: not the state of a training run; {_REMEDY}") from None


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def whole_weights(model: Trainable, *, adapter: bool = False, world: World = ALONE) -> dict[str, Tensor]:
    """Collect the weights to save from all processes.

    They lie on the CPU of the leading process; the other processes get an empty dict.
    """
    tensors = model.state_dict()
    return _collect({name: tensors[name] for name in saved_names(model, adapter=adapter)}, world)


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoint folders of a run, oldest first."""
    found = [path for path in (folder / CHECKPOINTS).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def drop_checkpoints(folder: Path) -> None:
    """Remove a run's checkpoints once the model itself is saved."""
    for path in checkpoints(folder):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # not there, or somebody has put a file into it
        (folder / CHECKPOINTS).rmdir()


def _folder(folder: Path, step: int) -> Path:
    return folder / CHECKPOINTS / f"step-{step:06d}"


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}/{name}": value
        for name, p in model.named_parameters()
        for kind, value in state_of(optimizer, p).items()
    }


def _of_adapter(adapter: Any) -> dict[str, Tensor]:
    return {f"{_ADAPTER}/{name}": value for name, value in adapter_state(adapter).items()}


def _collect(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Collect whole tensors in the leading process, assembling one at a time on the device.

    The other processes get an empty dict.
    """
    collected = {}
    for name, tensor in tensors.items():
        value = whole(tensor).detach()
        if world.leads:  # an assembled tensor may lie in a larger buffer, which would be saved whole
            collected[name] = value.cpu() if value.untyped_storage().nbytes() == value.nbytes else value.cpu().clone()
    return collected
