"""Manifests: what each output was made from, recorded beside it.

A manifest shows whether a job is done, can be resumed, or must be refused.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from stat import S_IMODE
from typing import Any, TypeVar

import yaml

from shortlist.config import defaults, markers
from shortlist.data.contents import FileList, file_names, list_files, listed
from shortlist.data.files import atomic_write, sha256
from shortlist.errors import UserError
from shortlist.progress import forget_peak, peak_bytes, say
from shortlist.version import __version__

T = TypeVar("T")

FORMAT = 3
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
    """

    out: Path
    manifest: dict[str, Any]
    done: bool
    resuming: bool
    updating: bool = False

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
        say(f"{self.manifest['stage']}: wrote {self.out}")

    def finish(self, *, aside: Sequence[str] = (), digests: Mapping[str, str] | None = None, **results: Any) -> None:
        """Write the manifest as complete, with its files and results.

        The peak memory of this process is added to the results.

        Args:
            aside: files and folders that tell of the work and are no part of its result, such as a log, beside
                config.yaml; they are listed without a digest.
            digests: SHA-256 of files where that is known, by their paths within the folder.
            results: what was counted and measured.
        """
        results["peak_bytes"] = peak_bytes()
        if self.out.is_dir():
            _open_weights(self.out)
        manifest = {name: value for name, value in self.manifest.items() if name != "foreign"}
        written = _list(self.out, ("config.yaml", *aside), self.manifest.get("foreign", ()), digests)
        _write(self.out, manifest | {"complete": True, "finished": _now(), "results": results} | written)
        say(f"{self.manifest['stage']}: wrote {self.out}")


def start_job(
    config: Any,
    *,
    stage: str,
    inputs: Mapping[str, str | Sequence[str]],
    version: int = 1,
    as_if: Any = None,
    folder: bool = False,
    update: Sequence[str] = (),
) -> Job:
    """Claim `config.out` for a stage, or find the work there done or begun.

    Two jobs are the same if they have the same stage, version of the stage and identities of inputs, and the same
    settings that differ from their defaults. Settings annotated as `SpeedOnly` or `NotInJob` are ignored.

    Args:
        config: the stage's Config, which the manifest keeps; its `out` and `overwrite` are used.
        stage: the command's name.
        inputs: identity of everything read, under the name of the config field that names it.
        version: version of the stage, raised when a default changes or when the same settings give another result.
        as_if: the Config in which settings that have no effect are at their defaults (None: all have an effect).
        folder: the output is a folder (made here, with config.yaml and manifest.json in it), not one file.
        update: inputs whose contents may have changed since. If only these have, the job updates the output; a complete
            output stays complete until the update is finished.

    Raises:
        UserError: `out` holds another job's output and `overwrite` is off, or something that no command of ours wrote.
    """
    forget_peak()
    out = Path(config.out)
    kind, settings = type(config), _settings(config)
    assert not markers(kind).keys() & inputs.keys()
    made_from = _deciding(kind, _settings(config if as_if is None else as_if) | _plain(dict(inputs)))
    manifest = {
        "format": FORMAT,
        "stage": stage,
        "stage_version": version,
        "job": _job_id(stage, version, made_from),
        "complete": False,
        "version": __version__,
        "commit": commit(),
        "started": _now(),
        "config": settings,
        "made_from": made_from,
    }
    _refuse_the_wrong_kind(out, folder)
    there = out.exists() and (not folder or any(not path.name.startswith(".") for path in out.iterdir()))
    found = read_manifest(out) if there or _manifest_path(out, folder).exists() else None
    before = found and found | {"made_from": _deciding(kind, found.get("made_from", {}))}
    same = before is not None and _same(before, manifest)
    if found is not None and same and found["complete"] and there:
        say(f"{stage}: {out} is already done.")
        return Job(out, found, done=True, resuming=False)
    if before is not None and same:
        manifest["job"] = before["job"]  # outputs made from this one still recognise it
    manifest["decided"] = before.get("decided", {}) if before is not None else {}
    foreign = _foreign(out, before) if before is not None and there else []
    if foreign:
        manifest["foreign"] = foreign
    if before is not None and there and ((same and before.get("updating")) or _only_changed(before, manifest, update)):
        if not before["complete"]:
            _write(out, manifest | {"updating": True})
        elif found is not None and "files" in found:
            _write(out, found | {"foreign": foreign})  # before the update adds files of its own
        return Job(out, manifest, done=False, resuming=same, updating=True)
    if there and not same:
        ways = "--update or --overwrite" if hasattr(config, "update") else "--overwrite"
        _clear(out, before, manifest, overwrite=config.overwrite, ways=ways)
        manifest["decided"] = {}
        manifest.pop("foreign", None)
    _write(out, manifest, folder)  # first of all, since a folder without one does not count as ours
    if folder:
        with atomic_write(out / "config.yaml") as file:
            yaml.safe_dump(settings, file, sort_keys=False)
    return Job(out, manifest, done=False, resuming=same)


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


def reopen(out: Path, *, updating: bool) -> None:
    """Mark an output as not complete, so that its command makes what is missing.

    Args:
        updating: whether the output was completed by an update, and will be completed by another.
    """
    manifest = read_manifest(out)
    if manifest is not None:
        _write(out, manifest | {"complete": False, "updating": updating, "foreign": _foreign(out, manifest)})


def list_again(out: Path) -> None:
    """List the files of a finished output anew, after a change on purpose."""
    manifest = read_manifest(out)
    if manifest is not None and manifest["complete"]:
        written = _list(out, manifest.get("aside", ("config.yaml",)), _foreign(out, manifest), None)
        _write(out, manifest | written)


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
        `tokens_per_second`, `index_bytes`, `peak_bytes`, `model` (its identity) and `num_parameters`. Empty where the
        manifest of the run does not say.
    """
    manifest = read_manifest(run)
    return manifest.get("results", {}).get("stages", []) if manifest else []


def identity(path: str | Path) -> str:
    """Return a string that identifies the contents of a file or folder.

    For an output folder of ours this is its job, otherwise a hash of the contents.

    Raises:
        UserError: nothing is there, or it is an output folder that was never finished.
    """
    path = Path(path)
    if path.is_file():
        return f"sha256:{sha256(path)}"
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder.")
    manifest = read_manifest(path)
    if manifest is not None:
        if not manifest["complete"]:
            raise UserError(f"{path}: `shortlist {manifest['stage']}` has not finished here; run it again to continue.")
        return f"job:{manifest['job']}"
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    names = "\n".join(p.relative_to(path).as_posix() for p in files)
    return f"sha256:{hashlib.sha256((names + sha256(*files)).encode()).hexdigest()}"


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


def _clear(out: Path, before: dict[str, Any] | None, now: dict[str, Any], *, overwrite: bool, ways: str) -> None:
    """Delete the output of another job, or refuse and name the ways out.

    Output that this package did not write is never deleted.
    """
    if before is None:
        raise UserError(f"--out {out}: exists, and no command of ours wrote it; choose another name or move it away.")
    if not overwrite:
        raise UserError(f"--out {out}: holds another job ({_difference(before, now)}); choose another or {ways}.")
    if out.is_dir():
        for path in sorted(out.iterdir(), key=lambda path: path.name == "manifest.json"):  # last: it marks all as ours
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    else:
        out.unlink()
        _manifest_path(out, False).unlink()


def _settings(config: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


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
    return sorted(name for name in new.keys() | old.keys() if old.get(name) != new.get(name))


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
