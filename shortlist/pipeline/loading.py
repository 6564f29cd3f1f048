"""What the steps of a pipeline load: indexes and models, each once, however many steps name it."""

from collections.abc import Callable, Hashable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from shortlist.engine import Engine
from shortlist.errors import UserError
from shortlist.index.dense import DenseSearch
from shortlist.index.opening import check_vectors, kind_of, needs_model, open_index, open_vectors
from shortlist.index.protocols import FirstStage, Opening

if TYPE_CHECKING:
    from shortlist.models.folder import ModelFolder

T = TypeVar("T")


@final
class Opener:
    """Loads what steps name.

    Args:
        packed: of all models' linears, as for `models.run.for_inference`.
        model: what stands for a model in the pipeline, given `retriever` or `reranker`, its name and the model (None:
            itself).
        index: what stands for an index, given it and the method that searches it (None: itself).
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

    def once(self, key: Hashable, load: Callable[[], T]) -> T:
        """What has been loaded under this key; the first time it is loaded."""
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]

    def folder(self, name: str, wanted: str = "retriever") -> "ModelFolder":
        """What a model's name stands for, looked up once.

        Args:
            wanted: as for `models.folder.open_folder`.
        """
        from shortlist.models.folder import open_folder

        return self.once(("folder", name, wanted), lambda: open_folder(name, wanted=wanted))

    def model(self, role: str, name: str, load: Callable[[], Any], *settings: Hashable) -> Any:
        """A model, or what stands for it."""
        stands = self._model or (lambda role, name, model: model)
        return self.once((role, name, *settings), lambda: stands(role, name, load()))

    def index(self, key: Hashable, method: str, load: Callable[[], Any]) -> Any:
        """An index, or what stands for it."""
        stands = self._index or (lambda index, method: index)
        return self.once((method, key), lambda: stands(load(), method))

    def retriever(self, name: str, *, contract: str | None = None, query_length: int | None = None) -> Any:
        """A retriever, ready to embed queries."""

        def load() -> Any:
            from shortlist.models.retriever import Retriever

            folder = self.folder(name)
            form = folder.contract("document", contract).with_lengths(query=query_length)
            return Retriever.load(folder, contract=form, packed=self.packed)

        return self.model("retriever", name, load, contract, query_length)

    def reranker(self, method: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
        """A reranker of a method in `rerankers.kinds.RERANKERS`, ready to score."""

        def load() -> Any:
            known = signature(method).parameters
            given = {"packed": self.packed} | dict(settings) if "packed" in known else dict(settings)
            if "model" in given and "ModelFolder" in str(known["model"].annotation):
                given["model"] = self.folder(given["model"], "reranker")
            return method(**given).open()

        return self.model("reranker", str(settings.get("model", "")), load, method, *sorted(settings.items()))


def open_words(opener: Opener, *, index: Path) -> FirstStage:
    """Search by words, in an index from `shortlist index`."""
    if (kind := kind_of(index)) != "bm25":
        raise UserError(f"{index}: an index of kind {kind}; `find: bm25` searches one over words.")
    return open_any(opener, index=index)


def open_any(opener: Opener, *, index: Path) -> FirstStage:
    """Search an index of whatever kind, if it needs no model."""
    if needs_model(index):
        raise UserError(
            f"{index}: an index of kind {kind_of(index)}, which needs a model; search it with `find: dense`."
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
    memory_gib: float | None = None,
    effort: int | None = None,
    refine: int | None = None,
    engine: Engine = "local",
) -> FirstStage:
    """Search by the vectors of a retriever: exactly, or in an index over them.

    Raises:
        UserError: neither vectors nor an index is named, or they are another model's.
    """
    where = index or vectors
    if where is None:
        raise UserError("neither vectors nor index is there; `find: dense` searches one of them.")
    if index and not needs_model(index):
        raise UserError(f"{index}: an index of kind {kind_of(index)}, which needs no model.")
    check_vectors(where, opener.folder(model), contract)
    how = Opening(vectors=vectors, effort=effort, refine=refine, memory_gib=memory_gib)
    retriever = opener.retriever(model, contract=contract, query_length=query_length)
    found = opener.index((index, how, engine), "find", lambda: open_vectors(index, how, engine=engine))
    return DenseSearch(retriever, found)


FINDERS: dict[str, Callable[..., FirstStage]] = {"bm25": open_words, "dense": open_dense, "index": open_any}
"""First stages by name; the settings of each are the keyword arguments of its function."""


def rerankers() -> Mapping[str, Callable[..., Any]]:
    """The methods of reranking, loaded when one is first named."""
    from shortlist.rerankers.kinds import RERANKERS

    return RERANKERS
