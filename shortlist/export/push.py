"""Stage `push`: put a model folder on the hub, with a card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from shortlist.data.files import read_json
from shortlist.errors import UserError
from shortlist.export.card import CARD, card, write_card
from shortlist.models.files import base_name, first_line, is_adapter
from shortlist.models.folder import open_folder
from shortlist.progress import say

NOT_PUSHED = ("manifest.json", "config.yaml", "checkpoints/*", "*.bin", "*.pt", "log.jsonl", "*.svg")
"""Files that are not uploaded: those that name this machine's paths, pickles, and files that nobody loads."""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tyro.conf.Positional[Path]
    """Model folder from `shortlist train`, or from `shortlist export` if other tools are to open it."""
    to: str
    """Name on the hub: USER/NAME. Your account comes from the hub's login or HF_TOKEN, never from a flag."""
    private: bool = False
    """Make the repository private, so that only you can see it."""
    results: Path | None = None
    """results.json of `shortlist evaluate`, whose scores go into the card."""
    dry_run: bool = False
    """Only print the card and the names of the files."""


def files(folder: Path) -> list[str]:
    """List the files of a model folder to push, by their paths within it."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [str(path) for path in paths if not any(path.match(pattern) for pattern in NOT_PUSHED)]


def run(config: Config) -> None:
    """Write the card if there is none, and upload the folder."""
    if not config.model.is_dir():
        raise UserError(f"{config.model}: no such folder; expected a model folder.")
    if config.to.count("/") != 1 or not all(config.to.split("/")):
        raise UserError(f"--to {config.to}: no name on the hub; expected USER/NAME.")
    model = open_folder(str(config.model))
    contract = model.any_contract()
    if is_adapter(config.model) and Path(base := base_name(config.model)).exists():
        raise UserError(
            f"{config.model}: is an adapter of {base}, which is on this machine alone; push that first and name it in "
            "adapter_config.json, or push `shortlist export --to merged`."
        )
    results = read_json(config.results) if config.results else None
    if config.dry_run:
        there = config.model / CARD
        print(there.read_text("utf-8") if there.exists() else card(model, contract, results=results))
        print("\n".join(sorted({*files(config.model), CARD})))
        return
    write_card(model, config.model, contract, results=results)
    say(f"push: {upload(config.model, config.to, private=config.private)}")


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Create the repository if needed and upload the folder; returns its URL.

    Raises:
        UserError: the hub refuses the upload or cannot be reached.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        options: Mapping[str, Any] = {"repo_id": name, "folder_path": folder, "allow_patterns": files(folder)}
        return str(hub.upload_folder(**options))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise UserError(
            f"--to {name}: the hub did not take it ({first_line(error)}); log in with `hf auth login`, or set HF_TOKEN."
        ) from None
