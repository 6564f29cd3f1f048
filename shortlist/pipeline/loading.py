"""Loading of indexes and models for pipeline steps, once for all steps that name them."""

from collections.abc import Callable, Hashable, Mapping
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, final

import numpy as np

from shortlist.config import keyword_types
from shortlist.engine import Engine
from shortlist.errors import UserError
from shortlist.index.dense import DenseSearch
from shortlist.index.kinds import find_kind
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
from shortlist.index.protocols import FirstStage, Opening, SearchesByReading
from shortlist.text.contract import PER_TOKEN

if TYPE_CHECKING:
    from shortlist.index.cur import SearchSpace
    from shortlist.models.folder import ModelFolder
    from shortlist.rerankers.asking import Questions
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

    def folder(self, name: str, wanted: str = "retriever") -> "ModelFolder":
        """Open the folder of a retriever or another model, looking its name up once."""
        from shortlist.models.folder import open_folder

        return self.once(("folder", name, wanted), lambda: open_folder(name, wanted=wanted))

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

    def compressor(self, method: Callable[..., "Prepared"], settings: Mapping[str, Any]) -> Any:
        """Load what shortens texts by a method in `pipeline.compressors.COMPRESSORS`."""
        load = self.prepared(method, settings).open
        return self.model("compressor", str(settings.get("model", "")), load, method, *sorted(settings.items()))


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
    if finder := find_kind(kind_of(index)).finder:
        raise UserError(f"{index}: an index of kind {kind_of(index)}; search it with `find: {finder}`.")
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


def open_cur(
    opener: Opener,
    *,
    model: str,
    index: Path | None = None,
    vectors: Path | None = None,
    retriever: str | None = None,
    contract: str | None = None,
    anchors: int = 50,
    budget: int = 200,
    rounds: int = 5,
    prior: float = 0.5,
) -> SearchesByReading:
    """Open a search by a pointwise reranker alone, over its scores or over vectors.

    Args:
        model: reranker that gives one score to a pair: folder or hub name.
        index: index of the kind `cur`, of this reranker's scores.
        vectors: vectors of the documents from `shortlist encode`, in place of an index.
        retriever: model that made the vectors.
        contract: the reranker's input contract by name, for a folder without one.
        anchors: with an index: documents that are read first for every query.
        budget: most documents to read for a query, anchors included, those that a filter hides too.
        rounds: rounds of reading after the anchors.
        prior: with vectors: weight of the query's own vector beside the one that fits the scores, 0 to 1.

    Raises:
        UserError: neither or both are named, a number is out of range, or another model made the scores or vectors.
    """
    from shortlist.index.cur import CurSearch
    from shortlist.rerankers.pointwise import pointwise

    if (index is None) == (vectors is None):
        raise UserError("`find: cur` takes an index of the kind cur, or vectors; not both, not neither.")
    least = 1 if index is None else anchors
    if budget < least or rounds < 1 or not 0 <= prior <= 1:
        raise UserError(
            f"`find: cur` with budget {budget}, rounds {rounds} and prior {prior:g}; expected a budget of {least} or "
            f"more{'' if index is None else ' (the anchors)'}, 1 round or more and a prior from 0 to 1."
        )
    settings = {"model": model} | ({} if contract is None else {"contract": contract})
    if index is not None:
        if retriever is not None or prior != 0.5:
            raise UserError("`find: cur` over an index has no retriever or prior; leave them out, or name vectors.")
        space = _space_of_scores(opener, index, anchors, opener.prepared(pointwise, settings), model)
    else:
        if anchors != 50:
            raise UserError("`find: cur` over vectors has no anchors; leave them out, or name an index.")
        assert vectors is not None
        space = _space_of_vectors(opener, vectors, retriever, prior)
    return CurSearch(opener.reranker(pointwise, settings), space, budget=budget, rounds=rounds)


def _space_of_scores(opener: Opener, index: Path, anchors: int, prepared: "Prepared", model: str) -> "SearchSpace":
    """Open an index of this reranker's scores."""
    from shortlist.index.cur import SearchSpace, check_scored_by

    if (kind := kind_of(index)) != "cur":
        raise UserError(f"{index}: an index of kind {kind}; `find: cur` searches one of kind cur.")
    check_scored_by(index, prepared, model)
    scores = opener.index(index, "anchors", lambda: open_index(index))
    return SearchSpace(scores.scores, scores.doc_ids, scores.anchors(anchors))


def _space_of_vectors(opener: Opener, vectors: Path, retriever: str | None, prior: float) -> "SearchSpace":
    """Open vectors of the documents with the model that made them."""
    from shortlist.data.stores.vectors import VectorReader
    from shortlist.index.cur import SearchSpace

    if retriever is None:
        raise UserError("retriever is missing: `find: cur` over vectors takes the model that made them.")
    check_held(vectors, "vectors")
    check_vectors(vectors, opener.folder(retriever))
    kept, _ = dims_to_search(vectors, None)
    encode = opener.retriever(retriever, dims=kept).encode_queries
    store = opener.index((vectors, "cur"), "take", lambda: VectorReader(vectors))
    items = store.take(np.arange(store.num_docs)).T
    return SearchSpace(items, store.doc_ids, np.empty(0, dtype=np.int64), encode, prior)


Walker = Literal["vectors", "pointwise", "listwise"]
"""What scores a tree's nodes: their mean vectors, a pointwise reranker, or a language model that grades slates."""

LatticeSettings = TypedDict("LatticeSettings", {"lambda": float | None}, total=False)
"""The weight of squared errors, whose name is a word of Python."""

OF_WALKERS: dict[str, tuple[str, ...]] = {
    "vectors": ("contract", "vectors", "beam"),
    "pointwise": ("contract", "vectors", "beam", "budget"),
    "listwise": (
        *("vectors", "beam", "iterations", "alpha", "calibration", "tau", "lambda"),
        *("model_name", "prompt", "max_length", "log"),
    ),
}
"""The settings of `find: tree` that a walker has."""


def open_tree(
    opener: Opener,
    *,
    index: Path,
    model: str,
    walker: Walker = "vectors",
    vectors: Path | None = None,
    contract: str | None = None,
    beam: int | None = None,
    budget: int | None = None,
    iterations: int | None = None,
    alpha: float | None = None,
    calibration: int | None = None,
    tau: float | None = None,
    model_name: str | None = None,
    prompt: str | None = None,
    max_length: int | None = None,
    log: str | None = None,
    **more: Unpack[LatticeSettings],
) -> FirstStage | SearchesByReading:
    """Open a tree that vectors, a reranker or a language model walk.

    Args:
        model: the retriever that made the vectors, a pointwise reranker, or a language model: folder or hub name, or
            the address of a server.
        walker: what the model is.
        vectors: where the vectors are, if they have moved since the index was built.
        contract: the input contract of a retriever or reranker by name, for a folder without one.
        beam: nodes to go on from at a time (None: as the index says by vectors, otherwise 2).
        budget: pointwise: most nodes and documents to read for a query (None: 200).
        iterations: listwise: times that the best nodes are opened (None: 20).
        alpha: listwise: weight of a node's own score beside its parent's path (None: 0.5).
        calibration: listwise: most seen documents to show again in a slate (None: 10).
        tau: listwise: scale of the latent scores (None: 5); with a lambda of 1 it changes nothing.
        model_name: listwise: the server's name of the model.
        prompt: listwise: name of a prompt that asks for grades or an order (None: tree-walk).
        max_length: listwise: most tokens of a prompt with its answer.
        log: listwise: file that keeps the answers, so that nothing is asked twice.
        more: listwise: `lambda`, the weight of squared errors in the calibration, 0 to 1; 1 without it.

    Raises:
        UserError: a setting is not this walker's or out of range, it is no tree, or the model does not fit.
    """
    numbers = {"beam": beam, "budget": budget, "iterations": iterations, "alpha": alpha, "calibration": calibration}
    numbers |= {"tau": tau, "lambda": more.get("lambda")}
    asking = {"model_name": model_name, "prompt": prompt, "max_length": max_length, "log": log}
    found = {**numbers, **asking, "vectors": vectors, "contract": contract}
    given = {name: value for name, value in found.items() if value is not None}
    _check_walk(walker, given)
    if (kind := kind_of(index)) != "tree":
        raise UserError(f"{index}: an index of kind {kind}; `find: tree` walks one of kind tree.")
    if walker == "vectors":
        return open_dense(opener, model=model, index=index, vectors=vectors, contract=contract, effort=beam)
    tree = opener.index((index, vectors), "find", lambda: open_index(index, Opening(vectors=vectors)))
    if walker == "pointwise":
        from shortlist.index.walking import by_ranker
        from shortlist.rerankers.pointwise import pointwise

        settings = {"model": model} | ({} if contract is None else {"contract": contract})
        return by_ranker(tree, opener.reranker(pointwise, settings), beam=beam or 2, budget=budget or 200)
    from shortlist.index.walking import by_questions

    names = {"beam": "beam", "iterations": "iterations", "alpha": "alpha", "calibration": "calibration"}
    names |= {"tau": "tau", "lambda": "share"}
    settings = {names[name]: value for name, value in numbers.items() if value is not None and name in names}
    asked = tuple(asking.values())
    questions = opener.once(("walker", model, *asked), lambda: _questions(model, *asked))
    return by_questions(tree, questions, **settings)


def _check_walk(walker: str, given: Mapping[str, Any]) -> None:
    """Refuse settings that a walker does not have, and numbers out of range."""
    for name, value in given.items():
        if name not in OF_WALKERS[walker]:
            raise UserError(f"`find: tree` by {walker} has no {name}; leave it out, or choose another walker.")
        least, most = {"alpha": (0, 1), "lambda": (0, 1), "calibration": (0, 100)}.get(name, (1e-9, float("inf")))
        if isinstance(value, int | float) and not least <= value <= most:
            wanted = "above 0" if most == float("inf") else f"{least} to {most}"
            raise UserError(f"`find: tree` with {name} {value:g}; expected {wanted}.")


def _questions(
    model: str, model_name: str | None, prompt: str | None, max_length: int | None, log: str | None
) -> "Questions":
    """Open a language model that grades slates, or puts them in order."""
    from shortlist.rerankers import opening
    from shortlist.rerankers.asking import Questions
    from shortlist.rerankers.language import ASKED, how_to_open, language_model
    from shortlist.rerankers.limits import CallLimits
    from shortlist.text.prompts import named_prompt

    chosen = named_prompt(prompt or "tree-walk")
    if chosen.asks not in ("grades", "order") or chosen.encoder:
        raise UserError(f"prompt {chosen.name!r} asks for {ASKED[chosen.asks]}; a walk takes grades, or an order.")
    how = how_to_open(
        language_model(model, model_name=model_name, max_length=max_length, token_budget=None, precision="fp32")
    )
    asked, shared = opening.open_language_model(prompt=chosen, reads=chosen.reads, **how)
    return Questions(asked, chosen, shared, limits=None if log is None else CallLimits(log=Path(log)), warns=True)


FINDERS: dict[str, Callable[..., FirstStage | SearchesByReading]] = {
    "bm25": open_words,
    "dense": open_dense,
    "late": open_late,
    "sparse": open_sparse,
    "cur": open_cur,
    "tree": open_tree,
    "index": open_any,
}
"""First stages by name; the keyword arguments of a function are its settings."""


def finder_of(contract: "InputContract") -> str:
    """Return the name of the first stage for what a model gives."""
    from shortlist.text.contract import PER_TOKEN, SPARSE

    return {PER_TOKEN: "late", **dict.fromkeys(SPARSE, "sparse")}.get(contract.reading.pooling, "dense")


def compressors() -> Mapping[str, Callable[..., "Prepared"]]:
    """Return the ways to shorten texts, imported when one is first named."""
    from shortlist.pipeline.compressors import COMPRESSORS

    return COMPRESSORS


def rerankers() -> Mapping[str, Callable[..., "Prepared"]]:
    """Return the reranking methods, imported when one is first named."""
    from shortlist.rerankers.kinds import RERANKERS

    return RERANKERS
