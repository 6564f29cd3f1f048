"""Manifests: what each output was made from, recorded beside it.

A manifest shows whether a job is done, can be resumed, or must be refused.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from stat import S_IMODE
from typing import Any, Literal, NamedTuple, TypeVar

import yaml

from shortlist.config import defaults, flag_of, markers, settings_of
from shortlist.data.claims import Claim, check_free, claim_output
from shortlist.data.contents import (
    NO_VERIFY,
    FileList,
    check_files,
    digest,
    file_names,
    find_damage,
    list_files,
    listed,
)
from shortlist.data.files import atomic_write, sha256
from shortlist.errors import UserError
from shortlist.progress import forget_peak, peak_bytes, say
from shortlist.version import __version__

T = TypeVar("T")

FORMAT = 3
WRITES = {
    "encode": ("the vectors", ", which --vectors names, with their --model"),
    "index": ("the index", ", which --index names"),
    "train": ("the model", ", which --model, --reranker or --backbone names"),
    "export": ("the model", ", which --model or --reranker names"),
    "init": ("the backbone", ", which --backbone names"),
    "search": ("the run", ""),
    "rerank": ("the run", ""),
    "fuse": ("the run", ""),
    "mine": ("the groups", ", which --groups names"),
    "convert": ("the collection", ", which --collection names"),
    "functions": ("the collection", ", which --collection names"),
}
"""Outputs of commands, and where they belong, for errors about something given in the wrong place."""
READABLE = (2, FORMAT)
"""Formats of manifests that a job is recognised by; format 2 lists all settings, also those at their defaults."""


@dataclass(frozen=True)
class Job:
    """One stage's claim on one output path.

    Attributes:
        out: the file or folder to write.
        manifest: this job's manifest, as far as it is known before the work.
        done: the output is there, whole, and made from exactly these settings and inputs.
        resuming: the same job was begun before and not finished.
        updating: the output was made from other inputs, and their results are used again.
        held: the lock on the output, unless the work is done.
    """

    out: Path
    manifest: dict[str, Any]
    done: bool
    resuming: bool
    updating: bool = False
    held: Claim | None = field(default=None, repr=False, compare=False)

    def decide(self, name: str, choose: Callable[[], T]) -> T:
        """Return a choice that depends on this machine, made once per job.

        The choice, such as one based on a measurement, is kept in the manifest, so that a resumed job makes the same
        one.
        """
        decided = self.manifest.setdefault("decided", {})
        if name not in decided:
            decided[name] = choose()
            if not self.updating:  # the old manifest stays in place until the update is complete
                _write(self.out, self.manifest)
        return decided[name]

    def pause(self, **results: Any) -> None:
        """Write the results so far of an output that is usable but not final.

        The results are what was counted and measured; the same command has more to do.
        """
        _write(self.out, self.manifest | {"results": results | {"peak_bytes": peak_bytes()}})
        self._release()
        say(f"{self.manifest['stage']}: wrote {self.out}")

    def finish(
        self,
        counts: Mapping[str, Any] | None = None,
        *,
        aside: Sequence[str] = (),
        digests: Mapping[str, str] | None = None,
        **results: Any,
    ) -> None:
        """Write the manifest as complete, with its files and results.

        The peak memory of this process is added to the results.

        Args:
            counts: more results, by name.
            aside: files and folders that tell of the work and are no part of its result, such as a log, beside
                config.yaml; they are listed without a digest.
            digests: SHA-256 of files where that is known, by their paths within the folder.
            results: what was counted and measured.
        """
        results = {**(counts or {}), **results, "peak_bytes": peak_bytes()}
        if self.out.is_dir():
            _open_weights(self.out)
        manifest = {name: value for name, value in self.manifest.items() if name != "foreign"}
        written = _list(self.out, ("config.yaml", *aside), self.manifest.get("foreign", ()), digests)
        _write(self.out, manifest | {"complete": True, "finished": _now(), "results": results} | written)
        self._release()
        say(f"{self.manifest['stage']}: wrote {self.out}")

    def _release(self) -> None:
        if self.held is not None:
            self.held.release()


def start_job(
    config: Any,
    *,
    stage: str,
    inputs: Mapping[str, str | Sequence[str]],
    version: int = 1,
    as_if: Any = None,
    folder: bool = False,
    update: Sequence[str] = (),
    parts: str | None = None,
    reads: Iterable[Path] = (),
) -> Job:
    """Claim `config.out` for a stage, or find the work there done or begun.

    Two jobs are the same if they have the same stage, version of the stage and identities of inputs, and the same
    settings that differ from their defaults. Settings annotated as `SpeedOnly` or `NotInJob` are ignored.

    No other command can claim the output as long as the Job is there. Of another job's output the files that its
    manifest lists are deleted, with `overwrite` or where it was never finished and holds nothing to go on from.

    Args:
        config: the stage's Config, which the manifest keeps; its `out` and `overwrite` are used.
        stage: the command's name.
        inputs: identity of everything read, under the name of the config field that names it.
        version: version of the stage, raised when a default changes or when the same settings give another result.
        as_if: the Config in which settings that have no effect are at their defaults (None: all have an effect).
        folder: the output is a folder (made here, with config.yaml and manifest.json in it), not one file.
        update: inputs whose contents may have changed since. If only these have, the job updates the output; a complete
            output stays complete until the update is finished.
        parts: pattern of the files or folders that a later run goes on from, where the stage has such.
        reads: what is read besides the inputs that the Config names; it is never deleted.

    Raises:
        UserError: `out` holds another job's output and `overwrite` is off, an input, or something that no command of
            ours wrote; another command is at work there.
    """
    forget_peak()
    out, kind = Path(config.out), type(config)
    manifest = _begun(config, stage=stage, inputs=inputs, version=version, as_if=as_if)
    _refuse_the_wrong_kind(out, folder)
    check_free(out, folder=folder)
    look = partial(_look, out, manifest, kind, folder=folder, update=update, closely=config.overwrite)
    check = partial(_check_room, config, parts=parts, inputs=list(_input_paths(config, inputs, reads)))
    there = look()
    if not there.done:
        check(there, manifest)  # before the lock, so that nothing is written where nothing may be
    held = None if there.done else claim_output(out, folder=folder, stage=stage)
    if held is not None:
        there = look()  # again, as another command may have been at work until now
    if there.done:
        assert there.found is not None
        say(f"{stage}: {out} is already done.")
        return Job(out, there.found, done=True, resuming=False)
    before = there.before
    if before is not None and there.same:
        manifest["job"] = before["job"]  # outputs made from this one still recognise it
    manifest["decided"] = before.get("decided", {}) if before is not None else {}
    foreign = _foreign(out, before) if before is not None and there.visible else []
    if foreign:
        manifest["foreign"] = foreign
    if before is not None and there.updating:
        if not before["complete"]:
            _write(out, manifest | {"updating": True})
        elif there.found is not None and "files" in there.found:
            _write(out, there.found | {"foreign": foreign})  # before the update adds files of its own
        return Job(out, manifest, done=False, resuming=there.same, updating=True, held=held)
    if there.visible and not there.same:
        check(there, manifest)
        assert there.found is not None
        manifest |= {"decided": {}, "foreign": _clear(out, there.found)}
        if not manifest["foreign"]:
            del manifest["foreign"]
    _write(out, manifest, folder)  # first of all, since a folder without one does not count as ours
    if folder:
        with atomic_write(out / "config.yaml") as file:
            yaml.safe_dump(manifest["config"], file, sort_keys=False)
    return Job(out, manifest, done=False, resuming=there.same, held=held)


def is_done(
    config: Any,
    *,
    stage: str,
    inputs: Mapping[str, str | Sequence[str]],
    version: int = 1,
    as_if: Any = None,
    folder: bool = False,
    **others: Any,
) -> bool:
    """Whether a job's output is finished, with nothing to tidy up.

    If so, this prints a message. The arguments are those of `start_job`, which would do nothing.
    """
    del others
    out = Path(config.out)
    if not out.exists() or out.is_dir() != folder:
        return False
    manifest = _begun(config, stage=stage, inputs=inputs, version=version, as_if=as_if)
    there = _look(out, manifest, type(config), folder=folder, update=(), closely=config.overwrite)
    if not there.done or there.found is None or "foreign" in there.found:
        return False
    say(f"{stage}: {out} is already done.")
    return True


def _begun(
    config: Any, *, stage: str, inputs: Mapping[str, str | Sequence[str]], version: int, as_if: Any
) -> dict[str, Any]:
    """Return the manifest of a job that has just begun."""
    kind = type(config)
    assert not markers(kind).keys() & inputs.keys()
    made_from = _deciding(kind, _settings(config if as_if is None else as_if) | _plain(dict(inputs)))
    return {
        "format": FORMAT,
        "stage": stage,
        "stage_version": version,
        "job": _job_id(stage, version, made_from),
        "complete": False,
        "version": __version__,
        "commit": commit(),
        "started": _now(),
        "config": _settings(config),
        "made_from": made_from,
    }


class _There(NamedTuple):
    """State of an output's place before a job begins."""

    visible: bool
    """Whether there is anything but hidden files and, beside a file, its manifest."""
    found: dict[str, Any] | None
    """The manifest."""
    before: dict[str, Any] | None
    """The manifest with `made_from` reduced to what decides about a job."""
    same: bool
    """Whether it is of the same job."""
    updating: bool
    """Whether the job would update it."""
    done: bool


def _look(out: Path, now: dict[str, Any], kind: type, *, folder: bool, update: Sequence[str], closely: bool) -> _There:
    visible = out.exists() and (not folder or any(not path.name.startswith(".") for path in out.iterdir()))
    found = read_manifest(out) if visible or _manifest_path(out, folder).exists() else None
    if found is None:
        return _There(visible, None, None, same=False, updating=False, done=False)
    before = found | {"made_from": _deciding(kind, found.get("made_from", {}))}
    same = _same(before, now)
    updating = visible and (bool(same and before.get("updating")) or _only_changed(before, now, update))
    done = same and found["complete"] and visible and _is_whole(out, found, closely=closely)
    return _There(visible, found, before, same, updating, done)


def _check_room(
    config: Any, there: _There, now: dict[str, Any], *, parts: str | None, inputs: Sequence[tuple[str, Path]]
) -> None:
    """Refuse to write where there are another job's results, or files that are not ours.

    Results may be replaced with --overwrite, unless an input is among them.

    Raises:
        UserError: as for `start_job`.
    """
    out, before = Path(config.out), there.before
    if not there.visible or there.same or there.updating:
        return
    if before is None:
        raise UserError(f"--out {out}: exists, and no command of ours wrote it; choose another name or move it away.")
    results = before["complete"] or out.is_file() or (parts is not None and any(out.glob(parts)))
    if results and not config.overwrite:
        ways = "--update or --overwrite" if hasattr(config, "update") else "--overwrite"
        raise UserError(f"--out {out}: holds another job ({_difference(before, now)}); choose another or {ways}.")
    root, ours = out.resolve(), [path.resolve() for path in _own_files(out, before)]
    for name, path in inputs:
        read = path.resolve()
        inside = read.is_relative_to(root)  # an output may lie inside a collection, with nothing of it among its files
        if inside and any(read == file or read in file.parents or file in read.parents for file in ours):
            raise UserError(f"--out {out}: {name} {path} is there, and would be deleted; choose another name.")


def _input_paths(config: Any, inputs: Mapping[str, Any], reads: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yield the files and folders that are read, each with the flag that names it."""
    yield from (("what is read,", path) for path in reads)
    for name, value in settings_of(config).items():
        if name in ("out", "contract"):
            continue
        for item in value if isinstance(value, (list, tuple)) else [value]:
            named = isinstance(item, str) and (name in inputs or name in ("collection", "model"))
            if (named or isinstance(item, Path)) and os.path.exists(item):
                yield flag_of(name), Path(item)


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Read the manifest of an output file or folder; None if there is none.

    Raises:
        UserError: the manifest cannot be read.
    """
    path = _manifest_path(out, out.is_dir())
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


def recorded(config: Any, *, stage: str) -> Literal["new", "other", "begun", "done"]:
    """Say what the manifest of an output tells of this job, by the settings alone.

    Contents that have changed since are not seen. `other` is the output of another job.
    """
    manifest = read_manifest(Path(config.out)) if Path(config.out).exists() else None
    if manifest is None:
        return "new"
    known = _plain(defaults(type(config))) | manifest["config"]
    asked = {name: value for name, value in _settings(config).items() if name not in markers(type(config))}
    if manifest["stage"] != stage or not all(_alike(value, known.get(name)) for name, value in asked.items()):
        return "other"
    return "done" if manifest["complete"] else "begun"


def _alike(asked: Any, found: Any) -> bool:
    """Whether a setting is what a manifest says.

    None and `shortlist-mini` are completed when a stage runs.
    """
    return asked is None or asked == found or (isinstance(found, str) and found.startswith(f"{asked}/"))


def reopen(out: Path, *, updating: bool) -> None:
    """Mark an output as not complete, so that its command makes what is missing.

    Args:
        updating: whether the output was completed by an update, and will be completed by another.
    """
    manifest = read_manifest(out)
    if manifest is not None:
        _write(out, manifest | {"complete": False, "updating": updating, "foreign": _foreign(out, manifest)})


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
        check_files(_folder_of(out), files_of(out, manifest), remedy=remedy(out, manifest))


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


def list_again(out: Path, *, digests: Mapping[str, str] | None = None) -> None:
    """List the files of a finished output anew, after a change on purpose.

    Args:
        digests: as for `Job.finish`.
    """
    manifest = read_manifest(out)
    if manifest is not None and manifest["complete"]:
        written = _list(out, manifest.get("aside", ("config.yaml",)), _foreign(out, manifest), digests)
        _write(out, {name: value for name, value in manifest.items() if name != "foreign"} | written)


@contextmanager
def changing(out: Path, *, stage: str, digests: Callable[[Path], Mapping[str, str]] | None = None) -> Iterator[None]:
    """Claim a finished output for a change on purpose, and list its files anew afterwards.

    Until then its manifest has `foreign`, which shows that a change was interrupted.

    Args:
        digests: finds the SHA-256 of files where that is known, as for `Job.finish`, once the change is made.
    """
    with claim_output(out, folder=True, stage=stage):
        manifest = read_manifest(out)
        if manifest is not None and "foreign" not in manifest:
            _write(out, manifest | {"foreign": _foreign(out, manifest)})
        yield
        list_again(out, digests=digests and digests(out))


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
        `tokens_per_second`, `index_bytes`, `peak_bytes`, `model` (its identity), `num_parameters`, `training_seconds`
        and `training_bytes`. Empty where the manifest of the run does not say.
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


@cache
def commit() -> str | None:
    """Return the commit of the checkout that this package runs from.

    The result is None where the package does not run from a checkout.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _manifest_path(out: Path, folder: bool) -> Path:
    return out / "manifest.json" if folder else out.with_name(out.name + ".manifest.json")


def _is_whole(out: Path, manifest: Mapping[str, Any], *, closely: bool) -> bool:
    """Whether the files of a finished output are there, with the sizes that were written.

    If `closely`, their contents are compared too.

    A store of vectors may have lost shards since, which `verify` repairs.
    """
    files = files_of(out, manifest)
    if manifest["stage"] == "encode":
        return True
    if closely:
        return not any(find_damage(_folder_of(out), files))
    paths = {_folder_of(out) / name: file["size"] for name, file in files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _folder_of(out: Path) -> Path:
    return out if out.is_dir() else out.parent


def _list(
    out: Path, aside: Sequence[str], foreign: Sequence[str], digests: Mapping[str, str] | None
) -> dict[str, FileList | list[str]]:
    """List an output's files with their digests, and the names of what lies aside."""
    if not out.is_dir():
        return {"files": {out.name: listed(out)} if out.is_file() else {}}
    files = list_files(out, without=(*aside, *foreign), known=digests)
    return {"files": files, "aside": [name for name in dict.fromkeys(aside) if (out / name).exists()]}


def _foreign(out: Path, manifest: Mapping[str, Any]) -> list[str]:
    """List the files in an output folder that no command of ours wrote."""
    if "files" not in manifest or not out.is_dir():
        return manifest.get("foreign", [])
    present = file_names(out, without=manifest.get("aside", ()))
    return manifest.get("foreign", [name for name in present if name not in manifest["files"]])


def _open_weights(folder: Path) -> None:
    """Let everyone who may read the manifest read the weights.

    safetensors writes them for their owner alone.
    """
    mode = _manifest_path(folder, True).stat().st_mode
    for path in folder.rglob("*.safetensors"):
        path.chmod(S_IMODE(mode))


def _write(out: Path, manifest: dict[str, Any], folder: bool | None = None) -> None:
    folder = out.is_dir() if folder is None else folder
    with atomic_write(_manifest_path(out, folder)) as file:
        json.dump(manifest, file, indent=2, ensure_ascii=False)
        file.write("\n")


def _refuse_the_wrong_kind(out: Path, folder: bool) -> None:
    if out.exists() and out.is_dir() != folder:
        found, expected = ("a file", "a folder") if folder else ("a folder", "a file")
        raise UserError(f"--out {out}: is {found}, and this command writes {expected}; choose another name.")


def _own_files(out: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """List the files and folders of an output that its command wrote.

    In an unfinished output these are all that came after it was begun.

    Raises:
        UserError: the output was finished by a version whose manifests did not list files.
    """
    if not out.is_dir():
        return [out]
    if manifest["complete"] and "foreign" not in manifest:
        if "files" not in manifest:
            raise UserError(
                f"--out {out}: was written by version {manifest.get('version', 'unknown')}, which did not list its "
                "files, so none is deleted; delete the folder, or choose another name."
            )
        names = [*manifest["files"], *manifest.get("aside", ())]
    else:
        names = file_names(out, without=manifest.get("foreign", ()))
    root, paths = out.resolve(), [out / name for name in names]
    return [path for path in paths if path.parent.resolve().is_relative_to(root)]  # not behind a link


def _clear(out: Path, found: dict[str, Any]) -> list[str]:
    """Delete the files of another job that its manifest lists, and say what is left.

    Returns:
        The files that are left, which are not ours.
    """
    ours = _own_files(out, found)
    if not out.is_dir():
        _write(out, found | {"complete": False})
        out.unlink()
        return []
    others = sorted(set(file_names(out)) - {path.relative_to(out).as_posix() for path in ours})
    aside = [path for path in ours if path.is_dir() and not path.is_symlink()]
    others = [name for name in others if not any((out / name).is_relative_to(folder) for folder in aside)]
    _write(out, found | {"complete": False, "foreign": others})  # if this is interrupted, the job is begun again
    for path in ours:
        shutil.rmtree(path) if path in aside else path.unlink(missing_ok=True)
        for parent in path.relative_to(out).parents:
            with suppress(OSError):  # others' files are in it
                (out / parent).rmdir()
    if left := sorted(path.name for path in out.iterdir() if path.name not in ("manifest.json", ".lock")):
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        say(f"{out}: left {', '.join(left[:5])}{more}, which no command of ours wrote.")
    return others


def _settings(config: Any) -> dict[str, Any]:
    return _plain(settings_of(config))


def _deciding(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings and identities of inputs that a job is known by."""
    marked, left_out = markers(config), _plain(defaults(config))
    return {
        name: value
        for name, value in values.items()
        if name not in marked and not (name in left_out and value == left_out[name])
    }


def _job_id(stage: str, version: int, made_from: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, stage, version, made_from], sort_keys=True).encode()).hexdigest()


def _same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two manifests are of the same job.

    In both, `made_from` must be reduced to what decides this.
    """
    return before.get("format") in READABLE and _kind(before) == _kind(now) and not _changed(before, now)


def _kind(manifest: dict[str, Any]) -> tuple[str, int]:
    return manifest["stage"], manifest.get("stage_version", 1)


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = before["made_from"], now["made_from"]
    return sorted(name for name in new.keys() | old.keys() if not same_identity(old.get(name), new.get(name)))


def _only_changed(before: dict[str, Any], now: dict[str, Any], names: Sequence[str]) -> bool:
    changed = _changed(before, now)
    return _kind(before) == _kind(now) and bool(changed) and set(changed) <= set(names)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before["stage"] != now["stage"]:
        return f"of `shortlist {before['stage']}`"
    if _kind(before) != _kind(now) or before.get("format") not in READABLE:
        return f"of another version of `shortlist {now['stage']}`, {before.get('version', 'unknown')}"

    def side(manifest: dict[str, Any], name: str) -> str:
        return str(manifest["config"].get(name, "nothing"))

    def words(name: str) -> str:
        was, is_now = side(before, name), side(now, name)
        return f"{name}: {was} there, {is_now} now" if was != is_now else f"{name}: the contents of {is_now} changed"

    return "; ".join(map(words, _changed(before, now)))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
