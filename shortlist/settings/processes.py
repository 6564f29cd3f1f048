"""The number of processes of this machine that train together."""

import os

from shortlist.cores import may_have_gpu, num_cores
from shortlist.data.jobs import recorded
from shortlist.data.manifest import read_manifest
from shortlist.models.folder import open_folder
from shortlist.models.kinds import named_kind
from shortlist.settings.train import Config

MOST_PROCESSES = 4
"""Most processes that train together unless told otherwise, as each holds the whole model."""
SHARED_BYTES = (4 << 20, 512 << 20)
"""Smallest and largest weights, on the disk, of models that several processes train. Smaller ones are trained by the
time that processes take to start; larger ones take too much memory several times, and keep all threads busy."""
SHARED_STEPS = 5
"""Fewest --steps that are worth several processes."""


def num_processes(config: Config) -> int:
    """Choose how many processes of this machine train together, by its cores and the settings.

    A training goes on with as many as it was begun with, so that its weights come out the same.
    """
    if config.processes is not None:
        return config.processes
    if "RANK" in os.environ or may_have_gpu() or config.sharded or config.four_bit:
        return 1
    if recorded(config, stage="train") == "begun":
        return (read_manifest(config.out) or {}).get("decided", {}).get("processes", 1)
    if config.steps is not None and config.steps < SHARED_STEPS:
        return 1
    folder = open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=not config.dry_run)
    smallest, largest = SHARED_BYTES
    fits = smallest <= sum(path.stat().st_size for path in folder.weight_files) <= largest
    return min(num_cores(), MOST_PROCESSES) if fits else 1
