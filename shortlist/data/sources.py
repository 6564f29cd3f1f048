"""Recognition of sources: documents, collections, pickled vectors, training data and click logs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shortlist.data.clicks import may_be_clicks
from shortlist.data.collections import open_collection
from shortlist.data.feedback import may_be_feedback
from shortlist.data.pickles import is_pickle
from shortlist.data.reading.finding import are_documents
from shortlist.data.triplets import is_header, layout_of, may_be_training, read_rows
from shortlist.errors import UserError, unknown

COLLECTION = "a collection"
PICKLED_VECTORS = "pickled vectors"
STORE = "a store of vectors"
CLICKS = "a click log"
FEEDBACK = "feedback on lists"
DOCUMENTS = "documents"
"""Contents that a source may have, besides training data in one of its layouts."""


class SourceKind(NamedTuple):
    """A kind of records, as `--as` calls it."""

    may_be: Callable[[Any, Mapping[str, str]], bool]
    """Whether a first record may be of this kind; the names of columns that the user gives are by kind of column."""
    layout: Callable[[str], str]
    """Finds the layout of a source."""
    containers: tuple[str, ...] = ()
    """What else a source of this kind may be."""


SOURCE_KINDS = {
    "documents": SourceKind(lambda record, _: False, lambda _: DOCUMENTS, (DOCUMENTS,)),
    "training": SourceKind(lambda record, _: may_be_training(record), layout_of, (COLLECTION, PICKLED_VECTORS, STORE)),
    "clicks": SourceKind(
        lambda record, given: isinstance(record, dict) and may_be_clicks(record, given), lambda _: CLICKS
    ),
    "feedback": SourceKind(lambda record, _: may_be_feedback(record), lambda _: FEEDBACK),
}


def common_layout(sources: Sequence[str], kind: str | None, columns: Mapping[str, str]) -> str:
    """Find the layout of all sources: one of triplets.Layout, or of the constants above.

    Args:
        kind: a name of SOURCE_KINDS; None tells it from the first record.
        columns: names of columns that the user gives, by kind.

    Raises:
        UserError: no source, one that cannot be read, of no known layout or of several kinds, or sources that differ.
    """
    if not sources:
        raise UserError("no source is named; expected a collection, or one or more files.")
    if kind is not None and kind not in SOURCE_KINDS:
        raise UserError(f"--as: {unknown('kind of source', kind, SOURCE_KINDS)}")
    first, *others = [(source, _layout(source, kind, columns)) for source in sources]
    for source, layout in others:
        if layout != first[1]:
            raise UserError(f"{source}: holds {layout}, but {first[0]} {first[1]}; convert them one at a time.")
    return first[1]


def _layout(source: str, kind: str | None, columns: Mapping[str, str]) -> str:
    container = _container(source)
    if container is None:
        return SOURCE_KINDS[kind or _guess(source, columns)].layout(source)
    if kind is not None and container not in SOURCE_KINDS[kind].containers:
        raise UserError(f"{source}: holds {container}; expected files or an `hf:` name, as --as is {kind}.")
    return container


def _container(source: str) -> str | None:
    """Return the layout of a source that is no file of records, or None."""
    if source.startswith("irds:"):
        return COLLECTION
    if any(Path(source).glob("shard-*.json")):
        return STORE
    if are_documents(Path(source)):
        return DOCUMENTS
    if Path(source).is_dir():
        return COLLECTION
    if source.startswith("hf:"):
        return COLLECTION if open_collection(source).splits() else None
    return PICKLED_VECTORS if is_pickle(Path(source)) else None


def _guess(source: str, columns: Mapping[str, str]) -> str:
    """Tell the kind of a source from its first record.

    One that fits none is called training data, whose reader says what it lacks.
    """

    def names_columns(names: Collection[str]) -> bool:
        return is_header(names) or may_be_clicks(names, columns)

    record = next(read_rows(source, lambda record: record, names_columns), None)
    fit = [name for name, kind in SOURCE_KINDS.items() if kind.may_be(record, columns)]
    if len(fit) > 1:
        raise UserError(
            f"{source}: by its columns ({', '.join(record or ())}) it may be any of {', '.join(fit)}; say which with "
            f"{' or '.join(f'--as {name}' for name in fit)}."
        )
    return fit[0] if fit else "training"
