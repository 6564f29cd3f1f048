"""Wheels so small that a test can write them."""

import textwrap
import zipfile
from pathlib import Path

from shortlist.data.files import sha256

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def module(verb: str, count: int) -> str:
    """The source of as many functions, no two of which look alike, in this or another module."""
    functions = []
    for one in NUMBERS[:count]:
        lines = "\n".join(f"    {verb}_{one}_{step} = {verb}_{step}({one})" for step in "abcdef")
        doc = f'    """{verb.title()} all {one} of the things."""'
        functions.append(f"def {verb}_{one}({one}):\n{doc}\n{lines}\n    return {verb}_{one}_f\n")
    return "\n\n".join(functions)


def write_wheel(folder: Path, name: str, metadata: str = "License-Expression: MIT", **files: str) -> Path:
    """A wheel of version 1.0; `a__b` is a/b.py in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for place, source in files.items():
            wheel.writestr(f"{place.replace('__', '/')}.py", textwrap.dedent(source))
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{metadata}\n\nText\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def pin(wheel: Path, licence: str = "MIT") -> str:
    """Its line in a list of packages."""
    name, version, *_ = wheel.name.split("-")
    return f"{name}=={version} --hash=sha256:{sha256(wheel)}  # {licence}\n"
