"""Opening of a description's steps, with every index and model loaded once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shortlist.data.rules import Rule
from shortlist.errors import UserError
from shortlist.index.opening import is_older, say_if_older
from shortlist.models.folder import check_model
from shortlist.pipeline.feedback import SearchedAgain
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.spec import Description, Part, before
from shortlist.pipeline.steps import STEPS, Step
from shortlist.progress import say
from shortlist.rerankers.language import LanguageModelSettings, how_to_open, is_server, model_identity

if TYPE_CHECKING:
    from shortlist.models.folder import ModelFolder

READS = {
    "dense": "document",
    "late": "document",
    "sparse": "document",
    "pointwise": "pair",
    "cur": "pair",
    "tree": "document",
    "vectors": "document",
}
"""What the model of a method, or of a walker, reads; others ask a language model."""
MODEL_SETTINGS = ("model", "retriever")
"""Settings of steps that name a model."""
HOLDS = {"cur": "scores", "tree": "a tree"}
"""What an index holds of exactly its documents, by the method that searches it."""


def what_is_read(part: Part) -> str | None:
    """Return what the model of a step reads, where it is no language model."""
    return READS.get(part.settings.get("walker", part.method))


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
        model, reads = part.settings.get("model"), what_is_read(part)
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
        _check_corpus(part, description)
        if part.kind == "cut":
            _check_rule(part, stage, description, opener)
        depth = part.depth or kind.depth
        searched = searched_by(part, description, steps) if part.search is not None else None
        step = Step(part.name, kind, stage, part.of, depth, part.share, part.drop, searched=searched)
        if kind.searches_again:
            stage.check(part.name, searched)
        steps.append(step)
    say_what_is_unread(description.steps)
    return steps


def say_what_is_unread(parts: Sequence[Part]) -> None:
    """Say which steps shorten texts that no later step reads."""
    for place, part in enumerate(parts):
        later = parts[place + 1 :]
        if part.kind != "compress" or any(map(_reads_texts, later)):
            continue
        stored = ", ".join(repr(one.name) for one in later if one.kind == "rank")
        if stored:
            say(
                f"step {part.name!r}: {stored} behind it compares stored vectors of whole documents, so the shorter "
                "texts change nothing; leave out the vectors there, or this step."
            )
        else:
            say(f"step {part.name!r}: no step behind it reads the shorter texts; leave it out.")


def _reads_texts(part: Part) -> bool:
    """Whether a step reads the texts of documents, and not stored vectors alone."""
    if part.kind == "rank" and "vectors" in part.settings:
        return part.method == "embedding" and part.settings.get("window") != 0
    return part.kind in ("rank", "compress", "feedback", "rewrite")


def searched_by(part: Part, description: Description, steps: Sequence[Step]) -> SearchedAgain:
    """Return the first stage that a step searches with other queries."""
    named = {step.name: step for step in description.steps}
    [stage] = [step.stage for step in steps if step.name == part.search]
    first = part.of[0] if part.of else None
    while first is not None and named[first].kind == "cut":
        [first] = named[first].of
    return SearchedAgain(str(part.search), stage, own_scores=first == part.search)


def _check_corpus(part: Part, description: Description) -> None:
    """Refuse an index that must hold exactly the collection's documents, and does not.

    Raises:
        UserError: the corpus of the collection has changed, or it is another one.
    """
    index, collection = part.settings.get("index"), description.collection
    if not isinstance(index, Path) or collection is None or part.method not in HOLDS:
        return
    if is_older(index, collection):
        raise UserError(
            f"{index}: holds {HOLDS[part.method]} of other documents than {collection} has now; search that "
            "collection, or build the index again."
        )


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
    kind = STEPS[part.kind]
    if kind.is_prepared:
        prepared = opener.prepared(kind.methods()[part.method], part.settings)
        return prepared.identities().get("model")
    return identity_of_model(part, "model", opener) if isinstance(part.settings.get("model"), str) else None


def identity_of_model(part: Part, name: str, opener: Opener) -> str:
    """Return the identity of a step's model, by the name of the setting."""
    if folder := model_folder(part, name, opener):
        return folder.identity
    named: LanguageModelSettings = {"model": part.settings[name], "model_name": part.settings.get("model_name")}
    return model_identity(how_to_open(named))["model"]


def model_folder(part: Part, name: str, opener: Opener) -> "ModelFolder | None":
    """Open the folder of a first stage's model, by the name of the setting.

    None stands for a model on a server.
    """
    reads = what_is_read(part) if name == "model" else "document"
    if reads is None and is_server(part.settings[name]):
        return None
    return opener.folder(part.settings[name], {"pair": "reranker", None: "language-model"}.get(reads, "retriever"))


def say_what_is_older(description: Description, collection: str) -> None:
    """Print a message for each index or vectors that were made from another corpus."""
    settings = [part.settings.get(setting) for part in description.steps for setting in ("index", "vectors")]
    for path in dict.fromkeys(value for value in settings if isinstance(value, Path)):
        say_if_older(path, collection)
