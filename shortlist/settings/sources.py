"""The sources of a training: groups of several collections, and how each is trained on."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from shortlist.config import from_settings, load_yaml
from shortlist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One source in a file of sources.

    A setting that is not there is as the flags of `train` say.
    """

    collection: str
    """Collection with the texts: folder, `irds:` or `hf:` name."""
    groups: str | None = None
    """Groups, as for --groups. Without them the judged pairs of the split are used, or the lists of `run`."""
    run: Path | None = None
    """TREC run whose lists are trained on without any judgement, for losses that need no positive; its scores are a
    teacher's, such as those of a reranker that is to be imitated."""
    depth: int = 16
    """Documents of each list of the run."""
    split: str | None = None
    """Split of the collection that has the queries."""
    weight: float = 1.0
    """Factor of the number of groups, which decides how often the source is drawn."""
    queries_prompt: str = ""
    """Text in front of each query."""
    documents_prompt: str = ""
    """Text in front of each document."""
    instruction: str | None = None
    """Value of {instruction} in the model's input contract."""
    prompt: str | None = None
    """Prompt to ask about this source's groups, where --prompt names that of the others."""
    loss: tuple[str, ...] = ()
    """Losses, as for --loss."""
    negatives: int | None = None
    """Negatives per query and step."""
    negatives_from: Literal["random", "bm25"] | None = None
    """Where to take the negatives of groups that have none."""
    positives_from: int | None = None
    """Lowest grade of a positive."""


OVERRIDES = ("split", "prompt", "loss", "negatives", "negatives_from", "positives_from")
"""Settings of a source that stand in place of the flags of `train`."""


def parse_sources(given: str) -> dict[str, SourceSettings]:
    """Read the sources of a YAML file, or of a mapping in JSON.

    Raises:
        UserError: it cannot be read, names nothing or something twice, or has a setting that does not exist or does not
            fit.
    """
    where, values = ("sources", json.loads(given)) if given.lstrip().startswith("{") else _load(Path(given))
    if not values:
        raise UserError(f"{where}: names no source; expected NAME: and its settings, such as `collection:`.")
    sources = {}
    for name, settings in values.items():
        at = f"{where}: source {name!r}"
        if not isinstance(settings, dict):
            raise UserError(f"{at}: holds {settings!r}; expected settings, such as `collection:` and `groups:`.")
        sources[str(name)] = _checked(from_settings(SourceSettings, settings, where=at), at)
    places: dict[tuple[Any, ...], str] = {}
    for name, source in sources.items():
        first = places.setdefault(_place(source), name)
        if first != name:
            raise UserError(f"{where}: sources {first!r} and {name!r} have the same groups; give one a larger weight.")
    return sources


def decided(source: SourceSettings) -> dict[str, Any]:
    """Return the settings that differ from their defaults, without what identities say better."""
    values = {field.name: (getattr(source, field.name), field.default) for field in fields(source)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, (value, default) in values.items()
        if name not in ("collection", "groups", "run") and value != default
    }


def _load(path: Path) -> tuple[str, dict[str, Any]]:
    values = load_yaml(path)
    node = yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader)
    if repeated := next(_repeated(node), None):
        raise UserError(f"{path}: has {repeated!r} twice; give each source, and each setting, a name of its own.")
    return str(path), values


def _repeated(node: yaml.Node | None) -> Iterator[str]:
    """Yield the keys that a mapping has twice; YAML would silently take the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    keys = [key.value for key, _ in node.value]
    yield from (key for place, key in enumerate(keys) if key in keys[:place])
    for _, value in node.value:
        yield from _repeated(value)


def _checked(source: SourceSettings, at: str) -> SourceSettings:
    if not 0 < source.weight < math.inf:
        raise UserError(f"{at}: weight is {source.weight}; expected more than 0.")
    for name, least in (("depth", 1), ("negatives", 0), ("positives_from", 1)):
        value = getattr(source, name)
        if value is not None and value < least:
            raise UserError(f"{at}: {name} is {value}; expected at least {least}.")
    if source.run and source.groups:
        raise UserError(f"{at}: has `groups` and `run`; name one of them, or make two sources.")
    if source.run and not source.run.is_file():
        raise UserError(f"{at}: run {source.run}: no such file; expected a run, such as `shortlist search` writes.")
    return source


def _place(source: SourceSettings) -> tuple[Any, ...]:
    """Return what two sources must not have in common."""

    def whole(name: str | Path | None) -> str | None:
        return str(Path(name).resolve()) if name and Path(name).exists() else name and str(name)

    groups = (whole(source.groups), whole(source.run))
    return whole(source.collection), groups, None if any(groups) else source.split, source.prompt
