"""The models in the package, found by name without the hub."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from shortlist.progress import say

PAIR = "shortlist-mini"


@cache
def warn_of_text() -> None:
    """Say once that the shipped models know nothing but code."""
    say(
        f"{PAIR}: was trained on source code alone. For text name another model, such as "
        "sentence-transformers/all-MiniLM-L6-v2 to retrieve or cross-encoder/ms-marco-MiniLM-L6-v2 to rerank."
    )


def shipped_name(name: str, kind: Literal["retriever", "reranker", "language-model"]) -> str:
    """Complete `shortlist-mini` with the wanted kind; return any other name unchanged."""
    return f"{name}/{kind}" if name == PAIR and not Path(name).exists() else name


def shipped_folder(name: str) -> Path | None:
    """Find the folder of one of the models; None for any other name.

    A name that does not say which of them means the retriever.
    """
    pair, _, kind = shipped_name(name, "retriever").partition("/")
    folder = Path(str(files("shortlist.models"))) / PAIR / kind
    return folder if pair == PAIR and not Path(name).exists() and folder.is_dir() else None
