"""Identity of a pipeline: its description with contents in place of names."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortlist.config import markers
from shortlist.data.manifest import identity
from shortlist.pipeline.flags import Sources
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.opening import MODEL_SETTINGS, identity_of_model
from shortlist.pipeline.spec import Description, Part, written
from shortlist.pipeline.steps import STEPS

if TYPE_CHECKING:
    from shortlist.rerankers.prepared import Prepared


def prepared_of(part: Part, opener: Opener) -> "Prepared":
    """Prepare the reranker of a step."""
    return opener.prepared(STEPS[part.kind].methods()[part.method], part.settings)


def known_by_contents(description: Description, opener: Opener) -> str:
    """Write a description's steps, with contents in place of names, for its identity.

    Settings that change only the speed are left out.
    """

    def known(part: Part, name: str, value: Any) -> Any:
        if isinstance(value, Path):
            return identity(value)
        if name not in MODEL_SETTINGS:
            return value
        if STEPS[part.kind].is_prepared:
            return prepared_of(part, opener).identities().get(name, value)
        return identity_of_model(part, name, opener)

    steps = {
        part.name: {n: known(part, n, v) for n, v in part.settings.items() if n not in markers(Sources)}
        for part in description.steps
    }
    return json.dumps([written(description)["steps"] | steps, steps])
