"""A collection's own indexes: kept beside it, brought up to date before a search.

They are ordinary outputs of `shortlist index` and `shortlist encode`.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shortlist import index
from shortlist.data.claims import AtWorkError, check_free
from shortlist.data.contents import cache_folder
from shortlist.data.manifest import read_manifest
from shortlist.data.outputs import OWN_FOLDER
from shortlist.pipeline.opening import check_steps
from shortlist.pipeline.spec import Description, Part
from shortlist.progress import say

LOOK_SECONDS = 0.2
"""How often to look whether another command is done with an index."""


def with_own_indexes(description: Description) -> Description:
    """Bring a collection's own indexes up to date, for steps that name none.

    Raises:
        UserError: an index cannot be built, such as from a corpus with a line that cannot be read.
    """
    name = description.collection
    if name is None or not any(map(searches_own, description.steps)):
        return description
    check_steps(description, hub=False)
    steps = tuple(
        part._replace(settings=OWN_INDEXES[part.method](name, part.settings)) if searches_own(part) else part
        for part in description.steps
    )
    return description._replace(steps=steps)


def searches_own(part: Part) -> bool:
    """Whether a step searches the collection's own index."""
    return part.kind == "find" and part.method in OWN_INDEXES and not {"index", "vectors"} & part.settings.keys()


def places_of(collection: str) -> list[Path]:
    """List the folders where a collection's own indexes may be, the best first.

    They are beside the corpus or, if nothing can be written there, in the user's cache.
    """
    folder = Path(collection)
    known = str(folder.resolve()) if folder.is_dir() else collection
    short = "".join(c if c.isalnum() else "-" for c in folder.name)[:40]
    elsewhere = cache_folder() / "collections" / f"{short}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"
    return [folder / OWN_FOLDER, elsewhere] if folder.is_dir() else [elsewhere]


def _own_words(collection: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a collection's BM25 index up to date, and name it."""
    language = settings.get("language")

    def described(out: Path) -> index.Config:
        known = (read_manifest(out) or {}).get("config", {}).get("language", index.Config.language)
        return index.Config(out=out, collection=collection, language=language or known, overwrite=True)

    out = _brought_up_to_date(collection, "bm25", described, index.is_current, index.run)
    return {name: value for name, value in settings.items() if name != "language"} | {"index": out}


def _own_vectors(collection: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a collection's vectors of a model up to date, and name them."""
    from shortlist import encode
    from shortlist.settings.encode import Config, are_current

    model, contract = settings["model"], settings.get("contract")

    def described(out: Path) -> Config:
        given: dict[str, Any] = {"model": model, "collection": collection, "contract": contract}
        return Config(out=out, update=True, overwrite=True, skip_bad=True, **given)

    known = str(Path(model).resolve()) if Path(model).exists() else model
    folder = f"vectors-{Path(model).name}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"
    return {**settings, "vectors": _brought_up_to_date(collection, folder, described, are_current, encode.run)}


OWN_INDEXES: dict[str, Callable[[str, Mapping[str, Any]], dict[str, Any]]] = {
    "bm25": _own_words,
    "dense": _own_vectors,
    "late": _own_vectors,
    "sparse": _own_vectors,
}
"""By the method of a step: makes the settings with the index named, given the collection and the settings."""


def _brought_up_to_date(
    collection: str,
    folder: str,
    described: Callable[[Path], Any],
    is_current: Callable[[Any], bool],
    run: Callable[[Any], None],
) -> Path:
    """Bring an index up to date, or wait for the command that does."""
    outs = [place / folder for place in places_of(collection)]
    while True:
        for out in outs:
            if is_current(described(out)):
                return out
        out = next((out for out in outs if _can_write(out)), outs[-1])
        try:
            run(described(out))
        except AtWorkError:
            say(f"{out}: another command brings it up to date; waiting for it.")
            while not _is_free(out):
                time.sleep(LOOK_SECONDS)
        else:
            return out


def _is_free(out: Path) -> bool:
    try:
        check_free(out, folder=True)
    except AtWorkError:
        return False
    return True


def _can_write(out: Path) -> bool:
    """Whether an output can be made there or changed."""
    there = next(path for path in (out, *out.parents) if path.exists())
    return os.access(there, os.W_OK)
