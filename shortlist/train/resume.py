"""Checkpoints of a training run: one whole file or none, and training goes on from it as if nothing had happened."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from shortlist.data.files import atomic_write

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer, *, step: int) -> None:
    """Write what has been learnt in `step` steps. Batches and dropout are functions of seed and step: not state."""
    state = {"step": step, "model": _trained(model), "optimizer": optimizer.state_dict()}
    with atomic_write(folder / CHECKPOINT, "wb") as file:
        torch.save(state, file)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: Optimizer) -> int:
    """Continue from the checkpoint in a folder; returns the steps already done, 0 without one."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoint once the model itself is saved."""
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
