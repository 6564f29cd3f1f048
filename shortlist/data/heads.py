"""Files of attention heads that were chosen for a model, by `shortlist heads`."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shortlist.data.files import atomic_write
from shortlist.data.manifest import same_identity
from shortlist.errors import UserError

NAME = re.compile(r"(\d+)-(\d+)")


class Head(NamedTuple):
    """An attention head of a model."""

    layer: int
    """The number of its layer, from 0."""
    number: int
    """Its number in the layer, from 0."""

    def __str__(self) -> str:
        return f"{self.layer}-{self.number}"


def parse_head(name: str, where: str) -> Head:
    """Read a head's name, LAYER-HEAD.

    Raises:
        UserError: it is none.
    """
    found = NAME.fullmatch(name.strip())
    if not found:
        raise UserError(f"{where}: {name!r} names no head; expected LAYER-HEAD, both counted from 0, such as 13-18.")
    return Head(int(found[1]), int(found[2]))


def best_heads(scores: Mapping[str, float], count: int) -> list[Head]:
    """Choose the heads with the highest scores, the best first; of equal ones the first."""
    return [parse_head(name, "scores") for name in sorted(scores, key=lambda name: -scores[name])[:count]]


def write_heads(path: Path, heads: Sequence[Head], **known: Any) -> None:
    """Write a file of heads, the best first.

    Args:
        known: what else is known of them: the model's identity, how they were chosen, and every head's score.
    """
    content = {"heads": list(map(str, heads)), **known}
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1) + "\n")


def read_heads(named: str, model: str) -> list[Head]:
    """Read heads from a file, or from their names with commas between.

    Args:
        named: path of a file that `write_heads` wrote, or such as "13-18,14-31".
        model: the identity of the model that they are to be read of.

    Raises:
        UserError: there is no such file, it is none of heads, or it is of another model.
    """
    if not Path(named).exists() and NAME.match(named):
        return [parse_head(name, "--heads") for name in named.split(",")]
    try:
        content = json.loads(Path(named).read_text("utf-8"))
        names = content["heads"]
    except FileNotFoundError:
        raise UserError(
            f"--heads {named}: no such file; make one with `shortlist heads`, or name heads: 13-18,14-31."
        ) from None
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(f"--heads {named}: is no file of heads; expected one from `shortlist heads`.") from None
    if "model" in content and not same_identity(content["model"], model):
        raise UserError(
            f"--heads {named}: were chosen for another model than --model names now; choose them for this one with "
            "`shortlist heads`."
        )
    return [parse_head(str(name), f"--heads {named}") for name in names]
