"""The kinds of models: what each is used as, and how it is found in a folder, loaded, made to train and saved.

What another room does with a kind is a table of that room, which `for_kind` reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from shortlist.errors import unknown
from shortlist.models.folder import ModelFolder
from shortlist.models.heads import HEAD, is_classifier
from shortlist.models.load import (
    dense_to_train,
    head_of,
    language_model_to_train,
    load_classifier_model,
    load_dense,
    load_pointwise,
    pointwise_to_train,
)
from shortlist.text.contract import Adjust, InputContract

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """One kind of model; its module has its name as a class attribute, `kind`."""

    role: str
    """What it is used as: `retriever`, `reranker` or `language-model`. A table without the kind has its role."""
    reads: str
    """Template of the contract that it needs: `document` (and `query`), or `pair`."""
    load: Callable[..., Any] | None = None
    """Loads it from a folder by a contract, in a `dtype` (None: there is nothing to run)."""
    is_in: Callable[[ModelFolder, InputContract], bool] = lambda folder, contract: True
    """Whether a folder that is read by this contract holds such a model; later kinds are asked before earlier ones."""
    to_train: Callable[..., Any] | None = None
    """Makes one to train of a folder and a contract: as `load.dense_to_train` (None: it is not trained here)."""
    temperature: float = 1.0
    """What divides its scores in a loss, if nothing else is said."""
    saved: Mapping[str, str] = field(default_factory=dict)
    """What is saved beside the backbone: name in the module -> key in the folder."""
    as_classifier: bool = False
    """It is saved as one of transformers' sequence classifiers, keys and configuration."""
    saves_itself: bool = False
    """The backbone is a whole model of transformers, head included, and is saved as that."""


KINDS: dict[str, ModelKind] = {
    "retriever": ModelKind(
        role="retriever", reads="document", load=load_dense, to_train=dense_to_train, temperature=0.01
    ),
    "reranker": ModelKind(
        role="reranker",
        reads="pair",
        load=load_pointwise,
        to_train=pointwise_to_train,
        saved={"head": HEAD},
        as_classifier=True,
    ),
    "classifier": ModelKind(
        role="reranker",
        reads="pair",
        load=load_classifier_model,
        is_in=lambda folder, contract: (
            not contract.reading.answer and is_classifier(folder.path) and head_of(folder) is None
        ),
        saves_itself=True,
    ),
    "language-model": ModelKind(role="language-model", reads="pair", to_train=language_model_to_train),
}
"""By the name that `shortlist train` has for it, and that its module has as `kind`."""


def kind_in(folder: ModelFolder, contract: InputContract, reads: str) -> ModelKind:
    """Find the kind of model that a folder holds.

    Args:
        contract: how it is read.
        reads: what it is wanted for: `document` or `pair`.
    """
    fitting = (kind for kind in reversed(KINDS.values()) if kind.load and kind.reads == reads)
    return next(kind for kind in fitting if kind.is_in(folder, contract))


def load_model(
    folder: ModelFolder,
    reads: str,
    contract: str | InputContract | None = None,
    *,
    adjust: Adjust | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Load the model that a folder holds, whichever kind it is.

    Args:
        reads: what it is wanted for: `document` for a retriever, `pair` for a reranker.
        contract: input contract, by name or as it is (None: the folder's own).
        adjust: makes the contract that is used of that one, such as with other lengths.

    Raises:
        UserError: nothing says what its input looks like, or it is no such model.
    """
    found = folder.contract(reads, contract)
    found = adjust(found) if adjust else found
    load = kind_in(folder, found, reads).load
    assert load is not None  # as `kind_in` has it, for the type checker
    return load(folder, found, dtype=dtype)


def named_kind(name: str) -> ModelKind:
    """Return the kind of a name that `shortlist train` has.

    Raises:
        UserError: there is none, or it is not trained here.
    """
    known = [name for name, kind in KINDS.items() if kind.to_train]
    if name not in known:
        raise unknown("kind of model", name, known)
    return KINDS[name]


def for_kind(table: Mapping[str, T], kind: str) -> T:
    """Look up what a table says of a kind of model, else of the role that it has.

    Raises:
        KeyError: nothing of either.
    """
    return table[kind] if kind in table else table[KINDS[kind].role]
