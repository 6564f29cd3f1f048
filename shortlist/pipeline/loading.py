"""What the steps of a pipeline load: indexes and models, each once, however many steps name it."""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar, final

from shortlist.data.manifest import identity, read_manifest
from shortlist.engine import Engine
from shortlist.errors import UserError
from shortlist.index.protocols import FirstStage, VectorIndex

T = TypeVar("T")


@final
class Opener:
    """Loads what steps name.

    Args:
        packed: of all models' linears, as for `models.embed.for_inference`.
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
            from shortlist.models.checkpoint import load_retriever
            from shortlist.models.embed import for_inference

            retriever = load_retriever(name, contract=contract)
            retriever.inputs.contract = retriever.inputs.contract.with_lengths(query=query_length)
            for_inference(retriever, packed=self.packed)
            return retriever

        return self.model("retriever", name, load, contract, query_length)

    def reranker(self, name: str, *, contract: str | None = None) -> Any:
        """A pointwise reranker, ready to score."""

        def load() -> Any:
            from shortlist.models.reranker import Reranker

            return Reranker.load(name, contract=contract, packed=self.packed)

        return self.model("reranker", name, load, contract)


def kind_of(index: Path) -> str:
    """The kind of a finished index.

    Raises:
        UserError: there is none.
    """
    identity(index)  # refuses an unfinished one
    manifest = read_manifest(index)
    if manifest is None or manifest["stage"] != "index":
        raise UserError(f"--index {index}: not the output of `shortlist index`.")
    return manifest["config"].get("kind", "bm25")


def open_words(opener: Opener, *, index: Path) -> FirstStage:
    """Search by words, in an index from `shortlist index`."""
    from shortlist.index.bm25 import BM25Index

    if (kind := kind_of(index)) != "bm25":
        raise UserError(f"{index}: an index of kind {kind}; `find: bm25` searches one over words.")
    return opener.index(index, "search", lambda: BM25Index.load(index))


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
    from shortlist.index.dense import DenseSearch
    from shortlist.index.kinds import Opening

    where = index or vectors
    if where is None:
        raise UserError("neither vectors nor index is there; `find: dense` searches one of them.")
    check_maker(where, model, contract)
    how = Opening(vectors=vectors, effort=effort, refine=refine, memory_gib=memory_gib)
    key = (index, vectors, memory_gib, effort, refine, engine)
    found = opener.index(key, "find", lambda: _open_vectors(where, how, is_index=index is not None, engine=engine))
    return DenseSearch(opener.retriever(model, contract=contract, query_length=query_length), found)


def check_maker(path: Path, model: str, contract: str | None) -> None:
    """Refuse vectors, or an index over them, that this model did not make.

    Raises:
        UserError: it made others, with another contract, or they are not finished.
    """
    from shortlist.index.kinds import made_by
    from shortlist.models.checkpoint import model_identity, retriever_contract
    from shortlist.text.segments import segment_contract, segment_settings

    identity(path)  # refuses an unfinished store
    if made_by(path) not in (None, model_identity(model)):
        raise UserError(
            f"{path}: its vectors were not made by what --model {model} holds now; encode again, or name the model "
            "that made them."
        )
    made = read_manifest(path) or {}
    form = retriever_contract(model, contract)
    if made.get("stage") == "encode":
        form = segment_contract(form, **segment_settings(made))
    if made.get("made_from", {}).get("contract", form.of_documents()) != form.of_documents():
        was = made["config"].get("contract") or "the model's own"
        raise UserError(
            f"{path}: its vectors were made with the input contract {was}, which is not what --contract "
            f"{contract or '(the model has its own)'} is now; search with the same."
        )


def _open_vectors(path: Path, how: Any, *, is_index: bool, engine: Engine) -> VectorIndex:
    from shortlist.index.flat import FlatIndex
    from shortlist.index.kinds import exact_index, holds_segments, open_index
    from shortlist.index.scattered import ScatteredIndex
    from shortlist.index.segmented import SegmentIndex

    index = open_index(path, how) if is_index else exact_index(path, memory_gib=how.memory_gib)
    if engine != "local":
        if not isinstance(index, FlatIndex):
            raise UserError(f"--engine ray searches vectors exactly; {path} is an index of another kind.")
        index = ScatteredIndex(index, engine=engine)
    return SegmentIndex(index) if holds_segments(path) else index


def open_pointwise(opener: Opener, *, model: str, contract: str | None = None) -> Any:
    """Read each query and document together, one score for each pair."""
    return opener.reranker(model, contract=contract)


FINDERS: dict[str, Callable[..., FirstStage]] = {"bm25": open_words, "dense": open_dense}
RANKERS: dict[str, Callable[..., Any]] = {"pointwise": open_pointwise}
