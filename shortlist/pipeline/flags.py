"""Flags that are a shorthand for the description of a pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shortlist.config import SpeedOnly, flag_of, keyword_types
from shortlist.engine import Engine
from shortlist.errors import UserError, unknown
from shortlist.index.kinds import find_kind
from shortlist.index.opening import HELD, held, kind_of, needs_model, searching
from shortlist.math.fusion import FUSIONS
from shortlist.pipeline.spec import OWN_WORDS, Description, Part, check_ranges, parse_description, read_description

OF_FINDERS = {
    "dims": "one vector of each document",
    "memory_gib": "vectors",
    "query_terms": "term weights",
}
"""Settings of some searches by a model, with the stores that they are for."""
OF_A_MODEL = ("contract", "query_length", "prompt", "dims", "effort", "refine", "query_terms")
"""Flags that say how a model's output is searched."""
SPEED_ONLY = ("memory_gib",)
"""Settings that are left out in silence where they mean nothing."""
FLAG_DEFAULTS = {"reranker_share": 1.0}
FLAGS = {"depth": "--depth", "share": "--reranker-share", "weights": "--weights"}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Flags for the indexes and vectors to search, a shorthand for a description."""

    index: tuple[Path, ...] = ()
    """Indexes from `shortlist index`, over words or vectors; several are fused. Without any, and without --vectors, the
    collection's own index is searched: it is built on first use and kept up to date."""
    model: str | None = None
    """Retriever that made the vectors: folder or hub name. With neither --vectors nor --index the collection's own
    vectors are searched besides its words."""
    vectors: Path | None = None
    """Vectors from `shortlist encode`, to search exactly or, with an index over them, to say where they are now."""
    contract: str | None = None
    """Input contract by name, for a model folder without one."""
    query_length: int | None = None
    """Most tokens of a query (None: the model's limit)."""
    language: str | None = None
    """Language of the words of the collection's own index, as in `shortlist index` (None: as it is, at first
    english)."""
    prompt: str | None = None
    """Name of a prompt of the model's contract, in place of that of its queries."""
    dims: int | None = None
    """Numbers to compare of each vector, the first ones (None: all that are stored); vectors with more are cut when
    they are read."""
    memory_gib: SpeedOnly[float | None] = None
    """Most GiB of memory for vectors at a time (None: half of the free memory); vectors may be many times larger."""
    effort: int | None = None
    """Effort of approximate search per query: lists for ivf, candidates for other kinds (None: the index's setting)."""
    refine: int | None = None
    """Candidates to score exactly, in multiples of --k (None: the index's setting)."""
    query_terms: int | None = None
    """Terms of a query to search by, the heaviest, over term weights of a sparse model (None: all)."""
    fusion: str = "rrf"
    """Method to fuse several first stages: rrf, weighted, zscore or merge, as in `shortlist fuse`."""
    weights: tuple[float, ...] | None = None
    """Weight of each first stage: the --index paths in the order given, then --vectors."""
    engine: SpeedOnly[Engine] = "local"
    """`ray`: scan vectors exactly on a Ray cluster, whose nodes must all have them at the same path."""


def from_flags(
    sources: Sources,
    *,
    collection: str | None = None,
    reranker: str | None = None,
    reranker_contract: str | None = None,
    depth: int | None = None,
    reranker_share: float = 1.0,
) -> Description:
    """Make the description that flags are a shorthand for.

    The first stages are called by their sort, such as `bm25` and `dense`. If there are several of one sort, the name of
    their folder is added. The step that fuses them is called `hybrid`, and the last step `reranker`.

    Args:
        depth: number of candidates to rerank.
        reranker_share: weight of the reranker's scores.

    Raises:
        UserError: there is nothing to search with, or flags do not go together.
    """
    last = Part("reranker", "rank", "pointwise", {}, (), depth, reranker_share)
    check_ranges(last, FLAGS.__getitem__)
    if not reranker and (depth is not None or reranker_share != 1):
        raise UserError("--depth and --reranker-share are a reranker's; name one with --reranker.")
    if not reranker and reranker_contract is not None:
        raise UserError("--reranker-contract is a reranker's; name one with --reranker.")
    if sources.fusion not in FUSIONS:
        raise UserError(f"--fusion: {unknown('fusion', sources.fusion, FUSIONS)}")
    own = collection is not None and not sources.index and not sources.vectors
    parts = _own_first_stages(sources) if own else _named_first_stages(sources)
    _refuse_idle(sources, parts)
    if len(parts) > 1:
        weights = {} if sources.weights is None else {"weights": sources.weights}
        parts.append(Part("hybrid", "fuse", sources.fusion, weights, tuple(part.name for part in parts)))
    if reranker:
        settings = {"model": reranker} | ({"contract": reranker_contract} if reranker_contract else {})
        parts.append(last._replace(settings=settings, of=(parts[-1].name,)))
    for part in parts:
        check_ranges(part, FLAGS.__getitem__)
    return Description(tuple(parts), collection)


def _own_first_stages(sources: Sources) -> list[Part]:
    """Describe the search of a collection's own words and, with a model, vectors."""
    settings = {} if sources.language is None else {"language": sources.language}
    words = OWN_WORDS._replace(settings=settings)
    if not sources.model:
        return [words]
    sort = _sort_of(sources.model, sources.contract)
    return [words, Part(sort, "find", sort, _over_vectors(sort, sources, None))]


def _sort_of(model: str, contract: str | None) -> str:
    """Return the finder for what a model gives."""
    from shortlist.models.folder import open_folder
    from shortlist.pipeline.loading import finder_of

    folder = open_folder(model, wanted="retriever", weights=False)
    return finder_of(folder.contract("document", contract))


def _named_first_stages(sources: Sources) -> list[Part]:
    """Describe the search of the indexes and vectors that flags name."""
    if sources.language is not None:
        raise UserError("--language is of the collection's own index; an --index was built with one.")
    for path in sources.index:
        if finder := find_kind(kind_of(path)).finder:
            raise UserError(
                f"--index {path}: an index of kind {kind_of(path)}; search it by a --pipeline with `find: {finder}`."
            )
    over_vectors = [path for path in sources.index if needs_model(path)]
    if sources.vectors and not over_vectors:
        over_vectors = [sources.vectors]
    _refuse_half(sources, over_vectors)
    paths = list(dict.fromkeys([*sources.index, *over_vectors]))
    if not paths:
        raise UserError("nothing to search with: give --collection, or --index, or --model and --vectors.")
    by_model = {path: HELD[held(path)].find for path in over_vectors}
    sorts = [by_model.get(path) or kind_of(path) for path in paths]
    return [
        Part(name, "find", sort, _over_vectors(sort, sources, path, over_vectors))
        if path in over_vectors
        else Part(name, "find", "bm25" if sort == "bm25" else "index", {"index": path})
        for name, sort, path in zip(_names(sorts, paths), sorts, paths, strict=True)
    ]


def from_file_or_flags(
    pipeline: str | Path | Mapping[str, Any] | None, sources: Sources, *, collection: str | None, **options: Any
) -> Description:
    """Read the description from a file if one is given, otherwise from the flags.

    Args:
        pipeline: a YAML file, or its content.
        options: as for `from_flags`.

    Raises:
        UserError: as for `read` and `from_flags`, or if both are given.
    """
    if pipeline is None:
        return from_flags(sources, collection=collection, **options)
    given = [field.name for field in fields(Sources) if getattr(sources, field.name) != field.default]
    given += [name for name, value in options.items() if value != FLAG_DEFAULTS.get(name)]
    if given:
        flags = ", ".join(map(flag_of, given))
        raise UserError(f"--pipeline says what is searched; leave out {flags}, or write it down there.")
    if isinstance(pipeline, Mapping):
        return parse_description(pipeline, where="pipeline", collection=collection)
    return read_description(pipeline, collection=collection)


def _refuse_half(sources: Sources, over_vectors: Sequence[Path]) -> None:
    """Refuse vectors without their model, and a model without vectors."""
    if bool(over_vectors) == bool(sources.model):
        return
    given, wanted = "--model", "--vectors or an --index over vectors"
    if over_vectors:
        given, wanted = "--vectors" if over_vectors[0] == sources.vectors else f"--index {over_vectors[0]}", given
    raise UserError(f"{given} without {wanted}: searching vectors takes the model that made them.")


def _refuse_idle(sources: Sources, parts: Sequence[Part]) -> None:
    """Refuse flags that would change nothing in these first stages."""
    for name in OF_A_MODEL:
        if not sources.model and getattr(sources, name) is not None:
            raise UserError(f"{flag_of(name)} is for a search with a --model, and there is none; leave it out.")
    for name in ("fusion", "weights"):
        if len(parts) == 1 and getattr(sources, name) != getattr(Sources, name):
            raise UserError(f"{flag_of(name)} is for several first stages, and there is one; leave it out.")


def _over_vectors(sort: str, sources: Sources, path: Path | None, others: Sequence[Path] = ()) -> dict[str, Any]:
    """Collect the settings of a search by a model's output.

    Args:
        others: all that is searched so; what is a setting of one of them is passed to no search that lacks it.
    """
    from shortlist.pipeline.loading import FINDERS

    index = None if path == sources.vectors else path
    elsewhere = {name for other in others if other != path for name in searching(other)}
    approximate = [name for name in ("effort", "refine") if name not in elsewhere or name in searching(index)]
    names = ("model", "vectors", "contract", "query_length", "prompt", *OF_FINDERS, *approximate)
    settings = {name: value for name in names if (value := getattr(sources, name)) is not None}
    settings |= {"engine": sources.engine} if sources.engine != "local" else {}
    known = keyword_types(FINDERS[sort])
    for name in settings:
        if name not in known:
            if name in SPEED_ONLY:
                continue
            raise UserError(
                f"{flag_of(name)} is for {OF_FINDERS.get(name, 'one vector of each document')}; leave it out."
            )
    settings = {name: value for name, value in settings.items() if name in known}
    return settings if index is None else settings | {"index": index}


def _names(sorts: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Choose a unique name for each first stage."""
    names: list[str] = []
    for sort, path in zip(sorts, paths, strict=True):
        name = sort if sorts.count(sort) == 1 else f"{sort}-{path.name}"
        names.append(name if name not in names else f"{name}-{len(names)}")
    return names
