"""The kinds of models: their roles, and how they are recognised, loaded, trained and saved.

Other packages keep tables of what they do with each kind, which `for_kind` reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from shortlist.errors import UserError, unknown
from shortlist.late import late
from shortlist.models.files import HEAD, LATENT_KEYS, OUTPUT_EMBEDDING, PROJECTION, is_classifier, layer_heads
from shortlist.models.folder import ModelFolder
from shortlist.models.shipped import shipped_folder, warn_of_text
from shortlist.text.contract import PER_TOKEN, SPARSE, Adjust, InputContract

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """A kind of model; the module's class attribute `kind` holds its name."""

    role: str
    """Its use: `retriever`, `reranker` or `language-model`. It is the key in tables that do not list the kind."""
    reads: str
    """The template that its contract must have: `document` (and `query`), or `pair`."""
    load: Callable[..., Any] | None = None
    """Loads it from a folder with a contract, in a `dtype` (None: it cannot be run)."""
    is_in: Callable[[ModelFolder, InputContract], bool] = lambda folder, contract: True
    """Whether a folder that is read with this contract holds such a model; later kinds are tried first."""
    to_train: Callable[..., Any] | None = None
    """Makes a model to train from a folder and a contract, like `load.dense_to_train` (None: it cannot be trained)."""
    temperature: float = 1.0
    """The default temperature, which divides its scores in a loss."""
    saved: Mapping[str, str] = field(default_factory=dict)
    """The parameters saved besides the backbone: name in the module -> key in the folder."""
    as_classifier: bool = False
    """Whether its keys and configuration are saved as a sequence classifier of transformers."""
    as_causal: bool = False
    """Whether it is saved as a causal language model of transformers."""
    saves_itself: bool = False
    """Whether the backbone is a complete model of transformers, with its head, and is saved as such."""
    used_as: str = "Retriever"
    """The class of Python that it is used through, if it is a retriever."""


def is_headless_classifier(folder: ModelFolder) -> bool:
    """Whether a folder holds a classifier whose head is not under our key."""
    if not is_classifier(folder.path):
        return False
    from shortlist.models.load import head_of

    return head_of(folder) is None


KINDS: dict[str, ModelKind] = {
    "retriever": ModelKind(
        role="retriever",
        reads="document",
        load=late("models.load", "load_dense"),
        to_train=late("models.load", "dense_to_train"),
        saved=LATENT_KEYS,
        temperature=0.01,
    ),
    "late": ModelKind(
        role="retriever",
        reads="document",
        load=late("models.loading_late", "load_late"),
        to_train=late("models.loading_late", "late_to_train"),
        is_in=lambda folder, contract: contract.reading.pooling == PER_TOKEN,
        saved={"layers.0.weight": PROJECTION},
        used_as="LateRetriever",
    ),
    "sparse": ModelKind(
        role="retriever",
        reads="document",
        load=late("models.loading_sparse", "load_sparse"),
        to_train=late("models.loading_sparse", "sparse_to_train"),
        is_in=lambda folder, contract: contract.reading.pooling in SPARSE,
        used_as="SparseRetriever",
    ),
    "reranker": ModelKind(
        role="reranker",
        reads="pair",
        load=late("models.load", "load_pointwise"),
        to_train=late("models.load", "pointwise_to_train"),
        saved={"head": HEAD},
        as_classifier=True,
    ),
    "classifier": ModelKind(
        role="reranker",
        reads="pair",
        load=late("models.load", "load_classifier_model"),
        is_in=lambda folder, contract: not contract.reading.answer and is_headless_classifier(folder),
        saves_itself=True,
    ),
    "layerwise": ModelKind(
        role="reranker",
        reads="pair",
        load=late("models.layerwise", "load_layerwise"),
        is_in=lambda folder, contract: layer_heads(folder.whole.backbone_path) is not None,
    ),
    "answering": ModelKind(role="reranker", reads="pair", saved={"output": OUTPUT_EMBEDDING}, as_causal=True),
    "language-model": ModelKind(
        role="language-model",
        reads="pair",
        to_train=late("models.load", "language_model_to_train"),
        saved={"output": OUTPUT_EMBEDDING},
        as_causal=True,
    ),
}
"""The kinds by name, which is the name in `shortlist train` and the module's `kind`."""


GIVES = {
    "Retriever": "one vector for each text",
    "LateRetriever": "a vector for each token (late interaction)",
    "SparseRetriever": "weights of terms (learned sparse retrieval)",
}
"""What retrievers give, by the class of Python that they are used through."""


def kind_in(folder: ModelFolder, contract: InputContract, reads: str) -> ModelKind:
    """Find the kind of model that a folder holds.

    Args:
        folder: the model's folder.
        contract: the contract that it is read with.
        reads: the wanted input: `document` for a retriever, `pair` for a reranker.
    """
    fitting = (kind for kind in reversed(KINDS.values()) if kind.load and kind.reads == reads)
    return next(kind for kind in fitting if kind.is_in(folder, contract))


def load_model(
    folder: ModelFolder,
    reads: str,
    contract: str | InputContract | None = None,
    *,
    adjust: Adjust | None = None,
    dtype: "torch.dtype | None" = None,
    used_as: str | None = None,
    layers: int | None = None,
) -> Any:
    """Load the model that a folder holds, whatever its kind.

    Args:
        folder: the model's folder.
        reads: the wanted input: `document` for a retriever, `pair` for a reranker.
        contract: the input contract, by name or as an object (None: the folder's own).
        adjust: changes that contract before use, such as its lengths.
        dtype: dtype of the weights (None: float32).
        used_as: the class that the caller is, as in `ModelKind.used_as` (None: any).
        layers: the layers to compute of a model with heads behind several (None: all).

    Raises:
        UserError: its input contract is unknown, or it is another kind of model.
    """
    found = folder.contract(reads, contract)
    found = folder.check_lengths(adjust(found) if adjust else found)
    kind = kind_in(folder, found, reads)
    if used_as not in (None, kind.used_as):
        raise UserError(f"{folder.name}: gives {GIVES[kind.used_as]}; load it with {kind.used_as}.")
    load = kind.load
    if shipped_folder(folder.name):
        warn_of_text()
    assert load is not None  # `kind_in` ensures it; this tells the type checker
    options = {"dtype": dtype, "layers": layers}
    return load(folder, found, **{name: value for name, value in options.items() if value is not None})


def named_kind(name: str) -> ModelKind:
    """Return the kind with this name in `shortlist train`.

    Raises:
        UserError: there is no such kind, or it cannot be trained.
    """
    known = [name for name, kind in KINDS.items() if kind.to_train]
    if name not in known:
        raise unknown("kind of model", name, known)
    return KINDS[name]


def for_kind(table: Mapping[str, T], kind: str) -> T:
    """Look up a kind of model in a table, falling back to its role.

    Raises:
        KeyError: the table has neither.
    """
    return table[kind] if kind in table else table[KINDS[kind].role]
