"""Command `verify`: check that an output is as it was written; repair vectors.

Every byte must be as it was written, and every document of a store of vectors must be there exactly once.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from shortlist import encode
from shortlist.config import from_settings
from shortlist.data.claims import claim_output
from shortlist.data.collections import open_collection
from shortlist.data.contents import find_damage
from shortlist.data.jobs import start_job
from shortlist.data.manifest import files_of, remedy
from shortlist.data.outputs import list_again, reopen
from shortlist.data.seen import Seen
from shortlist.data.stores.kinds import open_store, shard_damage
from shortlist.data.stores.shards import DEAD, SNAPSHOT, check_all_there, finished_shards, read_snapshot, remove_shard
from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.progress import say, track
from shortlist.settings.encode import job_of
from shortlist.settings.verify import Config, check_first
from shortlist.train.resume import checkpoints, read_state


def run(config: Config) -> None:
    """Verify an output, and repair or accept it if asked."""
    manifest = check_first(config)
    if manifest["stage"] == "encode":
        if config.accept:
            raise UserError(f"{config.folder}: holds vectors, which nobody changes by hand; --repair makes them again.")
        verify_vectors(config.folder, manifest, to_repair=config.repair)
        return
    if config.repair:
        raise UserError(
            f"--repair encodes vectors again, and {config.folder} is of `shortlist {manifest['stage']}`; make it again "
            "with --overwrite."
        )
    if not manifest["complete"]:
        raise not_finished(config.folder, manifest)
    if config.accept:
        list_again(config.folder)
        print(f"{config.folder}: its files count as they are now.")
        return
    verify_files(config.folder, manifest)


def not_finished(folder: Path, manifest: dict[str, Any]) -> UserError:
    """Return the error for an output that is not finished."""
    return UserError(f"{folder}: `shortlist {manifest['stage']}` has not finished here; run it again to continue.")


def verify_files(out: Path, manifest: dict[str, Any]) -> None:
    """Compare an output with what its manifest lists, and its checkpoints with their own lists.

    Raises:
        UserError: a file is not as it was written, or the manifest lists none.
    """
    if "files" not in manifest:
        raise UserError(
            f"{out}: its manifest, of version {manifest.get('version')}, lists no files to compare; --accept lists "
            "them as they are now."
        )
    files = files_of(out, manifest)
    problems = list(find_damage(out if out.is_dir() else out.parent, files, again=True))
    for folder in checkpoints(out):
        try:
            read_state(folder)
        except UserError as error:
            problems.append(str(error))
    for problem in problems:
        say(f"verify: {problem}")
    if problems:
        raise UserError(f"{out}: {len(problems)} of its files are not as they were written; {remedy(out, manifest)}")
    print(f"{out}: {len(files):,} files; every byte is as it was written.")


def verify_vectors(folder: Path, manifest: dict[str, Any], *, to_repair: bool) -> None:
    """Verify a store of vectors, and repair it if asked.

    Raises:
        UserError: it is not finished, or damaged and not to be repaired.
    """
    damaged = damaged_shards(folder)
    for problem in damaged.values():
        say(f"verify: {problem}")
    if not manifest["complete"]:
        raise not_finished(folder, manifest)
    wrong = None if damaged else misplaced(folder)
    if not damaged and not wrong:
        store = open_store(folder, compare=False)
        print(f"{folder}: {store.num_docs:,} documents, each once; every byte is as it was written.")
        return
    found = wrong or f"{len(damaged)} of its shards are damaged"
    if not to_repair:
        raise UserError(f"{folder}: {found}; encode again what is wrong with --repair.")
    say(f"verify: {found}; repairing.")
    repair(folder, manifest, damaged)


def damaged_shards(folder: Path) -> dict[int, str]:
    """Find damaged and missing shards, and describe what is wrong with them."""
    found = finished_shards(folder)
    snapshot = read_snapshot(folder)
    numbers = snapshot.shards if snapshot else list(range(max(found, default=-1) + 1))
    damages = {number: shard_damage(folder, number) for number in track(numbers, "verifying", len(numbers), "shards")}
    return {number: problem for number, problem in damages.items() if problem}


def misplaced(folder: Path) -> str | None:
    """Describe which documents are missing or repeated; None if each is there once."""
    try:
        check_all_there(folder)
        store = open_store(folder, compare=False)
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
    spec = job_of(config, open_folder(config.model), open_collection(config.collection))
    start_job(config, spec)  # raises if it would be another job
    with claim_output(folder, folder=True, stage="verify"):
        updated = read_snapshot(folder) is not None or SNAPSHOT in manifest.get("files", {})
        for number in damaged:
            remove_shard(folder, number)
        reopen(folder, updating=updated)
        encode.run(config)
