"""Files of an output that its command wrote, and that others put there."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from stat import S_IMODE
from typing import Any

from shortlist.data.claims import claim_output
from shortlist.data.contents import FileList, file_names, find_damage, list_files, listed
from shortlist.data.files import temporary_folder
from shortlist.data.manifest import files_of, folder_of, manifest_path, read_manifest, write_manifest
from shortlist.errors import UserError
from shortlist.progress import say

OWN_FOLDER = ".shortlist"
"""The folder inside a collection for its own indexes, which its commands leave alone."""


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that fit a pattern, or lie in a folder that one names."""
    patterns = list(patterns)
    return [
        name
        for name in names
        if any(name == pattern or name.startswith(f"{pattern}/") or fnmatchcase(name, pattern) for pattern in patterns)
    ]


def is_undamaged(out: Path, manifest: Mapping[str, Any], *, closely: bool) -> bool:
    """Whether the files of a finished output are there, with the sizes that were written.

    If `closely`, their contents are compared too.

    A store of vectors may have lost shards since, which `verify` repairs.
    """
    files = files_of(out, manifest)
    if manifest["stage"] == "encode":
        return True
    if closely:
        return not any(find_damage(folder_of(out), files))
    paths = {folder_of(out) / name: file["size"] for name, file in files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def list_output(out: Path, manifest: Mapping[str, Any], digests: Mapping[str, str] | None = None) -> FileList:
    """List the files of the result that are there, with their digests.

    Args:
        digests: SHA-256 of files where that is known, by their paths within the folder.
    """
    if not out.is_dir():
        return {out.name: listed(out)} if out.is_file() else {}
    present = file_names(out)
    own = {*matching(present, manifest.get("writes", ())), *manifest.get("files", {})}
    own -= {*matching(present, _aside(manifest))}
    return list_files(out, without=[name for name in present if name not in own], known=digests)


def own_files(out: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """List the files of an output that its command wrote, or was about to write.

    Raises:
        UserError: the output was finished by a version whose manifests did not list files.
    """
    if not out.is_dir():
        return [out]
    if manifest["complete"] and "files" not in manifest:
        raise UserError(
            f"--out {out}: was written by version {manifest.get('version', 'unknown')}, which did not list its "
            "files, so none is deleted; delete the folder, or choose another name."
        )
    present = file_names(out)
    names = dict.fromkeys([*manifest.get("files", {}), *matching(present, [*_aside(manifest), *_writes(manifest)])])
    root = out.resolve()
    return [out / name for name in names if (out / name).parent.resolve().is_relative_to(root)]  # not behind a link


def clear(out: Path, found: dict[str, Any]) -> None:
    """Delete the files of another job, and say what is left."""
    ours = own_files(out, found)
    names = [path.relative_to(out).as_posix() for path in ours]
    write_manifest(out, found | {"complete": False, "writes": names})  # if this is interrupted, the job is begun again
    if not out.is_dir():
        out.unlink()
        return
    for path in ours:
        path.unlink(missing_ok=True)
        for parent in path.relative_to(out).parents:
            with suppress(OSError):  # others' files are in it
                (out / parent).rmdir()
    if left := sorted(path.name for path in out.iterdir() if path.name not in ("manifest.json", ".lock", OWN_FOLDER)):
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        say(f"{out}: left {', '.join(left[:5])}{more}, which no command of ours wrote.")


@contextmanager
def moved_in(out: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder for the files of a result.

    They move into the output if the block succeeds, and `writes` in the manifest gets their names. So they are
    told from files that somebody else puts there meanwhile.

    Raises:
        UserError: somebody has put a file of the same name there.
    """
    with temporary_folder(out) as work:
        yield work
        names = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if not path.is_dir())
        ours = {*matching(names, [*manifest["writes"], *_aside(manifest)])}
        if taken := [name for name in names if os.path.lexists(out / name) and name not in ours]:
            raise UserError(
                f"{out / taken[0]}: was put there by somebody else, and a file of the result has this name; move it "
                "away and run the same command again."
            )
        manifest["writes"] = [*dict.fromkeys([*manifest["writes"], *names])]
        if names:
            write_manifest(out, manifest)
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).replace(out / name)


def open_weights(out: Path, manifest: Mapping[str, Any]) -> None:
    """Let everyone who may read the manifest read the weights.

    safetensors writes them for their owner alone.
    """
    mode = manifest_path(out, True).stat().st_mode
    for name in matching(file_names(out), [*manifest["writes"], *_aside(manifest)]):
        if name.endswith(".safetensors"):
            (out / name).chmod(S_IMODE(mode))


def reopen(out: Path, *, updating: bool) -> None:
    """Mark an output as not complete, so that its command makes what is missing.

    Args:
        updating: whether the output was completed by an update, and will be completed by another.
    """
    manifest = read_manifest(out)
    if manifest is not None:
        write_manifest(out, manifest | {"complete": False, "updating": updating})


def list_again(out: Path, *, digests: Mapping[str, str] | None = None) -> None:
    """List the files of a finished output anew, after a change on purpose.

    Args:
        digests: as for `list_output`.
    """
    manifest = read_manifest(out)
    if manifest is not None and manifest["complete"]:
        if "files" not in manifest:  # of an early version
            manifest["writes"] = ["*"]
        kept = {name: value for name, value in manifest.items() if name not in ("changing", "writes")}
        write_manifest(out, kept | {"files": list_output(out, manifest, digests)})


@contextmanager
def changing(
    out: Path,
    *,
    stage: str,
    writes: Sequence[str] = (),
    digests: Callable[[Path], Mapping[str, str]] | None = None,
) -> Iterator[None]:
    """Claim a finished output for a change on purpose, and list its files anew afterwards.

    Until then its manifest has `changing`, which shows that a change was interrupted.

    Args:
        writes: patterns of the files that the change may add.
        digests: finds the SHA-256 of files where that is known, as for `list_output`, once the change is made.
    """
    with claim_output(out, folder=True, stage=stage):
        manifest = read_manifest(out)
        if manifest is not None:
            write_manifest(out, manifest | {"changing": True, "writes": [*writes]})
        yield
        list_again(out, digests=digests and digests(out))


def _writes(manifest: Mapping[str, Any]) -> Sequence[str]:
    """Return the patterns of the files that are being written.

    In an unfinished output of an earlier version all files count.
    """
    every = () if manifest["complete"] else ("*",)
    return manifest.get("writes", every)


def _aside(manifest: Mapping[str, Any]) -> Sequence[str]:
    return manifest.get("aside", ("config.yaml",))
