"""What keeps term weights sparse while a model trains, and what is logged of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shortlist.data.collections import Collection
from shortlist.data.files import read_json
from shortlist.errors import UserError
from shortlist.math.sparsity import REGULARISERS, denser_than, expected_products, num_terms, ramp, steered
from shortlist.models.lookups import read_named_weights
from shortlist.settings.sparsity import Regulariser
from shortlist.text.inputs import Inputs
from shortlist.text.marks import TOKEN_ID

SPARSITY = "sparsity.json"
"""The file of a checkpoint with the factors that the weights have been steered to."""
TEXTS_AT_ONCE = 4096


@final
class Sparsity:
    """The regularisers of queries and documents, whose weights follow schedules and wanted densities.

    Args:
        sides: the regularisers, by `query` and `document` (None: none).
        steps: the steps of the whole training.
        idf: the weights of queries' terms, which `idf-flops` reads.
    """

    def __init__(
        self,
        sides: Mapping[str, Regulariser | None],
        *,
        steps: int,
        idf: Float[Tensor, " vocabulary"] | None = None,
    ) -> None:
        self._sides = {side: settings for side, settings in sides.items() if settings is not None}
        self._steps, self._idf = steps, idf
        self.factors = dict.fromkeys(self._sides, 1.0)
        """What the weight of each regulariser is multiplied by."""
        if idf is None and any(settings.name == "idf-flops" for settings in self._sides.values()):
            raise UserError(
                "idf-flops: reads the weights of queries' terms, and this model's queries are not looked up; add "
                "--query-terms idf, or use flops."
            )

    def penalty(
        self,
        queries: Float[Tensor, "queries vocabulary"],
        documents: Float[Tensor, "docs vocabulary"],
        *,
        step: int,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Compute what a step's loss gets besides, and measure how sparse the weights are.

        Args:
            step: the number of steps done before.
        """
        weights, total = {"query": queries, "document": documents}, queries.new_zeros(())
        for side, settings in self._sides.items():
            given = denser_than(weights[side], settings.exempt) if settings.exempt else weights[side]
            more = () if settings.name != "idf-flops" or self._idf is None else (self._idf.to(given.device),)
            share = settings.weight * ramp(step, self._ramp(settings)) * self.factors[side]
            total = total + share * REGULARISERS[settings.name](given, *more)
        measured = {"query_terms": num_terms(queries), "document_terms": num_terms(documents)}
        measured["products"] = expected_products(queries, documents)
        steering = {f"{side}_factor": factor for side, factor in self.factors.items() if self._sides[side].terms}
        return total, {name: round(value, 4) for name, value in (measured | steering).items()}

    def steer(self, record: Mapping[str, float]) -> None:
        """Change the factors after a step, by what it measured; not before the weights are fully grown."""
        for side, settings in self._sides.items():
            if settings.terms and record["step"] >= self._ramp(settings):
                self.factors[side] = steered(self.factors[side], record[f"{side}_terms"], settings.terms)

    def texts(self) -> dict[str, str]:
        """Return the files of a checkpoint that hold the factors."""
        return {SPARSITY: json.dumps(self.factors)}

    def restore(self, checkpoint: Path) -> None:
        """Read the factors from a checkpoint, whose files have been checked."""
        self.factors |= read_json(checkpoint / SPARSITY)

    def _ramp(self, settings: Regulariser) -> int:
        return settings.steps or self._steps // 3


def document_frequencies(collection: Collection, inputs: Inputs, size: int) -> Float[np.ndarray, " vocabulary"]:
    """Compute the inverse document frequency of each term, as documents are read.

    It is that of BM25, above 0: log(1 + (N - n + 0.5) / (n + 0.5)) for a term in n of N documents.

    Args:
        size: the number of terms.
    """
    found, num_docs, part = np.zeros(size, dtype=np.int64), 0, []

    def count() -> None:
        for ids in inputs.document_ids(part):
            found[np.unique(np.array(ids, dtype=np.int64) & TOKEN_ID)] += 1

    for document in collection.corpus():
        part.append(document)
        num_docs += 1
        if len(part) == TEXTS_AT_ONCE:
            count()
            part.clear()
    if part:
        count()
    return np.log1p((num_docs - found + 0.5) / (found + 0.5)).astype(np.float32)


def make_lookup(named: str, collection: Collection | None, inputs: Inputs, size: int) -> Tensor:
    """Make the weights of queries' terms that `--query-terms` names.

    Args:
        named: binary, idf or a JSON file.
        collection: the collection whose documents are counted.
        size: the number of terms.

    Raises:
        UserError: the file has other terms than the vocabulary, or bad weights.
    """
    tokenizer: Any = inputs.tokenizer
    if named == "binary":
        weights = np.ones(size, dtype=np.float32)
    elif named == "idf" and collection is not None:
        weights = document_frequencies(collection, inputs, size)
    else:
        weights = read_named_weights(Path(named), tokenizer, size)
    weights[[number for number in tokenizer.all_special_ids if number < size]] = 0
    return torch.from_numpy(weights)
