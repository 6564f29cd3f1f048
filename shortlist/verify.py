"""Command `verify`: check a vector store's bytes and documents, and repair it.

Every byte must be as it was written, and every document must be there exactly once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from shortlist import encode
from shortlist.config import from_settings
from shortlist.data.claims import claim_output
from shortlist.data.collections import open_collection
from shortlist.data.manifest import read_manifest, reopen
from shortlist.data.seen import Seen
from shortlist.data.vectors import DEAD, VectorReader, damage, finished_shards, read_snapshot, remove_shard
from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.progress import say, track


@dataclass(frozen=True, kw_only=True)
class Config:
    folder: tyro.conf.Positional[Path]
    """Vectors from `shortlist encode`."""
    repair: bool = False
    """Encode the damaged shards again, and nothing else."""


def run(config: Config) -> None:
    """Verify a store, and repair it if asked."""
    manifest = read_manifest(config.folder)
    if manifest is None or manifest["stage"] != "encode":
        raise UserError(f"{config.folder}: holds no vectors; expected the output of `shortlist encode`.")
    damaged = damaged_shards(config.folder)
    for problem in damaged.values():
        say(f"verify: {problem}")
    if not manifest["complete"]:
        raise UserError(f"{config.folder}: `shortlist encode` has not finished here; run it again to continue.")
    wrong = None if damaged else misplaced(config.folder)
    if not damaged and not wrong:
        store = VectorReader(config.folder)
        print(f"{config.folder}: {store.num_docs:,} documents, each once; every byte is as it was written.")
        return
    found = wrong or f"{len(damaged)} of its shards are damaged"
    if not config.repair:
        raise UserError(f"{config.folder}: {found}; encode again what is wrong with --repair.")
    say(f"verify: {found}; repairing.")
    repair(config.folder, manifest, damaged)


def damaged_shards(folder: Path) -> dict[int, str]:
    """Find damaged and missing shards, and describe what is wrong with them."""
    found = finished_shards(folder)
    snapshot = read_snapshot(folder)
    numbers = snapshot.shards if snapshot else list(range(max(found, default=-1) + 1))
    damages = {number: damage(folder, number) for number in track(numbers, "verifying", len(numbers), "shards")}
    return {number: problem for number, problem in damages.items() if problem}


def misplaced(folder: Path) -> str | None:
    """Describe which documents are missing or repeated; None if each is there once."""
    try:
        store = VectorReader(folder)
    except UserError as error:
        return str(error)
    positions = store.positions_of(np.arange(store.num_rows))
    if not np.array_equal(np.sort(positions[positions != DEAD]), np.arange(store.num_docs)):
        return "its order file does not give every document one position"
    seen = Seen()
    twice = next((doc_id for doc_id in store.doc_ids if not seen.add(doc_id)), None)
    return None if twice is None else f"document {twice!r} occurs in it twice"


def repair(folder: Path, manifest: dict[str, Any], damaged: Iterable[int]) -> None:
    """Encode damaged shards again, as `encode` would continue after an interruption.

    Raises:
        UserError: the model or the collection has changed since the store was made.
    """
    settings = {name: value for name, value in manifest["config"].items() if value is not None}
    settings |= {"out": str(folder), "overwrite": False, "update": False, "compact": False}
    config = from_settings(encode.Config, settings, where=f"{folder}/manifest.json")
    encode.claim(config, open_folder(config.model), open_collection(config.collection))
    with claim_output(folder, folder=True, stage="verify"):
        updated = read_snapshot(folder) is not None
        for number in damaged:
            remove_shard(folder, number)
        reopen(folder, updating=updated)
        encode.run(config)
