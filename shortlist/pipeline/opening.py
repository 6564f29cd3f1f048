"""Opening of a description's steps, with every index and model loaded once."""

from pathlib import Path

from shortlist.data.rules import Rule
from shortlist.errors import UserError
from shortlist.index.opening import say_if_older
from shortlist.models.folder import check_model
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.spec import Description, Part, before, finder_before
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
                raise UserError(f"{path}: no such file or folder; step {part.name!r} reads it.")
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
    steps: list[Step] = []
    for part in description.steps:
        kind = STEPS[part.kind]
        stage = kind.open(kind.methods()[part.method], opener, part.settings)
        if part.kind == "cut":
            _check_rule(part, stage, description, opener)
        name = finder_before(part, description.steps, f"step {part.name!r}")
        finder = next((step for step in steps if step.name == name), None)
        steps.append(Step(part.name, kind, stage, part.of, part.depth or kind.depth, part.share, finder=finder))
    return steps


def _check_rule(part: Part, rule: Rule, description: Description, opener: Opener) -> None:
    """Refuse a rule that was calibrated on a run of other models.

    Raises:
        UserError: the models differ.
    """
    if rule.made_by is None:
        return
    calibrated = {stage["model"] for stage in rule.made_by if stage["model"] is not None}
    found = {model for step in before(part, description.steps) if (model := _model_of(step, opener)) is not None}
    if found != calibrated:
        raise UserError(
            f"step {part.name!r}: {part.settings['rule']} was calibrated on a run of {_called(calibrated)}, and the "
            f"steps before it have {_called(found)}; calibrate it on a run that these steps made."
        )


def _called(models: set[str]) -> str:
    return " and ".join(f"model {model[:20]}" for model in sorted(models)) or "no model"


def _model_of(part: Part, opener: Opener) -> str | None:
    """Return the identity of a step's model, as manifests of runs have it."""
    if part.kind == "rank":
        prepared = opener.prepared(STEPS["rank"].methods()[part.method], part.settings)
        return prepared.identities().get("model")
    name = part.settings.get("model")
    return opener.folder(name).identity if isinstance(name, str) else None


def say_what_is_older(description: Description, collection: str) -> None:
    """Print a message for each index or vectors that were made from another corpus."""
    settings = [part.settings.get(setting) for part in description.steps for setting in ("index", "vectors")]
    for path in dict.fromkeys(value for value in settings if isinstance(value, Path)):
        say_if_older(path, collection)
