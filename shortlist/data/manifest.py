"""Manifests, which record what each output was made from, and identities of inputs."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shortlist.data.contents import NO_VERIFY, FileList, check_files, digest
from shortlist.data.files import atomic_write, sha256
from shortlist.errors import UserError

WRITES = {
    "encode": ("the vectors", ", which --vectors names, with their --model"),
    "index": ("the index", ", which --index names"),
    "train": ("the model", ", which --model, --reranker or --backbone names"),
    "export": ("the model", ", which --model or --reranker names"),
    "init": ("the backbone", ", which --backbone names"),
    "search": ("the run", ""),
    "rerank": ("the run", ""),
    "fuse": ("the run", ""),
    "cut": ("the rule or the run", ""),
    "diversify": ("the run", ""),
    "judge": ("the judgements", ", which --qrels names"),
    "mine": ("the groups", ", which --groups names"),
    "convert": ("the collection", ", which --collection names"),
    "functions": ("the collection", ", which --collection names"),
}
"""Outputs of commands, and where they belong, for errors about something given in the wrong place."""


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Read the manifest of an output file or folder; None if there is none.

    Raises:
        UserError: the manifest cannot be read.
    """
    path = manifest_path(out, out.is_dir())
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text("utf-8"))
        return manifest if {"job", "complete", "stage"} <= manifest.keys() else None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        raise UserError(f"{path}: not a manifest of ours; delete the output it belongs to and make it again.") from None


def described(path: Path, *, wanted: str) -> str | None:
    """Describe an output by the command that wrote it.

    The result is None for an output of the command that is wanted, and for what no command of ours wrote.
    """
    manifest = read_manifest(path) if path.exists() else None
    if manifest is None or manifest["stage"] == wanted:
        return None
    what, use = WRITES.get(manifest["stage"], ("the output", ""))
    return f"{what} of `shortlist {manifest['stage']}`{use}"


def check_output(out: Path, manifest: Mapping[str, Any] | None = None) -> None:
    """Compare a finished output of ours with what its manifest lists.

    Vectors are left out: their shards say by themselves what was written, and are compared when they are read.

    Args:
        manifest: its manifest, where that was read before.

    Raises:
        UserError: a file is missing or is not as it was written.
    """
    manifest = read_manifest(out) if manifest is None else manifest
    if manifest is not None and manifest["complete"] and manifest["stage"] != "encode":
        check_files(folder_of(out), files_of(out, manifest), remedy=remedy(out, manifest))


def files_of(out: Path, manifest: Mapping[str, Any]) -> FileList:
    """Return the files that a manifest lists; a file may have another name by now."""
    files = manifest.get("files", {})
    return files if out.is_dir() or not files else {out.name: next(iter(files.values()))}


def remedy(out: Path, manifest: Mapping[str, Any]) -> str:
    """Say what to do about an output that is not as it was written."""
    return (
        f"make it again with `shortlist {manifest['stage']} --overwrite`, or keep a change of your own with "
        f"`shortlist verify {out} --accept`."
    )


def ms_per_query(run: Path) -> float:
    """Return the milliseconds that one query of a run took, over all stages.

    The result is 0 where the manifest of the run does not say.
    """
    manifest = read_manifest(run)
    return manifest.get("results", {}).get("ms_per_query", 0.0) if manifest else 0.0


def stages(run: Path) -> list[dict[str, Any]]:
    """Return what each stage of a run recorded about its costs, first to last.

    Returns:
        For each stage its name, `stage`, and the known ones of `ms` (of this stage alone, per query),
        `tokens_per_second`, `tokens_per_query`, `index_bytes`, `peak_bytes`, `model` (its identity), `num_parameters`,
        `training_seconds` and `training_bytes`. Empty where the manifest of the run does not say.
    """
    manifest = read_manifest(run)
    return manifest.get("results", {}).get("stages", []) if manifest else []


def identity(path: str | Path) -> str:
    """Return a string that identifies the contents of a file or folder.

    For an output folder of ours this is a hash of the files that its manifest lists, as they are now, or its job where
    the manifest lists none.

    Raises:
        UserError: nothing is there, or it is an output of ours that was never finished or is not as it was written.
    """
    path = Path(path)
    if path.is_file():
        check_output(path)
        return f"sha256:{digest(path)}"
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder.")
    manifest = read_manifest(path)
    if manifest is not None:
        if not manifest["complete"]:
            raise UserError(f"{path}: `shortlist {manifest['stage']}` has not finished here; run it again to continue.")
        check_output(path, manifest)
        return f"sha256:{_contents(path, manifest['files'])}" if manifest.get("files") else f"job:{manifest['job']}"
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    names = "\n".join(p.relative_to(path).as_posix() for p in files)
    return f"sha256:{hashlib.sha256((names + sha256(*files)).encode()).hexdigest()}"


def _contents(folder: Path, files: FileList) -> str:
    """Hash the names and contents of an output's files.

    Where comparing is switched off, the contents are taken to be as listed.
    """
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise UserError(f"{folder / missing[0]}: is missing, and the manifest lists it; make {folder} again.")
    with ThreadPoolExecutor(4) as pool:
        if os.environ.get(NO_VERIFY):
            found = [described["sha256"] for described in files.values()]
        else:
            found = list(pool.map(lambda name: digest(folder / name), files))
    return hashlib.sha256(json.dumps(sorted(zip(files, found, strict=True))).encode()).hexdigest()


def same_identity(before: Any, now: Any) -> bool:
    """Whether two identities are the same.

    The one from before may lack an adapter's base, which follows after a `+`.
    """
    return before == now or (isinstance(now, str) and "+" in now and before == now.partition("+")[0])


def manifest_path(out: Path, folder: bool) -> Path:
    """Return where an output's manifest is: inside a folder, beside a file."""
    return out / "manifest.json" if folder else out.with_name(out.name + ".manifest.json")


def folder_of(out: Path) -> Path:
    """Return the folder that the files of a manifest are in."""
    return out if out.is_dir() else out.parent


def write_manifest(out: Path, manifest: dict[str, Any], folder: bool | None = None) -> None:
    """Write an output's manifest.

    Args:
        folder: whether the output is a folder (None: as it is now).
    """
    folder = out.is_dir() if folder is None else folder
    with atomic_write(manifest_path(out, folder)) as file:
        json.dump(manifest, file, indent=2, ensure_ascii=False)
        file.write("\n")
