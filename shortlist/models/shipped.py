"""The pair of models that comes with the package: by name, without a hub."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

PAIR = "shortlist-mini"


def shipped_name(name: str, kind: Literal["retriever", "reranker"]) -> str:
    """`shortlist-mini/reranker` for `shortlist-mini` where a reranker is wanted; any other name as it is."""
    return f"{name}/{kind}" if name == PAIR and not Path(name).exists() else name


def shipped_folder(name: str) -> Path | None:
    """Where one of the pair is, the retriever if its name does not say which; None for any other name."""
    pair, _, kind = shipped_name(name, "retriever").partition("/")
    folder = Path(str(files("shortlist.models"))) / PAIR / kind
    return folder if pair == PAIR and not Path(name).exists() and folder.is_dir() else None
