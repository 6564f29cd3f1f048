"""Opening of finished indexes, and checks that vectors and a model belong together."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shortlist.data.collections import open_collection
from shortlist.data.manifest import described, identity, read_manifest, same_identity
from shortlist.engine import Engine
from shortlist.errors import UserError
from shortlist.index.kinds import find_kind
from shortlist.index.protocols import Opening, TermIndex, TokenIndex, VectorIndex
from shortlist.progress import say

if TYPE_CHECKING:
    from shortlist.models.folder import ModelFolder


def kind_of(index: Path) -> str:
    """Read the kind of a finished index from its manifest.

    Raises:
        UserError: there is no index, it is not finished, or it was not made by `shortlist index`.
    """
    identity(index)  # raises if it is unfinished
    manifest = read_manifest(index)
    if manifest is None or manifest["stage"] != "index":
        found = described(index, wanted="index") or "not the output of `shortlist index`"
        raise UserError(f"--index {index}: is {found}.")
    return manifest["config"].get("kind", "bm25")


def needs_model(index: Path) -> bool:
    """Whether an index is searched by a model's output for the queries.

    Raises:
        UserError: the same as for `kind_of`, or the kind is unknown.
    """
    return find_kind(kind_of(index)).needs_model


def check_vectors(folder: Path, model: "ModelFolder", contract: str | None = None) -> None:
    """Check that this model, as it is now, made a folder's vectors.

    The check does not need the model's weights. Vectors without a record of their model, such as another tool's, pass.

    Args:
        folder: a store of vectors or an index over one, from `shortlist encode` or `shortlist index`.
        model: the folder of the retriever.
        contract: the name of the input contract, for a model that does not record one.

    Raises:
        UserError: the folder is not finished, another model made it, or this model made it with another input contract
            or when its tokenizer split texts otherwise.
    """
    from shortlist.text.segments import segment_contract, segment_settings
    from shortlist.text.tokenizer import other_tokens

    identity(folder)  # raises if it is unfinished
    if (made := made_by(folder)) is not None and not same_identity(made, model.identity):
        raise UserError(
            f"{folder}: its vectors were not made by what --model {model.name} holds now; encode again, or name "
            "the model that made them."
        )
    manifest = read_manifest(folder) or {}
    form = model.contract("document", contract)
    if manifest.get("stage") == "encode":
        config = manifest["config"]
        form = segment_contract(form.with_prompt("document", config.get("prompt")), **segment_settings(manifest))
        form = form.with_dims(config.get("dims"))
    if manifest.get("made_from", {}).get("contract", form.of_documents()) != form.of_documents():
        was = manifest["config"].get("contract") or "the model's own"
        raise UserError(
            f"{folder}: its vectors were made with the input contract {was}, which is not what --contract "
            f"{contract or '(the model has its own)'} is now; search with the same."
        )
    if why := other_tokens(_tokens_of(folder), lambda: model.tokenizer):
        raise UserError(f"{folder}: {why}; encode again.")


def _tokens_of(folder: Path) -> dict[str, str] | None:
    """Return what the tokens of a folder's texts depended on, if recorded."""
    manifest = read_manifest(folder) or {}
    store = manifest.get("config", {}).get("vectors")
    if manifest.get("stage") == "index":
        return _tokens_of(Path(store)) if store and Path(store).is_dir() else None
    return manifest.get("decided", {}).get("tokens")


def open_vectors(index: Path | None, how: Opening | None = None, *, engine: Engine = "local") -> VectorIndex:
    """Open vectors for exact search, or an index over vectors.

    Vectors of segments are searched for whole documents.

    Args:
        index: an index over vectors (None: exact search over `how.vectors`).
        how: the effort of an approximate search, the memory it may take, and where the vectors are now.
        engine: `ray` scans the vectors on a cluster, for exact search only.

    Raises:
        UserError: the same as for `open_index`, or the engine cannot search an index of this kind.
    """
    from shortlist.index.flat import FlatIndex, exact_index
    from shortlist.index.scattered import ScatteredIndex
    from shortlist.index.segmented import SegmentIndex

    how = how or Opening()
    path = index or how.vectors
    if path is None:
        raise ValueError("neither an index nor vectors to open")
    check_held(path, "vectors")
    opened = (
        open_index(path, how) if index else exact_index(path, memory_gib=how.memory_gib, dims=how.dims, unit=how.unit)
    )
    if engine != "local" and how.dims is not None:
        raise UserError(f"--engine ray searches vectors as they are stored; encode them with --dims {how.dims}.")
    if engine != "local":
        if not isinstance(opened, FlatIndex):
            raise UserError(f"--engine ray searches vectors exactly; {path} is an index of another kind.")
        opened = ScatteredIndex(opened, engine=engine)
    return SegmentIndex(opened) if holds_segments(path) else opened


def open_tokens(index: Path | None, how: Opening | None = None, *, engine: Engine = "local") -> TokenIndex:
    """Open token vectors for exact search, or an index over token vectors.

    Args:
        index: an index over token vectors (None: exact search over `how.vectors`).
        how: the effort of a pruned search, the memory it may take, and where the vectors are now.
        engine: `ray` scans the vectors on a cluster, for exact search only.

    Raises:
        UserError: the same as for `open_index`, there is one vector for each document, or the engine cannot search an
            index of this kind.
    """
    from shortlist.data.stores.tokens import TokenReader
    from shortlist.index.late import LateIndex
    from shortlist.index.scattered import ScatteredTokens

    how = how or Opening()
    path = index or how.vectors
    if path is None:
        raise ValueError("neither an index nor vectors to open")
    check_held(path, "tokens")
    opened = open_index(path, how) if index else LateIndex(TokenReader(path), memory_gib=how.memory_gib)
    if engine == "local":
        return opened
    if not isinstance(opened, LateIndex):
        raise UserError(f"--engine ray searches token vectors exactly; {path} is an index of another kind.")
    return ScatteredTokens(opened, engine=engine)


def open_terms(index: Path | None, how: Opening | None = None) -> TermIndex:
    """Open term weights for exact search, or an index over term weights.

    Args:
        index: an index over term weights (None: one that is made now in memory, of `how.vectors`).
        how: the effort of an approximate search, the terms of a query to search by, and where the store is now.

    Raises:
        UserError: the same as for `open_index`, or the store holds no term weights.
    """
    from shortlist.data.stores.terms import TermReader
    from shortlist.index.sparse import SparseIndex

    how = how or Opening()
    path = index or how.vectors
    if path is None:
        raise ValueError("neither an index nor term weights to open")
    check_held(path, "terms")
    return open_index(path, how) if index else SparseIndex(TermReader(path), query_terms=how.query_terms)


def searching(index: Path | None) -> tuple[str, ...]:
    """Return which of `effort` and `refine` a search of an index has.

    Args:
        index: a finished index (None: exact search over vectors, which has neither).
    """
    if index is None or (read_manifest(index) or {}).get("config", {}).get("exact"):
        return ()
    return find_kind(kind_of(index)).searching


def check_searching(index: Path | None, how: Opening) -> None:
    """Refuse an effort or refinement that would change nothing.

    Raises:
        UserError: the search of this index, or the exact search without one, has no such setting.
    """
    for name in ("effort", "refine"):
        if getattr(how, name) is not None and name not in searching(index):
            found = "vectors without an index" if index is None else f"{index}, an index of kind {kind_of(index)},"
            raise UserError(f"--{name}: {found} cannot be searched with more or less of it; leave it out.")


def open_index(folder: Path, how: Opening | None = None) -> Any:
    """Open a finished index of any kind.

    If the vectors have changed since it was built, this prints a message.

    Returns:
        A VectorIndex or, over token vectors or term weights, a TokenIndex or TermIndex, which searches by a model's
        output for the queries, if the kind needs a model; otherwise a FirstStage.

    Raises:
        UserError: the index is not finished, its vectors are missing, or they are not the vectors that it was built
            from.
    """
    how, kind = how or Opening(), find_kind(kind_of(folder))
    manifest = read_manifest(folder) or {}
    if kind.reads == "corpus":
        return kind.open(folder, manifest["config"], how)
    store = how.vectors or Path(manifest["config"]["vectors"])
    older = store.exists() and identity(store) != manifest["made_from"]["vectors"]
    if older and kind.exact:
        way = "run the same `shortlist index`" if kind.updates else "build it with `shortlist index --overwrite`"
        raise UserError(f"{folder}: is older than {store}, whose documents it must hold exactly; {way} again.")
    index = kind.open(folder, manifest["config"], replace(how, vectors=store))
    if older:
        missing = getattr(index, "missing", None)
        lacks = "" if missing is None else f"{missing:,} new documents are not in it; "
        way = "`shortlist index` with the same settings" if kind.updates else "`shortlist index --overwrite`"
        say(f"{folder}: is older than {store}; {lacks}{way} brings it up to date.")
    return index


def say_if_older(folder: Path, collection: str) -> None:
    """Print a message if an index or vectors were made from another corpus."""
    source = _source_of(folder)
    if source != folder:
        say_if_older(source, collection)
    elif is_older(folder, collection):
        stage = (read_manifest(folder) or {})["stage"]
        way = "`shortlist encode --update`" if stage == "encode" else f"`shortlist {stage}` with the same settings"
        say(f"{folder}: was not made from what {collection} holds now; {way} brings it up to date.")


def is_older(folder: Path, collection: str) -> bool:
    """Whether an index or vectors are known to be made from another corpus."""
    manifest = read_manifest(_source_of(folder)) or {}
    made_from, config = manifest.get("made_from", {}), manifest.get("config", {})
    names = (str(config.get("collection")), collection)
    if "collection" not in made_from or any(name.startswith(("irds:", "hf:")) for name in names):
        return False  # these are known by other means, so the same documents would have two identities
    return made_from["collection"] != open_collection(collection).identity("corpus")


def _source_of(folder: Path) -> Path:
    """Return the vectors of an index, or the folder itself without them."""
    manifest = read_manifest(folder) or {}
    vectors = manifest.get("config", {}).get("vectors") if "vectors" in manifest.get("made_from", {}) else None
    return Path(vectors) if vectors and Path(vectors).is_dir() else folder


def made_by(folder: Path) -> str | None:
    """Return the identity of the model that made a folder's vectors, if recorded."""
    manifest = read_manifest(folder) or {}
    if manifest.get("stage") == "encode":
        return manifest["made_from"].get("model")
    return manifest.get("results", {}).get("model")


def kept_dims(folder: Path) -> int | None:
    """Return the dimension that a folder's vectors were cut to when encoded, if they were."""
    manifest = read_manifest(folder) or {}
    return manifest.get("config" if manifest.get("stage") == "encode" else "results", {}).get("dims")


def dims_to_search(folder: Path, wanted: int | None) -> tuple[int | None, int | None]:
    """Decide to how many dimensions queries are cut, and stored vectors when read.

    Args:
        folder: a store of vectors, or an index over one.
        wanted: the dimensions to search by (None: all that are stored).

    Raises:
        UserError: the vectors have fewer, or are in an index and have more.
    """
    kept, manifest = kept_dims(folder), read_manifest(folder) or {}
    stored = manifest.get("results", {}).get("dim", wanted)
    if wanted is None or wanted == kept:
        return kept, None
    if wanted == stored:
        return wanted, None
    if wanted > stored or manifest.get("stage") == "index":
        raise UserError(
            f"{folder}: holds vectors of {stored} dimensions, --dims is {wanted}; "
            f"{'encode again' if wanted > stored else 'index vectors encoded'} with --dims {wanted}."
        )
    return wanted, wanted


class Held(NamedTuple):
    """A kind of store, in words, and the search for it."""

    words: str
    find: str
    """The finder in a pipeline."""
    kinds: str
    """The kinds of index over it, in words."""


HELD = {
    "vectors": Held("one vector for each document", "dense", "another kind"),
    "tokens": Held("token vectors, many for each document", "late", "--kind late, or --kind narrow"),
    "terms": Held("term weights", "sparse", "--kind sparse, or --kind seismic"),
}
"""What stores hold, by kind."""


def held(folder: Path) -> str:
    """Return the kind of a store, or of an index's store: a key of HELD."""
    manifest = read_manifest(folder) or {}
    results = manifest.get("results", {})
    if manifest.get("stage") == "index" or (manifest.get("stage") == "encode" and "dim" in results):
        return "tokens" if "num_tokens" in results else "terms" if "num_terms" in results else "vectors"
    from shortlist.data.stores.shards import finished_shards, store_kind

    return store_kind(folder) if finished_shards(folder) else "vectors"


def check_held(folder: Path, wanted: str) -> None:
    """Refuse a store or an index that does not hold what a search needs.

    Raises:
        UserError: it holds another kind.
    """
    if (found := held(folder)) != wanted and found in HELD:
        raise UserError(
            f"{folder}: holds {HELD[found].words}, not {HELD[wanted].words}; search it with `find: {HELD[found].find}`."
        )


def holds_segments(folder: Path) -> bool:
    """Whether the vectors of a store or an index are vectors of segments."""
    manifest = read_manifest(folder) or {}
    if manifest.get("stage") == "encode":
        return manifest["config"].get("segments") == "maxp"
    return manifest.get("results", {}).get("segments", False)
