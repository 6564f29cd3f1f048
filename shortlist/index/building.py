"""Building an index of any kind from a corpus or from vectors."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shortlist.data.collections import open_collection
from shortlist.data.keyed import KeyedCorpus
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError, unknown
from shortlist.index.kinds import IndexKind
from shortlist.index.opening import HELD, held, holds_segments, kept_dims
from shortlist.progress import progress, say, track


def build_index(
    kind: IndexKind,
    source: str | Path,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    expand: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build an index and return the results for its manifest.

    Args:
        source: the collection's name, or the folder of the vectors, whichever the kind reads.
        settings: values for the names in the kind's `settings` and `parameters`.
        expand: what is appended to documents: `how`, `count` and `weights` of `index.expansion.open_expansion`.

    Raises:
        UserError: the kind refuses the source or the settings.
    """
    if kind.reads == "corpus":
        return _over_corpus(kind, source, folder, settings, expand)
    return _over_vectors(kind, source, folder, settings)


def _over_corpus(
    kind: IndexKind, source: str | Path, folder: Path, settings: Mapping[str, Any], expand: Mapping[str, Any] | None
) -> dict[str, Any]:
    collection = open_collection(str(source))
    corpus, given = KeyedCorpus(collection), dict(settings)
    if kind.renew is not None:
        given["keys"] = lambda: bytes(corpus.keys)
    if kind.scoring is not None:
        given["num_docs"] = collection.num_docs()
    documents = track(corpus, "indexing", collection.num_docs(), "documents")
    if expand is None:
        return dict(kind.build(documents, folder, **given))
    from shortlist.index.expansion import Expanded, open_expansion

    start = time.perf_counter()
    append = open_expansion(collection, language=settings["language"], **expand)
    expanded = Expanded(documents, append, seconds=time.perf_counter() - start)
    results = dict(kind.build(expanded, folder, **given))
    for doc_id, appended in expanded.examples.items():
        say(f"index: for example {doc_id}: {'; '.join(appended[:10])}")
    return results | expanded.costs


def renew_index(
    kind: IndexKind, source: str | Path, folder: Path, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Apply only the changes of a corpus to an index, where its kind can.

    The arguments are those of `build_index`; the result is None where the index must be built again.

    Raises:
        UserError: the corpus holds a line that cannot be used.
    """
    if kind.renew is None:
        return None
    results = kind.renew(KeyedCorpus(open_collection(str(source))), folder, **settings)
    return None if results is None else dict(results)


def _over_vectors(kind: IndexKind, source: str | Path, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    vectors = fitting_store(kind, Path(source))
    made = read_manifest(vectors.folder) or {}
    with progress("indexing", vectors.num_docs, "documents") as advance:
        results = kind.build(vectors, folder, advance=advance, **settings)
    model = made.get("made_from", {}).get("model")
    size = COUNTED[held(vectors.folder)](vectors)
    segments = {"segments": True} if holds_segments(vectors.folder) else {}
    kept = {"dims": dims} if (dims := kept_dims(vectors.folder)) is not None else {}
    return {"num_docs": vectors.num_docs, "dim": vectors.dim, "model": model, **size, **segments, **kept, **results}


def fitting_store(kind: IndexKind, folder: Path) -> Any:
    """Open the vectors, token vectors or term weights that an index is built from.

    Raises:
        UserError: there are none, or none of a kind that such an index is built from.
    """
    from shortlist.data.stores.kinds import open_store  # loads torch, which only an index over vectors needs

    found = held(folder)
    if found in HELD and found not in kind.over:
        wanted = " or ".join(HELD[name].words for name in kind.over)
        raise UserError(
            f"{folder}: holds {HELD[found].words}, and this kind of index is built over {wanted}; choose "
            f"{HELD[found].kinds}."
        )
    return open_store(folder)


COUNTED: dict[str, Callable[[Any], dict[str, int]]] = {
    "vectors": lambda store: {},
    "tokens": lambda store: {"num_tokens": store.num_tokens},
    "terms": lambda store: {"num_terms": store.num_terms},
}
"""What an index's manifest says of its store, by the kind of store; `held` reads it."""


def check_parameters_are_known(name: str, kind: IndexKind, parameters: Mapping[str, int]) -> None:
    """Raise UserError for a parameter that the kind of index called `name` does not have."""
    article = "an" if name[0] in "aehio" else "a"
    for parameter in parameters:
        if parameter not in kind.parameters:
            raise unknown(f"parameter of {article} {name} index", parameter, kind.parameters)
