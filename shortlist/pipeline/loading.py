"""Loading of indexes and models for pipeline steps, once for all steps that name them."""

from collections.abc import Callable, Hashable, Mapping
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from shortlist.config import keyword_types
from shortlist.engine import Engine
from shortlist.errors import UserError
from shortlist.index.dense import DenseSearch
from shortlist.index.opening import (
    HELD,
    check_held,
    check_searching,
    check_vectors,
    dims_to_search,
    held,
    kind_of,
    needs_model,
    open_index,
    open_terms,
    open_tokens,
    open_vectors,
)
from shortlist.index.protocols import FirstStage, Opening
from shortlist.text.contract import PER_TOKEN

if TYPE_CHECKING:
    from shortlist.models.folder import ModelFolder
    from shortlist.rerankers.prepared import Prepared
    from shortlist.text.contract import InputContract

T = TypeVar("T")


QUERY_ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "retriever": ("models.retriever", "Retriever", {}),
    "late": ("models.late_retriever", "LateRetriever", {}),
    "sparse": ("models.sparse_retriever", "SparseRetriever", {"queries_only": True}),
}
"""The module and class that encode queries, by kind of model, and how the class is to load."""


@final
class Opener:
    """Loads indexes and models that steps name, each of them once.

    Args:
        packed: whether to pack the linear layers of all models, as for `models.run.for_inference`.
        model: makes a stand-in for a model, given `retriever` or `reranker`, the model's name and the model (None: use
            the model itself).
        index: makes a stand-in for an index, given the index and the name of its search method (None: use the index
            itself).
    """

    def __init__(
        self,
        *,
        packed: bool | None = None,
        model: Callable[[str, str, Any], Any] | None = None,
        index: Callable[[Any, str], Any] | None = None,
    ) -> None:
        self.packed, self._model, self._index = packed, model, index
        self._loaded: dict[Hashable, Any] = {}
        self._indexes: dict[Hashable, Any] = {}

    def renewed(self) -> "Opener":
        """Return an opener with the same models that opens indexes and collections anew."""
        opener = copy(self)
        opener._indexes = {}
        return opener

    def once(self, key: Hashable, load: Callable[[], T]) -> T:
        """Return what was loaded under this key; load it the first time."""
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]

    def folder(self, name: str) -> "ModelFolder":
        """Open the model folder of a retriever, looking its name up once."""
        from shortlist.models.folder import open_folder

        return self.once(("folder", name), lambda: open_folder(name))

    def model(self, role: str, name: str, load: Callable[[], Any], *settings: Hashable) -> Any:
        """Load a model, and return it or its stand-in."""
        stands = self._model or (lambda role, name, model: model)
        return self.once((role, name, *settings), lambda: stands(role, name, load()))

    def index(self, key: Hashable, method: str, load: Callable[[], Any]) -> Any:
        """Load an index, and return it or its stand-in."""
        stands = self._index or (lambda index, method: index)
        if (method, key) not in self._indexes:
            self._indexes[method, key] = stands(load(), method)
        return self._indexes[method, key]

    def retriever(
        self,
        name: str,
        *,
        kind: str = "retriever",
        contract: str | None = None,
        query_length: int | None = None,
        prompt: str | None = None,
        dims: int | None = None,
    ) -> Any:
        """Load a retriever of any kind, ready to encode queries.

        Args:
            kind: a key of QUERY_ENCODERS.
        """

        def load() -> Any:
            form = self.folder(name).contract("document", contract).with_lengths(query=query_length)
            form = form.with_prompt("query", prompt).with_dims(dims)
            module, encoder, more = QUERY_ENCODERS[kind]
            load_encoder = getattr(import_module(f"shortlist.{module}"), encoder).load  # late, as it loads PyTorch
            return load_encoder(self.folder(name), contract=form, packed=self.packed, **more)

        return self.model(kind, name, load, contract, query_length, prompt, dims)

    def feedback_encoder(self, name: str) -> Any:
        """Load a feedback encoder, which reads queries with documents."""

        def load() -> Any:
            from shortlist.models.retriever import Retriever

            folder = self.folder(name)
            return Retriever.load(folder, contract=folder.feedback_contract(), packed=self.packed)

        return self.once(("feedback encoder", name), load)

    def is_late(self, name: str, contract: str | None = None) -> bool:
        """Whether a retriever gives a vector for each token."""
        return self.folder(name).contract("document", contract).reading.pooling == PER_TOKEN

    def prepared(self, method: Callable[..., "Prepared"], settings: Mapping[str, Any]) -> "Prepared":
        """Prepare a reranker by a method in `rerankers.kinds.RERANKERS`, looking its model up once."""

        def prepare() -> "Prepared":
            given = dict(settings)
            if "packed" in keyword_types(method):
                given.setdefault("packed", self.packed)
            model = ("model", method, given.get("model"))
            if model in self._loaded:
                given["model"] = self._loaded[model]
            prepared = method(**given)
            if prepared.model is not None:
                self._loaded[model] = prepared.model
            return prepared

        return self.once(("prepared", method, *sorted(settings.items())), prepare)

    def reranker(self, method: Callable[..., "Prepared"], settings: Mapping[str, Any]) -> Any:
        """Load a reranker by a method in `rerankers.kinds.RERANKERS`, ready to score."""
        load = self.prepared(method, settings).open
        return self.model("reranker", str(settings.get("model", "")), load, method, *sorted(settings.items()))


def open_words(opener: Opener, *, index: Path | None = None, language: str | None = None) -> FirstStage:
    """Open a BM25 index from `shortlist index`.

    Args:
        language: only for a collection's own index, which is named by now.
    """
    if index is None or language is not None:
        raise UserError("`find: bm25` takes an index, or the language of the collection's own; not both, not neither.")
    if (kind := kind_of(index)) != "bm25":
        raise UserError(f"{index}: an index of kind {kind}; `find: bm25` searches one over words.")
    return open_any(opener, index=index)


def open_any(opener: Opener, *, index: Path) -> FirstStage:
    """Open an index of any kind that needs no model."""
    if needs_model(index):
        raise UserError(
            f"{index}: an index of kind {kind_of(index)}, which needs a model; search it with `find: "
            f"{HELD[held(index)].find}`."
        )
    return opener.index(index, "search", lambda: open_index(index))


def open_dense(
    opener: Opener,
    *,
    model: str,
    vectors: Path | None = None,
    index: Path | None = None,
    contract: str | None = None,
    query_length: int | None = None,
    prompt: str | None = None,
    dims: int | None = None,
    memory_gib: float | None = None,
    effort: int | None = None,
    refine: int | None = None,
    engine: Engine = "local",
) -> FirstStage:
    """Open vectors of a retriever for exact search, or an index over them.

    Raises:
        UserError: neither vectors nor an index is named, another model made them, or they have other dimensions.
    """
    where = index or vectors
    if where is None:
        raise UserError("neither vectors nor index is there; `find: dense` searches one of them.")
    if index and not needs_model(index):
        raise UserError(f"{index}: an index of kind {kind_of(index)}, which needs no model.")
    check_held(where, "vectors")
    check_vectors(where, opener.folder(model), contract)
    kept, cut = dims_to_search(where, dims)
    unit = cut is None or opener.folder(model).contract("document", contract).reading.normalize
    how = Opening(vectors=vectors, effort=effort, refine=refine, memory_gib=memory_gib, dims=cut, unit=unit)
    check_searching(index, how)
    retriever = opener.retriever(model, contract=contract, query_length=query_length, prompt=prompt, dims=kept)
    found = opener.index((index, how, engine), "find", lambda: open_vectors(index, how, engine=engine))
    return DenseSearch(retriever, found)


def open_late(
    opener: Opener,
    *,
    model: str,
    vectors: Path | None = None,
    index: Path | None = None,
    contract: str | None = None,
    query_length: int | None = None,
    prompt: str | None = None,
    memory_gib: float | None = None,
    effort: int | None = None,
    refine: int | None = None,
    engine: Engine = "local",
) -> FirstStage:
    """Open token vectors of a late-interaction model for exact search, or an index over them.

    Raises:
        UserError: neither vectors nor an index is named, there is one vector for each document, or another model made
            them.
    """
    from shortlist.index.late import LateSearch

    where = index or vectors
    if where is None:
        raise UserError("neither vectors nor index is there; `find: late` searches one of them.")
    check_held(where, "tokens")
    if not opener.is_late(model, contract):
        raise UserError(
            f"--model {model}: gives one vector for each text, and {where} holds token vectors; name the "
            "late-interaction model that made them."
        )
    check_vectors(where, opener.folder(model), contract)
    kept, _ = dims_to_search(where, None)
    how = Opening(vectors=vectors, effort=effort, refine=refine, memory_gib=memory_gib)
    check_searching(index, how)
    retriever = opener.retriever(
        model, kind="late", contract=contract, query_length=query_length, prompt=prompt, dims=kept
    )
    found = opener.index((index, how, engine), "find", lambda: open_tokens(index, how, engine=engine))
    return LateSearch(retriever, found)


def open_sparse(
    opener: Opener,
    *,
    model: str,
    vectors: Path | None = None,
    index: Path | None = None,
    contract: str | None = None,
    query_length: int | None = None,
    prompt: str | None = None,
    query_terms: int | None = None,
    effort: int | None = None,
    refine: int | None = None,
) -> FirstStage:
    """Open term weights of a sparse model for exact search, or an index over them.

    Raises:
        UserError: neither vectors nor an index is named, they are no term weights, or another model made them.
    """
    from shortlist.index.sparse import SparseSearch
    from shortlist.text.contract import SPARSE

    where = index or vectors
    if where is None:
        raise UserError("neither vectors nor index is there; `find: sparse` searches one of them.")
    check_held(where, "terms")
    if opener.folder(model).contract("document", contract).reading.pooling not in SPARSE:
        raise UserError(
            f"--model {model}: gives no term weights, and {where} holds them; name the sparse model that made them."
        )
    check_vectors(where, opener.folder(model), contract)
    how = Opening(vectors=vectors, effort=effort, refine=refine, query_terms=query_terms)
    check_searching(index, how)
    retriever = opener.retriever(model, kind="sparse", contract=contract, query_length=query_length, prompt=prompt)
    return SparseSearch(retriever, opener.index((index, how), "find", lambda: open_terms(index, how)))


FINDERS: dict[str, Callable[..., FirstStage]] = {
    "bm25": open_words,
    "dense": open_dense,
    "late": open_late,
    "sparse": open_sparse,
    "index": open_any,
}
"""First stages by name; the keyword arguments of a function are its settings."""


def finder_of(contract: "InputContract") -> str:
    """Return the name of the first stage for what a model gives."""
    from shortlist.text.contract import PER_TOKEN, SPARSE

    return {PER_TOKEN: "late", **dict.fromkeys(SPARSE, "sparse")}.get(contract.reading.pooling, "dense")


def rerankers() -> Mapping[str, Callable[..., "Prepared"]]:
    """Return the reranking methods, imported when one is first named."""
    from shortlist.rerankers.kinds import RERANKERS

    return RERANKERS
