"""Loading of models that are ready to run, by the class that uses them."""

from typing import Any

import torch

from shortlist.errors import in_python
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import load_model
from shortlist.models.run import Precision, for_inference
from shortlist.text.contract import Adjust, InputContract


def load_ready(
    name: str | ModelFolder,
    *,
    used_as: str,
    contract: str | InputContract | None = None,
    adjust: Adjust | None = None,
    dims: int | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    packed: bool | None = None,
) -> Any:
    """Load a retriever's model, ready to encode; settings as for `Retriever.load`.

    Args:
        used_as: the class that uses it, such as `LateRetriever`.

    Raises:
        UserError: there is no model, its input contract is unknown, it is for another class, or its vectors have fewer
            dimensions.
    """

    def adjusted(found: InputContract) -> InputContract:
        return (adjust(found) if adjust else found).with_dims(dims)

    with in_python():
        folder = open_folder(name) if isinstance(name, str) else name
        model = load_model(folder, "document", contract, adjust=adjusted, used_as=used_as)
    for_inference(model, device, precision=precision, packed=packed)
    return model
