"""Jobs: stages' claims on their outputs.

An output is found done, begun by the same job before, or refused.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import yaml

from shortlist.config import defaults, flag_of, markers, settings_of
from shortlist.data.claims import Claim, check_free, claim_output, tidy
from shortlist.data.contents import NO_VERIFY
from shortlist.data.files import atomic_write
from shortlist.data.manifest import manifest_path, read_manifest, same_identity, write_manifest
from shortlist.data.outputs import clear, is_undamaged, list_output, moved_in, open_weights, own_files
from shortlist.errors import UserError
from shortlist.progress import forget_peak, peak_bytes, say
from shortlist.version import __version__

T = TypeVar("T")

FORMAT = 3
READABLE = (2, FORMAT)
"""Formats of manifests that a job is recognised by; format 2 lists all settings, also those at their defaults."""


class JobSpec(NamedTuple):
    """Description of a job: what, besides its Config, it is known by and writes."""

    stage: str
    """The command's name."""
    inputs: Mapping[str, str | Sequence[str]]
    """Identity of everything read, under the name of the config field that names it."""
    version: int = 1
    """Version of the stage, raised when a default changes or when the same settings give another result."""
    as_if: Any = None
    """The Config in which settings that have no effect are at their defaults (None: all have an effect)."""
    folder: bool = False
    """The output is a folder (made by `start_job`, with config.yaml and manifest.json in it), not one file."""
    update: Sequence[str] = ()
    """Inputs whose contents may have changed since. If only these have, the job updates the output; a complete output
    stays complete until the update is finished."""
    parts: str | None = None
    """Pattern of the files or folders that a later run goes on from, where the stage has such."""
    writes: Sequence[str] = ()
    """Patterns of the files that the stage writes into the folder as it goes; those of `Job.result` need none."""
    aside: Sequence[str] = ()
    """Patterns of files that tell of the work and are no part of its result, such as a log, beside config.yaml; they
    are listed without a digest."""
    reads: Iterable[Path] = ()
    """What is read besides the inputs that the Config names; it is never deleted."""


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
                write_manifest(self.out, self.manifest)
        return decided[name]

    def result(self) -> AbstractContextManager[Path]:
        """Return a context with a folder for the files of the result, as for `moved_in`.

        Only these, and what fits the patterns of the JobSpec, count as written by the job.
        """
        return moved_in(self.out, self.manifest)

    def keep_names(self) -> None:
        """Count the files listed before as written by this job, which has changed them."""
        before = read_manifest(self.out) or {}
        names = [*self.manifest["writes"], *before.get("writes", []), *before.get("files", {})]
        self.manifest["writes"] = [*dict.fromkeys(names)]

    def pause(self, **results: Any) -> None:
        """Write the results so far of an output that is usable but not final.

        The results are what was counted and measured; the same command has more to do.
        """
        write_manifest(self.out, self.manifest | {"results": results | {"peak_bytes": peak_bytes()}})
        self._release()
        say(f"{self.manifest['stage']}: {self.out} is not finished")

    def finish(
        self, counts: Mapping[str, Any] | None = None, *, digests: Mapping[str, str] | None = None, **results: Any
    ) -> None:
        """Write the manifest as complete, with its files and results.

        The peak memory of this process is added to the results.

        Args:
            counts: more results, by name.
            digests: SHA-256 of files where that is known, by their paths within the folder.
            results: what was counted and measured.
        """
        results = {**(counts or {}), **results, "peak_bytes": peak_bytes()}
        if self.out.is_dir():
            open_weights(self.out, self.manifest)
        manifest = {name: value for name, value in self.manifest.items() if name != "writes"}
        manifest |= {"complete": True, "finished": _now(), "results": results}
        write_manifest(self.out, manifest | {"files": list_output(self.out, self.manifest, digests)})
        self._release()
        say(f"{self.manifest['stage']}: wrote {self.out}")

    def _release(self) -> None:
        if self.held is not None:
            self.held.release()


def start_job(config: Any, spec: JobSpec) -> Job:
    """Claim `config.out` for a stage, or find the work there done or begun.

    Two jobs are the same if they have the same stage, version of the stage and identities of inputs, and the same
    settings that differ from their defaults. Settings annotated as `SpeedOnly` or `NotInJob` are ignored.

    No other command can claim the output as long as the Job is there. Of another job's output the files that its
    command wrote are deleted, with `overwrite` or where it was never finished and holds nothing to go on from.

    Args:
        config: the stage's Config, which the manifest keeps; its `out` and `overwrite` are used.
        spec: the rest of the job's description.

    Raises:
        UserError: `out` holds another job's output and `overwrite` is off, an input, or something that no command of
            ours wrote; another command is at work there.
    """
    forget_peak()
    out = Path(config.out)
    begun = _begun(config, spec)
    _refuse_the_wrong_kind(out, spec.folder)
    check_free(out, folder=spec.folder)
    there, held = _look(config, spec, begun), None
    if not there.done:
        _check_room(config, spec, begun, there)  # before the lock, so that nothing is written where nothing may be
        held = claim_output(out, folder=spec.folder, stage=spec.stage)
        there = _look(config, spec, begun)  # again, as another command may have been at work until now
    if there.done:
        assert there.found is not None
        del held
        tidy(out, folder=spec.folder)
        say(f"{spec.stage}: {out} is already done.")
        return Job(out, there.found, done=True, resuming=False)
    _check_room(config, spec, begun, there)
    manifest = _begun_again(out, begun, there)
    if there.updating:
        _mark_update(out, spec, manifest, there)
    else:
        if there.found is not None and there.visible and not there.same:
            clear(out, there.found)
        write_manifest(out, manifest, spec.folder)  # first of all: a folder without one does not count as ours
        if spec.folder:
            with atomic_write(out / "config.yaml") as file:
                yaml.safe_dump(manifest["config"], file, sort_keys=False)
    return Job(out, manifest, done=False, resuming=there.same, updating=there.updating, held=held)


def is_done(config: Any, spec: JobSpec) -> bool:
    """Whether a job's output is finished, with nothing to tidy up.

    If so, this prints a message, and `start_job` would do nothing.
    """
    if not is_finished(config, spec):
        return False
    out = Path(config.out)
    tidy(out, folder=spec.folder)
    say(f"{spec.stage}: {out} is already done.")
    return True


def is_finished(config: Any, spec: JobSpec) -> bool:
    """Whether a job's output is finished; nothing is printed or tidied up."""
    out = Path(config.out)
    if not out.exists() or out.is_dir() != spec.folder:
        return False
    there = _look(config, spec._replace(update=()), _begun(config, spec))
    return there.done and there.found is not None and "changing" not in there.found


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


def _begun(config: Any, spec: JobSpec) -> dict[str, Any]:
    """Return the manifest of a job that has just begun."""
    kind = type(config)
    assert not markers(kind).keys() & spec.inputs.keys()
    settings = _settings(config if spec.as_if is None else spec.as_if)
    made_from = _deciding(kind, settings | _plain(dict(spec.inputs)))
    listed = {"aside": ["config.yaml", *spec.aside], "writes": [*spec.writes]} if spec.folder else {}
    return {
        "format": FORMAT,
        "stage": spec.stage,
        "stage_version": spec.version,
        "job": _job_id(spec.stage, spec.version, made_from),
        "complete": False,
        "version": __version__,
        "commit": commit(),
        "started": _now(),
        "config": _settings(config),
        "made_from": made_from,
        **listed,
        "decided": {},
        **({"compared": False} if os.environ.get(NO_VERIFY) else {}),
    }


class _There(NamedTuple):
    """State of an output's place before a job begins."""

    visible: bool
    """Whether there is anything but hidden files and, beside a file, its manifest."""
    found: dict[str, Any] | None
    """The manifest."""
    before: dict[str, Any]
    """The manifest with `made_from` reduced to what decides about a job; empty if there is none."""
    same: bool
    """Whether it is of the same job."""
    updating: bool
    """Whether the job would update it."""
    done: bool


def _look(config: Any, spec: JobSpec, begun: dict[str, Any]) -> _There:
    out = Path(config.out)
    visible = out.exists() and (not spec.folder or any(not path.name.startswith(".") for path in out.iterdir()))
    found = read_manifest(out) if visible or manifest_path(out, spec.folder).exists() else None
    if found is None:
        return _There(visible, None, {}, same=False, updating=False, done=False)
    before = found | {"made_from": _deciding(type(config), found.get("made_from", {}))}
    same = _same(before, begun)
    updating = visible and (bool(same and before.get("updating")) or _only_changed(before, begun, spec.update))
    done = same and found["complete"] and visible and is_undamaged(out, found, closely=config.overwrite)
    return _There(visible, found, before, same, updating, done)


def _begun_again(out: Path, begun: dict[str, Any], there: _There) -> dict[str, Any]:
    """Add to the manifest of a job what is known from before."""
    before, manifest = there.before, dict(begun)
    if there.same:
        manifest["job"] = before["job"]  # outputs made from this one still recognise it
    if there.same or there.updating:
        manifest["decided"] = before.get("decided", {})
    if there.same and there.visible and out.is_dir():
        names = [path.relative_to(out).as_posix() for path in own_files(out, before)]
        manifest["writes"] = [*dict.fromkeys([*manifest["writes"], *names])]
    return manifest


def _mark_update(out: Path, spec: JobSpec, manifest: dict[str, Any], there: _There) -> None:
    """Write down that an update has begun; a complete output stays complete meanwhile."""
    if not there.before["complete"]:
        write_manifest(out, manifest | {"updating": True})
    elif there.found is not None and "files" in there.found:
        write_manifest(out, there.found | {"changing": True, "writes": [*spec.writes]})


def _refuse_the_wrong_kind(out: Path, folder: bool) -> None:
    if out.exists() and out.is_dir() != folder:
        found, expected = ("a file", "a folder") if folder else ("a folder", "a file")
        raise UserError(f"--out {out}: is {found}, and this command writes {expected}; choose another name.")


def _check_room(config: Any, spec: JobSpec, begun: dict[str, Any], there: _There) -> None:
    """Refuse to write where there are another job's results, or files that are not ours.

    Results may be replaced with --overwrite, unless an input is among them.

    Raises:
        UserError: as for `start_job`.
    """
    out, before = Path(config.out), there.before
    if not there.visible or there.same or there.updating:
        return
    if there.found is None:
        raise UserError(f"--out {out}: exists, and no command of ours wrote it; choose another name or move it away.")
    results = before["complete"] or out.is_file() or (spec.parts is not None and any(out.glob(spec.parts)))
    if results and not config.overwrite:
        ways = "--update or --overwrite" if hasattr(config, "update") else "--overwrite"
        raise UserError(f"--out {out}: holds another job ({_difference(before, begun)}); choose another or {ways}.")
    root, ours = out.resolve(), [path.resolve() for path in own_files(out, before)]
    for name, path in _input_paths(config, spec):
        read = path.resolve()
        inside = read.is_relative_to(root)  # an output may lie inside a collection, with nothing of it among its files
        if inside and any(read == file or read in file.parents or file in read.parents for file in ours):
            raise UserError(f"--out {out}: {name} {path} is there, and would be deleted; choose another name.")


def _input_paths(config: Any, spec: JobSpec) -> Iterator[tuple[str, Path]]:
    """Yield the files and folders that are read, each with the flag that names it."""
    yield from (("what is read,", path) for path in spec.reads)
    for name, value in settings_of(config).items():
        if name in ("out", "contract"):
            continue
        for item in value if isinstance(value, (list, tuple)) else [value]:
            named = isinstance(item, str) and (name in spec.inputs or name in ("collection", "model"))
            if (named or isinstance(item, Path)) and os.path.exists(item):
                yield flag_of(name), Path(item)


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
    return _is_known(before, now) and not _changed(before, now)


def _is_known(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether an output says enough to go on from it.

    What was made without comparing inputs with their digests may be made of damaged ones.
    """
    compared = before.get("compared", True) or not now.get("compared", True)
    return before.get("format") in READABLE and _kind(before) == _kind(now) and compared


def _kind(manifest: dict[str, Any]) -> tuple[str, int]:
    return manifest["stage"], manifest.get("stage_version", 1)


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = before["made_from"], now["made_from"]
    return sorted(name for name in new.keys() | old.keys() if not same_identity(old.get(name), new.get(name)))


def _only_changed(before: dict[str, Any], now: dict[str, Any], names: Sequence[str]) -> bool:
    changed = _changed(before, now)
    return _is_known(before, now) and bool(changed) and set(changed) <= set(names)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before["stage"] != now["stage"]:
        return f"of `shortlist {before['stage']}`"
    if _kind(before) != _kind(now) or before.get("format") not in READABLE:
        return f"of another version of `shortlist {now['stage']}`, {before.get('version', 'unknown')}"

    if not _is_known(before, now):
        return "made with --no-verify, from what may be damaged"

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
