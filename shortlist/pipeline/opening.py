"""Opening of a description's steps, with every index and model loaded once."""

from shortlist.pipeline.loading import Opener
from shortlist.pipeline.spec import Description
from shortlist.pipeline.steps import STEPS, Step


def open_steps(description: Description, opener: Opener | None = None) -> list[Step]:
    """Open the steps of a description, ready to run.

    Raises:
        UserError: an index or model is missing, or does not belong with the others.
    """
    opener = opener or Opener()
    steps = []
    for part in description.steps:
        kind = STEPS[part.kind]
        stage = kind.open(kind.methods()[part.method], opener, part.settings)
        steps.append(Step(part.name, kind, stage, part.of, part.depth or kind.depth, part.share))
    return steps
