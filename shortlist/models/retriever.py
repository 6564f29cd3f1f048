"""Retrievers, which turn texts into vectors."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float

from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import load_model
from shortlist.models.run import Model, embed_documents, embed_queries, for_inference
from shortlist.records import Document, Query, as_documents, as_queries
from shortlist.text.contract import Adjust, InputContract


@final
class Retriever:
    """A model that embeds queries and documents as vectors.

    The dot product of two vectors is their similarity.

    Args:
        model: a model that is ready to run; its `inputs` turn texts into token ids.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.inputs = model, model.inputs

    @classmethod
    def load(
        cls,
        name: str | ModelFolder,
        *,
        contract: str | InputContract | None = None,
        adjust: Adjust | None = None,
        **options: Any,
    ) -> "Retriever":
        """Load a model, ready to encode, from a folder or the hub.

        Args:
            name: the model's folder or hub name.
            contract: the input contract, by name or as an object, for a folder that does not contain one.
            adjust: changes that contract before use, such as its lengths.
            options: device and precision, as for `models.run.for_inference`.

        Raises:
            UserError: there is no model, or its input contract is unknown.
        """
        folder = open_folder(name) if isinstance(name, str) else name
        model = load_model(folder, "document", contract, adjust=adjust)
        for_inference(model, **options)
        return cls(model)

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return self.model.contract

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""
        return self.model.row_shape[-1]

    def encode_queries(self, queries: Sequence[str | Query], **options: Any) -> Float[np.ndarray, "queries dim"]:
        """Embed queries; options as in `models.run.run_model`."""
        return embed_queries(self.model, as_queries(queries), **options)

    def encode_documents(self, documents: Sequence[str | Document], **options: Any) -> Float[np.ndarray, "docs dim"]:
        """Embed documents; options as in `models.run.run_model`."""
        return embed_documents(self.model, as_documents(documents), **options)
