"""Pinned packages: reading a list of them, downloading their wheels, checking their licences."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

from shortlist.data.files import atomic_folder, sha256
from shortlist.errors import UserError
from shortlist.progress import track

DOWNLOADS = 4
"""Number of downloads at the same time."""
PIN = re.compile(r"([\w.-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+) +# *(\S.*)")
LICENCES = {"MIT", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Apache-2.0", "ISC", "PSF-2.0", "Python-2.0"}
"""Licences that ask for no more than attribution."""
ALLOWED_BESIDE = {"Zlib", "CC0-1.0"}
"""Licences of compiled code that comes with numpy and is not read."""
LICENCE_PATTERNS = {
    "MIT": r"(the )?mit( license)?( \(mit\))?",
    "BSD": r"(new |revised )?bsd([ -][23][ -]clause)?( license)?",
    "Apache-2.0": r"apache( software)?( license)?,?( version)?[ -]?(2\.0)?( license)?( \(apache 2\.0\))?",
    "ISC": r"isc( license)?( \(iscl\))?",
    "PSF-2.0": r"python software foundation license",
}
"""Licence -> pattern of its names in metadata without a licence expression."""
ONE_PYTHON = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
GLIBCS = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)
PLATFORMS = ["manylinux1_x86_64", "manylinux2014_x86_64", *(f"manylinux_2_{glibc}_x86_64" for glibc in GLIBCS), "any"]
"""Platforms of wheels: one Python on one platform, so that one list of hashes gives the same text everywhere."""


class Pin(NamedTuple):
    """One package of a list."""

    name: str
    version: str
    hashes: tuple[str, ...]
    licence: str
    """The licence in the list."""


def read_pins(path: Path) -> list[Pin]:
    """Read a list of packages in pip's requirements form.

    A line has one package with its hashes, and its licence as the comment at the end.

    Raises:
        UserError: no such file, nothing in it, a line of another form, or a licence that is not allowed.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: {getattr(error, 'strerror', 'not UTF-8')}; expected a list of pinned packages."
        ) from None
    pins = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = PIN.fullmatch(line.rstrip())
        if match is None:
            raise UserError(
                f"{path}:{number}: {line[:60]!r}; expected `name==version --hash=sha256:... # licence` on one line."
            )
        name, version, hashes, licence = match.groups()
        parts = {*re.findall(r"[^\s()]+", licence)} - {"AND", "OR"}
        if not parts & LICENCES or not parts <= LICENCES | ALLOWED_BESIDE:
            raise UserError(f"{path}:{number}: {name} is under {licence}; expected {', '.join(sorted(LICENCES))}.")
        pins.append(Pin(name, version, tuple(re.findall("[0-9a-f]{64}", hashes)), licence))
    if not pins:
        raise UserError(f"{path}: names no package.")
    return pins


def download(pins: Sequence[Pin], cache: Path) -> list[Path]:
    """Return the packages' wheels in `cache`; pip downloads those that are missing.

    All of them are checked.

    Raises:
        UserError: pip cannot get a file that has one of the hashes, or a licence differs from the list.
    """
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        wheels = pool.map(lambda pin: _wheel(pin, cache / f"{pin.name}-{pin.version}"), pins)
        return list(track(wheels, "downloading", len(pins), "packages"))


def _wheel(pin: Pin, folder: Path) -> Path:
    there = list(folder.glob("*.whl"))
    if len(there) != 1 or sha256(*there) not in pin.hashes:
        shutil.rmtree(folder, ignore_errors=True)
        _fetch(pin, folder)
        there = list(folder.glob("*.whl"))
    check_licence(pin, there[0])
    return there[0]


def _fetch(pin: Pin, folder: Path) -> None:
    with atomic_folder(folder) as partial:
        requirement = partial / "requirement.txt"
        requirement.write_text(f"{pin.name}=={pin.version} {' '.join(f'--hash=sha256:{h}' for h in pin.hashes)}\n")
        platforms = [flag for platform in PLATFORMS for flag in ("--platform", platform)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command = [*pip, *ONE_PYTHON, *platforms, "--require-hashes", "-r", str(requirement), "-d", str(partial)]
        result = subprocess.run(command, capture_output=True, text=True)
        requirement.unlink()
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["ERROR: no reason given"]
            reason = next((line for line in lines if line.startswith("ERROR: ")), lines[-1]).removeprefix("ERROR: ")
            raise UserError(f"{pin.name}=={pin.version}: pip did not download it: {reason}")


def check_licence(pin: Pin, wheel: Path) -> None:
    """Raise a UserError if a wheel's metadata says another licence than the list."""
    found = licence_of(wheel_metadata(wheel))
    if found != pin.licence:
        raise UserError(
            f"{pin.name}=={pin.version}: its licence is {found or 'not said'}, and the list says {pin.licence}; "
            "correct the list."
        )


def wheel_metadata(wheel: Path) -> Message:
    """Read the metadata of a wheel; empty if it has none."""
    try:
        with ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            text = archive.read(names[0]).decode("utf-8", "replace") if names else ""
    except (OSError, BadZipFile):
        raise UserError(f"{wheel}: not a wheel; delete it, and it is downloaded again.") from None
    return HeaderParser().parsestr(text)


def licence_of(metadata: Message) -> str:
    """Return a package's licence as an expression.

    It is the expression in the metadata if there is one, otherwise made from the classifiers, or from the field
    `License`.
    """
    if expression := metadata["License-Expression"]:
        return expression
    classifiers = [c.split(" :: ") for c in metadata.get_all("Classifier", []) if c.startswith("License :: ")]
    said = [parts[-1] for parts in classifiers if parts[-1] != "OSI Approved"]
    said = said or [line for line in (metadata["License"] or "").strip().splitlines()[:1] if line]
    return " AND ".join(sorted(set(map(_short, said))))


def _short(said: str) -> str:
    return next((name for name, form in LICENCE_PATTERNS.items() if re.fullmatch(form, said, re.IGNORECASE)), said)
