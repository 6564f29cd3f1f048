"""A finished index, opened by what its manifest says, and the proof that vectors and a model belong together."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortlist.data.manifest import identity, read_manifest
from shortlist.engine import Engine
from shortlist.errors import UserError
from shortlist.index.dense import DenseSearch
from shortlist.index.kinds import find_kind
from shortlist.index.protocols import FirstStage, Opening, VectorIndex
from shortlist.progress import say

if TYPE_CHECKING:
    from shortlist.models.folder import ModelFolder


def kind_of(index: Path) -> str:
    """The kind of a finished index.

    Raises:
        UserError: nothing is there, it is not finished, or `shortlist index` has not made it.
    """
    identity(index)  # refuses an unfinished one
    manifest = read_manifest(index)
    if manifest is None or manifest["stage"] != "index":
        raise UserError(f"--index {index}: not the output of `shortlist index`.")
    return manifest["config"].get("kind", "bm25")


def needs_model(index: Path) -> bool:
    """Whether an index is searched by what a model makes of the queries.

    Raises:
        UserError: as for `kind_of`, or no such kind is known here.
    """
    return find_kind(kind_of(index)).first_stage is not None


def check_vectors(folder: Path, model: "ModelFolder", contract: str | None = None) -> None:
    """Check that a store of vectors, or an index over one, was made by this model as it is now.

    Asked before the model's weights are loaded. Vectors that say nothing of their model, as another tool's, pass.

    Args:
        folder: from `shortlist encode` or `shortlist index`.
        model: the folder of the retriever.
        contract: input contract by name, for a model that does not say its own.

    Raises:
        UserError: it is not finished, another model made it, or the same one with another input contract.
    """
    from shortlist.text.segments import segment_contract, segment_settings

    identity(folder)  # refuses an unfinished one
    if made_by(folder) not in (None, model.identity):
        raise UserError(
            f"{folder}: its vectors were not made by what --model {model.name} holds now; encode again, or name "
            "the model that made them."
        )
    made = read_manifest(folder) or {}
    form = model.contract("document", contract)
    if made.get("stage") == "encode":
        form = segment_contract(form, **segment_settings(made))
    if made.get("made_from", {}).get("contract", form.of_documents()) != form.of_documents():
        was = made["config"].get("contract") or "the model's own"
        raise UserError(
            f"{folder}: its vectors were made with the input contract {was}, which is not what --contract "
            f"{contract or '(the model has its own)'} is now; search with the same."
        )


def open_first_stage(
    index: Path | None, how: Opening | None = None, *, model: Any = None, engine: Engine = "local"
) -> FirstStage:
    """Open what searches an index of any kind, or searches vectors exactly.

    Whether the model has made the vectors is for `check_vectors` to say, before.

    Args:
        index: from `shortlist index` (None: exact search over `how.vectors`).
        how: what is asked of an approximate search, how much memory it may take, where the vectors are now.
        model: an open retriever, where `needs_model` says so or vectors are searched exactly.
        engine: `ray` scans vectors on a cluster.

    Raises:
        UserError: as for `open_index` and `open_vectors`.
    """
    if index is None:
        return DenseSearch(model, open_vectors(None, how, engine=engine))
    first_stage = find_kind(kind_of(index)).first_stage
    if first_stage is None:
        return open_index(index, how)
    return first_stage(model, open_vectors(index, how, engine=engine))


def open_vectors(index: Path | None, how: Opening | None = None, *, engine: Engine = "local") -> VectorIndex:
    """Open vectors, to be searched exactly or through an index over them; those of segments give whole documents.

    Args:
        index: an index over vectors (None: exact search over `how.vectors`).
        how: as for `open_first_stage`.
        engine: `ray` scans them on a cluster, which only exact search can.

    Raises:
        UserError: as for `open_index`, or the engine cannot search an index of that kind.
    """
    from shortlist.index.flat import FlatIndex, exact_index
    from shortlist.index.scattered import ScatteredIndex
    from shortlist.index.segmented import SegmentIndex

    how = how or Opening()
    path = index or how.vectors
    if path is None:
        raise ValueError("neither an index nor vectors to open")
    opened = open_index(path, how) if index else exact_index(path, memory_gib=how.memory_gib)
    if engine != "local":
        if not isinstance(opened, FlatIndex):
            raise UserError(f"--engine ray searches vectors exactly; {path} is an index of another kind.")
        opened = ScatteredIndex(opened, engine=engine)
    return SegmentIndex(opened) if holds_segments(path) else opened


def open_index(folder: Path, how: Opening | None = None) -> Any:
    """Open a finished index of any kind, saying so where the vectors under it have changed since.

    Returns:
        A first stage, or what its kind makes one of: a VectorIndex.

    Raises:
        UserError: it is not finished, its vectors are not there, or they are not those that it was built from.
    """
    how, kind = how or Opening(), find_kind(kind_of(folder))
    manifest = read_manifest(folder) or {}
    if kind.reads == "corpus":
        return kind.open(folder, manifest["config"], how)
    store = how.vectors or Path(manifest["config"]["vectors"])
    older = store.exists() and identity(store) != manifest["made_from"]["vectors"]
    if older and kind.exact:
        raise UserError(f"{folder}: is older than {store}, whose documents it must hold exactly; build it again.")
    index = kind.open(folder, manifest["config"], replace(how, vectors=store))
    if older:
        missing = getattr(index, "missing", None)
        lacks = "" if missing is None else f"{missing:,} new documents are not in it; "
        say(f"{folder}: is older than {store}; {lacks}`shortlist index` with the same settings brings it up to date.")
    return index


def made_by(folder: Path) -> str | None:
    """The identity of the model whose vectors a store, or an index over vectors, holds."""
    manifest = read_manifest(folder) or {}
    if manifest.get("stage") == "encode":
        return manifest["made_from"].get("model")
    return manifest.get("results", {}).get("model")


def holds_segments(folder: Path) -> bool:
    """Whether the vectors of a store, or those that an index was built over, are of segments."""
    manifest = read_manifest(folder) or {}
    if manifest.get("stage") == "encode":
        return manifest["config"].get("segments") == "maxp"
    return manifest.get("results", {}).get("segments", False)
