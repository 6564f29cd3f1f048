"""A guide: a retriever that finds answers among the negatives of a batch."""

from typing import NamedTuple

import torch

from shortlist.models.folder import ModelFolder
from shortlist.models.kinds import load_model
from shortlist.models.run import Model, for_inference
from shortlist.settings.train import Config, parse_margin
from shortlist.settings.train_job import open_guide


class Guide(NamedTuple):
    """A frozen retriever, and how near the positive it leaves out a document."""

    model: Model
    margin: float = 0.0
    relative: bool = False
    """Whether the margin is a share of the positive's similarity."""


def load_guide(folder: ModelFolder, device: torch.device, *, margin: float, relative: bool, bf16: bool) -> Guide:
    """Load a retriever as a guide, on its device.

    Args:
        folder: the retriever's folder.
        device: where it runs.
        margin: as in `Guide`.
        relative: as in `Guide`.
        bf16: compute in bfloat16, on a GPU.
    """
    model: Model = load_model(folder, "document")
    for_inference(model, device, precision="bf16" if bf16 and device.type == "cuda" else "fp32")
    return Guide(model, margin, relative)


def guide_of(config: Config, device: torch.device) -> Guide | None:
    """Load the guide that the settings name, if there is one."""
    folder = open_guide(config)
    if folder is None:
        return None
    margin, relative = parse_margin(config.guide_margin)
    return load_guide(folder, device, margin=margin, relative=relative, bf16=config.precision == "bf16")
