"""Retrievers: texts in, vectors out."""

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
    """A model that gives queries and documents vectors, whose dot product is their similarity.

    Args:
        model: ready to run; its `inputs` make token ids of texts.
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
        """Load a model folder, or the name of one on the hub, ready to encode.

        Args:
            contract: input contract, by name or as it is, for a folder that does not say its own.
            adjust: makes the contract that is used of that one, such as with other lengths.
            options: device and precision, as for `models.run.for_inference`.

        Raises:
            UserError: no model is there, or nothing says what its input looks like.
        """
        folder = open_folder(name) if isinstance(name, str) else name
        model = load_model(folder, "document", contract, adjust=adjust)
        for_inference(model, **options)
        return cls(model)

    @property
    def contract(self) -> InputContract:
        """How texts become ids, and how the output is read."""
        return self.model.contract

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.model.row_shape[-1]

    def encode_queries(self, queries: Sequence[str | Query], **options: Any) -> Float[np.ndarray, "queries dim"]:
        """Vectors of queries; options as in `models.run.run_model`."""
        return embed_queries(self.model, as_queries(queries), **options)

    def encode_documents(self, documents: Sequence[str | Document], **options: Any) -> Float[np.ndarray, "docs dim"]:
        """Vectors of documents; options as in `models.run.run_model`."""
        return embed_documents(self.model, as_documents(documents), **options)
