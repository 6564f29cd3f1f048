"""Opening of a description's steps, with every index and model loaded once."""

from pathlib import Path

from shortlist.errors import UserError
from shortlist.index.opening import say_if_older
from shortlist.models.folder import check_model
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.spec import Description
from shortlist.pipeline.steps import STEPS, Step

READS = {"dense": "document", "late": "document", "sparse": "document", "pointwise": "pair"}
"""What the model of a method reads."""


def check_steps(description: Description, *, hub: bool = True) -> None:
    """Refuse missing files and models of another kind, before the first of them is loaded.

    Args:
        hub: check models on the hub too, which looks their names up.

    Raises:
        UserError: an index, vectors or a model is missing, or is of another kind.
    """
    for part in description.steps:
        for path in part.settings.values():
            if isinstance(path, Path) and not path.exists():
                raise UserError(f"{path}: no such file or folder; step {part.name!r} searches it.")
        model, reads = part.settings.get("model"), READS.get(part.method)
        if isinstance(model, str) and reads and (hub or Path(model).exists()):
            check_model(model, reads, part.settings.get("contract"))


def open_steps(description: Description, opener: Opener | None = None) -> list[Step]:
    """Open the steps of a description, ready to run.

    Raises:
        UserError: an index or model is missing, or does not belong with the others.
    """
    opener = opener or Opener()
    check_steps(description, hub=False)  # a name on the hub is looked up once, when it is loaded
    steps = []
    for part in description.steps:
        kind = STEPS[part.kind]
        stage = kind.open(kind.methods()[part.method], opener, part.settings)
        steps.append(Step(part.name, kind, stage, part.of, part.depth or kind.depth, part.share))
    return steps


def say_what_is_older(description: Description, collection: str) -> None:
    """Print a message for each index or vectors that were made from another corpus."""
    settings = [part.settings.get(setting) for part in description.steps for setting in ("index", "vectors")]
    for path in dict.fromkeys(value for value in settings if isinstance(value, Path)):
        say_if_older(path, collection)
