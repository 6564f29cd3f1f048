"""Headers of run files in the form of ir_metadata, YAML in comments.

https://www.ir-metadata.org
"""

import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import yaml

from shortlist.data.lines import numbered_lines
from shortlist.errors import UserError

START, END = "# ir_metadata.start", "# ir_metadata.end"
SCHEMA = "0.1"
MOST_LINES = 10_000
"""Most lines of a header; a file of comments alone is no run."""


def comment_lines(path: Path) -> list[str]:
    """Return the comments with which a file begins.

    A query's id may begin with #, but is not # alone.
    """
    found: list[str] = []
    for _, _, line in numbered_lines(path):
        if not (line == "#" or line.startswith(("# ", "#\t"))) or len(found) == MOST_LINES:
            break
        found.append(line)
    return found


def read_run_header(path: Path) -> dict[str, Any] | None:
    """Read the ir_metadata of a run file; None if it has none.

    Raises:
        UserError: the header has no end, or is no YAML mapping.
    """
    lines = [line.rstrip() for line in comment_lines(path)]
    if START not in lines:
        return None
    if END not in lines:
        raise UserError(f"{path}: its header has no end; expected a line `{END}` before the first hit.")
    body = [line.removeprefix("#").removeprefix(" ") for line in lines[lines.index(START) + 1 : lines.index(END)]]
    try:
        found = yaml.safe_load("\n".join(body))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: its header is no YAML ({' '.join(str(error).split())[:200]}).") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: its header is a {type(found).__name__}; expected names with values.")
    return found


def write_header(file: IO[str], header: Mapping[str, Any]) -> None:
    """Write ir_metadata as comments."""
    text = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    file.writelines(f"{line}\n" for line in (START, *(f"# {line}".rstrip() for line in text.splitlines()), END))


def header_of(manifest: Mapping[str, Any], *, tag: str, made_by: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Say in ir_metadata's fields what a manifest says of a run.

    Args:
        manifest: the run's manifest.
        tag: the last column of the run.
        made_by: stages before this one, as in `data.manifest.stages`.
    """
    config = {name: value for name, value in manifest["config"].items() if value not in (None, (), [], "")}
    stages = [{"name": stage["stage"], **_model(stage)} for stage in made_by] + [{"name": manifest["stage"]}]
    data = {"name": config["collection"]} if config.get("collection") else {}
    return {
        "schema-version": SCHEMA,
        "tag": tag,
        "platform": {
            "operating system": {"kernel": platform.platform()},
            "hardware": {"cpu": {"architecture": platform.machine()}},
            "software": {"libraries": {"python": [f"shortlist {manifest['version']}", platform.python_version()]}},
        },
        "implementation": {
            "executable": {"cmd": shlex.join(["shortlist", *sys.argv[1:]])},
            "source": {"lang": ["python"], **({"commit": manifest["commit"]} if manifest.get("commit") else {})},
        },
        "method": {
            "automatic": True,
            "retrieval": stages,
            "settings": {name: str(value) for name, value in config.items() if name not in ("out", "overwrite")},
        },
        "data": {"test collection": data | ({"split": config["split"]} if config.get("split") else {})},
        "job": manifest["job"],
        "started": manifest["started"],
    }


def _model(stage: Mapping[str, Any]) -> dict[str, str]:
    return {"model": str(stage["model"])} if stage.get("model") else {}


def after_header(path: Path) -> Iterator[tuple[int, int, str]]:
    """Iterate over (line number, start byte, line) behind a file's first comments."""
    return islice(numbered_lines(path), len(comment_lines(path)), None)
