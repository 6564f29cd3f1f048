"""Descriptions of pipelines, read from YAML or from flags, with every field checked.

Flags are a shorthand for a description in YAML.
"""

import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from shortlist.config import SpeedOnly, flag_of, keyword_types, load_yaml
from shortlist.data.rules import read_rule
from shortlist.engine import Engine
from shortlist.errors import UserError, unknown
from shortlist.index.kinds import find_kind
from shortlist.index.opening import HELD, held, kind_of, needs_model, searching
from shortlist.math.fusion import FUSIONS
from shortlist.pipeline.diversifiers import SEARCHING
from shortlist.pipeline.steps import STEPS, StepKind

TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}
OPTIONS = {"of": tuple[str, ...], "depth": int, "share": float, "drop": float, "search": str}
"""Options of a step, besides the settings of its method."""
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


class Part(NamedTuple):
    """A step of a description."""

    name: str
    kind: str
    """A key of `STEPS`."""
    method: str
    """Method of the kind, such as `bm25` in `find: bm25`."""
    settings: Mapping[str, Any] = {}
    """Settings of the method."""
    of: tuple[str, ...] = ()
    depth: int | None = None
    share: float = 1.0
    drop: float = 1.0
    search: str | None = None
    """The first stage that the step searches again."""


OWN_WORDS = Part("bm25", "find", "bm25")
"""The step that searches the words of a collection's own index."""


class Description(NamedTuple):
    """A pipeline as it is written in a YAML file.

    A step that finds documents but names no index searches the collection's own (`pipeline.own`).
    """

    steps: tuple[Part, ...]
    """The steps in order; they may read earlier steps, and the last step's run is the answer."""
    collection: str | None = None
    """Folder, `irds:` or `hf:` name."""
    budget_ms: float | None = None
    """Most milliseconds that a query is expected to take (None: as the steps are described)."""
    costs: Path | None = None
    """With a budget: costs.json of `shortlist tune`, which says what can be had for how much."""


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


def read_description(path: str | Path, *, collection: str | None = None) -> Description:
    """Read the description in a YAML file.

    Args:
        path: the file, or what would be in it as JSON, as steps of a recipe have it.
        collection: replaces the collection in the file.

    Raises:
        UserError: a field is missing, unknown, or does not fit.
    """
    if str(path).lstrip().startswith("{"):
        return parse_description(json.loads(str(path)), where="pipeline", collection=collection)
    return parse_description(load_yaml(Path(path)), where=str(path), collection=collection)


def parse_description(content: Mapping[str, Any], *, where: str, collection: str | None = None) -> Description:
    """Parse a description from a mapping.

    Args:
        where: the mapping's name in errors.
        collection: replaces the collection in the mapping.

    Raises:
        UserError: as for `read`.
    """
    for name in content:
        if name not in Description._fields:
            raise UserError(f"{where}: {unknown('field', str(name), Description._fields)}")
    found, steps = content.get("collection"), content.get("steps")
    if not isinstance(found, str | None):
        raise UserError(f"{where}: collection is {found!r}; expected a folder, `irds:` or `hf:` name.")
    budget = _budget(content, where)
    if "steps" not in content and (collection or found):
        return Description((OWN_WORDS,), collection or found, *budget)
    if not isinstance(steps, Mapping) or not steps:
        raise UserError(f"{where}: steps is {steps!r}; expected names with a step each, see docs/pipelines.md.")
    parts: list[Part] = []
    for name, given in steps.items():
        parts.append(_part(str(name), given, parts, f"{where}: steps.{name}"))
    return _checked(Description(tuple(parts), collection or found, *budget), where)


def _budget(content: Mapping[str, Any], where: str) -> tuple[float | None, Path | None]:
    """Read the budget and the file of costs that go with it."""
    wanted = {"budget_ms": float, "costs": Path}
    budget, costs = (
        None if content.get(name) is None else convert(content[name], wanted[name], f"{where}: {name}")
        for name in wanted
    )
    return budget, costs


def written(description: Description) -> dict[str, Any]:
    """Write a description as a mapping that `parse` reads back."""
    steps = {}
    for part in description.steps:
        said: dict[str, Any] = {part.kind: part.method}
        said |= {name: _plain(value) for name, value in part.settings.items()}
        said |= {"of": list(part.of)} if part.of else {}
        said |= {"search": part.search} if part.search else {}
        said |= {"depth": part.depth} if part.depth is not None else {}
        said |= {name: value for name in ("share", "drop") if (value := getattr(part, name)) != 1}
        steps[part.name] = said
    said = {name: _plain(getattr(description, name)) for name in ("collection", "budget_ms", "costs")}
    return {name: value for name, value in said.items() if value is not None} | {"steps": steps}


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
    _check_ranges(last, FLAGS.__getitem__)
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
        _check_ranges(part, FLAGS.__getitem__)
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


def _part(name: str, fields: Any, earlier: Sequence[Part], where: str) -> Part:
    if not isinstance(fields, Mapping):
        raise UserError(f"{where} is {fields!r}; expected settings, such as {{find: bm25, index: work/bm25}}.")
    kinds = [field for field in fields if field in STEPS]
    if fields and not kinds:
        raise UserError(f"{where}: {unknown('kind of step', str(next(iter(fields))), STEPS)}")
    if len(kinds) != 1:
        found = ", ".join(map(str, fields)) or "nothing"
        raise UserError(f"{where}: found {found}; expected one of {', '.join(STEPS)}, and its settings.")
    kind, method = STEPS[kinds[0]], fields[kinds[0]]
    methods = kind.methods()
    if not isinstance(method, str) or method not in methods:
        raise UserError(f"{where}: {unknown(kinds[0], str(method), methods)}")
    what = f"{kinds[0]}: {method}"
    known = known_settings(methods[method])
    options = {option: OPTIONS[option] for option in _options(kind) if option not in known}
    values: dict[str, Any] = {}
    for field, value in fields.items():
        if field == kinds[0]:
            continue
        if field not in known and field not in options:
            raise UserError(f"{where}: {unknown(f'setting of `{what}`', str(field), [*known, *options])}")
        wanted = known[field][0] if field in known else options[field]
        values[field] = convert(value, wanted, f"{where}: {field}")
    for field, (_, needed) in known.items():
        if needed and field not in values:
            raise UserError(f"{where}: {field} is missing; `{what}` takes it.")
    chosen = {option: values.pop(option) for option in options if option in values}
    chosen["of"] = _read_by(kind, chosen.get("of"), earlier, where)
    if kind.searches:
        chosen["search"] = _searched_by(chosen.get("search"), chosen["of"], earlier, where)
    return Part(name, kinds[0], method, values, **chosen)


def _options(kind: StepKind) -> list[str]:
    """List the options of this kind of step, besides the settings of its method."""
    reads = [] if kind.num_read == 0 else ["of"]
    return [*reads, "depth", *(["share", "drop"] if kind.mixes else []), *(["search"] if kind.searches else [])]


def known_settings(method: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """List a method's settings, with their types and whether they are required."""
    return {name: found for name, found in keyword_types(method).items() if can_be_written(found[0])}


def can_be_written(wanted: Any) -> bool:
    """Whether a value of this type can stand in a description."""
    origin, choices = get_origin(wanted), [choice for choice in get_args(wanted) if choice not in (type(None), ...)]
    if origin in (Union, types.UnionType):
        return any(map(can_be_written, choices))
    if origin in (tuple, Sequence):
        return all(map(can_be_written, choices))
    return origin is Literal or wanted in TYPE_NAMES


def convert(value: Any, wanted: Any, where: str) -> Any:
    """Convert a value from YAML to the wanted type.

    Raises:
        UserError: the value does not fit the type.
    """
    origin, choices = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        return convert(value, next(choice for choice in choices if can_be_written(choice)), where)
    if origin is Literal:
        if value not in choices:
            raise UserError(f"{where}: {unknown('value', str(value), map(str, choices))}")
        return value
    if origin is not None and issubclass(origin, Sequence):  # of numbers, or of names
        if isinstance(value, str) and choices[0] is str:
            return (value,)
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
            raise UserError(f"{where} is {value!r}; expected a list, such as [a, b].")
        return tuple(convert(item, choices[0], where) for item in value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise UserError(f"{where} is {value!r}; expected {TYPE_NAMES[wanted]}.")
    return value


def _read_by(kind: StepKind, of: Sequence[str] | None, earlier: Sequence[Part], where: str) -> tuple[str, ...]:
    """Find the steps that a step reads.

    By default it reads the step before it or, if its kind reads several, all steps that no other step reads yet.
    """
    names = [part.name for part in earlier]
    if of is None:
        unread = [name for name in names if not any(name in part.of for part in earlier)]
        of = () if kind.num_read == 0 else unread if kind.num_read is None else names[-1:]
    for name in of:
        if name not in names:
            raise UserError(f"{where}: of: {unknown('earlier step', name, names)}")
    expected = "two or more earlier steps" if kind.num_read is None else f"{kind.num_read} earlier step"
    if len(set(of)) != len(of) or (len(of) < 2 if kind.num_read is None else len(of) != kind.num_read):
        raise UserError(f"{where}: reads {', '.join(of) or 'no step'}; expected {expected}, each once, in `of`.")
    return tuple(of)


def _searched_by(search: str | None, of: Sequence[str], earlier: Sequence[Part], where: str) -> str:
    """Find the first stage that a step searches again.

    It is the one named, or the only one that the step's run came from. A step that reads no run
    searches the first stage before it.
    """
    names = [part.name for part in earlier if _can_be_searched(part)]
    if search is not None:
        if search not in names:
            raise UserError(f"{where}: search: {unknown('earlier step that finds documents', search, names)}")
        return search
    found = sources_of(of, earlier) if of else names[-1:]
    if len(found) != 1:
        raise UserError(
            f"{where}: search is missing: its documents come from {' and '.join(found) or 'no step'}; say which first "
            f"stage to search again ({', '.join(names) or 'there is none'})."
        )
    return found[0]


def sources_of(names: Sequence[str], steps: Sequence[Part]) -> list[str]:
    """List the first stages that the runs of some steps came from."""
    named, queue = {part.name: part for part in steps}, list(names)
    for name in queue:
        part = named[name]
        queue += [other for other in ([part.search] if part.search else part.of) if other not in queue]
    return [name for name in queue if _can_be_searched(named[name])]


def _can_be_searched(part: Part) -> bool:
    return STEPS[part.kind].num_read == 0 and not STEPS[part.kind].searches


def _checked(description: Description, where: str) -> Description:
    """Check numbers and cuts, and that all steps lead to the last one."""
    for part in description.steps:
        _check_ranges(part, lambda field, name=part.name: f"{where}: steps.{name}: {field}")
        _check_cut(part, description.steps, f"{where}: steps.{part.name}")
        finder_before(part, description.steps, f"{where}: steps.{part.name}")
    read = {name for part in description.steps for name in (*part.of, part.search)}
    for part in description.steps[:-1]:
        if part.name not in read:
            raise UserError(f"{where}: steps.{part.name} is read by no later step; fuse it, or leave it out.")
    return description


def _check_cut(part: Part, steps: Sequence[Part], where: str) -> None:
    """Refuse a cut by scores that only count down."""
    before = part
    while before.kind == "cut":
        before = next(step for step in steps if step.name == before.of[0])
    if before != part and STEPS[before.kind].counts_down and _cuts_by(part) != "rank":
        raise UserError(
            f"{where}: `cut: {part.method}` looks at scores, and those of {before.name} (`{before.kind}`) only count "
            "down; cut before that step, or by rank."
        )


def finder_before(part: Part, steps: Sequence[Part], where: str) -> str | None:
    """Return the name of the step that searches a step's sub-queries, if it has any.

    Raises:
        UserError: the step builds on several first stages.
    """
    if part.kind != "diversify" or part.method not in SEARCHING:
        return None
    finders = [step.name for step in before(part, steps) if step.kind == "find"]
    if len(finders) > 1:
        raise UserError(
            f"{where}: `diversify: {part.method}` searches its sub-queries by the `find` before it, and there are "
            f"{len(finders)} ({', '.join(finders)}); leave one, or give `shortlist diversify` a run of the sub-queries."
        )
    return finders[0]


def before(part: Part, steps: Sequence[Part]) -> list[Part]:
    """Return the steps that a step builds on."""
    named, needed = {step.name: step for step in steps}, list(part.of)
    for name in needed:
        needed += [other for other in named[name].of if other not in needed]
    return [named[name] for name in needed]


def _cuts_by(part: Part) -> str:
    """Return what a cut looks at, one of `data.rules.CUT_BY`."""
    return part.method if part.method != "rule" else read_rule(part.settings["rule"]).by


def _check_ranges(part: Part, called: Callable[[str], str]) -> None:
    """Refuse numbers out of range, from a file or from flags."""
    weights: Any = part.settings.get("weights")
    if part.depth is not None and part.depth < 1:
        raise UserError(f"{called('depth')} is {part.depth}; expected 1 or more.")
    for field in ("share", "drop"):
        if not 0 <= getattr(part, field) <= 1:
            raise UserError(f"{called(field)} is {getattr(part, field)}; expected 0 to 1.")
    if weights is None:
        return
    if len(weights) != len(part.of):
        found = f"{len(weights)} numbers for {len(part.of)} first stages"
        raise UserError(f"{called('weights')} has {found}; expected as many.")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        numbers = ", ".join(f"{weight:g}" for weight in weights)
        raise UserError(f"{called('weights')} is {numbers}; expected finite numbers, none below 0.")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
