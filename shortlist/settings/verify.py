"""Settings of the command `verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    folder: tyro.conf.Positional[Path]
    """Output of any command: a folder, or a file with its manifest beside it."""
    repair: bool = False
    """Encode the damaged shards of vectors again, and nothing else."""
    accept: bool = False
    """Take the files as they are now for those that were written, after a change of your own."""


def check_first(config: Config) -> dict[str, Any]:
    """Return an output's manifest, before PyTorch is loaded.

    Raises:
        UserError: it has none.
    """
    manifest = read_manifest(config.folder)
    if manifest is None:
        raise UserError(
            f"{config.folder}: no command of ours wrote it; expected an output that has a manifest (manifest.json in a "
            "folder, NAME.manifest.json beside a file)."
        )
    return manifest


def has_run(config: Config) -> bool:
    """Whether everything is done already: never, as it is looked at again each time."""
    del config
    return False
